"""A limit on what runs at once, shared fairly among those that ask.  Used by the extension and the server.

An owner is a user of this host or the address of a client.  At most `total` slots are in use, at most
`per_owner` of them by one owner.  A request that finds no slot waits: those of one owner in the order in
which they came, the owners in turn (round robin).  So an owner with a thousand requests delays another one by
as much as an owner with a single one does.

The queue itself has no limit.  Each user of this class has one, and says it: requests per connection,
connections per owner.
"""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Hashable
from typing import Generic, TypeVar

Owner = TypeVar("Owner", bound=Hashable)


class FairSlots(Generic[Owner]):
    """`total` slots."""

    def __init__(self, *, total: int, per_owner: int) -> None:
        self._free = total
        self._per_owner = per_owner
        self._used: Counter[Owner] = Counter()
        self._waiting: dict[Owner, deque[asyncio.Future[None]]] = {}
        """The owner whose turn is next comes first."""

    async def acquire(self, owner: Owner) -> None:
        """Wait for a slot; `release` ends its use.  One that is cancelled while it waits has none."""
        if self._may_enter(owner):  # then no request of this owner waits, and none of another could enter
            self._enter(owner)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._forget(owner, turn)
            else:  # its turn came at the same moment
                self.release(owner)
            raise

    def release(self, owner: Owner) -> None:
        """The slot is free for the next request."""
        self._used[owner] -= 1
        if not self._used[owner]:
            del self._used[owner]
        self._free += 1
        while (following := self._next_owner()) is not None:
            turns = self._waiting.pop(following)
            turn = turns.popleft()
            if turns:  # behind the other owners
                self._waiting[following] = turns
            if not turn.cancelled():
                self._enter(following)
                turn.set_result(None)
                return

    @contextlib.asynccontextmanager
    async def hold(self, owner: Owner) -> AsyncIterator[None]:
        """A slot for the time of a `with` block."""
        await self.acquire(owner)
        try:
            yield
        finally:
            self.release(owner)

    def _may_enter(self, owner: Owner) -> bool:
        return self._free > 0 and self._used[owner] < self._per_owner

    def _next_owner(self) -> Owner | None:
        return next((owner for owner in self._waiting if self._may_enter(owner)), None)

    def _enter(self, owner: Owner) -> None:
        self._free -= 1
        self._used[owner] += 1

    def _forget(self, owner: Owner, turn: asyncio.Future[None]) -> None:
        """Take a cancelled request out of the queue, if it is still there."""
        turns = self._waiting.get(owner)
        if turns is not None and turn in turns:
            turns.remove(turn)
            if not turns:
                del self._waiting[owner]
