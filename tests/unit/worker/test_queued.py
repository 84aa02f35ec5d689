"""A host whose cancel ends all URBs of an endpoint and which sends no zero packets, like macOS."""

from collections.abc import Iterator

import pytest

from tests.unit.worker.rig import (
    INTERRUPT_IN,
    ISO_IN,
    LOOP_IN,
    LOOP_OUT,
    MODEL_IN,
    MODEL_OUT,
    SINK,
    Rig,
    show_that_the_host_counts,
)
from tests.urb import Reply, RetSubmit
from usbipd.protocol.constants import (
    LINUX_ECONNRESET,
    LINUX_EILSEQ,
    LINUX_EPIPE,
    URB_SHORT_NOT_OK,
    URB_ZERO_PACKET,
)
from usbipd.simulated.device import Handshake

LOOP_SIZE = 1 << 20
"""Bytes that a loopback holds (cython/pump.pxd)."""


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(as_on_macos=True)
    yield rig
    assert rig.finish()
    assert rig.counters.in_flight == 0
    rig.close()


def summaries(replies: list[Reply]) -> list[tuple[int, int, bytes]]:
    return [
        (reply.seqnum, reply.status, reply.data if isinstance(reply, RetSubmit) else b"") for reply in replies
    ]


# ---- UNLINK --------------------------------------------------------------------------------------


@pytest.mark.rule("unlink-others-live-mac")
@pytest.mark.parametrize("endpoint", [MODEL_IN, INTERRUPT_IN])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_only_the_unlinked_urb_ends(rig: Rig, endpoint: int, which: int) -> None:
    show_that_the_host_counts(rig)
    urbs = [rig.submit(endpoint, 64) for _ in range(3)]
    assert rig.exchange(*urbs) == []
    unlink = rig.unlink(urbs[which])
    assert summaries(rig.exchange(unlink)) == [(unlink.seqnum, -LINUX_ECONNRESET, b"")]
    later = rig.submit(endpoint, 64)
    rig.device.to_read[endpoint] = [b"first", b"second", b"third"]
    others = [urb for urb in urbs if urb is not urbs[which]]
    assert summaries(rig.exchange(later)) == [
        (urb.seqnum, 0, data)
        for urb, data in zip([*others, later], (b"first", b"second", b"third"), strict=True)
    ]


@pytest.mark.rule("unlink-others-live-mac")
def test_many_unlinks_at_once_followed_by_urbs(rig: Rig) -> None:
    show_that_the_host_counts(rig)
    urbs = [rig.submit(MODEL_IN, 64) for _ in range(10)]
    rig.exchange(*urbs)
    unlinks = [rig.unlink(urb) for urb in urbs[1::2]]
    later, last = rig.submit(MODEL_IN, 64), rig.submit(MODEL_IN, 64)
    replies = rig.exchange(*unlinks, later)
    assert sorted(summaries(replies)) == [(unlink.seqnum, -LINUX_ECONNRESET, b"") for unlink in unlinks]
    alive = [*urbs[0::2], later, last]
    rig.device.to_read[MODEL_IN] = [bytes([number]) for number in range(len(alive))]
    expected = [(urb.seqnum, 0, bytes([number])) for number, urb in enumerate(alive)]
    assert summaries(rig.exchange(last)) == expected


@pytest.mark.rule("unlink-others-live-mac")
@pytest.mark.parametrize("endpoint", [MODEL_IN, INTERRUPT_IN])
@pytest.mark.parametrize("which", [1, 2])
def test_the_oldest_ends_if_its_moved_bytes_are_unknown(rig: Rig, endpoint: int, which: int) -> None:
    """A host that counts no bytes of what it aborts cannot distinguish an idle URB from one that has read."""
    urbs = [rig.submit(endpoint, 64) for _ in range(3)]
    assert rig.exchange(*urbs) == []
    unlink = rig.unlink(urbs[which])
    assert summaries(rig.exchange(unlink)) == [
        (unlink.seqnum, -LINUX_ECONNRESET, b""),
        (urbs[0].seqnum, -LINUX_EILSEQ, b""),
    ]
    later = rig.submit(endpoint, 64)
    rig.device.to_read[endpoint] = [b"second", b"third"]
    left = [urb for urb in urbs[1:] if urb is not urbs[which]]
    assert summaries(rig.exchange(later)) == [
        (urb.seqnum, 0, data) for urb, data in zip([*left, later], (b"second", b"third"), strict=True)
    ]


