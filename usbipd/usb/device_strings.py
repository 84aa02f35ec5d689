"""What a device says of itself: manufacturer, product, serial number.  Used by the extension.

The text is the device's own and may be anything.  A string of spaces is none, and one ends at a NUL, as in
the kernel (drivers/usb/core/sysfs.c).  What cannot be printed is escaped: a serial number can then be typed.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import usb1

from usbipd.text import readable


@dataclass(frozen=True, slots=True)
class DeviceStrings:
    """iManufacturer, iProduct and iSerialNumber (USB 2.0, 9.6.1); None: there is no such string."""

    manufacturer: str | None = None
    product: str | None = None
    serial: str | None = None


def strings_in_sysfs(directory: Path) -> DeviceStrings:
    """Those that the kernel has read when it enumerated the device; nothing is asked of the device."""
    names = ("manufacturer", "product", "serial")
    return DeviceStrings(*(_attribute(directory / name) for name in names))


@dataclass(frozen=True, slots=True)
class _Known:
    device: tuple[int, int, int]
    """idVendor, idProduct, bcdDevice."""
    devnum: int | None
    """The address under which it has answered everything; None: it did not."""
    strings: DeviceStrings


class AskedStrings:
    """Those that libusb reads from the devices themselves, where the host does not keep them.

    A device is asked once.  Asking opens it, and what another program or a worker of ours has captured may
    not answer: then it is believed to be the one that was at that port before, if it is the same product.
    """

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def ask(self, busid: str, device: usb1.USBDevice) -> DeviceStrings:
        """The strings of the device at `busid`; some control transfers if it has not answered yet."""
        identity = device.getVendorID(), device.getProductID(), device.getbcdDevice()
        devnum: int | None = device.getDeviceAddress()
        known = self._known.get(busid)
        if known is None or known.device != identity:
            before = DeviceStrings()
        elif known.devnum == devnum:
            return known.strings
        else:
            before = known.strings
        found: list[str | None] = []
        for index, read, earlier in (
            (device.getManufacturerDescriptor(), device.getManufacturer, before.manufacturer),
            (device.getProductDescriptor(), device.getProduct, before.product),
            (device.getSerialNumberDescriptor(), device.getSerialNumber, before.serial),
        ):
            try:
                found.append(_clean(read() or "") if index else None)
            except usb1.USBError:  # may not be opened, or does not answer
                found.append(earlier)
                devnum = None
        strings = DeviceStrings(*found)
        self._known[busid] = _Known(identity, devnum, strings)
        return strings

    def keep(self, busids: Collection[str]) -> None:
        """Forget all devices but those at `busids`."""
        self._known = {busid: known for busid, known in self._known.items() if busid in busids}


def _attribute(file: Path) -> str | None:
    try:
        return _clean(file.read_text(encoding="utf-8", errors="replace"))
    except OSError:  # the device has no such string, or has gone
        return None


def _clean(text: str) -> str | None:
    return readable(text.partition("\0")[0].strip()) or None
