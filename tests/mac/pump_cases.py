"""URBs through libusb's darwin backend, with each relevant switch.  test_pump.py runs it, in a process of a
software Mac.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.mac.kernel import errors
from tests.mac.pump_rig import (
    CLEAR_HALT,
    IN,
    IN_1,
    INTERRUPT_IN,
    ISO_IN,
    ISO_OFF,
    ISO_ON,
    OUT,
    SET_CONFIGURATION,
    SET_CONFIGURATION_2,
    PumpRig,
    counts_aborted_bytes,
    fresh_switches,
    summary,
)
from tests.mac.rig import mac
from tests.urb import Reply, RetSubmit, Submit
from usbipd import _pump
from usbipd.protocol.constants import (
    LINUX_ECONNRESET,
    LINUX_EILSEQ,
    LINUX_EPIPE,
    LINUX_EXDEV,
    URB_ZERO_PACKET,
)

LINUX_ESHUTDOWN = 108  # include/uapi/asm-generic/errno.h
VENDOR_IN = bytes.fromhex("c0 41 0000 0000 4000")

SWITCHES: list[dict[str, Any]] = [
    {
        "abort_reports_bytes": reports,
        "abort_reversed": is_reversed,
        "stall_ends_queue": ends_queue,
        "abort_code": errors.TRANSACTION_RETURNED if reports ^ is_reversed else errors.ABORTED,
        "clear_stall_code": errors.TRANSACTION_RETURNED if reports ^ ends_queue else None,
    }
    for reports, is_reversed, ends_queue in itertools.product((False, True), repeat=3)
]
"""All pairs of values of two switches."""


@pytest.fixture(params=SWITCHES, ids=lambda each: "-".join(str(value) for value in each.values()))
def rig(request: pytest.FixtureRequest) -> Iterator[PumpRig]:
    fresh_switches(reenumeration_changes_address=False, **request.param)
    yield from plugged()


@pytest.fixture
def default() -> Iterator[PumpRig]:
    fresh_switches(reenumeration_changes_address=False)
    yield from plugged()


def plugged() -> Iterator[PumpRig]:
    rig = PumpRig()
    rig.usb.requests()
    yield rig
    assert rig.finish()
    assert rig.counters.in_flight == 0
    rig.close()


@pytest.fixture
def counts(request: pytest.FixtureRequest, rig: PumpRig) -> bool:
    """Whether aborted transfers report the bytes they moved."""
    values = request.node.callspec.params["rig"]
    return values["abort_reports_bytes"] and values["abort_code"] == errors.ABORTED and counts_aborted_bytes()


def ends(replies: list[Reply]) -> list[tuple[int, int]]:
    """The ends of the replies, in any order."""
    return sorted((reply.seqnum, reply.status) for reply in replies)


def cancelled(rig: PumpRig, *urbs: Submit, besides: int = 0) -> list[Reply]:
    """Unlinks all in one write and asserts that they are cancelled; `besides`: replies to other URBs."""
    unlinks = [rig.unlink(urb) for urb in urbs]
    replies = rig.replies_to(*unlinks, count=len(urbs) + besides)
    numbers = {unlink.seqnum for unlink in unlinks}
    assert {reply.status for reply in replies if reply.seqnum in numbers} == {-LINUX_ECONNRESET}
    return [reply for reply in replies if reply.seqnum not in numbers]


def show_that_the_host_counts(rig: PumpRig, counts: bool) -> None:
    """Unlinks an OUT URB after one of its packets was accepted."""
    rig.usb.credit(OUT, 1)
    urb = rig.submit(OUT, data=bytes(1024))
    rig.submitted(urb)
    unlink = rig.unlink(urb)
    replies = rig.replies_to(unlink, count=2 if counts else 1)
    if counts:
        assert isinstance(replies[0], RetSubmit)
        assert (replies[0].status, replies[0].actual_length) == (-LINUX_ECONNRESET, 512)
    assert replies[-1].seqnum == unlink.seqnum
    rig.usb.credit(OUT, None)
    assert rig.usb.taken(OUT) == bytes(512)


def all_read(rig: PumpRig, endpoint: int, urbs: list[Submit]) -> None:
    """The URBs are pending, and get the device's data in order."""
    rig.until_waiting(endpoint, len(urbs))
    for number, urb in enumerate(urbs):
        data = bytes([number] * (number + 1))
        rig.usb.give(endpoint, data)
        assert summary(rig.more()[0]) == (urb.seqnum, 0, data)


