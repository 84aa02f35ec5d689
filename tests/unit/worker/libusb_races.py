"""Client, pump and device in any order.  test_libusb.py runs it, in a process whose libusb is fake_libusb.c.

Invariant: each SUBMIT ends in exactly one RET_SUBMIT, or one RET_UNLINK that won; an UNLINK loses exactly if
the device was faster or there is no such URB in flight; the URBs of an endpoint are answered in the order in
which the device ended them; data, lengths and statuses are the device's; and when client and pump are gone no
transfer of libusb is left.
"""

from collections import defaultdict
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.worker.libusb_rig import (
    BULK_IN,
    BULK_OUT,
    CANCELLED,
    COMPLETED,
    INTERRUPT_IN,
    ISO_IN,
    ISO_OUT,
    STALL,
    LibusbRig,
    fake,
)
from tests.unit.worker.rig import DEVID
from tests.urb import Command, IsoPacket, Reply, RetSubmit, Submit, Unlink, encode
from usbipd import _pump
from usbipd.protocol.constants import (
    LINUX_ECONNRESET,
    LINUX_EINVAL,
    LINUX_ENODEV,
    LINUX_ENOMEM,
    LINUX_EOVERFLOW,
    LINUX_EPIPE,
    LINUX_EPROTO,
    LINUX_EREMOTEIO,
    LINUX_ESHUTDOWN,
    LINUX_ETIMEDOUT,
    LINUX_EXDEV,
    URB_SHORT_NOT_OK,
)

CONTROL = 0
INTERFACE = {BULK_OUT: 0, BULK_IN: 0, INTERRUPT_IN: 0, ISO_OUT: 1, ISO_IN: 1}
ENDPOINTS = [CONTROL, *INTERFACE]
LENGTHS = [0, 1, 64, 320, 321, 1024, 5000]
MOST_PENDING = 40
"""The fake has room for 64 transfers."""

ENDS = {  # enum libusb_transfer_status, and its value on the wire
    COMPLETED: 0,
    1: -LINUX_EPROTO,  # ERROR
    2: -LINUX_ETIMEDOUT,
    STALL: -LINUX_EPIPE,
    6: -LINUX_EOVERFLOW,
}
SUBMIT_ERRORS = {  # enum libusb_error, and its value on the wire
    -2: -LINUX_EINVAL,  # INVALID_PARAM
    -5: -LINUX_EPIPE,  # NOT_FOUND
    -11: -LINUX_ENOMEM,
    -1: -LINUX_EPROTO,  # IO
    -99: -LINUX_EPIPE,
}


@dataclass
class Completion:
    """What the device did with an URB, as the reply must report it."""

    status: int
    actual_length: int
    data: bytes
    iso: tuple[IsoPacket, ...] = ()