@pytest.mark.rule("unlink-others-live-mac")
def test_unlinking_the_oldest_affects_no_other(rig: Rig) -> None:
    urbs = [rig.submit(MODEL_IN, 64) for _ in range(3)]
    assert rig.exchange(*urbs) == []
    unlink = rig.unlink(urbs[0])
    assert summaries(rig.exchange(unlink)) == [(unlink.seqnum, -LINUX_ECONNRESET, b"")]
    rig.device.to_read[MODEL_IN] = [b"second", b"third"]
    assert summaries(rig.exchange(rig.submit(MODEL_IN, 64))) == [
        (urb.seqnum, 0, data) for urb, data in zip(urbs[1:], (b"second", b"third"), strict=True)
    ]


@pytest.mark.rule("unlink-others-live-mac")
def test_a_cleared_halt_keeps_the_urbs_of_its_endpoint(rig: Rig) -> None:
    show_that_the_host_counts(rig)
    urbs = [rig.submit(MODEL_IN, 64) for _ in range(3)]
    assert rig.exchange(*urbs) == []
    assert rig.control("02 01 0000 8100 0000").status == 0
    assert rig.device.cleared == [MODEL_IN]
    rig.device.to_read[MODEL_IN] = [b"first", b"second", b"third", b"fourth"]
    later = rig.submit(MODEL_IN, 64)
    assert summaries(rig.exchange(later)) == [
        (urb.seqnum, 0, data)
        for urb, data in zip([*urbs, later], (b"first", b"second", b"third", b"fourth"), strict=True)
    ]


@pytest.mark.rule("unlink-others-live-mac")
def test_bytes_sent_before_an_abort_are_not_sent_again(rig: Rig) -> None:
    """The first fills the loopback and waits with its rest, the abort is for the second."""
    data = bytes(number % 251 for number in range(LOOP_SIZE + 5000))
    first, second = rig.submit(LOOP_OUT, data=data), rig.submit(LOOP_OUT, data=b"never")
    third = rig.submit(LOOP_OUT, data=b"third")
    assert rig.exchange(first, second, third) == []
    unlink = rig.unlink(second)
    assert summaries(rig.exchange(unlink)) == [(unlink.seqnum, -LINUX_ECONNRESET, b"")]
    back = [rig.submit(LOOP_IN, len(data)), rig.submit(LOOP_IN, 100)]
    replies = {reply.seqnum: reply for reply in rig.exchange(*back)}
    while back[1].seqnum not in replies:
        replies |= {reply.seqnum: reply for reply in rig.awaited()}
    taken, message, rest = replies[first.seqnum], replies[back[0].seqnum], replies[back[1].seqnum]
    assert isinstance(taken, RetSubmit)
    assert (taken.status, taken.actual_length) == (0, len(data))
    assert isinstance(message, RetSubmit)
    assert isinstance(rest, RetSubmit)
    assert message.data == data
    assert rest.data == b"third"


@pytest.mark.rule("unlink-others-live-mac")
@pytest.mark.rule("unlink-partial")
def test_an_unlinked_out_reports_its_sent_bytes(rig: Rig) -> None:
    rig.device.accepts = [512, Handshake.NAK, 512, Handshake.NAK, Handshake.NAK]
    first, second = rig.submit(MODEL_OUT, data=bytes(2048)), rig.submit(MODEL_OUT, data=b"2")
    assert rig.exchange(first, second) == []
    unlink_second = rig.unlink(second)
    replies = rig.exchange(unlink_second)
    assert summaries(replies) == [(unlink_second.seqnum, -LINUX_ECONNRESET, b"")]
    unlink_first = rig.unlink(first)
    said, done = rig.exchange(unlink_first)
    assert isinstance(said, RetSubmit)
    assert (said.seqnum, said.status, said.actual_length) == (first.seqnum, -LINUX_ECONNRESET, 1024)
    assert (done.seqnum, done.status) == (unlink_first.seqnum, 0)


def test_isochronous_urbs_start_again(rig: Rig) -> None:
    assert rig.control("01 0b 0100 0100 0000").status == 0
    packets = [(0, 100), (100, 100)]
    urbs = [rig.submit(ISO_IN, 200, packets=packets) for _ in range(3)]
    unlink = rig.unlink(urbs[0])
    rig.device.iso_packets = [b"a", b"b", b"c", b"d"]
    replies = rig.exchange(*urbs, unlink)
    while len(replies) < 3:
        replies += rig.awaited()
    assert summaries(replies) == [
        (unlink.seqnum, -LINUX_ECONNRESET, b""),
        (urbs[1].seqnum, 0, b"ab"),
        (urbs[2].seqnum, 0, b"cd"),
    ]


