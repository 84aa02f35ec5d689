"""Names of USB classes for tables.  Runs in the caller's process."""

from collections import Counter
from collections.abc import Iterable
from typing import Final

# usb.org, "Defined Class Codes"
CLASS_NAMES: Final = {
    0x00: "per interface",
    0x01: "audio",
    0x02: "communications",
    0x03: "HID",
    0x05: "physical",
    0x06: "image",
    0x07: "printer",
    0x08: "mass storage",
    0x09: "hub",
    0x0A: "CDC data",
    0x0B: "smart card",
    0x0D: "content security",
    0x0E: "video",
    0x0F: "healthcare",
    0x10: "audio/video",
    0x11: "billboard",
    0x12: "type-C bridge",
    0xDC: "diagnostic",
    0xE0: "wireless",
    0xEF: "miscellaneous",
    0xFE: "application",
    0xFF: "vendor",
}


def class_name(code: int) -> str:
    """The name of a bDeviceClass or bInterfaceClass, or its number."""
    return CLASS_NAMES.get(code, f"class {code:02x}")


def count_classes(codes: Iterable[int]) -> str:
    """Interfaces by class, in their order: `audio x3, HID`."""
    return ", ".join(
        class_name(code) + (f" x{count}" if count > 1 else "") for code, count in Counter(codes).items()
    )
