"""Matches devices by identity, by port, or by both.  Used by the extension and, for arguments, by the CLI.

The identity of a device is the same at every port: idVendor, idProduct and, if it has one, its serial number.
Only the port distinguishes two devices of equal identity.
"""

import re
from typing import TYPE_CHECKING, Final, Self

import msgspec

from usbipd.errors import UsageError
from usbipd.protocol.constants import BUSID_SIZE

if TYPE_CHECKING:  # a command that only parses must not load libusb
    from usbipd.usb.discovery import DeviceRecord

_BUSID: Final = re.compile(r"[0-9]+-[0-9]+(\.[0-9]+)*")
_HARDWARE_ID: Final = re.compile(r"([0-9a-fA-F]{4}):([0-9a-fA-F]{4})")


def parse_busid(text: str) -> str:
    """`text`, if it is a busid: BUS-PORT[.PORT...], at most 31 bytes.  Raises `UsageError`."""
    if _BUSID.fullmatch(text) is None:
        raise UsageError(
            f"{text!r} is not a busid: it is BUS-PORT[.PORT...] in digits, such as 1-1 or 3-2.4",
            code="bad-busid",
        )
    if len(text) >= BUSID_SIZE:
        raise UsageError(f"{text!r} is longer than the {BUSID_SIZE - 1} bytes of a busid", code="bad-busid")
    return text


def parse_hardware_id(text: str) -> tuple[int, int]:
    """idVendor and idProduct from `VID:PID`, four hexadecimal digits each.  Raises `UsageError`."""
    match = _HARDWARE_ID.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} is not a hardware id: it is VID:PID, four hexadecimal digits each, such as 0781:5567",
            code="bad-hardware-id",
        )
    return int(match[1], 16), int(match[2], 16)


class DeviceRule(msgspec.Struct, frozen=True):
    """Matches a device that agrees in all fields; None matches anything."""

    vendor_id: int | None = None
    product_id: int | None = None
    serial: str | None = None
    busid: str | None = None

    @classmethod
    def of_port(cls, record: "DeviceRecord") -> Self:
        """A rule for the device of `record` at its present port."""
        return cls(record.vendor_id, record.product_id, record.serial, record.busid)

    def fits(self, record: "DeviceRecord") -> bool:
        """Whether the rule matches this device."""
        return (
            self.vendor_id in (None, record.vendor_id)
            and self.product_id in (None, record.product_id)
            and self.serial in (None, record.serial)
            and self.busid in (None, record.busid)
        )

    def __str__(self) -> str:
        """For people and logs: `0781:5567 at 1-1`; without the serial number."""
        return self._describe("with its serial number")

    def describe(self) -> str:
        """The same, with the serial number, for the user who gave it."""
        return self._describe(f"with serial number {self.serial}")

    def _describe(self, serial: str) -> str:
        parts = []
        if self.vendor_id is not None and self.product_id is not None:
            parts.append(f"{self.vendor_id:04x}:{self.product_id:04x}")
        if self.serial is not None:
            parts.append(serial)
        if self.busid is not None:
            parts.append(f"at {self.busid}")
        return " ".join(parts)
