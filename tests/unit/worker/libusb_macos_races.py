"""Client, pump and device in any order, where a cancel ends all transfers of the endpoint and nobody sends
zero packets.  test_libusb.py runs it, in a process whose libusb is fake_libusb.c.

Invariant: that of libusb_races.py, for the same client: of all that a cancel ends it learns of the one that
it named.  Bytes that an URB has moved before it was ended so are in its answer, once.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from tests.unit.worker.libusb_races import (
    CONTROL,
    ENDPOINTS,
    ENDS,
    LENGTHS,
    MOST_PENDING,
    SUBMIT_ERRORS,
    Outcome,
    Races,
    outcome,
)
from tests.unit.worker.libusb_rig import BULK_IN, BULK_OUT, COMPLETED, INTERRUPT_IN, LibusbRig, fake
from tests.urb import Submit
from usbipd.protocol.constants import LINUX_ECONNRESET, URB_ZERO_PACKET

PACKET = 512
"""Bytes of one packet of the bulk endpoints."""


class RacesOnMacos(Races):
    """The same, and what an aborted transfer had moved."""

    linux = False

    def plug_in(self) -> LibusbRig:
        return LibusbRig(as_on_macos=True)

    def begin_session(self) -> None:
        super().begin_session()
        self.moved: dict[int, bytes] = {}
        """By seqnum: what attempts that were aborted have moved."""
        self.moving: dict[int, bytes] = {}
        """By seqnum: what the attempt that is on its way has moved."""
        self.at_zero_packet: set[int] = set()
        """URBs of which the device has only the empty packet."""
        self.waited: set[int] = set()
        """What the device did not have when the UNLINK of this batch was sent."""

    # ---- who is where ----------------------------------------------------------------------------

    def flying(self, endpoint: int) -> list[Submit]:
        """What libusb has if no cancel is held up: up to the first that its zero packet has to follow."""
        urbs = self.pending[endpoint]
        for number, urb in enumerate(urbs):
            if endpoint == CONTROL or self.owes(urb):
                return urbs[: number + 1]
        return urbs

    def owes(self, urb: Submit) -> bool:
        """Whether its zero packet is still to be sent."""
        return needs_zero_packet(urb) and urb.seqnum not in self.at_zero_packet

    def is_open(self, endpoint: int) -> bool:
        """Whether one more URB would go to libusb at once, if no cancel is held up."""
        return not any(endpoint == CONTROL or self.owes(urb) for urb in self.pending[endpoint])

    @invariant()
    def device_has_what_is_in_flight(self) -> None:
        if self.batch or self.ended:
            return
        assert self.rig.counters.in_flight == self.in_flight()
        for endpoint in ENDPOINTS:
            there, most = fake.fake_pending_at(endpoint), len(self.flying(endpoint))
            assert there <= most if self.held else there == most

    # ---- the client ------------------------------------------------------------------------------

    @precondition(lambda self: self.in_flight() < MOST_PENDING)
    @rule(times=st.integers(1, 3), packets=st.integers(1, 4))
    def submit_with_zero_packet(self, times: int, packets: int) -> None:
        for _ in range(times):
            self.submit_one(BULK_OUT, packets * PACKET, control_in=False, flags=URB_ZERO_PACKET)

    @precondition(lambda self: self.in_flight() < MOST_PENDING and not self.held)
    @rule(
        endpoint=st.sampled_from(ENDPOINTS),
        length=st.sampled_from(LENGTHS),
        control_in=st.booleans(),
        error=st.sampled_from(sorted(SUBMIT_ERRORS)),
    )
    def submit_that_fails(self, endpoint: int, length: int, control_in: bool, error: int) -> None:
        """One that waits for its turn would fail later."""
        self.turn()
        if self.is_open(endpoint):
            super().submit_that_fails(endpoint, length, control_in, error)

    @precondition(lambda self: not self.held and not self.pending[CONTROL])
    @rule(endpoint=st.sampled_from(ENDPOINTS), apart=st.booleans())
    def unlink_first(self, endpoint: int, apart: bool) -> None:
        super().unlink_first(endpoint, apart)

    def add_unlink(self, target: int) -> None:
        """While cancels are held up, each goes alone: what waits then ends at once, what flies does not."""
        if not self.held:
            super().add_unlink(target)
            return
        self.turn()
        self.waited = {
            urb.seqnum
            for endpoint, urbs in self.pending.items()
            for urb in urbs[fake.fake_pending_at(endpoint) :]
        }
        super().add_unlink(target)
        self.turn()

    # ---- the device ------------------------------------------------------------------------------

    @rule(
        endpoint=st.sampled_from([BULK_OUT, BULK_IN, INTERRUPT_IN]),
        packets=st.integers(1, 4),
        filler=st.integers(0, 255),
    )
    def progress(self, endpoint: int, packets: int, filler: int) -> None:
        """The oldest URB of an endpoint has moved some whole packets, and goes on."""
        self.turn()
        if not fake.fake_pending_at(endpoint):
            return
        submit = self.pending[endpoint][0]
        rest = submit.transfer_buffer_length - len(self.moved.get(submit.seqnum, b""))
        if packets * PACKET < rest and submit.seqnum not in self.at_zero_packet:
            data = bytes([filler]) * (packets * PACKET)
            fake.fake_progress(endpoint, data if submit.direction else None, len(data))
            self.moving[submit.seqnum] = data

    @rule(
        endpoint=st.sampled_from(ENDPOINTS),
        status=st.sampled_from([COMPLETED, COMPLETED, COMPLETED, *ENDS]),
        share=st.sampled_from([0, 1, 2, 4, 4]),
        filler=st.integers(0, 255),
    )
    def complete(self, endpoint: int, status: int, share: int, filler: int) -> None:
        """The rest of the oldest URB, or its zero packet."""
        self.turn()
        if not fake.fake_pending_at(endpoint):
            return
        submit = self.pending[endpoint][0]
        before = self.moved.get(submit.seqnum, b"")
        size = (submit.transfer_buffer_length - len(before)) * share // 4
        data = bytes((filler + number) & 0xFF for number in range(size))
        self.moving.pop(submit.seqnum, None)
        assert fake.fake_complete(endpoint, status, data if submit.direction or submit.iso else None, size)
        whole = len(before) + size == submit.transfer_buffer_length
        if self.owes(submit) and whole and status == COMPLETED:
            self.moved[submit.seqnum] = before + data
            if submit.seqnum in self.named:  # it had been asked to end
                self.end_with(submit, -LINUX_ECONNRESET)
            else:
                self.at_zero_packet.add(submit.seqnum)
            self.turn()
            return
        self.pending[endpoint].remove(submit)
        self.ended[submit.seqnum] = outcome(submit, ENDS[status], before + data)
        self.order[endpoint].append(submit.seqnum)

    def end_with(self, submit: Submit, status: int) -> None:
        endpoint = next(each for each, urbs in self.pending.items() if submit in urbs)
        self.pending[endpoint].remove(submit)
        self.ended[submit.seqnum] = Outcome(*outcome_of(submit, status, self.moved[submit.seqnum]))
        self.order[endpoint].append(submit.seqnum)

    @rule(hold=st.booleans())
    def hold_cancels(self, hold: bool) -> None:
        """When the hold ends, so does all that was aborted."""
        super().hold_cancels(hold)
        if not hold:
            named = [urb for urbs in self.pending.values() for urb in urbs if urb.seqnum in self.named]
            self.aborted(
                {endpoint for endpoint in ENDPOINTS for urb in named if urb in self.pending[endpoint]}
            )
            self.now_cancelled(named)

    @precondition(lambda self: not self.held)
    @rule(endpoint=st.sampled_from(ENDPOINTS))
    def end_cancelled(self, endpoint: int) -> None:
        super().end_cancelled(endpoint)

    # ---- what has to come ------------------------------------------------------------------------

    def cancelled_at_once(self, asked: set[int]) -> set[int]:
        if self.held:
            return asked & self.waited
        self.aborted({each for each in ENDPOINTS if any(urb.seqnum in asked for urb in self.flying(each))})
        return super().cancelled_at_once(asked)

    def aborted(self, endpoints: set[int]) -> None:
        """What was on its way there has moved what it has moved."""
        for endpoint in endpoints:
            for urb in self.pending[endpoint]:
                self.moved[urb.seqnum] = self.moved.get(urb.seqnum, b"") + self.moving.pop(urb.seqnum, b"")

    def note_moved(self, given_up: set[int]) -> None:
        """What was asked to end says what it has moved, in a RET_SUBMIT."""
        for urb in [urb for urbs in self.pending.values() for urb in urbs if urb.seqnum in given_up]:
            if urb.seqnum in self.named and self.moved.get(urb.seqnum):
                self.end_with(urb, -LINUX_ECONNRESET)
                given_up.remove(urb.seqnum)


def needs_zero_packet(submit: Submit) -> bool:
    length = submit.transfer_buffer_length
    return bool(submit.transfer_flags & URB_ZERO_PACKET and length and length % PACKET == 0)


def outcome_of(submit: Submit, status: int, moved: bytes) -> tuple[int, int, bytes]:
    return status, len(moved), moved if submit.direction else b""


TestRacesOnMacos = RacesOnMacos.TestCase
TestRacesOnMacos.settings = settings(stateful_step_count=40)
