"""A rate limit for items that others can cause: the first few of a kind pass, the rest is counted.

Used by every process.  `BURST` items of each kind may pass at once.  An interval of `INTERVAL` seconds in
which all items have passed restores `REFILL`, up to `BURST`.  Items beyond are merged and pass as one when
the interval ends; such an interval restores none, so a flood gives one merged item per interval.  In total at
most `BURST` items of a kind pass, plus `REFILL` for each interval that has ended since the first, whatever
their rhythm; none is lost without a count.  No timer runs once every kind has its whole burst again.
"""

import time
from collections.abc import Callable, Hashable
from typing import Final, Generic, Protocol, TypeVar

BURST: Final = 50
"""Items of one kind that pass at once."""
REFILL: Final = 6
"""Items of one kind that an interval restores: the history of a device that is attached and detached three
times a minute stays complete."""
INTERVAL: Final = 60.0
"""Minimum number of seconds between two merged items of one kind."""

Item = TypeVar("Item")


class CallLater(Protocol):
    """An event loop's `call_later`: calls a function after a delay in seconds."""

    def __call__(self, delay: float, callback: Callable[[], None], /) -> object: ...


class _Kind(Generic[Item]):
    def __init__(self, ends: float, left: int) -> None:
        self.ends = ends
        """End of its interval, by the limiter's clock."""
        self.left = left
        """Items that may still pass in it."""
        self.is_exceeded = False
        """Whether more items came in it than may pass."""
        self.held: Item | None = None

    def left_after(self, now: float) -> int:
        """Items that may pass in an interval that begins now, after this one and any quiet ones."""
        quiet = int((now - self.ends) // INTERVAL)
        refills = quiet if self.is_exceeded else quiet + 1
        return min(BURST, self.left + REFILL * refills)


class Limiter(Generic[Item]):
    """The allowance of each kind seen recently.  For one thread.

    The caller bounds the number of kinds and thus the memory: at most one item of each is held.
    """

    def __init__(
        self,
        pass_on: Callable[[Item], None],
        merge: Callable[[Item, Item], Item],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`pass_on` gets each item that passes; `merge` joins the held item with a new one."""
        self._pass_on = pass_on
        self._merge = merge
        self._clock = clock
        self._call_later: CallLater | None = None
        self._is_waiting = False
        """Whether the event loop will call `_interval_over`."""
        self._kinds: dict[Hashable, _Kind[Item]] = {}
        """In the order of the ends of their intervals."""

    def use_timer(self, call_later: CallLater) -> None:
        """Pass on a held item as soon as its interval ends; without a timer, the next item triggers it."""
        self._call_later = call_later
        self._is_waiting = False  # a timer of another loop is gone
        self._wait()

    def add(self, kind: Hashable, item: Item) -> None:
        """Pass `item` on, or hold it."""
        self._release_due()
        state = self._kinds.get(kind)
        if state is None:
            state = self._kinds[kind] = _Kind(self._clock() + INTERVAL, BURST)
        if state.left > 0:
            state.left -= 1
            self._pass_on(item)
        else:
            state.is_exceeded = True
            state.held = item if state.held is None else self._merge(state.held, item)
        self._wait()

    def flush(self, kind: Hashable = None) -> None:
        """Pass on the held item of `kind`; None for all kinds."""
        for state in list(self._kinds.values()) if kind is None else [self._kinds.get(kind)]:
            if state is not None:
                self._release(state)

    def _release_due(self) -> None:
        now = self._clock()
        while self._kinds:
            kind, state = next(iter(self._kinds.items()))
            if state.ends > now:
                break
            del self._kinds[kind]
            left = state.left_after(now)
            if left < BURST:
                self._kinds[kind] = _Kind(now + INTERVAL, left)
            self._release(state)

    def _release(self, state: _Kind[Item]) -> None:
        held, state.held = state.held, None
        if held is not None:
            self._pass_on(held)

    def _wait(self) -> None:
        if self._call_later is not None and self._kinds and not self._is_waiting:
            first = next(iter(self._kinds.values()))
            self._is_waiting = True
            self._call_later(max(0.0, first.ends - self._clock()), self._interval_over)

    def _interval_over(self) -> None:
        self._is_waiting = False
        self._release_due()
        self._wait()
