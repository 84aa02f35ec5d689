"""Sessions of the pump: one client after another, bounds, counters, and the end."""

import ctypes
import os
import platform
import struct
from collections.abc import Callable
from pathlib import Path
from socket import SHUT_WR, socketpair
from typing import NamedTuple

import pytest

from tests.unit.worker.rig import (
    DEVID,
    GET_DEVICE_DESCRIPTOR,
    IN,
    LOOP_IN,
    LOOP_OUT,
    MODEL_IN,
    SINK,
    SOURCE,
    Rig,
    statuses,
)
from tests.urb import ReplyReader, Submit, Unlink, encode
from usbipd import _pump, config, counters
from usbipd.counters import COUNTER_WORDS


def idle_read(seqnum: int) -> Submit:
    """A read of nothing that the device does not answer."""
    return Submit(
        seqnum, devid=DEVID, direction=IN, ep=LOOP_IN & 0x0F, transfer_flags=0, transfer_buffer_length=0
    )


@pytest.mark.rule("lost-client")
@pytest.mark.rule("seqnum-per-connection")
def test_the_next_client_starts_clean(rig: Rig) -> None:
    rig.control("01 0b 0100 0100 0000")
    waiting = rig.submit(LOOP_IN, 64)
    half = encode(rig.submit(SINK, 5000, bytes(5000)))[:3000]
    rig.client.send(encode(waiting) + half)
    rig.client.shutdown(1)
    while (wake := rig.turn()) == _pump.CHANNEL:
        pass
    assert wake == _pump.CLIENT_CLOSED
    assert rig.counters.in_flight == 1
    assert rig.finish()
    assert rig.counters.in_flight == 0
    assert rig.pump.restore() == 0
    assert rig.device.resets == 1
    rig.attach()
    rig.seqnum = 0
    assert rig.control("81 0a 0000 0100 0100").data == b"\x00"
    assert rig.exchange(rig.submit(SINK, 1, b"a"))[0].status == 0


def converse(rig: Rig) -> list[object]:
    """What a client gets to see of a session, from its first message on."""
    rig.seqnum = 5
    early = Unlink(
        6, DEVID, 0, 0, 5
    )  # its SUBMIT comes behind it, but none came before: it waits for nothing
    rig.replies.expect(early)
    seen: list[object] = [*rig.exchange(early), rig.pump.problem]
    rig.seqnum = 4
    seen += rig.exchange(rig.submit(SINK, 3, b"abc"))
    rig.seqnum = 6
    seen += [
        rig.control(setup)
        for setup in (GET_DEVICE_DESCRIPTOR, "01 0b 0100 0100 0000", "81 0a 0000 0100 0100")
    ]
    waiting = rig.submit(LOOP_IN, 64)
    seen += [rig.exchange(waiting), rig.counters.in_flight, rig.exchange(rig.unlink(waiting))]
    seen += rig.exchange(
        rig.submit(SOURCE, 5000), rig.submit(SINK, 5000, bytes(5000)), rig.submit(0x0F, 3, b"abc")
    )
    return [*seen, rig.counters.in_flight]


def leave_in_a_header(rig: Rig) -> None:
    rig.send(encode(rig.submit(SINK, 1, b"a"))[:20])


def leave_in_data(rig: Rig) -> None:
    rig.send(encode(rig.submit(SINK, 5000, bytes(5000)))[:3000])


def leave_in_data_that_are_refused(rig: Rig) -> None:
    rig.send(encode(rig.submit(0x0F, 5000, bytes(5000)))[:3000])


def leave_an_unlink_that_waits(rig: Rig) -> None:
    rig.exchange(rig.submit(SINK, 1, b"a"))
    assert rig.exchange(Unlink(3, DEVID, 0, 0, 2)) == []


def leave_replies(rig: Rig) -> None:
    rig.send(b"".join(encode(rig.submit(SOURCE, 1 << 20)) for _ in range(4)))


def leave_more_than_the_budget(rig: Rig) -> None:
    rig.send(b"".join(encode(idle_read(i)) for i in range(4097)))


def leave_what_is_no_message(rig: Rig) -> None:
    assert rig.send(bytes(48)) == _pump.CLIENT_FAILED


