"""One client that uses a device for several things at once, on its one connection.  Runs in the bench.

A disk fills the connection, beside keys and sound that must not wait: how long these take, users feel.
The device is the simulated loopback (usbipd/simulated/loopback.py), which has endpoints for all of it.
"""

import math
import random
import select
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from statistics import quantiles
from typing import ClassVar, Final

from tests.client import Session
from tests.urb import RetSubmit
from usbipd.protocol.constants import (
    URB_ISO_ASAP,
    USB_DIR_IN,
    USB_DT_DEVICE,
    USB_REQ_GET_DESCRIPTOR,
    USB_REQ_SET_INTERFACE,
)
from usbipd.simulated.loopback import INTERRUPT_IN, INTERRUPT_OUT, ISOCHRONOUS_IN, SOURCE_IN

PERIOD: Final = 0.05
"""Seconds from one question to the next, on average."""
GET_DEVICE_DESCRIPTOR: Final = bytes([USB_DIR_IN, USB_REQ_GET_DESCRIPTOR, 0, USB_DT_DEVICE, 0, 0, 18, 0])
STREAMING: Final = 3
"""bInterfaceNumber of the isochronous endpoints, which its alternate setting 1 has."""
MICROFRAMES: Final = 8000
"""Microframes a second (USB 2.0, 4.2.1), in each of which the device has an isochronous packet."""


class Stream:
    """One of the things for which the device is used."""

    due = math.inf
    """When `act` is to be called, by time.monotonic."""

    def begin(self, traffic: "Traffic") -> None:
        """The connection is made."""

    def act(self, traffic: "Traffic", now: float) -> None:
        """The time is `due`; sets the next one."""

    def ended(self, traffic: "Traffic", reply: RetSubmit, now: float) -> None:
        """An URB of this stream ended."""

    def forget(self) -> None:
        """What counts begins now."""


class BulkIn(Stream):
    """Always `depth` URBs of `size` bytes in flight, as a client that reads a large file has."""

    def __init__(self, size: int, depth: int, endpoint: int = SOURCE_IN) -> None:
        self.bytes = 0
        self._size = size
        self._depth = depth
        self._endpoint = endpoint

    def begin(self, traffic: "Traffic") -> None:
        for _ in range(self._depth):
            traffic.submit(self, self._endpoint, length=self._size)

    def ended(self, traffic: "Traffic", reply: RetSubmit, now: float) -> None:
        self.bytes += reply.actual_length
        traffic.submit(self, self._endpoint, length=self._size)

    def forget(self) -> None:
        self.bytes = 0


class Latency(Stream, ABC):
    """Asks something each PERIOD, half of it more or less, and measures how long the answer takes."""

    name: ClassVar[str]

    def __init__(self) -> None:
        self.took: list[float] = []
        """Seconds of each answer."""
        self._asked: dict[int, float] = {}
        self._random = random.Random(self.name)  # the same times in each run

    def begin(self, traffic: "Traffic") -> None:
        self.due = time.monotonic()

    def act(self, traffic: "Traffic", now: float) -> None:
        self._asked[self.ask(traffic)] = now
        self.due = now + PERIOD * self._random.uniform(0.5, 1.5)

    def ended(self, traffic: "Traffic", reply: RetSubmit, now: float) -> None:
        if (asked := self._asked.pop(reply.seqnum, None)) is not None:
            self.took.append(now - asked)

    def forget(self) -> None:
        self.took.clear()

    def percentile(self, percent: int) -> float:
        """Seconds.  Raises `statistics.StatisticsError` if fewer than two answers came."""
        return quantiles(self.took, n=100, method="inclusive")[percent - 1]

    @abstractmethod
    def ask(self, traffic: "Traffic") -> int:
        """Sends the question; the seqnum of the URB that brings the answer."""


class InterruptEcho(Latency):
    """A byte by interrupt OUT, which the device returns by a pending interrupt IN, as if a key was hit."""

    name = "interrupt echo"

    def ask(self, traffic: "Traffic") -> int:
        pending = traffic.submit(self, INTERRUPT_IN, length=64)
        traffic.submit(self, INTERRUPT_OUT, data=b"x")
        return pending


