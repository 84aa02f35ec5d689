"""Names of devices and bindings in tables and sentences.  Runs in the caller's process."""

from collections.abc import Iterable
from typing import Final

from usbipd.cli.table import wrap
from usbipd.cli.units import format_clock
from usbipd.cli.usb_ids import UsbIds
from usbipd.ipc.control_messages import BindingInfo, DeviceInfo

USB_IDS: Final = UsbIds()
"""The names for devices that report none."""


def hardware_id(vendor_id: int, product_id: int) -> str:
    """`VID:PID` as lsusb writes it."""
    return f"{vendor_id:04x}:{product_id:04x}"


def known_name(
    vendor_id: int,
    product_id: int,
    product: str | None = None,
    maker: str | None = None,
    *,
    with_maker: bool = True,
) -> str | None:
    """The name of a device that reports `maker` and `product`; None if neither it nor usb.ids has one.

    What a device reports comes first, since different products may share the ids of the chip inside.
    Without `with_maker`, the maker is shown only if there is no product.
    """
    maker, product = ((text or "").strip() for text in (maker, product))
    if not product:
        listed_maker, listed_product = USB_IDS.names(vendor_id, product_id)
        maker, product = maker or listed_maker or "", listed_product or ""
    if product and (not with_maker or product.startswith(maker)):  # many products repeat their maker's name
        return product
    return f"{maker} {product}".strip() or None


def device_name(device: DeviceInfo, *, with_maker: bool = True) -> str:
    """The name of the device or its numbers, marked if it is simulated and the name does not say so."""
    ids = (device.vendor_id, device.product_id)
    name = known_name(*ids, device.product, device.manufacturer, with_maker=with_maker) or hardware_id(*ids)
    if device.simulated and "simulated" not in name.lower():
        return f"{name} (simulated)"
    return name


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
    elif binding.serial is not None:  # with a port it adds nothing
        parts.append(f"with serial number {binding.serial}")
    if name := known_name(binding.vendor_id, binding.product_id, binding.product, with_maker=False):
        parts.append(f"({name})")
    return " ".join(parts)


def format_failures(devices: Iterable[DeviceInfo], width: int) -> str:
    """Why devices failed, what to try, and when usbipd retries."""
    text = ""
    for device in devices:
        if device.error is None:
            continue
        named = device.error.startswith(device.busid)
        text += wrap(device.error, width, "  ", first="" if named else f"{device.busid}: ")
        if device.advice is not None:
            from usbipd.spelling import Spelling  # here: rarely needed

            text += wrap(Spelling.here().spell(device.advice), width, "  ", first="  hint: ")
        if device.next_try is not None:
            text += f"  next try: {format_clock(device.next_try)}\n"
    return text
