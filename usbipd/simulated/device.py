"""The model of a simulated device: its descriptors and its answers.  Runs in workers.

The pump answers the standard requests of USB 2.0, chapter 9 from the descriptors, and moves the data of every
endpoint whose `Behaviour` is not MODEL.  For everything else it calls the model, on its one thread: a method
answers at once or returns `Handshake.NAK`; it never blocks.
"""

import re
from collections.abc import Mapping
from enum import Enum, IntEnum
from typing import ClassVar, Final

from usbipd.errors import UsageError
from usbipd.protocol.constants import Speed
from usbipd.simulated.descriptors import ID_VENDOR

MANUFACTURER: Final = "usbipd"

# BOT 1.0, 4.1.1 requires at least twelve of these characters for a disk; all devices follow it.
_SERIAL_NUMBER: Final = re.compile(r"[0-9A-F]{12,64}", re.ASCII)


class Handshake(Enum):
    """What an endpoint answers instead of data (USB 2.0, section 8.4.5)."""

    NAK = "NAK"  # not now: the URB waits
    STALL = "STALL"  # the request is refused, or the endpoint halts until CLEAR_FEATURE(ENDPOINT_HALT)


class Behaviour(IntEnum):
    """Who moves the data of an endpoint.  cython/pump.pxd uses the same numbers."""

    MODEL = 0  # read, write, iso_read and iso_write of the model
    SOURCE = 1  # IN: as many bytes as asked for, byte i of each packet is i % 63 as in Linux's g_zero
    SINK = 2  # OUT: takes and discards everything
    LOOPBACK = 3  # OUT 0x0n: IN 0x8n returns what is written, message by message


class SimulatedDevice:
    """A device in software.  By default it stalls every request.

    Subclasses set `name`, `product`, `speed`, `device_descriptor` and `configurations`; the last three may
    depend on an option.
    """

    name: ClassVar[str]
    """Its name in --simulate."""
    option_names: ClassVar[frozenset[str]] = frozenset({"serial"})

    product: ClassVar[str]
    speed: Speed
    device_descriptor: bytes
    """18 bytes.  That of the class holds what no option changes: idProduct and bDeviceClass."""
    configurations: tuple[bytes, ...]
    """Each with all its interfaces and endpoints, as GET_DESCRIPTOR returns it."""
    bos_descriptor: bytes = b""
    """With all its capabilities; empty if the device has none (USB 3.2, section 9.6.2)."""
    behaviours: ClassVar[Mapping[int, Behaviour]] = {}
    """By bEndpointAddress; the default is MODEL."""

    strings: tuple[str, ...]
    """String descriptors 1 and up."""

    def __init__(self, options: Mapping[str, str]) -> None:
        """`options` come from `check_options`."""
        serial = options.get("serial", self.serial_number(1))
        self.strings = (MANUFACTURER, self.product, serial)

    @classmethod
    def serial_number(cls, instance: int) -> str:
        """The default serial number of device number `instance` of this kind, counted from 1."""
        return f"{ID_VENDOR:04X}{int.from_bytes(cls.device_descriptor[10:12], 'little'):04X}{instance:04X}"

    @classmethod
    def speed_with(cls, options: Mapping[str, str]) -> Speed:
        """The speed of the device with these options, which come from `check_options`."""
        return cls.speed

    @classmethod
    def check_options(cls, options: Mapping[str, str]) -> dict[str, str]:
        """The options, checked, in a form that a process with another working directory understands.

        Raises `UsageError` for an unknown option and for a bad value.
        """
        for name in options:
            if name not in cls.option_names:
                known = ", ".join(sorted(cls.option_names))
                raise UsageError(f"--simulate: {cls.name} has no option {name!r}; it has {known}")
        serial = options.get("serial")
        if serial is not None and not _SERIAL_NUMBER.fullmatch(serial):
            raise UsageError(
                f"--simulate: {cls.name}: serial {serial!r} is not 12 to 64 of the characters 0-9 and A-F"
            )
        return dict(options)

    def control_in(self, setup: bytes, length: int) -> bytes | Handshake:
        """The data that a class, vendor or interface request reads: at most `length` bytes are used."""
        return Handshake.STALL

    def control_out(self, setup: bytes, data: memoryview) -> Handshake | None:
        """Takes the data of a class, vendor or interface request; `data` is valid during the call."""
        return Handshake.STALL

    def read(self, endpoint: int, length: int) -> bytes | bytearray | memoryview | Handshake:
        """Data for an IN URB of `length` bytes on a bulk or interrupt endpoint.

        Fewer bytes end the URB short; more are babble and end it with an overflow.  The pump uses a
        memoryview before the next call into the model.  After NAK the pump calls again after any other call
        into the model, and at `wake_at`; after STALL only once the halt is cleared.
        """
        return Handshake.STALL

    def write(self, endpoint: int, data: memoryview) -> int | Handshake:
        """Takes data of an OUT URB on a bulk or interrupt endpoint; `data` is valid during the call.

        Returns how many bytes it took.  The rest is offered again, as after NAK.
        """
        return Handshake.STALL

    def iso_read(self, endpoint: int, length: int) -> bytes | bytearray | memoryview:
        """The next isochronous IN packet, of at most `length` bytes."""
        return b""

    def iso_write(self, endpoint: int, data: memoryview) -> None:
        """Takes one isochronous OUT packet; `data` is valid during the call."""

    def halt_cleared(self, endpoint: int) -> None:
        """CLEAR_FEATURE(ENDPOINT_HALT) arrived for this endpoint."""

    def wake_at(self) -> float | None:
        """The `time.monotonic()` at which an endpoint that returned NAK may be ready.

        None: only another request or a write can make it ready.
        """
        return None

    def reset(self) -> None:
        """A reset or SET_CONFIGURATION: restores the state after power-on, but keeps the medium's data."""

    def close(self) -> None:
        """Releases files and memory."""
