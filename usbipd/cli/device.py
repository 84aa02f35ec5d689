"""How devices and bindings are called in tables and sentences.  Runs in the caller's process."""

from collections.abc import Iterable

from usbipd.cli.table import wrap
from usbipd.cli.units import format_clock
from usbipd.ipc.control_messages import BindingInfo, DeviceInfo


def hardware_id(vendor_id: int, product_id: int) -> str:
    """`VID:PID` as lsusb writes it."""
    return f"{vendor_id:04x}:{product_id:04x}"


def device_name(device: DeviceInfo, *, with_maker: bool = True) -> str:
    """What the device calls itself, marked as simulated if it is and does not say so."""
    words = [word.strip() for word in (device.manufacturer, device.product) if word and word.strip()]
    if len(words) == 2 and (not with_maker or words[1].startswith(words[0])):
        del words[0]  # many products repeat their maker's name
    if not words:
        words.append("(unnamed)")
    if device.simulated and "simulated" not in " ".join(words).lower():
        words.append("(simulated)")
    return " ".join(words)


def device_user(device: DeviceInfo) -> str:
    """Who uses the device now: a client of the network, or drivers of this host."""
    if device.client is not None:
        return device.client
    return ", ".join(sorted(set(device.drivers)))


def binding_name(binding: BindingInfo) -> str:
    """What the binding means: `0781:5581 at 3-1 (Ultra)`."""
    parts = [hardware_id(binding.vendor_id, binding.product_id)]
    if binding.busid is not None:
        parts.append(f"at {binding.busid}")
    elif binding.serial is not None:  # beside a port it tells people nothing
        parts.append(f"with serial number {binding.serial}")
    if binding.product:
        parts.append(f"({binding.product})")
    return " ".join(parts)


def format_failures(devices: Iterable[DeviceInfo], width: int) -> str:
    """Why devices failed, what to try, and when it is tried again."""
    text = ""
    for device in devices:
        if device.error is None:
            continue
        named = device.error.startswith(device.busid)
        text += wrap(device.error, width, "  ", first="" if named else f"{device.busid}: ")
        if device.advice is not None:
            from usbipd.spelling import Spelling  # here: mostly, nothing has failed

            text += wrap(Spelling.here().spell(device.advice), width, "  ", first="  hint: ")
        if device.next_try is not None:
            text += f"  next try: {format_clock(device.next_try)}\n"
    return text