class Races(RuleBasedStateMachine):
    """One client after another, on one device."""

    def __init__(self) -> None:
        super().__init__()
        fake.fake_begin()
        self.rig = LibusbRig()
        self.begin_session()
        self.alternate = 0
        self.configuration = 1
        self.off = False
        self.held = False

    def begin_session(self) -> None:
        self.batch: list[Command] = []
        """Sent with the next turn."""
        self.known: list[Submit] = []
        """All URBs of this session, as targets of UNLINKs."""
        self.pending: dict[int, list[Submit]] = defaultdict(list)
        """By endpoint: the URBs at the device, in order of arrival."""
        self.ended: dict[int, Completion] = {}
        """By seqnum: the URBs that the device has completed; the reply comes with the next turn."""
        self.order: dict[int, list[int]] = defaultdict(list)
        """By endpoint: the seqnums of `ended`, in order of completion."""
        self.named: dict[int, list[Unlink]] = defaultdict(list)
        """UNLINKs that wait for an URB, by its seqnum, oldest first."""
        self.now_unlinked: dict[int, Unlink] = {}
        """UNLINKs of this batch, by their own seqnum."""

    @initialize(seqnum=st.sampled_from([0, 4090, 0xFFFFFFF8]))
    def first_seqnum(self, seqnum: int) -> None:
        self.seqnum = seqnum

    def teardown(self) -> None:
        fake.fake_hold_cancels(0)
        self.rig.close()
        assert fake.fake_pending() == 0
        assert fake.fake_allocated() == 0

    # ---- the client ------------------------------------------------------------------------------

    def next_seqnum(self) -> int:
        """Wraps around, but skips 0, which means none to the pump."""
        self.seqnum = (self.seqnum + 1) & 0xFFFFFFFF or 1
        return self.seqnum

    def make(self, endpoint: int, length: int, control_in: bool, flags: int) -> Submit:
        incoming = control_in if endpoint == CONTROL else endpoint & 0x80 != 0
        setup = bytes(8)
        if endpoint == CONTROL:
            length = min(length, 1024)
            setup = (b"\xc0\x01" if incoming else b"\x40\x02") + bytes(4) + length.to_bytes(2, "little")
        iso: tuple[IsoPacket, ...] = ()
        if endpoint in (ISO_IN, ISO_OUT):
            size = length // 3
            iso = tuple(IsoPacket(number * size, size) for number in range(3))
            length = size * 3
        return Submit(
            seqnum=self.next_seqnum(),
            devid=DEVID,
            direction=int(incoming),
            ep=endpoint & 15,
            transfer_flags=flags,
            transfer_buffer_length=length,
            number_of_packets=len(iso),
            setup=setup,
            data=b"" if incoming else bytes(number & 0xFF for number in range(length)),
            iso=iso,
        )

    def there(self, endpoint: int) -> bool:
        """Whether the active settings include this endpoint."""
        if endpoint == CONTROL:
            return True
        return self.configuration == 1 and (INTERFACE[endpoint] == 0 or self.alternate == 1)

    @precondition(lambda self: self.in_flight() < MOST_PENDING)
    @rule(
        endpoint=st.sampled_from(ENDPOINTS),
        length=st.sampled_from(LENGTHS),
        control_in=st.booleans(),
        flags=st.sampled_from([0, URB_SHORT_NOT_OK, 0x202]),
        times=st.integers(1, 4),
    )
    def submit(self, endpoint: int, length: int, control_in: bool, flags: int, times: int) -> None:
        for _ in range(times):
            self.submit_one(endpoint, length, control_in, flags)

    def submit_one(self, endpoint: int, length: int, control_in: bool, flags: int) -> None:
        if not self.there(endpoint):
            if endpoint in (ISO_IN, ISO_OUT):  # its descriptors would make it a protocol error
                return
            self.refused(self.make(endpoint, length, control_in, flags), -LINUX_EPIPE)
            return
        if self.off and endpoint in (ISO_IN, ISO_OUT):
            self.refused(self.make(endpoint, length, control_in, flags), -LINUX_EPIPE)
            return
        submit = self.make(endpoint, length, control_in, flags)
        self.known.append(submit)
        self.batch.append(submit)
        self.pending[endpoint].append(submit)

    @precondition(lambda self: self.in_flight() < MOST_PENDING)
    @rule(
        endpoint=st.sampled_from(ENDPOINTS),
        length=st.sampled_from(LENGTHS),
        control_in=st.booleans(),
        error=st.sampled_from(sorted(SUBMIT_ERRORS)),
    )
    def submit_that_fails(self, endpoint: int, length: int, control_in: bool, error: int) -> None:
        if self.there(endpoint):
            self.refused(self.make(endpoint, length, control_in, 0), SUBMIT_ERRORS[error], error)

    def refused(self, submit: Submit, status: int, error: int = 0) -> None:
        """An URB that never reaches the device; with `error`, libusb refuses it."""
        self.turn()
        if error:
            fake.fake_fail(b"submit", error)
        self.known.append(submit)
        [reply] = self.exchange(submit)
        assert isinstance(reply, RetSubmit)
        assert (reply.seqnum, reply.status, reply.actual_length) == (submit.seqnum, status, 0)
        assert all((packet.actual_length, packet.status) == (0, 0) for packet in reply.iso)

    @precondition(lambda self: self.known)
    @rule(back=st.integers(0, 6), times=st.integers(1, 3))
    def unlink(self, back: int, times: int) -> None:
        """Of an URB in flight, just completed, or already answered; once or more."""
        for _ in range(times):
            self.add_unlink(self.known[-1 - back % len(self.known)].seqnum)

    @rule(offset=st.integers(1000, 1100))
    def unlink_of_nothing(self, offset: int) -> None:
        self.add_unlink((self.seqnum + offset) & 0xFFFFFFFF)

    def add_unlink(self, target: int) -> None:
        unlink = Unlink(self.next_seqnum(), DEVID, 0, 0, target)
        self.batch.append(unlink)
        self.now_unlinked[unlink.seqnum] = unlink

    @rule(endpoint=st.sampled_from(ENDPOINTS), apart=st.booleans())
    def unlink_first(self, endpoint: int, apart: bool) -> None:
        """An UNLINK overtakes its SUBMIT, which then never reaches the device."""
        if not self.there(endpoint):
            return
        self.refused(
            self.make(0, 0, False, 0), -LINUX_ENOMEM, -11
        )  # since the first SUBMIT of all they count
        submit = self.make(endpoint, 64, False, 0)
        unlink = Unlink(self.next_seqnum(), DEVID, 0, 0, submit.seqnum)
        self.rig.replies.expect(submit)
        replies = self.exchange(unlink) if apart else []
        assert replies == [] if apart else True
        rest = [submit] if apart else [unlink, submit]
        [reply] = self.exchange(*rest)
        assert (reply.seqnum, reply.status) == (unlink.seqnum, -LINUX_ECONNRESET)
        self.known.append(submit)

    @rule()
    def turn(self) -> None:
        """The pump receives the sent bytes and runs one round."""
        batch, self.batch = self.batch, []
        self.check(self.exchange(*batch))

    def exchange(self, *commands: Command) -> list[Reply]:
        for command in commands:
            self.rig.replies.expect(command)
        self.rig.send(b"".join(encode(command) for command in commands))
        return self.rig.received()

    # ---- the device ------------------------------------------------------------------------------

    @rule(
        endpoint=st.sampled_from(ENDPOINTS),
        status=st.sampled_from([COMPLETED, COMPLETED, COMPLETED, *ENDS]),
        share=st.sampled_from([0, 1, 2, 4, 4]),
        filler=st.integers(0, 255),
    )
    def complete(self, endpoint: int, status: int, share: int, filler: int) -> None:
        """The oldest URB of an endpoint completes, with some quarters of its data."""
        on_the_way = {each.seqnum for each in self.batch}
        there = [each for each in self.pending[endpoint] if each.seqnum not in on_the_way]
        if not there:
            return
        submit = there[0]
        self.pending[endpoint].remove(submit)
        moved = submit.transfer_buffer_length * share // 4
        data = bytes((filler + number) & 0xFF for number in range(moved))
        given = data if submit.direction or submit.iso else None
        assert fake.fake_complete(endpoint, status, given, moved)
        self.ended[submit.seqnum] = completion(submit, ENDS[status], data)
        self.order[endpoint].append(submit.seqnum)

    @rule(hold=st.booleans())
    def hold_cancels(self, hold: bool) -> None:
        """The device starts or stops delaying cancellations."""
        self.turn()
        self.held = hold
        fake.fake_hold_cancels(int(hold))

    @rule(endpoint=st.sampled_from(ENDPOINTS))
    def end_cancelled(self, endpoint: int) -> None:
        """The oldest URB of an endpoint ends as cancelled: by the client, or on the device's side."""
        self.turn()
        if not self.pending[endpoint]:
            return
        submit = self.pending[endpoint].pop(0)
        assert fake.fake_complete(endpoint, CANCELLED, b"", 0)
        self.now_cancelled([submit])

    def now_cancelled(self, submits: list[Submit]) -> None:
        """The expected replies of the next turn for URBs that the device or the host has cancelled."""
        self.check(self.exchange(), submits)

    # ---- requests that go through the host's stack -----------------------------------------------

    def request(
        self, setup: str, ends: list[int], function: bytes, failure: int, *, known: bool = True
    ) -> bool:
        """Ends the URBs of those endpoints, all at once, and is answered behind them; whether it went
        through: not if the host does not know what it names.  All but a reset would wait for the control URBs
        before them, so the device ends those first.
        """
        self.hold_cancels(False)
        while self.pending[CONTROL] and function != b"reset":
            self.complete(CONTROL, COMPLETED, 4, 0)
            self.turn()
        if failure:
            fake.fake_fail(function, failure)
        submit = Submit(
            seqnum=self.next_seqnum(),
            devid=DEVID,
            direction=0,
            ep=0,
            transfer_flags=0,
            transfer_buffer_length=0,
            number_of_packets=0,
            setup=bytes.fromhex(setup),
        )
        *replies, last = self.exchange(submit)
        assert (last.seqnum, last.status == 0) == (submit.seqnum, known and not failure)
        cancelled = [urb for endpoint in ends for urb in self.pending.pop(endpoint, [])]
        self.check(replies, cancelled)
        return known and not failure

    @rule(
        kind=st.sampled_from(["interface", "interface", "configuration", "halt", "reset", "leave", "unplug"]),
        value=st.sampled_from([1, 1, 0]),
        failure=st.sampled_from([0, 0, -99]),
    )
    def disturb(self, kind: str, value: int, failure: int) -> None:
        """A request that ends URBs; a single rule, so that most steps concern the URBs."""
        match kind:
            case "interface":
                self.set_interface(value, failure)
            case "configuration":
                self.set_configuration(2 - value)
            case "halt":
                self.clear_halt(failure)
            case "reset":
                self.reset(failure)
            case "leave":
                self.leave()
            case "unplug":
                self.unplug()

    def set_interface(self, alternate: int, failure: int) -> None:
        known = self.configuration == 1
        ends = [ISO_IN, ISO_OUT] if known else []
        setup = f"01 0b 0{alternate}00 0100 0000"
        if self.request(setup, ends, b"set_interface", failure, known=known):
            self.alternate, self.off = alternate, False
        elif known:
            self.off = self.alternate == 1

    def set_configuration(self, value: int) -> None:
        if self.request(f"00 09 0{value}00 0000 0000", ENDPOINTS, b"", 0):
            self.configuration, self.alternate, self.off = value, 0, False

    def clear_halt(self, failure: int) -> None:
        known = self.configuration == 1
        self.request("02 01 0000 8100 0000", [], b"clear_halt", failure, known=known)

    def reset(self, failure: int) -> None:
        went_through = self.request("23 03 0400 0100 0000", ENDPOINTS, b"reset", failure)
        self.alternate, self.off = self.alternate if went_through else 0, False

    # ---- the end of a session --------------------------------------------------------------------

    def leave(self) -> None:
        """The client leaves at any point; the next one comes."""
        self.held = False
        fake.fake_hold_cancels(0)
        self.rig.send(b"".join(encode(command) for command in self.batch)[:-1])
        assert self.rig.finish()
        assert (fake.fake_pending(), self.rig.counters.in_flight) == (0, 0)
        assert self.rig.pump.restore() == 0
        self.configuration, self.alternate, self.off = 1, 0, False
        self.rig.attach()
        self.begin_session()

    def unplug(self) -> None:
        """The device leaves and all its URBs end; another device comes."""
        self.turn()
        fake.fake_unplug()
        assert self.rig.turn() == _pump.DEVICE_GONE
        gone = {urb.seqnum for urbs in self.pending.values() for urb in urbs}
        for reply in self.rig.received():
            if isinstance(reply, RetSubmit):
                assert reply.status == -LINUX_ENODEV
                gone.remove(reply.seqnum)
            else:
                assert reply.status == 0
        assert not gone
        assert self.rig.finish()
        self.rig.close()
        assert (fake.fake_pending(), fake.fake_allocated()) == (0, 0)
        fake.fake_begin()
        self.rig = LibusbRig()
        self.configuration, self.alternate, self.off, self.held = 1, 0, False, False
        self.begin_session()

    # ---- expected replies ------------------------------------------------------------------------

    def in_flight(self) -> int:
        return sum(len(urbs) for urbs in self.pending.values())

    def check(self, replies: list[Reply], cancelled: "list[Submit] | tuple[Submit, ...]" = ()) -> None:
        """Compares the replies with what the device did; `cancelled`: URBs that ended without the device's
        doing.

        That a reply has a seqnum that waits for it, and not more data than it may have, `ReplyReader` has
        seen to.
        """
        # The pump asks once: one that was held up then waits for the device, however often it is named.
        asked = {unlink.unlink_seqnum for unlink in self.now_unlinked.values()} - self.named.keys()
        given_up = {submit.seqnum for submit in cancelled} | self.cancelled_at_once(asked)
        for unlink in self.now_unlinked.values():
            self.named[unlink.unlink_seqnum].append(unlink)
        self.now_unlinked = {}
        seen: dict[int, list[int]] = defaultdict(list)
        for reply in replies:
            if not isinstance(reply, RetSubmit):
                self.check_unlink(reply, given_up)
            elif reply.seqnum in given_up:
                assert reply.status == -LINUX_ESHUTDOWN, reply
                assert reply.seqnum not in self.named, "it was unlinked"
                given_up.remove(reply.seqnum)
            else:
                expected = self.ended.pop(reply.seqnum)
                found = Completion(reply.status, reply.actual_length, reply.data, reply.iso)
                assert found == expected
                endpoint = next(each for each, order in self.order.items() if reply.seqnum in order)
                seen[endpoint].append(reply.seqnum)
        assert not given_up, "cancelled, and not answered"
        assert not self.ended, "ended, and not answered"
        for endpoint, order in self.order.items():
            assert seen[endpoint] == order, "out of order"
        self.order.clear()
        waiting = {urb.seqnum for urbs in self.pending.values() for urb in urbs}
        assert not self.named.keys() - waiting, "an UNLINK is not answered"

    def cancelled_at_once(self, asked: set[int]) -> set[int]:
        """What was named in this batch and is not ended, if the device does not take its time."""
        if self.held:
            return set()
        return {urb.seqnum for urbs in self.pending.values() for urb in urbs if urb.seqnum in asked}

    def check_unlink(self, reply: Reply, given_up: set[int]) -> None:
        target = next(
            seqnum
            for seqnum, unlinks in self.named.items()
            if reply.seqnum in [each.seqnum for each in unlinks]
        )
        won = reply.status == -LINUX_ECONNRESET
        assert won or reply.status == 0
        assert won == (target in given_up), "who won?"
        if won:
            assert self.named[target][0].seqnum == reply.seqnum, (
                "the first UNLINK of an URB is the one that wins"
            )
            given_up.remove(target)
            for endpoint in self.pending:
                self.pending[endpoint] = [each for each in self.pending[endpoint] if each.seqnum != target]
        else:
            assert target not in self.ended, "the URB's own answer comes first"
        self.named[target] = [each for each in self.named[target] if each.seqnum != reply.seqnum]
        if not self.named[target]:
            del self.named[target]

    @invariant()
    def device_has_what_is_in_flight(self) -> None:
        if not self.batch and not self.ended:
            assert fake.fake_pending() == self.in_flight()
            assert self.rig.counters.in_flight == self.in_flight()


def completion(submit: Submit, status: int, data: bytes) -> Completion:
    """The content of the reply for an URB that the device completed so."""
    incoming = submit.direction == 1
    if submit.iso:
        packets, rest = [], len(data)
        for packet in submit.iso:
            moved = min(rest, packet.length)
            rest -= moved
            packets.append(IsoPacket(packet.offset, packet.length, moved, 0 if moved else -LINUX_EXDEV))
        return Completion(status, len(data), data if incoming else b"", tuple(packets))
    short = incoming and len(data) < submit.transfer_buffer_length
    if status == 0 and short and submit.transfer_flags & URB_SHORT_NOT_OK:
        status = -LINUX_EREMOTEIO
    return Completion(status, len(data), data if incoming else b"")


TestRaces = Races.TestCase
TestRaces.settings = settings(stateful_step_count=40)
