"""One direction of the emulated link (tests/bench/link/way.c), at times that the test chooses."""

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

LINK: Final = Path(__file__).parents[2] / "bench" / "link"
MS: Final = 1_000_000
MTU: Final = 1500
FRAMING: Final = 38
MAX_PACKETS: Final = 1 << 14
AT_100_MBIT: Final = 120_000
"""Nanoseconds that MTU bytes take on the link, framing included, at 100 Mbit/s less framing."""
FULL: Final = MTU - FRAMING
"""Bytes that take that long."""
NEVER: Final = 2**64 - 1


class Conditions(ctypes.Structure):
    """struct conditions."""

    _fields_ = (
        ("delay_ns", ctypes.c_uint64),
        ("jitter_ns", ctypes.c_uint64),
        ("mbit_s", ctypes.c_double),
        ("loss", ctypes.c_double),
        ("queue", ctypes.c_uint64),
    )


class Way:
    """struct way."""

    def __init__(self, library: ctypes.CDLL, conditions: Conditions, seed: int) -> None:
        self._c = library
        self._way = ctypes.c_void_p(library.way_new(ctypes.byref(conditions), ctypes.c_uint64(seed)))
        assert self._way

    def put(self, now: int, data: bytes) -> bool:
        return bool(self._c.way_put(self._way, ctypes.c_uint64(now), data, ctypes.c_size_t(len(data))))

    def next(self) -> int:
        return int(self._c.way_next(self._way))

    def take(self, now: int) -> bytes | None:
        length = ctypes.c_size_t()
        data = self._c.way_take(self._way, ctypes.c_uint64(now), ctypes.byref(length))
        return None if data is None else ctypes.string_at(data, length.value)

    def stall(self, now: int, ns: int) -> None:
        self._c.way_stall(self._way, ctypes.c_uint64(now), ctypes.c_uint64(ns))

    def drain(self) -> list[tuple[int, bytes]]:
        """All that is in it, with the times at which it arrives."""
        arrived = []
        while (at := self.next()) != NEVER:
            assert self.take(at - 1) is None
            data = self.take(at)
            assert data is not None
            arrived.append((at, data))
        return arrived

    def free(self) -> None:
        self._c.way_free(self._way)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    shared = tmp_path_factory.mktemp("way") / "way.so"
    compiler = [os.environ.get("CC", "cc"), "-Wall", "-Wextra", "-Werror", "-std=gnu11", "-shared", "-fPIC"]
    subprocess.run([*compiler, str(LINK / "way.c"), "-o", str(shared)], check=True)
    library = ctypes.CDLL(str(shared))
    library.way_new.restype = library.way_take.restype = ctypes.c_void_p
    library.way_next.restype = ctypes.c_uint64
    library.way_put.restype = ctypes.c_bool
    return library


NewWay = Callable[..., Way]


@pytest.fixture
def new_way(library: ctypes.CDLL) -> Iterator[NewWay]:
    made = []

    def new(
        *,
        delay: int = 0,
        jitter: int = 0,
        mbit_s: float = 0.0,
        loss: float = 0.0,
        queue: int = 1 << 30,
        seed: int = 1,
    ) -> Way:
        made.append(Way(library, Conditions(delay, jitter, mbit_s, loss, queue), seed))
        return made[-1]

    yield new
    for way in made:
        way.free()


def test_a_packet_arrives_whole_after_the_delay(new_way: NewWay) -> None:
    way = new_way(delay=5 * MS)
    assert way.next() == NEVER
    assert way.put(1 * MS, b"hello")
    assert way.next() == 6 * MS
    assert way.take(6 * MS - 1) is None
    assert way.take(6 * MS) == b"hello"
    assert way.take(9 * MS) is None
    assert way.next() == NEVER


def test_packets_take_the_time_of_the_rate_one_after_the_other(new_way: NewWay) -> None:
    way = new_way(delay=MS, mbit_s=100)
    for number in range(3):
        assert way.put(0, bytes([number]) * FULL)
    assert way.put(10 * MS, b"\x03" * FULL)  # the link is free again
    arrived = way.drain()
    assert [data[0] for _, data in arrived] == [0, 1, 2, 3]
    started = [0, AT_100_MBIT, 2 * AT_100_MBIT, 10 * MS]
    assert [at for at, _ in arrived] == [start + AT_100_MBIT + MS for start in started]