class Control(Latency):
    """GET_DESCRIPTOR of the device."""

    name = "control 18 B"

    def ask(self, traffic: "Traffic") -> int:
        return traffic.submit(self, USB_DIR_IN, length=18, setup=GET_DEVICE_DESCRIPTOR)


class IsochronousIn(Stream):
    """Takes the packet of each microframe, as a driver of a sound card or camera does.

    In flight are 12 URBs of 8 packets, 12 ms together.  Linux's snd-usb-audio has 12 at most (MAX_URBS,
    sound/usb/card.h).  A microframe is lost when all of them are on their way.
    """

    URBS: Final = 12
    PACKETS: Final = 8
    LENGTH: Final = 192

    def __init__(self) -> None:
        self.packets = 0
        self.lost = 0
        self._next_frame: int | None = None

    def begin(self, traffic: "Traffic") -> None:
        traffic.session.control_out(0x01, USB_REQ_SET_INTERFACE, 1, STREAMING)
        for _ in range(self.URBS):
            self._submit(traffic)

    def ended(self, traffic: "Traffic", reply: RetSubmit, now: float) -> None:
        self.packets += self.PACKETS
        if self._next_frame is not None:
            self.lost += (reply.start_frame - self._next_frame) % 2**32
        self._next_frame = (reply.start_frame + self.PACKETS) % 2**32
        self._submit(traffic)

    def forget(self) -> None:
        self.packets = self.lost = 0

    def _submit(self, traffic: "Traffic") -> None:
        traffic.submit(self, ISOCHRONOUS_IN, iso=[self.LENGTH] * self.PACKETS, transfer_flags=URB_ISO_ASAP)


class Once(Stream):
    """Not a stream: does something, once, `after` seconds of what counts."""

    def __init__(self, after: float, action: Callable[[], None]) -> None:
        self._after = after
        self._action = action

    def act(self, traffic: "Traffic", now: float) -> None:
        self.due = math.inf
        self._action()

    def forget(self) -> None:
        self.due = time.monotonic() + self._after


class Traffic:
    """All streams of one connection."""

    def __init__(self, session: Session, streams: Sequence[Stream]) -> None:
        self.session = session
        self._streams = streams
        self._owners: dict[int, Stream] = {}

    def submit(
        self,
        owner: Stream,
        endpoint: int,
        *,
        length: int | None = None,
        data: bytes = b"",
        setup: bytes = bytes(8),
        iso: Sequence[int] = (),
        transfer_flags: int = 0,
    ) -> int:
        """Submits an URB, whose end `owner` is told; as `Session.submit`."""
        seqnum = self.session.submit(
            endpoint, length=length, data=data, setup=setup, iso=iso, transfer_flags=transfer_flags
        )
        self._owners[seqnum] = owner
        return seqnum

    def run(self, warm_up: float, seconds: float) -> float:
        """Lets all streams flow, and forgets what came during `warm_up`; returns the seconds that counted.

        Raises `RuntimeError` when an URB fails.
        """
        for stream in self._streams:
            stream.begin(self)
        self._flow(time.monotonic() + warm_up)
        for stream in self._streams:
            stream.forget()
        start = time.monotonic()
        self._flow(start + seconds)
        return time.monotonic() - start

    def _flow(self, end: float) -> None:
        while (now := time.monotonic()) < end:
            for stream in self._streams:
                if stream.due <= now:
                    stream.act(self, now)
            soonest = min(end, *(stream.due for stream in self._streams))
            readable, _, _ = select.select([self.session.connection], [], [], max(0.0, soonest - now))
            if readable:
                self._receive()

    def _receive(self) -> None:
        self.session.receive()
        now = time.monotonic()
        while self.session.replies:
            reply = self.session.replies.pop(next(iter(self.session.replies)))
            owner = self._owners.pop(reply.seqnum)
            if not isinstance(reply, RetSubmit) or reply.status != 0:
                raise RuntimeError(f"{type(owner).__name__}: {reply}")
            owner.ended(self, reply, now)