# ---- UNLINK --------------------------------------------------------------------------------------


@pytest.mark.rule("unlink-others-live-mac")
@pytest.mark.parametrize("endpoint", [IN, INTERRUPT_IN])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_unlink_may_also_end_the_oldest_idle_urb(rig: PumpRig, endpoint: int, which: int) -> None:
    urbs = [rig.submit(endpoint, 64) for _ in range(3)]
    rig.submitted(*urbs)
    unknown = urbs[:1] if which else []
    others = cancelled(rig, urbs[which], besides=len(unknown))
    assert ends(others) == [(urb.seqnum, -LINUX_EILSEQ) for urb in unknown]
    left = [urb for urb in urbs if urb not in (urbs[which], *unknown)]
    later = rig.submit(endpoint, 64)
    assert rig.exchange(later) == []
    all_read(rig, endpoint, [*left, later])


@pytest.mark.rule("unlink-others-live-mac")
@pytest.mark.parametrize("which", [1, 2])
def test_if_the_host_counts_no_other_urb_ends(rig: PumpRig, counts: bool, which: int) -> None:
    show_that_the_host_counts(rig, counts)
    urbs = [rig.submit(IN, 64) for _ in range(3)]
    rig.submitted(*urbs)
    others = cancelled(rig, urbs[which], besides=0 if counts else 1)
    assert ends(others) == ([] if counts else [(urbs[0].seqnum, -LINUX_EILSEQ)])
    all_read(rig, IN, [urb for urb in urbs if urb is not urbs[which] and (counts or urb is not urbs[0])])


@pytest.mark.rule("unlink-others-live-mac")
def test_urbs_unlinked_together_do_not_affect_each_other(rig: PumpRig) -> None:
    urbs = [rig.submit(IN, 64) for _ in range(6)]
    rig.submitted(*urbs)
    cancelled(rig, urbs[4], urbs[2], urbs[0])
    later = rig.submit(IN, 64)
    assert rig.exchange(later) == []
    all_read(rig, IN, [urbs[1], urbs[3], urbs[5], later])


@pytest.mark.rule("unlink-others-live-mac")
def test_data_of_an_aborted_in_are_returned_once_or_the_urb_ends(rig: PumpRig, counts: bool) -> None:
    first, second, third = (rig.submit(IN, 2048) for _ in range(3))
    rig.submitted(first, second, third)
    rig.usb.give(IN, b"1" * 512 + b"2" * 512)
    rig.quiet()
    others = cancelled(rig, second, besides=0 if counts else 1)
    assert ends(others) == ([] if counts else [(first.seqnum, -LINUX_EILSEQ)])
    rig.until_waiting(IN, 2 if counts else 1)
    rig.usb.give(IN, b"3" * 100)
    expected = (
        (first.seqnum, 0, b"1" * 512 + b"2" * 512 + b"3" * 100) if counts else (third.seqnum, 0, b"3" * 100)
    )
    assert [summary(reply) for reply in rig.more()] == [expected]
    if counts:
        cancelled(rig, third)


@pytest.mark.rule("unlink-others-live-mac")
def test_data_of_an_aborted_out_are_not_written_again(rig: PumpRig, counts: bool) -> None:
    data = bytes(number % 251 for number in range(2048))
    rig.usb.credit(OUT, 2)
    first, second, third = (
        rig.submit(OUT, data=data),
        rig.submit(OUT, data=b"never"),
        rig.submit(OUT, data=b"third"),
    )
    rig.submitted(first, second, third)
    others = cancelled(rig, second, besides=0 if counts else 1)
    assert ends(others) == ([] if counts else [(first.seqnum, -LINUX_EILSEQ)])
    rig.usb.credit(OUT, None)
    left = [first, third] if counts else [third]
    assert ends(rig.more(len(left))) == [(urb.seqnum, 0) for urb in left]
    assert rig.usb.taken(OUT) == (data if counts else data[:1024]) + b"third"


