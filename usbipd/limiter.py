"""A limit for what others can cause: the first few of a kind pass, the rest is counted.  For all processes.

Of each kind, `BURST` items may pass at once.  An interval of `INTERVAL` seconds in which all that came has
passed allows `REFILL` more, up to `BURST` again.  What comes beyond is merged, and passes as one item when
the interval ends; such an interval allows no more, so a flood is one merged item per interval.  So of one
kind at most `BURST` items pass, and `REFILL` for each interval that has ended since the first one, whatever
their rhythm; and none is lost without a count.  Nothing runs once the last kind has all of its burst again.
"""

import time
from collections.abc import Callable, Hashable
from typing import Final, Generic, Protocol, TypeVar

BURST: Final = 50
"""Items of one kind that pass at once."""
REFILL: Final = 6
"""Items of one kind that an interval restores: a device that is used three times a minute, attached and
detached, keeps each entry of its history for ever."""
INTERVAL: Final = 60.0
"""Seconds between two merged items of one kind, at least."""

Item = TypeVar("Item")


class CallLater(Protocol):
    """An event loop's `call_later`: calls a function in so many seconds."""

    def __call__(self, delay: float, callback: Callable[[], None], /) -> object: ...


class _Kind(Generic[Item]):
    def __init__(self, ends: float, left: int) -> None:
        self.ends = ends
        """When its interval is over, of the limiter's clock."""
        self.left = left
        """Items that may still pass in it."""
        self.is_exceeded = False
        """Whether more came in it than may pass."""
        self.held: Item | None = None

    def left_after(self, now: float) -> int:
        """Items that may pass in the interval that begins now, behind this one and quiet ones after it."""
        quiet = int((now - self.ends) // INTERVAL)
        refills = quiet if self.is_exceeded else quiet + 1
        return min(BURST, self.left + REFILL * refills)


class Limiter(Generic[Item]):
    """What may still pass of each kind that was seen of late.  For one thread.

    The caller bounds the number of kinds, and with it memory: one item is held of each at most.
    """

    def __init__(
        self,
        pass_on: Callable[[Item], None],
        merge: Callable[[Item, Item], Item],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`pass_on` gets what passes; `merge` makes one item of what is held and what comes."""
        self._pass_on = pass_on
        self._merge = merge
        self._clock = clock
        self._call_later: CallLater | None = None
        self._is_waiting = False
        """Whether the event loop will call us."""
        self._kinds: dict[Hashable, _Kind[Item]] = {}
        """In the order in which their intervals end."""

    def use_timer(self, call_later: CallLater) -> None:
        """Pass on what is held as soon as its interval ends; without a timer, the next item does that."""
        self._call_later = call_later
        self._is_waiting = False  # if that was another loop's, it is over
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
        """Pass on what is held of `kind`; None: of all kinds."""
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
