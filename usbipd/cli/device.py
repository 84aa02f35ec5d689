"""How a device is called in tables and sentences.  Runs in the caller's process."""

from usbipd.ipc.messages import DeviceReport


def hardware_id(vendor_id: int, product_id: int) -> str:
    """`VID:PID` as lsusb writes it."""
    return f"{vendor_id:04x}:{product_id:04x}"


def device_name(device: DeviceReport, *, with_maker: bool = True) -> str:
    """What the device calls itself, marked as simulated if it is and does not say so."""
    words = [word.strip() for word in (device.manufacturer, device.product) if word and word.strip()]
    if len(words) == 2 and (not with_maker or words[1].startswith(words[0])):
        del words[0]  # many products repeat their maker's name
    if not words:
        words.append("(unnamed)")
    if device.simulated and "simulated" not in " ".join(words).lower():
        words.append("(simulated)")
    return " ".join(words)


def device_user(device: DeviceReport) -> str:
    """Who uses the device now: a client of the network, or drivers of this host."""
    if device.client is not None:
        return device.client
    return ", ".join(sorted(set(device.drivers)))
