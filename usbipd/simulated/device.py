"""What a simulated device is: descriptors, and the answers that no table can give.  Runs in workers.

The pump answers the standard requests of USB 2.0, chapter 9 from the descriptors, and moves the data of every
endpoint whose `Behaviour` is not MODEL by itself.  For all else it calls the model, on its one thread: a
method answers at once or says `Handshake.NAK`, it never waits.
"""

import re
from collections.abc import Mapping
from enum import Enum, IntEnum
from typing import ClassVar, Final

from usbipd.errors import UsageError
from usbipd.protocol.constants import Speed
from usbipd.simulated.descriptors import ID_VENDOR

MANUFACTURER: Final = "usbipd"

# BOT 1.0, 4.1.1 wants twelve of these at least; what is right for a disk is right for all.
_SERIAL_NUMBER: Final = re.compile(r"[0-9A-F]{12,64}", re.ASCII)


class Handshake(Enum):
    """What an endpoint answers instead of data (USB 2.0, section 8.4.5)."""

    NAK = "NAK"  # not now: the URB waits
    STALL = "STALL"  # the request is refused, or the endpoint halts until CLEAR_FEATURE(ENDPOINT_HALT)


class Behaviour(IntEnum):
    """Who moves the data of an endpoint.  The numbers are known to cython/pump.pxd."""

    MODEL = 0  # read, write, iso_read and iso_write of the model
    SOURCE = 1  # IN: as many bytes as asked for, byte i of each packet is i % 63 as in Linux's g_zero
    SINK = 2  # OUT: everything is taken and forgotten
    LOOPBACK = 3  # OUT 0x0n: what is written comes out of IN 0x8n, message by message


class SimulatedDevice:
    """A device in software; the default is one that stalls whatever it is asked.

    Subclasses set `name`, `product`, `speed`, `device_descriptor` and `configurations`, all but `name` and
    `product` maybe by an option.
    """

    name: ClassVar[str]
    """As it is called in --simulate."""
    option_names: ClassVar[frozenset[str]] = frozenset({"serial"})

    product: ClassVar[str]
    speed: Speed
    device_descriptor: bytes
    """18 bytes.  The class's own holds what no option changes: idProduct and bDeviceClass."""
    configurations: tuple[bytes, ...]
    """Each with all its interfaces and endpoints, as GET_DESCRIPTOR answers it."""
    bos_descriptor: bytes = b""
    """With all its capabilities; empty: the device has none (USB 3.2, section 9.6.2)."""
    behaviours: ClassVar[Mapping[int, Behaviour]] = {}
    """By bEndpointAddress.  An endpoint that is not in it is MODEL."""

    strings: tuple[str, ...]
    """String descriptors 1 and up."""

    def __init__(self, options: Mapping[str, str]) -> None:
        """`options` are as `check_options` returned them."""
        serial = options.get("serial", self.serial_number(1))
        self.strings = (MANUFACTURER, self.product, serial)

    @classmethod
    def serial_number(cls, instance: int) -> str:
        """The serial number of the `instance`th device of this kind, from 1 on, unless the user chose one."""
        return f"{ID_VENDOR:04X}{int.from_bytes(cls.device_descriptor[10:12], 'little'):04X}{instance:04X}"

    @classmethod
    def speed_with(cls, options: Mapping[str, str]) -> Speed:
        """The speed that the device will have with these options, which `check_options` returned."""
        return cls.speed

    @classmethod
    def check_options(cls, options: Mapping[str, str]) -> dict[str, str]:
        """The options, checked, in the form that another process with another directory understands.

        Raises `UsageError` for an option that this device does not have and for a bad value.
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
        """The data of a class, vendor or interface request to the host: at most `length` bytes are used."""
        return Handshake.STALL

    def control_out(self, setup: bytes, data: memoryview) -> Handshake | None:
        """Takes the data of a class, vendor or interface request; `data` is valid during the call."""
        return Handshake.STALL

    def read(self, endpoint: int, length: int) -> bytes | bytearray | memoryview | Handshake:
        """Data for an IN URB of `length` bytes on a bulk or interrupt endpoint.

        Less ends the URB short; more is babble, and ends it with an overflow.  A memoryview is used before
        the next call into the model.  After NAK it is called again once the model was called for anything
        else, and at `wake_at`; after STALL not before the halt is cleared.
        """
        return Handshake.STALL

    def write(self, endpoint: int, data: memoryview) -> int | Handshake:
        """Takes data of an OUT URB on a bulk or interrupt endpoint; `data` is valid during the call.

        Returns how many bytes it took.  If those were not all, the rest is offered again when NAK would be.
        """
        return Handshake.STALL

    def iso_read(self, endpoint: int, length: int) -> bytes | bytearray | memoryview:
        """The next isochronous IN packet, for which the host has room for `length` bytes."""
        return b""

    def iso_write(self, endpoint: int, data: memoryview) -> None:
        """Takes one isochronous OUT packet; `data` is valid during the call."""

    def halt_cleared(self, endpoint: int) -> None:
        """CLEAR_FEATURE(ENDPOINT_HALT) came for this endpoint."""

    def wake_at(self) -> float | None:
        """The `time.monotonic()` at which an endpoint that says NAK may have something.

        None: only after another request, or a write.
        """
        return None

    def reset(self) -> None:
        """A reset or SET_CONFIGURATION: as after power-on, with the data of the medium kept."""

    def close(self) -> None:
        """Gives back files and memory."""