def leave_the_connection_closed(rig: Rig) -> None:
    rig.client.shutdown(SHUT_WR)
    assert rig.turn() == _pump.CLIENT_CLOSED


@pytest.mark.rule("lost-client")
@pytest.mark.parametrize(
    "leave",
    [
        leave_in_a_header,
        leave_in_data,
        leave_in_data_that_are_refused,
        leave_an_unlink_that_waits,
        leave_replies,
        leave_more_than_the_budget,
        leave_what_is_no_message,
        leave_the_connection_closed,
    ],
)
def test_a_session_begins_as_the_first(leave: Callable[[Rig], None]) -> None:
    first = Rig()
    expected = converse(first)
    first.close()
    assert expected.count(1) == 1, "one URB was waiting"
    rig = Rig()
    leave(rig)
    assert rig.finish()
    rig.attach()
    assert converse(rig) == expected
    rig.close()


def test_an_unlink_ignores_the_submits_of_the_last_client(rig: Rig) -> None:
    """An UNLINK of the next URB waits for it, but only after a SUBMIT of the same client."""
    rig.seqnum = 1000
    rig.exchange(rig.submit(SINK, 1, b"a"))
    assert rig.finish()
    rig.attach()
    never_sent = rig.submit(SINK, 1, b"a")
    unlink = Unlink(rig.seqnum + 1, DEVID, 0, 0, never_sent.seqnum)
    rig.replies = ReplyReader()
    rig.replies.expect(unlink)
    assert statuses(rig.exchange(unlink)) == [(unlink.seqnum, 0)]


def test_cached_buffers_make_room_for_others(rig: Rig) -> None:
    """More than the budget in total, in changing size classes."""
    for size in (16 << 20, 8 << 20, 4 << 20, 2 << 20) * 3:
        rig.device.to_read[MODEL_IN] = [b"", b""]
        both = [rig.submit(MODEL_IN, size), rig.submit(MODEL_IN, size)]
        assert statuses(rig.exchange(*both)) == [(submit.seqnum, 0) for submit in both]


def test_a_client_that_reads_nothing_is_no_longer_read() -> None:
    rig = Rig()
    taken = 0
    request = encode(rig.submit(SOURCE, 1 << 20))
    first = int.from_bytes(request[4:8], "big")
    for i in range(1000):
        data = request[:4] + (first + i).to_bytes(4, "big") + request[8:]
        try:
            rig.client.send(data)
        except BlockingIOError:
            break
        rig.turn()
        taken += 1
    assert taken * (1 << 20) > 2 * _pump.SMALLEST_BUDGET, "the pump itself took so many"
    assert rig.counters.urbs * (1 << 20) <= _pump.SMALLEST_BUDGET + (1 << 20)
    assert rig.finish()
    rig.close()


def test_a_clients_socket_does_not_block(rig: Rig) -> None:
    """By the descriptor flag, since macOS ignores MSG_DONTWAIT when sending."""
    assert rig.finish()
    ours, theirs = socketpair()
    with ours, theirs:
        rig.pump.attach(ours.fileno())
        assert not os.get_blocking(ours.fileno())
        assert rig.pump.finish()


@pytest.mark.rule("lost-client")
def test_a_client_that_is_no_longer_read_can_leave() -> None:
    rig = Rig()
    rig.send(b"".join(encode(idle_read(i)) for i in range(4097)))
    assert rig.counters.in_flight == 4096
    rig.client.shutdown(SHUT_WR)
    assert rig.turn() == _pump.CLIENT_CLOSED
    assert rig.finish()
    rig.close()


def test_flood_of_waiting_urbs_is_bounded() -> None:
    rig = Rig()
    for start in range(0, 6000, 50):
        batch = b"".join(encode(idle_read(start + i)) for i in range(50))
        try:
            rig.client.send(batch)
        except BlockingIOError:
            break
        assert rig.turn() == _pump.CHANNEL
    assert rig.counters.in_flight == 4096
    assert rig.finish()
    assert rig.counters.in_flight == 0
    rig.close()


