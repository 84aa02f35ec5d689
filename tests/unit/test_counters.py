"""Rates and latencies from the counter page."""

import itertools
import mmap
import os
import struct

import pytest

from usbipd import counters
from usbipd.counters import (
    COUNTER_PAGE_SIZE,
    COUNTER_WORDS,
    LATENCY_BUCKETS,
    latency_of,
    read_blocked,
    read_counters,
    read_rate,
)
from usbipd.ipc.control_messages import Counters, Latency, Rate

NOW = 1_000_000_000_000
SECOND = 1_000_000
NEVER = (0, 0, 0, 0)
NOTHING = Rate(urbs=0.0, bytes_in=0.0, bytes_out=0.0)

Snapshot = tuple[int, int, int, int]


@pytest.fixture(autouse=True)
def at_a_fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_now", lambda: NOW)


def make_page(
    counted: tuple[int, int, int] = (0, 0, 0),
    previous: Snapshot = NEVER,
    newest: Snapshot = NEVER,
    latency: dict[int, int] | None = None,
    blocked_since: int = 0,
) -> mmap.mmap:
    """A page: URBs, bytes in and out, and two snapshots, whose first word is their age in microseconds."""
    buckets = [(latency or {}).get(n, 0) for n in range(LATENCY_BUCKETS)]
    words = [*counted, 4, 5, 6, *buckets, blocked_since]
    for age, *before in (previous, newest):
        words += [NOW - age if age else 0, *before]
    page = mmap.mmap(-1, COUNTER_PAGE_SIZE)
    struct.pack_into(f"={COUNTER_WORDS}q", page, 0, *words)
    return page


def make_counters(latency: dict[int, int]) -> Counters:
    return read_counters(make_page(latency=latency))


def test_the_words_of_the_page() -> None:
    counters = read_counters(make_page((1, 2, 3), (9, 9, 9, 9), (8, 8, 8, 8), {0: 7, 23: 8}))
    assert (counters.urbs, counters.bytes_in, counters.bytes_out) == (1, 2, 3)
    assert (counters.errors, counters.unlinks, counters.in_flight) == (4, 5, 6)
    assert counters.latency_us == [7, *[0] * 22, 8]


@pytest.mark.parametrize(
    ("since", "seconds"), [(0, None), (NOW - 3 * SECOND, 3.0), (NOW, 0.0), (NOW + 1, None), (-1, None)]
)
def test_the_duration_of_a_blocking_call(since: int, seconds: float | None) -> None:
    """Values from a broken worker give None."""
    assert read_blocked(make_page(blocked_since=since)) == seconds


def test_a_device_without_traffic() -> None:
    assert read_rate(make_page()) == NOTHING


def test_steady_traffic_is_measured_since_the_older_snapshot() -> None:
    page = make_page((300, 3000, 30), (1_500_000, 150, 1500, 15), (500_000, 250, 2500, 25))
    assert read_rate(page) == Rate(urbs=100.0, bytes_in=1000.0, bytes_out=10.0)


def test_new_traffic_counts_for_the_last_second() -> None:
    """Neither for the hour since the older snapshot nor for the millisecond since the newest."""
    page = make_page((110, 900, 0), (3600 * SECOND, 0, 0, 0), (1000, 100, 400, 0))
    assert read_rate(page) == Rate(urbs=10.0, bytes_in=500.0, bytes_out=0.0)
    assert read_rate(make_page((110, 900, 0), NEVER, (1000, 100, 400, 0))).urbs == 10.0


def test_the_rate_is_zero_two_seconds_after_traffic_ends() -> None:
    moved = (300, 0, 0)
    assert read_rate(make_page(moved, (2_500_000, 0, 0, 0), (1_500_000, 150, 0, 0))).urbs == 100.0
    assert read_rate(make_page(moved, (3_000_001, 0, 0, 0), (2_000_001, 150, 0, 0))) == NOTHING


@pytest.mark.parametrize("previous", [NEVER, (1_000_000, 10, 10, 10), (1_000_000, 0, 0, 0)])
def test_words_of_different_moments_give_no_negative_rates(previous: Snapshot) -> None:
    """The snapshot is newer than the counters that were read before it."""
    rate = read_rate(make_page((5, 5, 5), previous, (-100, 20, 20, 20)))
    assert min(rate.urbs, rate.bytes_in, rate.bytes_out) >= 0.0


def test_no_page_makes_the_readers_fail() -> None:
    for fill in (b"\x00", b"\xff", b"\x7f", b"\x80"):
        page = mmap.mmap(-1, COUNTER_PAGE_SIZE)
        page[:] = fill * COUNTER_PAGE_SIZE
        rate = read_rate(page)
        assert min(rate.urbs, rate.bytes_in, rate.bytes_out) >= 0.0
        latency_of(read_counters(page))
    for _round in range(100):
        page[: COUNTER_WORDS * 8] = os.urandom(COUNTER_WORDS * 8)
        rate = read_rate(page)
        assert min(rate.urbs, rate.bytes_in, rate.bytes_out) >= 0.0
        assert latency_of(read_counters(page)) is not None


def test_without_urbs_there_is_no_latency() -> None:
    assert latency_of(make_counters({})) is None


@pytest.mark.parametrize(
    ("latency", "p50", "p99"),
    [
        ({0: 1}, 1, 1),
        ({7: 1}, 128, 128),
        ({7: 1, 9: 1}, 128, 512),
        ({7: 2, 9: 1}, 128, 512),
        ({7: 1, 9: 2}, 512, 512),
        ({7: 99, 20: 1}, 128, 128),
        ({7: 98, 20: 2}, 128, 1 << 20),
        ({23: 1}, 1 << 23, 1 << 23),
    ],
)
def test_latency_is_the_upper_end_of_a_bucket(latency: dict[int, int], p50: int, p99: int) -> None:
    assert latency_of(make_counters(latency)) == Latency(p50_us=p50, p99_us=p99)


def test_latency_is_never_below_the_true_value() -> None:
    """Every mix of two buckets: that many of 100 URBs took less than the reported value."""
    for (one, few), (other, many) in itertools.product(
        itertools.product(range(LATENCY_BUCKETS), (1, 3)), itertools.product(range(LATENCY_BUCKETS), (1, 50))
    ):
        counters = make_counters({one: few} if one == other else {one: few, other: many})
        found = latency_of(counters)
        assert found is not None
        for percent, bound in ((50, found.p50_us), (99, found.p99_us)):
            within = sum(count for n, count in enumerate(counters.latency_us) if 1 << n <= bound)
            assert within * 100 >= sum(counters.latency_us) * percent
