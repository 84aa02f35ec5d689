"""URBs over usbfs, as a program on the client sees them: every status, length and packet.  Runs in the guest.

Source: include/uapi/linux/usbdevice_fs.h, Documentation/driver-api/usb/usb.rst.  libusb would hide half of
it.
"""

import ctypes
import errno
import fcntl
import os
import select
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from tests.e2e.guest.scenario import StepError, check
from tests.e2e.guest.system import PATIENCE
from tests.e2e.guest.usb import UsbDevice

ISOCHRONOUS, INTERRUPT, CONTROL, BULK = range(4)  # USBDEVFS_URB_TYPE_*

SHORT_NOT_OK: Final = 0x01  # USBDEVFS_URB_*
ISO_ASAP: Final = 0x02
ZERO_PACKET: Final = 0x40

IN: Final = 0x80

_READ, _WRITE = 2, 1  # directions in an ioctl's number: include/uapi/asm-generic/ioctl.h


class _Packet(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("actual_length", ctypes.c_uint), ("status", ctypes.c_uint))


class _Urb(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_ubyte),
        ("endpoint", ctypes.c_ubyte),
        ("status", ctypes.c_int),
        ("flags", ctypes.c_uint),
        ("buffer", ctypes.c_void_p),
        ("buffer_length", ctypes.c_int),
        ("actual_length", ctypes.c_int),
        ("start_frame", ctypes.c_int),
        ("number_of_packets", ctypes.c_int),
        ("error_count", ctypes.c_int),
        ("signr", ctypes.c_uint),
        ("usercontext", ctypes.c_void_p),
    )