def test_counters(rig: Rig) -> None:
    rig.exchange(rig.submit(SINK, 100, bytes(100)), rig.submit(SOURCE, 30))
    waiting = rig.submit(LOOP_IN, 64)
    rig.exchange(waiting)
    rig.control("80 06 0009 0000 0400")
    assert rig.counters.in_flight == 1
    rig.exchange(rig.unlink(waiting))
    counters = rig.counters
    assert (counters.urbs, counters.bytes_in, counters.bytes_out) == (3, 30, 100)
    assert (counters.errors, counters.unlinks, counters.in_flight) == (1, 1, 0)
    assert sum(counters.latency_us) == 3


def test_latency_is_counted_in_the_bucket_whose_upper_end_is_above_it(rig: Rig) -> None:
    """Bucket n: below 2**n microseconds, and not below 2**(n - 1)."""
    before = counters._now()
    rig.exchange(rig.submit(LOOP_IN, 64))
    begin = counters._now()
    while (least := counters._now() - begin) < 20_000:  # bucket 15: 16,384 to 32,767
        rig.turn()
    assert len(rig.exchange(rig.submit(LOOP_OUT, 1, b"x"))) == 2
    most = counters._now() - before
    [bucket] = [n for n, count in enumerate(rig.counters.latency_us) if count and n > 10]
    assert 1 << bucket > least
    assert 1 << (bucket - 1) <= most


class Snapshot(NamedTuple):
    """One of the counter page."""

    taken: int
    urbs: int
    bytes_in: int
    bytes_out: int


NEWEST = (COUNTER_WORDS - 4) * 8


def snapshots(rig: Rig) -> tuple[Snapshot, Snapshot]:
    """The two in the counter page, the older one first."""
    words = struct.unpack_from("=8q", rig.page, NEWEST - 4 * 8)
    return Snapshot(*words[:4]), Snapshot(*words[4:])


def age_newest(rig: Rig, microseconds: int) -> None:
    """Makes the newest snapshot that much older."""
    struct.pack_into("=q", rig.page, NEWEST, snapshots(rig)[1].taken - microseconds)


def test_a_round_begins_with_a_snapshot_once_the_newest_is_a_second_old(rig: Rig) -> None:
    hour = 3_600_000_000
    begin = counters._now()
    rig.exchange(rig.submit(SINK, 100, bytes(100)))
    older, newest = snapshots(rig)
    assert older == (0, 0, 0, 0)
    assert begin <= newest.taken <= counters._now(), "both have one clock"
    assert newest[1:] == (0, 0, 0), "it is from before the URB"
    age_newest(rig, -hour)
    rig.exchange(rig.submit(SOURCE, 30))
    assert snapshots(rig)[1] == (newest.taken + hour, 0, 0, 0)
    age_newest(rig, hour + 1_000_000)
    rig.exchange(rig.submit(SOURCE, 30))
    older, newest = snapshots(rig)
    assert (older[1:], newest[1:]) == ((0, 0, 0), (2, 30, 100))
    age_newest(rig, 1_000_000)
    rig.turn()
    older, newest = snapshots(rig)
    assert (older[1:], newest[1:]) == ((2, 30, 100), (3, 60, 100))
    rate = counters.read_rate(rig.page)
    assert 0.0 <= rate.urbs <= 1.0


def test_counter_page_has_one_layout() -> None:
    assert _pump.COUNTER_WORDS == COUNTER_WORDS


def test_budget_must_hold_the_largest_urb() -> None:
    assert config.SMALLEST_BUDGET == _pump.SMALLEST_BUDGET
    with pytest.raises(ValueError, match="budget 1000 is below"):
        Rig(budget=1000)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to give memory back")
def test_memory_of_a_client_is_returned_to_the_system(rig: Rig) -> None:
    ctypes.CDLL(None).malloc_trim(0)  # memory freed by earlier tests
    before = private_memory()
    rig.send(b"".join(encode(rig.submit(SOURCE, size << 10)) for size in (1, 16, 64, 120, 600) * 32))
    assert private_memory() > before + 10240, "the client did not make the pool grow"
    assert rig.finish()
    assert private_memory() < before + 256


def private_memory() -> int:
    """KiB of this process that are not files."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0])
