"""The OP_* messages that list and import devices.  Used by the server, the CLI and the tests.

A client sends OP_REQ_DEVLIST and gets OP_REP_DEVLIST, or OP_REQ_IMPORT and gets OP_REP_IMPORT, once per
connection; after an import with status 0 the connection carries URBs (`urb.py`).  Layouts are those of
Documentation/usb/usbip_protocol.rst; all numbers are big-endian.
"""

import struct
from collections.abc import Generator, Sequence
from typing import Any, Final

import msgspec

from usbipd.errors import ProtocolError
from usbipd.protocol.constants import (
    BUSID_SIZE,
    MAX_DEVICES,
    OP_DEVICE_SIZE,
    OP_HEADER_SIZE,
    OP_INTERFACE_SIZE,
    OP_REP_DEVLIST,
    OP_REP_IMPORT,
    OP_REQ_DEVLIST,
    OP_REQ_IMPORT,
    PATH_SIZE,
    ST_OK,
    USBIP_VERSION,
)
from usbipd.protocol.reader import OneMessageReader
from usbipd.text import readable

_HEADER: Final = struct.Struct("!HHI")  # tools/usb/usbip/src/usbip_network.h, struct op_common
_COUNT: Final = struct.Struct("!I")  # tools/usb/usbip/src/usbip_network.h, struct op_devlist_reply
_DEVICE: Final = struct.Struct("!256s32sIIIHHHBBBBBB")  # tools/usb/usbip/libsrc/usbip_common.h
_INTERFACE: Final = struct.Struct("!BBBx")  # tools/usb/usbip/libsrc/usbip_common.h


