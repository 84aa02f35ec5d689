"""The first items of a kind pass, the rest is counted; without items no timer runs."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbipd.limiter import BURST, INTERVAL, REFILL, Limiter

Seen = tuple[str, int]
"""The last item, and the number that it represents."""


class Clock:
    """An event loop whose time the test controls."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        self.waiting.append((self.now + delay, callback))

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self.waiting and min(when for when, _callback in self.waiting) <= end:
            first = min(self.waiting, key=lambda each: each[0])
            self.waiting.remove(first)
            self.now = max(self.now, first[0])
            first[1]()
        self.now = end


@pytest.fixture
def clock() -> Clock:
    return Clock()


def a_limiter(clock: Clock, *, with_timer: bool = True) -> tuple[Limiter[Seen], list[Seen]]:
    passed: list[Seen] = []
    limiter = Limiter(passed.append, lambda held, new: (new[0], held[1] + new[1]), clock=clock)
    if with_timer:
        limiter.use_timer(clock.call_later)
    return limiter, passed


def test_the_first_few_pass_at_once(clock: Clock) -> None:
    limiter, passed = a_limiter(clock)
    for number in range(BURST):
        limiter.add("kind", (f"{number}", 1))
    assert passed == [(f"{number}", 1) for number in range(BURST)]


def test_a_flood_is_one_item_per_interval_with_count_and_last(clock: Clock) -> None:
    limiter, passed = a_limiter(clock)
    for number in range(BURST + 1000):
        limiter.add("kind", (f"{number}", 1))
    assert len(passed) == BURST
    clock.advance(INTERVAL)
    assert passed[BURST:] == [(f"{BURST + 999}", 1000)]
    for number in range(10):
        limiter.add("kind", (f"again {number}", 1))
    assert len(passed) == BURST + 1
    clock.advance(INTERVAL)
    assert passed[BURST + 1 :] == [("again 9", 10)]


def test_quiet_intervals_restore_the_burst_and_stop_the_timer(clock: Clock) -> None:
    limiter, passed = a_limiter(clock)
    assert not clock.waiting
    limiter.add("kind", ("one", 1))
    assert len(clock.waiting) == 1
    clock.advance(INTERVAL)
    assert not clock.waiting
    for _number in range(BURST + 1):
        limiter.add("kind", ("more", 1))
    assert len(passed) == 1 + BURST
    clock.advance(2 * INTERVAL)
    assert passed.pop() == ("more", 1)
    for _number in range(REFILL + 1):
        limiter.add("kind", ("again", 1))
    assert len(passed) == 1 + BURST + REFILL
    clock.advance((2 + BURST / REFILL) * INTERVAL)
    assert not clock.waiting
    passed.clear()
    for _number in range(BURST + 1):
        limiter.add("kind", ("full", 1))
    assert len(passed) == BURST


@pytest.mark.slow
@pytest.mark.parametrize("burst", [1, BURST, BURST + 1])
@pytest.mark.parametrize("pause", [1.25, INTERVAL / REFILL, INTERVAL + 1, 2 * INTERVAL + 1])
def test_a_day_of_repeats_is_bounded_for_any_rhythm(clock: Clock, burst: int, pause: float) -> None:
    limiter, passed = a_limiter(clock)
    intervals = 24 * 60
    end = clock.now + intervals * INTERVAL
    while clock.now < end:
        for _number in range(burst):
            limiter.add("kind", ("again", 1))
        clock.advance(pause)
    assert len(passed) <= BURST + REFILL * (intervals + 3)


def test_every_session_of_a_busy_day_passes(clock: Clock) -> None:
    """Two entries, attached and detached, every 50 s."""
    limiter, passed = a_limiter(clock)
    for _session in range(24 * 3600 // 50):
        limiter.add("1-2", ("attached", 1))
        clock.advance(20)
        limiter.add("1-2", ("detached", 1))
        clock.advance(30)
    assert passed == [("attached", 1), ("detached", 1)] * (24 * 3600 // 50)


@pytest.mark.parametrize("timer", [True, False])
def test_flushed_items_count_as_held(clock: Clock, timer: bool) -> None:
    limiter, passed = a_limiter(clock, with_timer=timer)
    for _number in range(BURST + 1):
        limiter.add("kind", ("many", 1))
    limiter.flush("kind")
    assert len(passed) == BURST + 1
    clock.advance(INTERVAL)
    limiter.add("kind", ("one more", 1))
    assert len(passed) == BURST + 1


def test_one_kind_does_not_limit_another(clock: Clock) -> None:
    limiter, passed = a_limiter(clock)
    for _number in range(BURST + 1):
        limiter.add("kind", ("many", 1))
    limiter.add("other", ("first", 1))
    assert passed[-1] == ("first", 1)


def test_without_a_timer_the_next_item_triggers_the_count(clock: Clock) -> None:
    limiter, passed = a_limiter(clock, with_timer=False)
    for _number in range(BURST + 5):
        limiter.add("kind", ("many", 1))
    clock.advance(INTERVAL)
    assert len(passed) == BURST
    limiter.add("other", ("first", 1))
    assert passed[BURST:] == [("many", 5), ("first", 1)]


steps = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 60), st.sampled_from([0.0, 1.0, 30.0, INTERVAL]))
)


@given(steps, st.booleans())
def test_the_counts_add_up_and_the_bound_holds(what: list[tuple[str, int, float]], timer: bool) -> None:
    clock = Clock()
    limiter, passed = a_limiter(clock, with_timer=timer)
    seconds = 0.0
    for kind, number, pause in what:
        for _each in range(number):
            limiter.add(kind, (kind, 1))
        clock.advance(pause)
        seconds += pause
    limiter.flush()
    for kind in "ab":
        mine = [number for name, number in passed if name == kind]
        assert sum(mine) == sum(number for name, number, _pause in what if name == kind)
        assert len(mine) <= BURST + REFILL * (seconds // INTERVAL) + 1
