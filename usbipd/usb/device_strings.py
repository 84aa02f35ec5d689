"""The strings of a device: manufacturer, product, serial number.  Used by the extension.

The text comes from the device and may be anything.  A string of spaces counts as none, and a NUL ends it, as
in the kernel (drivers/usb/core/sysfs.c).  Unprintable characters are escaped: users can type a serial number.
"""

from dataclasses import dataclass
from pathlib import Path

from usbipd.text import readable


@dataclass(frozen=True, slots=True)
class DeviceStrings:
    """iManufacturer, iProduct and iSerialNumber (USB 2.0, 9.6.1); None if the device has no such string."""

    manufacturer: str | None = None
    product: str | None = None
    serial: str | None = None


def strings_in_sysfs(directory: Path) -> DeviceStrings:
    """The strings that the kernel read when it enumerated the device; sends nothing to the device."""
    names = ("manufacturer", "product", "serial")
    return DeviceStrings(*(_attribute(directory / name) for name in names))


def _attribute(file: Path) -> str | None:
    try:
        return clean(file.read_text(encoding="utf-8", errors="replace"))
    except OSError:  # the device has no such string, or is gone
        return None


def clean(text: str) -> str | None:
    """A string from a device, made safe to print; None if it is blank."""
    return readable(text.partition("\0")[0].strip()) or None