@pytest.mark.rule("unlink-others-live-mac")
@pytest.mark.parametrize("given", [600, 2048])
def test_an_abort_races_a_completion(rig: PumpRig, given: int) -> None:
    """The kernel has completed the oldest URB, but the pump has not seen it: the next is now the oldest."""
    first, second, third = (rig.submit(IN, 2048) for _ in range(3))
    rig.submitted(first, second, third)
    data = bytes(number % 251 for number in range(given))
    rig.usb.give(IN, data)
    rig.usb.until_waiting(IN, 2)
    replies = rig.replies_to(rig.unlink(third), count=3)
    by_seqnum = {reply.seqnum: summary(reply)[1:] for reply in replies}
    assert by_seqnum[first.seqnum] == (0, data)
    assert by_seqnum[second.seqnum] == (-LINUX_EILSEQ, b"")


@pytest.mark.rule("unlink-others-live-mac")
@pytest.mark.rule("unlink-answered")
def test_an_unlink_races_the_completion_of_its_urb(rig: PumpRig) -> None:
    first, second, third = (rig.submit(IN, 64) for _ in range(3))
    rig.submitted(first, second, third)
    rig.usb.give(IN, b"first")
    rig.usb.give(IN, b"second")
    rig.usb.until_waiting(IN, 1)
    unlink = rig.unlink(second)
    replies = rig.replies_to(unlink, count=4)
    assert [summary(reply) for reply in replies[:3]] == [
        (first.seqnum, 0, b"first"),
        (second.seqnum, 0, b"second"),
        (unlink.seqnum, 0, b""),
    ]
    assert ends(replies[3:]) == [(third.seqnum, -LINUX_EILSEQ)]


@pytest.mark.rule("unlink-others-live-mac")
def test_an_unlink_during_the_abort_of_another_urb(rig: PumpRig) -> None:
    urbs = [rig.submit(IN, 64) for _ in range(4)]
    rig.submitted(*urbs)
    one, other = rig.unlink(urbs[2]), rig.unlink(urbs[0])
    replies = rig.exchange(one)
    replies += rig.exchange(other)
    replies += rig.more(2 - len(replies)) if len(replies) < 2 else []
    if urbs[0].seqnum in [reply.seqnum for reply in replies]:  # the abort had already finished
        replies += rig.more(3 - len(replies)) if len(replies) < 3 else []
        assert ends(replies) == [
            (urbs[0].seqnum, -LINUX_EILSEQ),
            (one.seqnum, -LINUX_ECONNRESET),
            (other.seqnum, 0),
        ]
    else:
        assert ends(replies) == [(unlink.seqnum, -LINUX_ECONNRESET) for unlink in (one, other)]
    all_read(rig, IN, [urbs[1], urbs[3]])


def test_an_unlink_of_a_queued_control_urb_does_not_reach_the_device(rig: PumpRig) -> None:
    """A request must not be executed twice, so the one in progress is not aborted."""
    rig.usb.hold_control()
    urbs = [rig.submit(0x80, 0x40, setup=VENDOR_IN) for _ in range(3)]
    assert rig.exchange(*urbs) == []
    rig.usb.until_waiting(0, 1)
    cancelled(rig, urbs[1])
    rig.usb.hold_control(False)
    replies = rig.more(2)
    assert [summary(reply) for reply in replies] == [(urbs[n].seqnum, 0, b"A" * 0x40) for n in (0, 2)]
    assert len(rig.usb.requests()) == 2


def test_an_abort_of_a_control_urb_affects_only_that_urb(rig: PumpRig) -> None:
    rig.usb.hold_control()
    urbs = [rig.submit(0x80, 0x40, setup=VENDOR_IN) for _ in range(2)]
    assert rig.exchange(*urbs) == []
    rig.usb.until_waiting(0, 1)
    cancelled(rig, urbs[0])
    rig.usb.hold_control(False)
    assert [summary(reply) for reply in rig.more()] == [(urbs[1].seqnum, 0, b"A" * 0x40)]
    assert len(rig.usb.requests()) == 1


# ---- halts ---------------------------------------------------------------------------------------