class UsbInterface(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One interface of the active configuration, as OP_REP_DEVLIST shows it."""

    bInterfaceClass: int
    bInterfaceSubClass: int
    bInterfaceProtocol: int


class UsbDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One shared device, as OP_REP_DEVLIST and OP_REP_IMPORT show it.

    `speed` has the wire's numbering (`constants.Speed`); `busnum` and `devnum` have 16 bits each.
    """

    path: str
    busid: str
    busnum: int
    devnum: int
    speed: int
    idVendor: int
    idProduct: int
    bcdDevice: int
    bDeviceClass: int
    bDeviceSubClass: int
    bDeviceProtocol: int
    bConfigurationValue: int
    bNumConfigurations: int
    interfaces: tuple[UsbInterface, ...]

    @property
    def devid(self) -> int:
        """The number in each CMD_SUBMIT of the client.  Unique while the device is present."""
        return self.busnum << 16 | self.devnum


# ---- server side -------------------------------------------------------------------------------------------


class DevlistRequest(msgspec.Struct, frozen=True):
    """OP_REQ_DEVLIST: the client asks for the list of devices."""


class ImportRequest(msgspec.Struct, frozen=True):
    """OP_REQ_IMPORT: the client wants this device."""

    busid: str


class MalformedImport(msgspec.Struct, frozen=True):
    """OP_REQ_IMPORT with a busid that is not valid; the answer is ST_NODEV."""

    reason: str


Request = DevlistRequest | ImportRequest | MalformedImport


class RequestReader(OneMessageReader[Request]):
    """Reads a client's one request."""

    def _parse(self) -> Generator[int, bytes, Request]:
        version, code, _status = _HEADER.unpack((yield OP_HEADER_SIZE))
        _check_version(version)
        if code == OP_REQ_DEVLIST:
            return DevlistRequest()
        if code != OP_REQ_IMPORT:
            raise ProtocolError(
                f"unknown OP code {code:#06x}; OP_REQ_DEVLIST is {OP_REQ_DEVLIST:#06x}, "
                f"OP_REQ_IMPORT {OP_REQ_IMPORT:#06x}"
            )
        try:
            return ImportRequest(_decode_busid((yield BUSID_SIZE)))
        except ValueError as error:
            return MalformedImport(str(error))


def encode_devlist_reply(devices: Sequence[UsbDevice]) -> bytes:
    """OP_REP_DEVLIST: each device is followed by the records of its interfaces.

    Raises `ValueError` for a device whose busid does not fit the wire.
    """
    parts = [_HEADER.pack(USBIP_VERSION, OP_REP_DEVLIST, ST_OK), _COUNT.pack(len(devices))]
    for device in devices:
        parts.append(_encode_device(device))
        parts.extend(
            _INTERFACE.pack(each.bInterfaceClass, each.bInterfaceSubClass, each.bInterfaceProtocol)
            for each in device.interfaces
        )
    return b"".join(parts)


def encode_import_reply(status: int, device: UsbDevice | None) -> bytes:
    """OP_REP_IMPORT: the device follows if and only if `status` is ST_OK, without its interface records.

    Raises `ValueError` for a device with another status, and for ST_OK without a device.
    """
    if (status == ST_OK) != (device is not None):
        raise ValueError(f"OP_REP_IMPORT with status {status} and device {device}")
    header = _HEADER.pack(USBIP_VERSION, OP_REP_IMPORT, status)
    return header if device is None else header + _encode_device(device)


# ---- client side -------------------------------------------------------------------------------------------


class DevlistReply(msgspec.Struct, frozen=True):
    """OP_REP_DEVLIST; no devices unless `status` is ST_OK."""

    status: int
    devices: tuple[UsbDevice, ...]


class ImportReply(msgspec.Struct, frozen=True):
    """OP_REP_IMPORT; `device` (without `interfaces`, which it does not carry) only if `status` is ST_OK."""

    status: int
    device: UsbDevice | None


def encode_devlist_request() -> bytes:
    """OP_REQ_DEVLIST."""
    return _HEADER.pack(USBIP_VERSION, OP_REQ_DEVLIST, 0)


def encode_import_request(busid: str) -> bytes:
    """OP_REQ_IMPORT; raises `ValueError` for a busid that is not valid."""
    return _HEADER.pack(USBIP_VERSION, OP_REQ_IMPORT, 0) + _encode_busid(busid)


class DevlistReplyReader(OneMessageReader[DevlistReply]):
    """Reads a server's answer to OP_REQ_DEVLIST."""

    def _parse(self) -> Generator[int, bytes, DevlistReply]:
        status = _check_reply((yield OP_HEADER_SIZE), OP_REP_DEVLIST, "OP_REP_DEVLIST")
        if status != ST_OK:
            return DevlistReply(status, ())
        (count,) = _COUNT.unpack((yield _COUNT.size))
        if count > MAX_DEVICES:
            raise ProtocolError(f"OP_REP_DEVLIST announces {count} devices; {MAX_DEVICES} is the limit")
        devices = []
        for _ in range(count):
            record = yield OP_DEVICE_SIZE
            interfaces = []
            for _ in range(_interface_count(record)):
                interfaces.append(UsbInterface(*_INTERFACE.unpack((yield OP_INTERFACE_SIZE))))
            devices.append(_decode_device(record, tuple(interfaces)))
        return DevlistReply(status, tuple(devices))


class ImportReplyReader(OneMessageReader[ImportReply]):
    """Reads a server's answer to OP_REQ_IMPORT."""

    def _parse(self) -> Generator[int, bytes, ImportReply]:
        status = _check_reply((yield OP_HEADER_SIZE), OP_REP_IMPORT, "OP_REP_IMPORT")
        if status != ST_OK:
            return ImportReply(status, None)
        return ImportReply(status, _decode_device((yield OP_DEVICE_SIZE), ()))


# ---- fields ------------------------------------------------------------------------------------------------


def _check_version(version: int) -> None:
    if version != USBIP_VERSION:
        raise ProtocolError(f"unknown USB/IP version {version:#06x}; it must be {USBIP_VERSION:#06x} (1.1.1)")


def _check_reply(header: bytes, expected: int, name: str) -> int:
    """The status of a reply whose version and code are valid; raises `ProtocolError` otherwise."""
    version, code, status = _HEADER.unpack(header)
    _check_version(version)
    if code != expected:
        raise ProtocolError(f"the server answered with OP code {code:#06x}, not {name} ({expected:#06x})")
    return int(status)


def _encode_busid(busid: str) -> bytes:
    encoded = busid.encode()
    if not (0 < len(encoded) < BUSID_SIZE and encoded.isascii() and busid.isprintable() and " " not in busid):
        raise ValueError(f"busid {busid!r} is not 1 to {BUSID_SIZE - 1} printable ASCII characters")
    return encoded.ljust(BUSID_SIZE, b"\0")


def _decode_busid(field: bytes) -> str:
    """The busid in 32 bytes from a peer.  Raises `ValueError`."""
    encoded, terminator, _ = field.partition(b"\0")
    if not terminator:
        raise ValueError(f"busid without NUL in its {BUSID_SIZE} bytes")
    if not encoded or not all(0x20 < byte < 0x7F for byte in encoded):
        raise ValueError(f"busid {encoded!r} is not 1 to {BUSID_SIZE - 1} printable ASCII characters")
    return encoded.decode("ascii")


def _encode_device(device: UsbDevice) -> bytes:
    # The path is only for people: a long one is cut, and the last byte of the field stays NUL.
    path = device.path.encode()[: PATH_SIZE - 1]
    return _DEVICE.pack(
        path,
        _encode_busid(device.busid),
        device.busnum,
        device.devnum,
        device.speed,
        device.idVendor,
        device.idProduct,
        device.bcdDevice,
        device.bDeviceClass,
        device.bDeviceSubClass,
        device.bDeviceProtocol,
        device.bConfigurationValue,
        device.bNumConfigurations,
        len(device.interfaces),
    )


def _interface_count(record: bytes) -> int:
    """bNumInterfaces, the last byte of a device record."""
    return record[-1]


def _decode_device(record: bytes, interfaces: tuple[UsbInterface, ...]) -> UsbDevice:
    path, busid, *numbers, _count = _DEVICE.unpack(record)
    try:
        fields: list[Any] = [readable(path.partition(b"\0")[0]), _decode_busid(busid), *numbers, interfaces]
    except ValueError as error:
        raise ProtocolError(f"the server sent a device with {error}") from error
    return UsbDevice(*fields)
