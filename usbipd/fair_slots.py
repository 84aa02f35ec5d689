"""A limit on concurrent requests, shared fairly among owners.  Used by the extension and the server.

An owner is a user of this host or the address of a client.  At most `total` slots are in use, at most
`per_owner` of them by one owner.  A request without a slot waits: first come, first served within an owner,
round robin among owners.  So an owner with a thousand requests delays another no more than an owner with one.

The queue itself has no limit.  Each user of this class sets one: requests per connection, connections per
owner.
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
        """The owner whose turn is next is first."""

    async def acquire(self, owner: Owner) -> None:
        """Wait for a slot; `release` frees it.  A call cancelled while it waits gets none."""
        if self._may_enter(owner):  # then no request of this owner waits, and no waiting one could enter
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
        """Free the slot for the next request."""
        self._used[owner] -= 1
        if not self._used[owner]:
            del self._used[owner]
        self._free += 1
        while (following := self._next_owner()) is not None:
            turns = self._waiting.pop(following)
            turn = turns.popleft()
            if turns:  # after the other owners
                self._waiting[following] = turns
            if not turn.cancelled():
                self._enter(following)
                turn.set_result(None)
                return

    @contextlib.asynccontextmanager
    async def hold(self, owner: Owner) -> AsyncIterator[None]:
        """Hold a slot for a `with` block."""
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
        """Remove a cancelled request if it is still queued."""
        turns = self._waiting.get(owner)
        if turns is not None and turn in turns:
            turns.remove(turn)
            if not turns:
                del self._waiting[owner]