def test_a_departing_client_and_a_new_setting_end_all_urbs(rig: Rig) -> None:
    urbs = [rig.submit(endpoint, 64) for endpoint in (MODEL_IN, INTERRUPT_IN, MODEL_IN)]
    unlink = rig.unlink(urbs[0])
    rig.exchange(*urbs, unlink)
    assert rig.finish()
    assert rig.counters.in_flight == 0
    rig.attach()
    rig.device.to_read[MODEL_IN] = [b"new"]
    fresh = rig.submit(MODEL_IN, 64)
    replies = rig.exchange(fresh) or rig.awaited()
    assert summaries(replies) == [(fresh.seqnum, 0, b"new")]


# ---- zero packets --------------------------------------------------------------------------------


@pytest.mark.rule("zero-packet-mac")
@pytest.mark.parametrize(
    ("length", "flags", "empty"),
    [
        (1024, URB_ZERO_PACKET, True),
        (512, URB_ZERO_PACKET | URB_SHORT_NOT_OK, True),
        (1024, 0, False),
        (1000, URB_ZERO_PACKET, False),
    ],
)
def test_an_empty_packet_follows_full_ones(rig: Rig, length: int, flags: int, empty: bool) -> None:
    first = rig.submit(MODEL_OUT, data=bytes(length), flags=flags)
    second = rig.submit(MODEL_OUT, data=b"second")
    replies = rig.exchange(first, second)
    assert [(reply.seqnum, reply.status) for reply in replies] == [(first.seqnum, 0), (second.seqnum, 0)]
    assert isinstance(replies[0], RetSubmit)
    assert replies[0].actual_length == length
    expected = [bytes(length), b"second"]
    if empty:
        expected.insert(1, b"")
    assert [data for _, data in rig.device.written] == expected


@pytest.mark.rule("zero-packet-mac")
def test_the_urb_ends_with_its_empty_packet(rig: Rig) -> None:
    """Later packets wait for it, and an UNLINK of it reports all bytes as sent."""
    rig.device.accepts = [512, Handshake.NAK, Handshake.NAK]
    first = rig.submit(MODEL_OUT, data=bytes(512), flags=URB_ZERO_PACKET)
    second = rig.submit(MODEL_OUT, data=b"second")
    assert rig.exchange(first) == []
    assert rig.exchange(second) == []
    unlink = rig.unlink(first)
    said, done, after = rig.exchange(unlink)
    assert isinstance(said, RetSubmit)
    assert (said.seqnum, said.status, said.actual_length) == (first.seqnum, -LINUX_ECONNRESET, 512)
    assert (done.seqnum, done.status) == (unlink.seqnum, 0)
    assert (after.seqnum, after.status) == (second.seqnum, 0)
    assert rig.device.written == [(MODEL_OUT, bytes(512)), (MODEL_OUT, b"second")]


@pytest.mark.rule("zero-packet-mac")
def test_an_aborted_empty_packet_may_have_been_sent(rig: Rig) -> None:
    """It reports no bytes in either case."""
    show_that_the_host_counts(rig)
    rig.device.accepts = [512, Handshake.NAK]
    first = rig.submit(MODEL_OUT, data=bytes(512), flags=URB_ZERO_PACKET)
    second = rig.submit(MODEL_OUT, data=b"second")
    assert rig.exchange(first, second) == []
    unlink = rig.unlink(second)
    replies = rig.exchange(unlink)
    assert [(reply.seqnum, reply.status) for reply in replies] == [
        (unlink.seqnum, -LINUX_ECONNRESET),
        (first.seqnum, -LINUX_EILSEQ),
    ]
    assert isinstance(replies[1], RetSubmit)
    assert replies[1].actual_length == 512
    assert rig.device.written == [(MODEL_OUT, bytes(512))]


@pytest.mark.rule("zero-packet-mac")
@pytest.mark.parametrize("answers", [[Handshake.STALL], [512, Handshake.STALL], [1024, Handshake.STALL]])
def test_errors_before_and_at_the_empty_packet(rig: Rig, answers: list[int | Handshake]) -> None:
    rig.device.accepts = list(answers)
    urb = rig.submit(MODEL_OUT, data=bytes(1024), flags=URB_ZERO_PACKET)
    [reply] = rig.exchange(urb)
    assert isinstance(reply, RetSubmit)
    moved = sum(answer for answer in answers if isinstance(answer, int))
    assert (reply.seqnum, reply.status, reply.actual_length) == (urb.seqnum, -LINUX_EPIPE, moved)


@pytest.mark.rule("zero-packet-mac")
def test_a_sink_takes_the_empty_packet(rig: Rig) -> None:
    urbs = [rig.submit(SINK, data=bytes(512), flags=URB_ZERO_PACKET) for _ in range(5)]
    assert [(reply.seqnum, reply.status) for reply in rig.exchange(*urbs)] == [
        (urb.seqnum, 0) for urb in urbs
    ]
