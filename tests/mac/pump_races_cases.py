"""Client, pump and device in any order, on libusb's darwin backend, with any switches.  test_pump.py runs it,
in a process of a software Mac.

Invariant: each SUBMIT ends once, and each UNLINK is answered once.  No byte is lost or duplicated, and each
endpoint keeps its order: the device receives the data of the OUT URBs in sequence, complete except for URBs
that ended with an error; IN URBs receive the device's data, and only URBs that ended with an error may lack
some of it.
"""

import time
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.mac.kernel import errors
from tests.mac.pump_rig import (
    IN,
    INTERRUPT_IN,
    INTERRUPT_OUT,
    OUT,
    PumpRig,
    fresh_switches,
)
from tests.mac.rig import PATIENCE
from tests.urb import Command, RetSubmit, Submit
from usbipd.protocol.constants import LINUX_ECONNRESET, LINUX_EILSEQ, LINUX_EPIPE, URB_ZERO_PACKET

PACKETS = {OUT: 512, IN: 512, INTERRUPT_OUT: 8, INTERRUPT_IN: 8}
"""By endpoint, wMaxPacketSize."""
OUTS, INS = [OUT, INTERRUPT_OUT], [IN, INTERRUPT_IN]
WORD = 4
MOST_PENDING = 12


@dataclass
class Ended:
    """The end of a URB; `status` is from its RET_SUBMIT, or -ECONNRESET if an UNLINK won."""

    status: int
    actual_length: int = 0
    data: bytes = b""


@dataclass
class Endpoint:
    """The record of one endpoint."""

    urbs: list[Submit] = field(default_factory=list)
    given: bytes = b""
    """Data sent by the device."""
    messages: set[int] = field(default_factory=set)
    """The ends of messages in `given`."""
    disturbed: bool = False
    """A URB was unlinked or a halt cleared."""


def words(first: int, count: int) -> bytes:
    return b"".join((first + number).to_bytes(WORD, "big") for number in range(count))


