"""A client that sends any bytes to a pump on a table, and knows the right replies.  Runs in tests and
fuzzers.

Invariant: any bytes, in any pieces, give replies that `tests.urb` accepts, or end the session with
a problem in words; and they end it exactly if `CommandReader` refuses them too, if the devid is wrong, or if
a seqnum is in flight already.  Each SUBMIT ends once, in the order of its endpoint.  The heap grows by the
client's budget at most plus the URBs themselves, which is checked if a sanitizer counts.  When the
session is over the device is free.

Bytes that belong to one message are sent as they come.  What is in flight when a header arrives is
known only after all before it has been answered, so a header that repeats a seqnum waits for that, and so
does what comes behind a request that may change the settings.  An UNLINK may wait for its SUBMIT.
"""

import contextlib
import fcntl
import struct
import termios
import time
from collections.abc import Sequence
from typing import Final

from tests.fuzz import heap
from tests.unit.worker.rig import Rig
from tests.urb import Command, CommandReader, Reply, RetSubmit, Submit, Unlink, encode
from usbipd import _pump
from usbipd.errors import ProtocolError
from usbipd.protocol import constants
from usbipd.protocol.constants import (
    LINUX_ECONNRESET,
    MAX_ISO_PACKETS,
    NO_ISO_PACKETS,
    URB_HEADER_SIZE,
    USBIP_CMD_SUBMIT,
    USBIP_DIR_IN,
)
from usbipd.usb.descriptors import Endpoint

ISOCHRONOUS: Final = 1  # bmAttributes & 3, USB 2.0 table 9-13
STATUSES: Final = frozenset(
    -value for name, value in vars(constants).items() if name.startswith("LINUX_")
) | {
    0,
    -13,  # EACCES, which our Python code does not use
    -16,  # EBUSY
}
"""Valid values of `status`: 0 and Linux errno values."""

_SUBMIT_HEADER: Final = struct.Struct("!4xIIIIIIIII8s")
_LARGEST: Final = 32 << 20
_INLINE, _SMALLEST_CLASS, _HEADROOM, _MAX_URBS = 320, 1024, 64, 4096  # cython/pump.pxd
_SET_CONFIGURATION, _SET_INTERFACE = b"\x00\x09", b"\x01\x0b"
_MARGIN: Final = 8 << 20
"""Bytes of heap beyond the budget: 4,096 URBs with their transfers, a loopback's buffer, and the test's
own.
"""

_TRIES: Final = 3
"""Turns without a reply after which none is expected."""
_MOST_PIECES: Final = 256
"""Pieces of a chosen size that one client sends, each a turn of the pump; the rest goes out in large ones."""


class Commands(CommandReader):
    """A `CommandReader` that reports how many bytes surely belong to the current message."""

    @property
    def wanted(self) -> int:
        return self._size - len(self._buffer)


class Settings:
    """The endpoints of a device as its configuration and alternate settings change."""

    def __init__(self, endpoints: Sequence[Endpoint], configuration: int) -> None:
        self.endpoints = endpoints
        self.configuration = configuration
        self.alternates: dict[int, int] = {}

    def active(self) -> list[Endpoint]:
        return [
            each
            for each in self.endpoints
            if each.bConfigurationValue == self.configuration
            and each.bAlternateSetting == self.alternates.get(each.bInterfaceNumber, 0)
        ]

    def is_isochronous(self, ep: int, direction: int) -> bool | None:
        address = ep | (0x80 if direction == USBIP_DIR_IN else 0)
        for each in self.active():
            if each.bEndpointAddress == address:
                return each.bmAttributes & 3 == ISOCHRONOUS
        return None

    def changed_by(self, submit: Submit) -> None:
        """A request that succeeded."""
        _request, _number, value, index, _length = struct.unpack("<BBHHH", submit.setup)
        if submit.ep == 0 and submit.setup[:2] == _SET_CONFIGURATION:
            self.configuration = value & 0xFF
            self.alternates = {}
        elif submit.ep == 0 and submit.setup[:2] == _SET_INTERFACE:
            self.alternates[index] = value

    def left_by(self, submit: Submit) -> None:
        """A request that failed; most devices keep their settings then."""


