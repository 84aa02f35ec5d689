"""Slots shared among owners: limits, turns and cancelled requests."""

import asyncio

import pytest

from usbipd.fair_slots import FairSlots


class Requests:
    """Requests that each hold a slot until the test ends them."""

    def __init__(self, *, total: int, per_owner: int) -> None:
        self.slots = FairSlots[str](total=total, per_owner=per_owner)
        self.order: list[str] = []
        self.running: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, *names: str) -> None:
        """One request per name; the owner is its first letter."""
        for name in names:
            self.tasks[name] = asyncio.create_task(self._run(name))
            await settle()

    async def end(self, name: str) -> None:
        self.running[name].set()
        await settle()

    async def cancel(self, *names: str) -> None:
        for name in names:
            self.tasks[name].cancel()
        await settle()

    async def _run(self, name: str) -> None:
        async with self.slots.hold(name[0]):
            self.order.append(name)
            end = self.running[name] = asyncio.Event()
            try:
                await end.wait()
            finally:
                del self.running[name]


async def settle() -> None:
    for _turn in range(5):
        await asyncio.sleep(0)


async def test_both_limits() -> None:
    requests = Requests(total=3, per_owner=2)
    await requests.ask("a1", "a2", "a3", "b1", "b2")
    assert requests.order == ["a1", "a2", "b1"]
    await requests.end("b1")
    assert requests.order[3:] == ["b2"], "a3 comes first, but its owner has two"
    await requests.end("a1")
    assert requests.order[4:] == ["a3"]
    await requests.cancel(*requests.running)


async def test_owners_in_turn_and_the_requests_of_one_in_order() -> None:
    requests = Requests(total=1, per_owner=1)
    await requests.ask("a1", "a2", "a3", "a4", "b1", "b2", "c1")
    while requests.running:
        await requests.end(requests.order[-1])
    assert requests.order == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


async def test_a_request_that_is_cancelled_while_it_waits_takes_no_turn() -> None:
    requests = Requests(total=1, per_owner=1)
    await requests.ask("a1", "a2", "b1", "b2")
    await requests.cancel("a2", "b1")
    await requests.end("a1")
    assert requests.order == ["a1", "b2"]
    await requests.end("b2")
    assert not requests.slots._waiting, "nothing is left of them"


@pytest.mark.parametrize("cancelled_first", [True, False])
async def test_a_slot_freed_during_a_cancellation_is_not_lost(
    cancelled_first: bool,
) -> None:
    slots = FairSlots[str](total=1, per_owner=1)
    await slots.acquire("a")
    cancelled, following = (asyncio.create_task(slots.acquire(owner)) for owner in "bc")
    await settle()
    steps = [cancelled.cancel, lambda: slots.release("a")]
    for step in steps if cancelled_first else reversed(steps):
        step()
    await settle()
    assert cancelled.cancelled()
    assert following.done()
    slots.release("c")
    await slots.acquire("d")