class PumpRaces(RuleBasedStateMachine):
    """One session."""

    @initialize(
        reports=st.booleans(),
        is_reversed=st.booleans(),
        code=st.sampled_from([errors.ABORTED, errors.ABORTED, errors.TRANSACTION_RETURNED]),
        clear_code=st.sampled_from([errors.TRANSACTION_RETURNED, errors.ABORTED, None]),
        ends_queue=st.booleans(),
        halted=st.booleans(),
    )
    def plug_in(
        self,
        reports: bool,
        is_reversed: bool,
        code: int,
        clear_code: int | None,
        ends_queue: bool,
        halted: bool,
    ) -> None:
        fresh_switches(
            reenumeration_changes_address=False,
            abort_reports_bytes=reports,
            abort_reversed=is_reversed,
            abort_code=code,
            clear_stall_code=clear_code,
            stall_ends_queue=ends_queue,
            halted_at_first_use=halted,
        )
        self.rig = PumpRig()
        self.endpoints = {address: Endpoint() for address in PACKETS}
        self.batch: list[Command] = []
        """Sent with the next turn."""
        self.ended: dict[int, Ended] = {}
        """By seqnum."""
        self.unlinks: dict[int, int] = {}
        """The URB of each unanswered UNLINK, by the seqnum of the UNLINK."""
        self.controls: set[int] = set()
        """Unanswered control requests."""
        self.next_word = 1

    # ---- the client ------------------------------------------------------------------------------

    def pending(self, address: int) -> list[Submit]:
        return [urb for urb in self.endpoints[address].urbs if urb.seqnum not in self.ended]

    def fresh(self, count: int) -> bytes:
        data = words(self.next_word, count)
        self.next_word += count
        return data

    def add(self, address: int, urb: Submit) -> None:
        self.endpoints[address].urbs.append(urb)
        self.batch.append(urb)

    @rule(
        address=st.sampled_from([OUT, OUT, INTERRUPT_OUT]),
        lengths=st.lists(st.integers(0, 400), min_size=1, max_size=3),
        zero=st.booleans(),
    )
    def write(self, address: int, lengths: list[int], zero: bool) -> None:
        for length in lengths:
            if len(self.pending(address)) < MOST_PENDING:
                count = length // 128 * 128 if zero else length
                flags = URB_ZERO_PACKET if zero and address == OUT else 0
                self.add(address, self.rig.submit(address, data=self.fresh(count), flags=flags))

    @rule(
        address=st.sampled_from([IN, IN, INTERRUPT_IN]),
        packets=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    )
    def read(self, address: int, packets: list[int]) -> None:
        for each in packets:
            if len(self.pending(address)) < MOST_PENDING:
                self.add(address, self.rig.submit(address, each * PACKETS[address]))

    @rule(address=st.sampled_from(sorted(PACKETS)), back=st.integers(0, 5), apart=st.booleans())
    def unlink(self, address: int, back: int, apart: bool) -> None:
        """Unlink one of the last URBs, whether or not it has ended."""
        urbs = self.endpoints[address].urbs
        if urbs:
            if apart:
                self.turn()
            target = urbs[-1 - back % len(urbs)]
            unlink = self.rig.unlink(target)
            self.unlinks[unlink.seqnum] = target.seqnum
            self.endpoints[address].disturbed = True
            self.batch.append(unlink)

    @rule(address=st.sampled_from(sorted(PACKETS)))
    def clear_halt(self, address: int) -> None:
        setup = bytes((2, 1, 0, 0, address, 0, 0, 0))
        urb = self.rig.submit(0, setup=setup)
        self.controls.add(urb.seqnum)
        self.endpoints[address].disturbed = True
        self.batch.append(urb)

    @rule()
    def turn(self) -> None:
        batch, self.batch = self.batch, []
        self.take(*batch)

    def take(self, *commands: Command) -> None:
        for reply in self.rig.exchange(*commands):
            if isinstance(reply, RetSubmit):
                assert reply.seqnum not in self.ended, "it has ended before"
                self.controls.discard(reply.seqnum)
                self.ended[reply.seqnum] = Ended(reply.status, reply.actual_length, reply.data)
                continue
            target = self.unlinks.pop(reply.seqnum)
            assert reply.status in (0, -LINUX_ECONNRESET)
            if reply.status:
                assert target not in self.ended, "it has ended before"
                self.ended[target] = Ended(reply.status)
            else:
                assert target in self.ended, "it has not ended"

    # ---- the device ------------------------------------------------------------------------------

    @rule(address=st.sampled_from([IN, IN, INTERRUPT_IN]), length=st.integers(0, 500))
    def give(self, address: int, length: int) -> None:
        """A message that ends with a short packet, empty if necessary."""
        endpoint = self.endpoints[address]
        data = self.fresh(length if address == IN else length % 9)
        size = PACKETS[address]
        packets = [data[at : at + size] for at in range(0, len(data) + 1, size)]
        endpoint.given += data
        endpoint.messages.add(len(endpoint.given))
        self.rig.usb.give_packets(address, *packets)

    @rule(address=st.sampled_from(OUTS), packets=st.sampled_from([0, 1, 2, 5, None]))
    def accept(self, address: int, packets: int | None) -> None:
        self.rig.usb.credit(address, packets)

    @precondition(lambda self: self.next_word > 200)
    @rule(address=st.sampled_from(sorted(PACKETS)))
    def stall(self, address: int) -> None:
        self.rig.usb.stall(address)

    # ---- the end ---------------------------------------------------------------------------------

    def until_answered(self, urbs: list[Submit]) -> None:
        end = time.monotonic() + PATIENCE
        while self.unlinks or self.controls or any(urb.seqnum not in self.ended for urb in urbs):
            assert time.monotonic() < end, "a URB or an UNLINK is not answered"
            self.take()

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.finish()
            self.rig.close()

    def finish(self) -> None:
        for address in PACKETS:
            self.clear_halt(address)
        for address in OUTS:
            self.rig.usb.credit(address, None)
        self.turn()
        self.until_answered([urb for address in OUTS for urb in self.pending(address)])
        for address in INS:
            for urb in self.pending(address):
                unlink = self.rig.unlink(urb)
                self.unlinks[unlink.seqnum] = urb.seqnum
                self.batch.append(unlink)
        self.turn()
        self.until_answered([urb for address in INS for urb in self.pending(address)])
        for address in INS:
            while self.rig.usb.left(address):
                self.read(address, [4])
                self.turn()
                self.until_answered(self.pending(address))
            self.check_read(self.endpoints[address])
        for address in OUTS:
            self.check_written(self.endpoints[address], self.rig.usb.taken(address))

    def check_status(self, endpoint: Endpoint, ended: Ended) -> None:
        assert ended.status in (0, -LINUX_ECONNRESET, -LINUX_EILSEQ, -LINUX_EPIPE)
        assert endpoint.disturbed or ended.status not in (-LINUX_ECONNRESET, -LINUX_EILSEQ)

    def check_written(self, endpoint: Endpoint, taken: bytes) -> None:
        at = 0
        for urb in endpoint.urbs:
            ended = self.ended[urb.seqnum]
            self.check_status(endpoint, ended)
            moved = 0
            while (
                moved < len(urb.data)
                and taken[at + moved : at + moved + WORD] == urb.data[moved : moved + WORD]
            ):
                moved += WORD
            at += moved
            assert ended.actual_length <= moved <= len(urb.data)
            assert ended.status != 0 or moved == ended.actual_length == len(urb.data)
        assert at == len(taken), "written twice, or out of order"

    def check_read(self, endpoint: Endpoint) -> None:
        at = excused = 0
        for urb in endpoint.urbs:
            ended = self.ended[urb.seqnum]
            self.check_status(endpoint, ended)
            if ended.data:
                start = endpoint.given.find(ended.data[:WORD])
                assert endpoint.given[start : start + len(ended.data)] == ended.data
                assert at <= start <= at + excused, "lost, read twice, or out of order"
                at, excused = start + len(ended.data), 0
            if ended.status != 0:
                excused += urb.transfer_buffer_length
            else:
                full = len(ended.data) == urb.transfer_buffer_length
                assert full or at in endpoint.messages or excused
        assert at <= len(endpoint.given) <= at + excused, "lost at the end"


TestPumpRaces = PumpRaces.TestCase
TestPumpRaces.settings = settings(stateful_step_count=30, max_examples=60, deadline=None)