@pytest.mark.rule("clear-halt")
def test_clearing_a_halt_keeps_the_urbs_of_its_endpoint(rig: PumpRig, counts: bool) -> None:
    """As on Linux, except for a URB whose bytes are unknown."""
    show_that_the_host_counts(rig, counts)
    urbs = [rig.submit(IN, 2048) for _ in range(3)]
    rig.submitted(*urbs)
    rig.usb.give(IN, b"1" * 512)
    rig.quiet()
    setup = rig.submit(0, setup=bytes.fromhex(CLEAR_HALT))
    replies = rig.replies_to(setup, count=1 if counts else 2)
    assert (setup.seqnum, 0) in ends(replies)
    before = b"1" * 512 if counts else b""
    if not counts:
        assert (urbs[0].seqnum, -LINUX_EILSEQ) in ends(replies)
    for urb in urbs if counts else urbs[1:]:
        rig.until_waiting(IN, len(urbs) - urbs.index(urb))
        rig.usb.give(IN, b"x")
        assert [summary(reply) for reply in rig.more()] == [(urb.seqnum, 0, before + b"x")]
        before = b""


@pytest.mark.rule("clear-halt")
def test_nothing_moves_behind_a_stall(rig: PumpRig, request: pytest.FixtureRequest) -> None:
    ends_queue = request.node.callspec.params["rig"]["stall_ends_queue"]
    urbs = [rig.submit(IN, 64) for _ in range(4)]
    rig.submitted(*urbs)
    rig.usb.stall(IN)
    stalled = urbs if ends_queue else urbs[:1]
    assert ends(rig.more(len(stalled))) == [(urb.seqnum, -LINUX_EPIPE) for urb in stalled]
    if not ends_queue:
        assert cancelled(rig, urbs[2], besides=2) != []
    assert rig.control(CLEAR_HALT).status == 0
    later = rig.submit(IN, 64)
    assert rig.exchange(later) == []
    all_read(rig, IN, [later])