def _ioctl(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | ord("U") << 8 | number


_SETINTERFACE: Final = _ioctl(_READ, 4, 8)
_SETCONFIGURATION: Final = _ioctl(_READ, 5, 4)
_SUBMITURB: Final = _ioctl(_READ, 10, ctypes.sizeof(_Urb))
_DISCARDURB: Final = _ioctl(0, 11, 0)
_REAPURBNDELAY: Final = _ioctl(_WRITE, 13, 8)
_CLAIMINTERFACE: Final = _ioctl(_READ, 15, 4)
_RELEASEINTERFACE: Final = _ioctl(_READ, 16, 4)
_RESET: Final = _ioctl(0, 20, 0)
_CLEAR_HALT: Final = _ioctl(_READ, 21, 4)

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Packet(NamedTuple):
    """The result of an isochronous packet."""

    status: int
    """0 or a negative errno."""
    length: int
    data: bytes
    """The data of an IN packet."""


class Urb:
    """One transfer; `data` is for OUT, `length` is the room for IN."""

    def __init__(
        self,
        kind: int,
        endpoint: int,
        data: bytes = b"",
        *,
        length: int = 0,
        flags: int = 0,
        packets: Sequence[int] = (),
    ) -> None:
        """`packets` are the lengths of an isochronous URB's packets, contiguous in its buffer."""
        size = max(length, len(data), sum(packets))
        self._buffer = ctypes.create_string_buffer(data, max(size, 1))
        self._memory = ctypes.create_string_buffer(
            ctypes.sizeof(_Urb) + len(packets) * ctypes.sizeof(_Packet)
        )
        self._urb = _Urb.from_buffer(self._memory)
        self._packets = (_Packet * len(packets)).from_buffer(self._memory, ctypes.sizeof(_Urb))
        for each, room in zip(self._packets, packets, strict=True):
            each.length = room
        self._urb.type, self._urb.endpoint, self._urb.flags = kind, endpoint, flags
        self._urb.buffer = ctypes.addressof(self._buffer)
        self._urb.buffer_length, self._urb.number_of_packets = size, len(packets)

    @property
    def endpoint(self) -> int:
        """bEndpointAddress."""
        return int(self._urb.endpoint)

    @property
    def address(self) -> int:
        """The address by which the kernel identifies it."""
        return ctypes.addressof(self._memory)

    @property
    def status(self) -> int:
        """0 or a negative errno, once it is complete."""
        return int(self._urb.status)

    def check(self, status: int) -> None:
        """Raises `StepError` unless it ended with `status`."""
        names = [errno.errorcode.get(-each, "OK") for each in (self.status, status)]
        check(self.status == status, f"URB of endpoint {self.endpoint:#04x}: {' instead of '.join(names)}")

    @property
    def actual_length(self) -> int:
        """Bytes transferred; for control without the setup packet."""
        return int(self._urb.actual_length)

    @property
    def data(self) -> bytes:
        """The data of an IN."""
        start = 8 if self._urb.type == CONTROL else 0
        return self._buffer.raw[start : start + self.actual_length]

    @property
    def packets(self) -> list[Packet]:
        """Each packet, in order."""
        found, start, buffer = [], 0, self._buffer.raw
        for each in self._packets:
            status = ctypes.c_int(each.status).value
            found.append(Packet(status, each.actual_length, buffer[start : start + each.actual_length]))
            start += each.length
        return found

    @property
    def error_count(self) -> int:
        """The number of failed isochronous packets."""
        return int(self._urb.error_count)


def control_urb(
    kind: int, request: int, value: int = 0, index: int = 0, data: bytes = b"", length: int = 0
) -> Urb:
    """A control transfer; `kind` is bmRequestType, `length` the room for IN."""
    fields = (value, index, max(length, len(data)))
    setup = bytes((kind, request)) + b"".join(each.to_bytes(2, "little") for each in fields)
    return Urb(CONTROL, 0, setup + data, length=len(setup) + length)


class UsbFile:
    """An open device with its interfaces claimed."""

    def __init__(self, device: UsbDevice, interfaces: Sequence[int]) -> None:
        self._path = device.node
        self._interfaces = interfaces
        self._pending: dict[int, Urb] = {}

    def open(self) -> None:
        """Raises `OSError`."""
        self._file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        self.claim()

    def close(self) -> None:
        """Close it; pending URBs end."""
        os.close(self._file)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def claim(self) -> None:
        """Claim the interfaces again."""
        for interface in self._interfaces:
            self._call(_CLAIMINTERFACE, interface)

    def release(self) -> None:
        """Release the interfaces, as a change of the configuration requires."""
        for interface in self._interfaces:
            self._call(_RELEASEINTERFACE, interface)

    def set_configuration(self, value: int) -> None:
        """Raises `OSError`."""
        self._call(_SETCONFIGURATION, value)

    def set_interface(self, interface: int, alternate: int) -> None:
        """Raises `OSError`."""
        fcntl.ioctl(self._file, _SETINTERFACE, (ctypes.c_uint * 2)(interface, alternate))

    def clear_halt(self, endpoint: int) -> None:
        """Raises `OSError`."""
        self._call(_CLEAR_HALT, endpoint)

    def reset(self) -> None:
        """Raises `OSError`."""
        fcntl.ioctl(self._file, _RESET)

    def submit(self, *urbs: Urb) -> None:
        """Submit them, in order.  Raises `OSError` for one that this kernel refuses."""
        for urb in urbs:
            self._pending[urb.address] = urb
            try:
                self._by_address(_SUBMITURB, urb)
            except OSError:
                del self._pending[urb.address]
                raise

    def discard(self, urb: Urb) -> bool:
        """Unlink it; False if it is already complete."""
        try:
            self._by_address(_DISCARDURB, urb)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True

    def reap(self, seconds: float = PATIENCE) -> Urb:
        """The next completed URB.  Raises `StepError` if none completes in that time."""
        while True:
            address = ctypes.c_void_p()
            try:
                fcntl.ioctl(self._file, _REAPURBNDELAY, address)
            except BlockingIOError:
                if not select.select([], [self._file], [], seconds)[1]:
                    raise StepError(
                        f"no URB has completed in {seconds} s, {len(self._pending)} are pending"
                    ) from None
                continue
            assert address.value is not None
            return self._pending.pop(address.value)

    def run(self, urb: Urb) -> Urb:
        """Submit it and wait for it; nothing else may be pending."""
        self.submit(urb)
        reaped = self.reap()
        if reaped is not urb:
            raise StepError("an unknown URB has completed")
        return urb

    def control(
        self, kind: int, request: int, value: int = 0, index: int = 0, data: bytes = b"", length: int = 0
    ) -> Urb:
        """Run one control transfer; arguments as for `control_urb`."""
        return self.run(control_urb(kind, request, value, index, data, length))

    def _by_address(self, number: int, urb: Urb) -> None:
        """An ioctl that identifies the URB by address: fcntl.ioctl might pass a copy."""
        if _libc.ioctl(self._file, ctypes.c_ulong(number), ctypes.c_void_p(urb.address)) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def _call(self, number: int, value: int) -> None:
        fcntl.ioctl(self._file, number, ctypes.c_uint(value))