def test_what_does_not_fit_into_the_queue_is_dropped(new_way: NewWay) -> None:
    way = new_way(mbit_s=100, queue=3 * FULL)
    assert [way.put(0, bytes(FULL)) for _ in range(5)] == [True, True, True, False, False]
    assert not way.put(AT_100_MBIT - 1, bytes(FULL))
    assert way.put(AT_100_MBIT, bytes(FULL))  # one has left it, though it has not been taken out
    assert not way.put(AT_100_MBIT, bytes(FULL))
    assert len(way.drain()) == 4


def test_what_travels_is_not_in_the_queue(new_way: NewWay) -> None:
    way = new_way(delay=1000 * MS, mbit_s=100, queue=FULL)
    assert all(way.put(number * AT_100_MBIT, bytes(FULL)) for number in range(100))


def test_its_memory_is_bounded(new_way: NewWay) -> None:
    way = new_way(delay=MS)
    assert all(way.put(0, b"x") for _ in range(MAX_PACKETS))
    assert not way.put(0, b"x")
    assert way.take(MS) == b"x"
    assert way.put(MS, b"y")
    assert len(way.drain()) == MAX_PACKETS


def test_a_packet_longer_than_the_mtu_is_dropped(new_way: NewWay) -> None:
    way = new_way()
    assert way.put(0, bytes(MTU))
    assert not way.put(0, bytes(MTU + 1))


@pytest.mark.parametrize(("loss", "least", "most"), [(0.0, 10_000, 10_000), (0.1, 8800, 9200), (1.0, 0, 0)])
def test_as_many_are_lost_as_was_asked_for(new_way: NewWay, loss: float, least: int, most: int) -> None:
    way = new_way(loss=loss)
    assert least <= sum(way.put(0, b"x") for _ in range(10_000)) <= most


def test_the_seed_decides_which_are_lost(new_way: NewWay) -> None:
    def lost(seed: int) -> list[bool]:
        way = new_way(loss=0.5, seed=seed)
        return [way.put(0, b"x") for _ in range(100)]

    assert lost(1) == lost(1)
    assert lost(1) != lost(2)


def test_jitter_delays_and_nothing_overtakes(new_way: NewWay) -> None:
    way = new_way(delay=10 * MS, jitter=5 * MS)
    sent = [number * 100_000 for number in range(1000)]
    for number, now in enumerate(sent):
        assert way.put(now, number.to_bytes(2, "big"))
    arrived = way.drain()
    assert [int.from_bytes(data, "big") for _, data in arrived] == list(range(1000))
    late = [at - now - 10 * MS for (at, _), now in zip(arrived, sent, strict=True)]
    assert min(late) >= 0
    assert max(late) < 5 * MS
    assert len(set(late)) > 100


def test_a_stall_delays_all_that_is_on_its_way_and_what_comes_meanwhile(new_way: NewWay) -> None:
    way, undisturbed = new_way(delay=3 * MS, mbit_s=100), new_way(delay=3 * MS, mbit_s=100)
    for number in range(50):  # at 3 ms half of them travel, the others are queued
        assert way.put(0, bytes([number]) * FULL)
        assert undisturbed.put(0, bytes([number]) * FULL)
    way.stall(3 * MS, 200 * MS)
    assert way.put(4 * MS, b"meanwhile")
    assert undisturbed.put(4 * MS, b"meanwhile")
    assert way.drain() == [(at + 200 * MS, data) for at, data in undisturbed.drain()]


def test_an_idle_link_stalls_too(new_way: NewWay) -> None:
    way = new_way(delay=MS)
    way.stall(0, 200 * MS)
    assert way.put(50 * MS, b"meanwhile")
    assert way.put(300 * MS, b"later")
    assert way.drain() == [(201 * MS, b"meanwhile"), (301 * MS, b"later")]


def test_the_queue_fills_while_the_link_stands_still(new_way: NewWay) -> None:
    way = new_way(mbit_s=100, queue=2 * FULL)
    way.stall(0, 200 * MS)
    assert [way.put(100 * MS, bytes(FULL)) for _ in range(3)] == [True, True, False]
    assert not way.put(200 * MS, bytes(FULL))
    assert way.put(200 * MS + AT_100_MBIT, bytes(FULL))
