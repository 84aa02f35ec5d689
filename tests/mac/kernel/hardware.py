"""Devices, behind an interface of transfers that is independent of macOS.  Runs in the kernel."""

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.mac.kernel import errors
from usbipd.protocol.constants import Speed


class Kind(enum.IntEnum):
    """bmAttributes of an endpoint, USB 2.0 table 9-13."""

    CONTROL = 0
    ISOCHRONOUS = 1
    BULK = 2
    INTERRUPT = 3


@dataclass
class Frame:
    """A packet of an isochronous transfer; `offset` in its data."""

    offset: int
    length: int
    actual: int = 0
    status: int = errors.SUCCESS


@dataclass(eq=False)
class Transfer:
    """One transfer, from its submission until `end`, which calls `on_end` once.

    IN: `data` grows with the received bytes, up to `length`.  OUT: `data` is to be sent, `moved` is the
    number of accepted bytes.  A control transfer has the address 0 or 0x80, by its setup.  An isochronous one
    has its data at the offsets of its frames.
    """

    kind: Kind
    address: int
    length: int
    data: bytearray
    on_end: Callable[["Transfer"], None]
    setup: bytes = bytes(8)
    frames: list[Frame] = field(default_factory=list)
    first_frame: int = 0
    packets_per_frame: float = 1.0
    moved: int = 0
    status: int | None = None
    cancelled: bool = False
    """Cancelled by the host."""

    @property
    def is_in(self) -> bool:
        return bool(self.address & 0x80)

    @property
    def room(self) -> int:
        return self.length - len(self.data)

    def end(self, status: int) -> None:
        if self.status is None:
            self.status = status
            if self.is_in and self.kind != Kind.ISOCHRONOUS:
                self.moved = len(self.data)
            self.on_end(self)


class Hardware(ABC):
    """A device.  All methods are called on the kernel's thread.

    A coroutine returns once the device has answered, with the IOReturn of the host's stack.
    """

    speed: Speed
    device_descriptor: bytes
    configurations: list[bytes]
    strings: tuple[str, str, str]
    """Manufacturer, product, serial number; empty: none."""

    @abstractmethod
    def submit(self, transfer: Transfer) -> None:
        """Queues it at its endpoint."""

    @abstractmethod
    async def cancel(self, transfers: list[Transfer], code: int) -> None:
        """Ends these pending transfers, in this order, with `code`; all have ended when it returns."""

    @abstractmethod
    async def set_configuration(self, value: int) -> int: ...

    @abstractmethod
    async def set_interface(self, interface: int, alternate: int) -> int: ...

    @abstractmethod
    async def clear_halt(self, address: int) -> int: ...

    @abstractmethod
    def reset(self) -> None:
        """Bus reset, as at each enumeration: unconfigured, with no pending transfers or halts."""

    def unplug(self) -> None:  # noqa: B027 - optional
        """It is removed for good."""
