"""What libusb does on macOS only, on fake_libusb.c.  test_libusb.py runs it, in a process of its own."""

from collections.abc import Iterator

import pytest

from tests.unit.worker.libusb_rig import (
    BULK_IN,
    BULK_OUT,
    CANCELLED,
    COMPLETED,
    STALL,
    VENDOR_IN,
    LibusbRig,
    fake,
    journal,
    submitted,
)
from tests.urb import Reply, RetSubmit
from usbipd._claim import Claim
from usbipd.errors import ClaimError
from usbipd.protocol.constants import LINUX_ECONNRESET, LINUX_EPIPE, LINUX_EPROTO, URB_ZERO_PACKET

ERROR_IO, ERROR_ACCESS, ERROR_NO_DEVICE, ERROR_NOT_FOUND, ERROR_PIPE = -1, -3, -4, -5, -9  # enum libusb_error
BOTH = 3
"""A driver at each interface (fake_libusb.c)."""


@pytest.fixture
def rig() -> Iterator[LibusbRig]:
    fake.fake_begin()
    rig = LibusbRig(as_on_macos=True)
    journal()
    yield rig
    assert rig.finish()
    rig.close()
    assert fake.fake_pending() == fake.fake_allocated() == 0


def outcome(reply: Reply) -> tuple[int, int]:
    return reply.seqnum, reply.status


@pytest.mark.rule("unlink-others-live-mac")
def test_the_others_are_submitted_again_and_nothing_overtakes_them(rig: LibusbRig) -> None:
    urbs = [rig.submit(BULK_IN, 100 + number) for number in range(3)]
    rig.waiting(*urbs)
    journal()
    unlink, later = rig.unlink(urbs[0]), rig.submit(BULK_IN, 103)
    assert [outcome(reply) for reply in rig.exchange(unlink, later)] == [(unlink.seqnum, -LINUX_ECONNRESET)]
    assert journal() == [f"abort {BULK_IN}"] + [f"submit {BULK_IN}"] * 3
    for urb in (*urbs[1:], later):
        assert submitted(BULK_IN)[2] == urb.transfer_buffer_length
        [reply] = rig.ended(BULK_IN, data=b"mine")
        assert outcome(reply) == (urb.seqnum, 0)


def test_an_unlink_of_a_control_urb_that_waits_leaves_the_device_alone(rig: LibusbRig) -> None:
    """A request must not be carried out twice, so the one that the device works on is not aborted."""
    urbs = [rig.submit(0x80, 0x40, setup=VENDOR_IN) for _ in range(3)]
    rig.waiting(*urbs)
    assert journal() == ["submit 0"]
    unlink = rig.unlink(urbs[1])
    assert [outcome(reply) for reply in rig.exchange(unlink)] == [(unlink.seqnum, -LINUX_ECONNRESET)]
    assert journal() == []
    for urb in (urbs[0], urbs[2]):
        [reply] = rig.ended(0, data=b"answer")
        assert outcome(reply) == (urb.seqnum, 0)


def test_an_abort_of_one_control_urb_is_for_that_one(rig: LibusbRig) -> None:
    urbs = [rig.submit(0x80, 0x40, setup=VENDOR_IN) for _ in range(2)]
    rig.waiting(*urbs)
    unlink = rig.unlink(urbs[0])
    assert [outcome(reply) for reply in rig.exchange(unlink)] == [(unlink.seqnum, -LINUX_ECONNRESET)]
    assert journal() == ["submit 0", "abort 0", "submit 0"]
    assert outcome(rig.ended(0, data=b"answer")[0]) == (urbs[1].seqnum, 0)


@pytest.mark.parametrize("moved", [600, 1024])
def test_an_aborted_in_that_was_over_has_ended(rig: LibusbRig, moved: int) -> None:
    """A short packet, or the last one, had come before the abort."""
    first, second = rig.submit(BULK_IN, 1024), rig.submit(BULK_IN, 64)
    rig.waiting(first, second)
    data = bytes(number & 0xFF for number in range(moved))
    fake.fake_progress(BULK_IN, data, moved)
    unlink = rig.unlink(second)
    replies = {reply.seqnum: reply for reply in rig.exchange(unlink)}
    reply = replies[first.seqnum]
    assert isinstance(reply, RetSubmit)
    assert (reply.status, reply.data) == (0, data)
    assert replies[unlink.seqnum].status == -LINUX_ECONNRESET