@pytest.mark.rule("clear-halt")
def test_urbs_behind_a_stall_go_on_when_it_is_cleared(rig: PumpRig, request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params["rig"]["stall_ends_queue"]:
        pytest.skip("no URBs behind the stall")
    urbs = [rig.submit(IN, 64) for _ in range(3)]
    rig.submitted(*urbs)
    rig.usb.stall(IN)
    assert ends(rig.more()) == [(urbs[0].seqnum, -LINUX_EPIPE)]
    assert rig.control(CLEAR_HALT).status == 0
    all_read(rig, IN, urbs[1:])


# ---- zero packets --------------------------------------------------------------------------------


def taken_packets(rig: PumpRig) -> int:
    """The number of packets accepted at the device's OUT endpoint."""
    return int(mac().call("taken_packets", rig.usb.number, OUT))


@pytest.mark.rule("zero-packet-mac")
@pytest.mark.parametrize(
    ("length", "flags", "packets"), [(1024, URB_ZERO_PACKET, 3), (1024, 0, 2), (1000, 64, 2)]
)
def test_an_empty_packet_follows_full_ones(rig: PumpRig, length: int, flags: int, packets: int) -> None:
    before = taken_packets(rig)
    first, second = rig.submit(OUT, data=bytes(length), flags=flags), rig.submit(OUT, data=b"second")
    replies = rig.replies_to(first, second)
    assert [(reply.seqnum, reply.status) for reply in replies] == [(first.seqnum, 0), (second.seqnum, 0)]
    assert rig.usb.taken(OUT) == bytes(length) + b"second"
    assert taken_packets(rig) == before + packets + 1


@pytest.mark.rule("zero-packet-mac")
def test_an_aborted_empty_packet_has_an_unknown_result(rig: PumpRig, counts: bool) -> None:
    show_that_the_host_counts(rig, counts)
    before = taken_packets(rig)
    rig.usb.credit(OUT, 2)
    first, second = rig.submit(OUT, data=bytes(1024), flags=URB_ZERO_PACKET), rig.submit(OUT, data=b"2")
    assert rig.exchange(first, second) == []
    rig.until_waiting(OUT, 2)
    [other] = cancelled(rig, second, besides=1)
    assert isinstance(other, RetSubmit)
    assert (other.seqnum, other.status, other.actual_length) == (first.seqnum, -LINUX_EILSEQ, 1024)
    rig.usb.credit(OUT, None)
    rig.quiet()
    assert taken_packets(rig) == before + 2


# ---- what ends URBs ------------------------------------------------------------------------------


@pytest.mark.rule("set-interface")
@pytest.mark.rule("set-configuration")
@pytest.mark.parametrize("setup", [ISO_OFF, SET_CONFIGURATION, SET_CONFIGURATION_2])
def test_a_new_setting_ends_the_urbs_of_its_interface(rig: PumpRig, setup: str) -> None:
    mine = [rig.submit(endpoint, 64) for endpoint in (IN, INTERRUPT_IN, IN)]
    other = rig.submit(IN_1, 64)
    rig.submitted(*mine, other)
    asked = rig.submit(0, setup=bytes.fromhex(setup))
    expected = mine if setup == ISO_OFF else [*mine, other]
    replies = rig.replies_to(asked, count=len(expected) + 1)
    assert ends(replies) == [*((urb.seqnum, -LINUX_ESHUTDOWN) for urb in expected), (asked.seqnum, 0)]
    if setup == ISO_OFF:
        rig.usb.give(IN_1, b"data")
        assert [summary(reply) for reply in rig.more()] == [(other.seqnum, 0, b"data")]


def test_a_departing_client_ends_its_urbs(rig: PumpRig) -> None:
    urbs = [rig.submit(endpoint, 64) for endpoint in (IN, INTERRUPT_IN, IN)]
    rig.submitted(*urbs)
    rig.exchange(rig.unlink(urbs[0]))
    assert rig.finish()
    assert rig.usb.waiting == {}
    assert rig.pump.restore() == 0
    rig.attach()
    fresh = rig.submit(IN, 64)
    assert rig.exchange(fresh) == []
    all_read(rig, IN, [fresh])


@pytest.mark.rule("unplug-closes")
@pytest.mark.parametrize("code", [errors.NOT_RESPONDING, errors.ABORTED, errors.NO_DEVICE])
@pytest.mark.parametrize("pending", [False, True])
def test_a_removed_device_ends_the_session(code: int, pending: bool) -> None:
    fresh_switches(unplug_code=code)
    neighbour = mac().plug(location=0x14300000, port=3)
    rig = PumpRig(mac().plug())
    if pending:
        rig.submitted(rig.submit(IN, 64), rig.submit(INTERRUPT_IN, 64))
    neighbour.unplug()
    rig.quiet()
    assert not rig.pump.gone
    rig.usb.unplug()
    assert rig.exchange_until_it_ends() == _pump.DEVICE_GONE
    assert rig.finish()
    rig.close()


# ---- isochronous ---------------------------------------------------------------------------------


def test_isochronous_urbs_restart(rig: PumpRig) -> None:
    assert rig.control(ISO_ON).status == 0
    packets = [(0, 192), (192, 192)]
    first, *others = (rig.submit(ISO_IN, 384, packets=packets) for _ in range(3))
    unlink = rig.unlink(first)
    rig.usb.hold_isochronous()
    replies = rig.replies_to(first, *others, unlink, count=1)
    rig.usb.hold_isochronous(False)
    replies += rig.more(2)
    assert ends(replies) == [*((urb.seqnum, 0) for urb in others), (unlink.seqnum, -LINUX_ECONNRESET)]


def test_a_failed_isochronous_urb_has_no_stale_packets(default: PumpRig) -> None:
    """On Linux each of its packets fails (iso_frame_desc in drivers/usb/core/urb.c)."""
    rig = default
    assert rig.control(ISO_ON).status == 0
    packets = [(192 * number, 192) for number in range(4)]
    rig.usb.give_packets(ISO_IN, *(bytes([number] * 192) for number in range(4)))
    [whole] = rig.replies_to(rig.submit(ISO_IN, 768, packets=packets))
    assert isinstance(whole, RetSubmit)
    assert (whole.status, whole.actual_length, whole.error_count) == (0, 768, 0)
    failing = rig.submit(ISO_IN, 768, packets=packets)
    rig.usb.hold_isochronous()
    assert rig.exchange(failing) == []
    assert mac().sleep()  # which ends transfers with kIOReturnNotResponding
    rig.usb.hold_isochronous(False)
    [failed] = rig.more()
    assert isinstance(failed, RetSubmit)
    assert (failed.status, failed.actual_length, failed.error_count) == (0, 0, 4)
    assert [(each.actual_length, each.status) for each in failed.iso] == [(0, -LINUX_EXDEV)] * 4