class HostileClient:
    """The client of `rig`, from its attachment until `end`."""

    def __init__(
        self, rig: Rig, settings: Settings, *, devid: int, budget: int = _pump.SMALLEST_BUDGET
    ) -> None:
        self._rig = rig
        self._settings = settings
        self._devid = devid
        self._budget = budget
        self._commands = Commands(settings.is_isochronous)
        self._header = b""
        self._outgoing = b""
        self._pieces = 0
        self._wake = _pump.CHANNEL
        self._heap_at_first = heap.allocated()
        self.submits: dict[int, Submit] = {}
        """Unanswered, oldest first."""
        self.unlinks: dict[int, Unlink] = {}
        self.doomed = False
        """The pump must refuse the input."""
        self.unsure = False
        """From here on more than one thing may happen: the budget may be used up, so that the pump does
        not read; or two waiting commands have one seqnum, so that their replies look the same.
        """
        self.device_failed = False
        """The device was unplugged."""
        self.claim_failed = False
        """An interface may be unclaimed after its next claim."""

    @property
    def alive(self) -> bool:
        return self._wake == _pump.CHANNEL and not self.doomed

    @property
    def between_messages(self) -> bool:
        return not self._header and self._commands.wanted == URB_HEADER_SIZE

    @property
    def waits_for_settings(self) -> bool:
        """Whether a request that may change the endpoints is in flight or held."""
        return any(_changes_settings(submit) for submit in self.submits.values())

    # ---- sending ---------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Takes bytes to send with the next `deliver`, or earlier if necessary."""
        while data and self.alive and not self.unsure:
            part, data = data[: self._commands.wanted], data[self._commands.wanted :]
            complete = len(self._header) < URB_HEADER_SIZE <= len(self._header) + len(part)
            if len(self._header) < URB_HEADER_SIZE:
                self._header += part
            if complete:
                self._look_at_header()
                if self._wake != _pump.CHANNEL:
                    return
            try:
                messages = self._commands.feed(part)
            except ProtocolError:
                self.doomed = True
                messages = []
            self._outgoing += part
            for message in messages:
                self._header = b""
                if not self.doomed:
                    self._announce(message)
            if self.doomed:
                self._outgoing += data
        if self.unsure:
            self._outgoing += data
        if not self.alive:
            self.deliver()

    def deliver(self, size: int = 1 << 20) -> None:
        """Sends the written bytes in pieces of `size`, and takes the replies."""
        rest, self._outgoing = memoryview(self._outgoing), b""
        while rest and self._wake == _pump.CHANNEL:
            self._pieces += 1
            try:
                sent = self._rig.client.send(rest[: size if self._pieces <= _MOST_PIECES else len(rest)])
            except BlockingIOError:
                if not self._drain():
                    assert self.unsure or self._may_stall(0), "the pump does not read, and has memory left"
                    self.unsure = True
                    return
                continue
            rest = rest[sent:]
            self.turn()

    def turn(self) -> list[Reply]:
        """One round of the pump; the replies."""
        if self._wake == _pump.CHANNEL:
            self._wake = self._rig.turn()
            self._look_at_heap()
        if self.unsure:
            with contextlib.suppress(BlockingIOError):
                while self._rig.client.recv(1 << 20):
                    pass
            return []
        replies = self._rig.received()
        for reply in replies:
            self._take(reply)
        return replies

    def wait_for_streams(self, seconds: float) -> None:
        """Gives isochronous URBs the time that their packets take."""
        end = time.monotonic() + seconds
        while any(submit.iso for submit in self.submits.values()) and time.monotonic() < end:
            self.turn()

    # ---- the end ---------------------------------------------------------------------------------

    def end(self) -> None:
        """Unlinks what is left, checks that nothing is, and leaves."""
        self.deliver()
        self._drain()
        if self.alive and not self.unsure and self.between_messages and not self.device_failed:
            seqnum = max([*self.submits, *self.unlinks, 0])
            for number, submit in enumerate(list(self.submits.values())):
                unlink = Unlink((seqnum + 1 + number) % (1 << 32), self._devid, 0, 0, submit.seqnum)
                if unlink.seqnum not in self.unlinks:
                    self.write(encode(unlink))
            self.deliver()
            self._drain()
            self._end_early_unlinks()
            if self.alive and not self.unsure:
                assert not self.submits, f"unanswered: {list(self.submits.values())}"
                assert not self.unlinks, f"unanswered: {list(self.unlinks.values())}"
        if self._wake == _pump.CHANNEL:
            assert not self.doomed or self.unsure, "the pump swallowed what it should refuse"
            self._rig.client.close()
            self._read_to_the_end()
            assert self._wake != _pump.CHANNEL, "the pump does not notice that its client has left"
        elif self._wake == _pump.CLIENT_FAILED:
            assert self.doomed or self.unsure, f"the pump refuses what is right: {self._rig.pump.problem}"
        elif self._wake == _pump.CLAIM_LOST:
            assert self.claim_failed
        else:
            assert self._wake == _pump.DEVICE_GONE, f"the pump came back with {self._wake}"
            assert self.device_failed
        if self._wake == _pump.CLIENT_FAILED:
            assert self._rig.pump.problem.isprintable()
            assert self._rig.pump.problem
        assert self._rig.finish(), "the device keeps URBs"
        assert self._rig.counters.in_flight == 0

    def _read_to_the_end(self) -> None:
        """Turns until the pump ends the session, or would sleep; a round reads only so much."""
        unread = -1
        while self._wake == _pump.CHANNEL and self._on_the_way()[0] != unread:
            unread = self._on_the_way()[0]
            self._wake = self._rig.turn()

    def _end_early_unlinks(self) -> None:
        """Brings the SUBMITs for which UNLINKs wait, rather than waiting as long as the pump does."""
        for unlink in list(self.unlinks.values()):
            if unlink.seqnum in self.unlinks and self.alive and not self.unsure:
                get_status = bytes.fromhex("80 00 0000 0000 0200")
                self.write(encode(Submit(unlink.unlink_seqnum, self._devid, 1, 0, 0, 2, setup=get_status)))
                self.deliver()
                self._drain()

    # ---- expected replies ------------------------------------------------------------------------

    def _drain(self) -> bool:
        """Takes all replies that are ready; returns whether any were."""
        idle, any_reply = 0, False
        while idle < _TRIES and self._wake == _pump.CHANNEL:
            before = self._on_the_way()
            moved = bool(self.turn()) or self._on_the_way() != before
            any_reply = any_reply or moved
            idle = 0 if moved else idle + 1
        return any_reply

    def _on_the_way(self) -> tuple[int, int]:
        """Bytes that the pump has left in its socket, and bytes of a reply that is not whole."""
        answer = fcntl.ioctl(self._rig._pumps_client, termios.FIONREAD, bytes(4))
        return int.from_bytes(answer, "little"), len(self._rig.replies._buffer)

    def _look_at_heap(self) -> None:
        now = heap.allocated()
        if now is not None and self._heap_at_first is not None:
            ours = 2 * len(self._rig.replies._buffer)
            assert now - self._heap_at_first <= self._budget + _MARGIN + ours, (
                "the client costs more than its budget"
            )

    def _look_at_header(self) -> None:
        """What the pump decides on the header alone, before any byte after it."""
        command, seqnum, devid = struct.unpack_from("!III", self._header)
        if devid != self._devid:
            self.doomed = True
            return
        named = {unlink.unlink_seqnum for unlink in self.unlinks.values()}
        used = seqnum in named or seqnum in self.submits or seqnum in self.unlinks
        if used or self.waits_for_settings or self._may_stall(_LARGEST):
            self.deliver()
            self._drain()
        if command != USBIP_CMD_SUBMIT:
            self.unsure = self._may_stall(0) or seqnum in self.unlinks
            return
        submit = Submit(*_SUBMIT_HEADER.unpack(self._header))
        self.doomed = seqnum in self.submits
        self.unsure = self._may_stall(_room(submit))
        if not self.doomed:  # the header alone may get an answer, if it names no endpoint, say
            self.submits[seqnum] = submit
            self._rig.replies.expect(submit)

    def _announce(self, message: Command) -> None:
        if isinstance(message, Unlink):
            self.unlinks[message.seqnum] = message
            self._rig.replies.expect(message)
            return
        if message.seqnum in self.submits:  # else already answered
            self.submits[message.seqnum] = message
            self._rig.replies.expect(message)
        if _changes_settings(message):
            self.deliver()
            self._drain()

    def _take(self, reply: Reply) -> None:
        assert reply.status in STATUSES, reply
        if not isinstance(reply, RetSubmit):
            unlink = self.unlinks.pop(reply.seqnum)
            if reply.status == -LINUX_ECONNRESET:
                del self.submits[unlink.unlink_seqnum]
            return
        submit = self.submits[reply.seqnum]
        if reply.status == 0:
            pipe = (submit.ep, submit.direction)
            oldest = next(each for each in self.submits.values() if (each.ep, each.direction) == pipe)
            assert submit.ep == 0 or oldest is submit, f"{submit} is answered before {oldest}"
            self._settings.changed_by(submit)
        else:
            self._settings.left_by(submit)
        del self.submits[reply.seqnum]

    def _may_stall(self, room: int) -> bool:
        held = sum(_room(submit) for submit in self.submits.values())
        return held + room > self._budget or len(self.submits) + len(self.unlinks) + 1 >= _MAX_URBS


def _changes_settings(submit: Submit) -> bool:
    return submit.ep == 0 and submit.setup[:2] in (_SET_CONFIGURATION, _SET_INTERFACE)


def _room(submit: Submit) -> int:
    """Bytes of buffers that the URB needs at most."""
    packets = (
        0 if submit.number_of_packets == NO_ISO_PACKETS else min(submit.number_of_packets, MAX_ISO_PACKETS)
    )
    size = submit.transfer_buffer_length + packets * 32
    size += 16 if packets else 0
    if size <= _INLINE:
        return 0
    return _HEADROOM + max(_SMALLEST_CLASS, 1 << (size - 1).bit_length())