def test_an_aborted_out_that_was_over_still_needs_its_zero_packet(rig: LibusbRig) -> None:
    first = rig.submit(BULK_OUT, data=bytes(1024), flags=URB_ZERO_PACKET)
    second = rig.submit(BULK_OUT, data=b"second")
    rig.waiting(first, second)
    rig.waiting(rig.submit(BULK_OUT, data=b"third"))
    assert journal() == [f"submit {BULK_OUT}"]
    fake.fake_progress(BULK_OUT, None, 1024)
    assert fake.fake_complete(BULK_OUT, COMPLETED, None, 1024)
    rig.turn()
    assert submitted(BULK_OUT) == (2, 0, 0, b"")
    unlink = rig.unlink(second)
    assert [outcome(reply) for reply in rig.exchange(unlink)] == [(unlink.seqnum, -LINUX_ECONNRESET)]
    assert submitted(BULK_OUT) == (2, 0, 0, b"")
    [reply] = rig.ended(BULK_OUT)
    assert outcome(reply) == (first.seqnum, 0)
    assert submitted(BULK_OUT) == (2, 0, 5, b"third")


@pytest.mark.rule("zero-packet-mac")
def test_the_flag_that_does_not_exist_is_not_used(rig: LibusbRig) -> None:
    rig.waiting(rig.submit(BULK_OUT, data=bytes(512), flags=URB_ZERO_PACKET))
    assert submitted(BULK_OUT)[1:3] == (0, 512)
    assert rig.ended(BULK_OUT, data=bytes(512)) == []
    assert submitted(BULK_OUT)[1:3] == (0, 0)
    [reply] = rig.ended(BULK_OUT, STALL)
    assert isinstance(reply, RetSubmit)
    assert (reply.status, reply.actual_length) == (-LINUX_EPIPE, 512)


def test_an_urb_that_cannot_be_submitted_again_says_what_it_moved(rig: LibusbRig) -> None:
    first, second, third = (rig.submit(BULK_IN, 1024) for _ in range(3))
    rig.waiting(first, second, third)
    fake.fake_progress(BULK_IN, bytes(512), 512)
    fake.fake_fail(b"submit", ERROR_IO)
    unlink = rig.unlink(third)
    replies = {reply.seqnum: reply for reply in rig.exchange(unlink)}
    reply = replies[first.seqnum]
    assert isinstance(reply, RetSubmit)
    assert (reply.status, reply.actual_length) == (-LINUX_EPROTO, 512)
    assert outcome(rig.ended(BULK_IN, data=b"x")[0]) == (second.seqnum, 0)


def test_a_cancel_that_aborts_and_then_fails(rig: LibusbRig) -> None:
    """Behind the abort libusb clears the halt of both ends, which a device may refuse."""
    first, second = rig.submit(BULK_IN, 64), rig.submit(BULK_IN, 64)
    rig.waiting(first, second)
    fake.fake_fail(b"abort", ERROR_PIPE)
    unlink = rig.unlink(first)
    assert [outcome(reply) for reply in rig.exchange(unlink)] == [(unlink.seqnum, -LINUX_ECONNRESET)]
    assert outcome(rig.ended(BULK_IN, data=b"x")[0]) == (second.seqnum, 0)


# ---- the claim -----------------------------------------------------------------------------------


@pytest.fixture
def claim() -> Claim:
    fake.fake_begin()
    fake.fake_macos(1)
    return Claim(1, 2, as_on_macos=True)


def test_one_detach_before_all_and_one_attach_after_all(claim: Claim) -> None:
    claim.take()
    assert claim.captured
    assert fake.fake_drivers() == 0
    assert claim.give_back() == []
    assert not claim.captured
    assert fake.fake_drivers() == BOTH
    calls = ["detach 0", "claim 0", "claim 1", "release 1", "release 0", "attach 0"]
    assert journal() == calls


