"""What a device says of itself: manufacturer, product, serial number.  Used by the extension.

The text is the device's own and may be anything.  A string of spaces is none, and one ends at a NUL, as in
the kernel (drivers/usb/core/sysfs.c).  What cannot be printed is escaped: a serial number can then be typed.
"""

from dataclasses import dataclass
from pathlib import Path

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


def _attribute(file: Path) -> str | None:
    try:
        return clean(file.read_text(encoding="utf-8", errors="replace"))
    except OSError:  # the device has no such string, or has gone
        return None


def clean(text: str) -> str | None:
    """A string as a device has it, made safe to show; None: it says nothing."""
    return readable(text.partition("\0")[0].strip()) or None