def test_a_new_configuration_is_not_another_capture(claim: Claim) -> None:
    claim.take()
    assert claim.set_configuration(2) == 0
    assert claim.set_configuration(1) == 0
    assert claim.give_back() == []
    assert fake.fake_drivers() == BOTH
    assert [line for line in journal() if line.startswith(("detach", "attach"))] == ["detach 0", "attach 0"]


def test_a_device_without_drivers_is_not_captured(claim: Claim) -> None:
    claim.take()
    journal()
    second = Claim(1, 2, as_on_macos=True)
    second.take()
    assert not second.captured
    assert second.give_back() == []
    assert journal() == ["claim 0", "claim 1", "release 1", "release 0"]
    claim.give_back()


def test_a_capture_that_is_not_authorized(claim: Claim) -> None:
    fake.fake_fail(b"detach", ERROR_ACCESS)
    with pytest.raises(ClaimError, match="interface 0 cannot be taken from its driver") as caught:
        claim.take()
    assert caught.value.code == "LIBUSB_ERROR_ACCESS"
    words = "(LIBUSB_ERROR_ACCESS, -3): libusb: error [detach] the stack said no"
    assert caught.value.message.endswith(words)
    assert journal() == ["detach 0"]
    assert fake.fake_drivers() == BOTH


def test_old_words_are_not_the_reason_of_a_new_error(claim: Claim) -> None:
    fake.fake_fail(b"detach", ERROR_ACCESS)
    with pytest.raises(ClaimError, match="the stack said no"):
        claim.take()
    with pytest.raises(ClaimError) as caught:
        Claim(1, 99, as_on_macos=True)
    assert caught.value.message.endswith("(LIBUSB_ERROR_NO_DEVICE, -4)")


@pytest.mark.parametrize("call", [b"detach", b"claim"])
def test_a_device_that_is_removed_while_it_is_taken(claim: Claim, call: bytes) -> None:
    fake.fake_fail(call, ERROR_NO_DEVICE)
    with pytest.raises(ClaimError) as caught:
        claim.take()
    assert caught.value.code == "LIBUSB_ERROR_NO_DEVICE"
    assert (claim.held, claim.detached) == ([], [])


def test_an_attach_that_fails_is_told(claim: Claim) -> None:
    claim.take()
    fake.fake_fail(b"attach", ERROR_ACCESS)
    assert claim.give_back() == [
        "the kernel driver could not be reattached to interface 0 (LIBUSB_ERROR_ACCESS, -3)"
    ]


def test_a_reset_keeps_the_capture(rig: LibusbRig) -> None:
    """libusb resets a captured device without enumerating it anew (darwin_reset_device)."""
    assert rig.pump.restore() == 0
    assert journal() == ["reset"]
    assert not rig.pump.gone
    fake.fake_fail(b"reset", ERROR_IO)
    assert rig.pump.restore() == -LINUX_EPROTO
    assert not rig.pump.gone
    fake.fake_fail(b"reset", ERROR_NOT_FOUND)
    assert rig.pump.restore() < 0
    assert rig.pump.gone


def test_who_is_unlinked_while_others_come_back_is_not_in_their_way(rig: LibusbRig) -> None:
    """What an abort brings back comes one by one, and a client may unlink what has come already."""
    urbs = [rig.submit(BULK_IN, 100 + number) for number in range(4)]
    rig.waiting(*urbs)
    fake.fake_hold_cancels(1)
    unlink, other = rig.unlink(urbs[0]), rig.unlink(urbs[1])
    assert rig.exchange(unlink) == []
    assert [outcome(reply) for reply in rig.ended(BULK_IN, CANCELLED)] == [(unlink.seqnum, -LINUX_ECONNRESET)]
    assert rig.ended(BULK_IN, CANCELLED) == []
    assert [outcome(reply) for reply in rig.exchange(other)] == [(other.seqnum, -LINUX_ECONNRESET)]
    assert rig.ended(BULK_IN, CANCELLED) == []
    fake.fake_hold_cancels(0)
    rig.turn()
    for urb in urbs[2:]:
        assert submitted(BULK_IN)[2] == urb.transfer_buffer_length
        assert [outcome(reply) for reply in rig.ended(BULK_IN, data=b"mine")] == [(urb.seqnum, 0)]
