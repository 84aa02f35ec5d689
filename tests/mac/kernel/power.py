"""Power management: asks all listeners, then sleeps.  Runs in the kernel."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Final

CAN_SLEEP: Final = 0xE0000270  # kIOMessageCanSystemSleep: IOMessage.h
WILL_SLEEP: Final = 0xE0000280  # kIOMessageSystemWillSleep
POWERED_ON: Final = 0xE0000300  # kIOMessageSystemHasPoweredOn
PATIENCE: Final = 30.0
"""Seconds that the system waits for an answer (QA1340)."""


class PowerListener:
    """`tell(message, number of the change)`."""

    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self.tell = tell
        self.asked: dict[int, asyncio.Future[bool]] = {}


class Power:
    def __init__(self) -> None:
        self._listeners: list[PowerListener] = []
        self._changes = itertools.count(0x7001)

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    def add(self, listener: PowerListener) -> None:
        self._listeners.append(listener)

    def remove(self, listener: PowerListener) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)
        for answer in listener.asked.values():
            if not answer.done():
                answer.set_result(True)

    def answer(self, listener: PowerListener, change: int, allowed: bool) -> None:
        answer = listener.asked.get(change)
        if answer is not None and not answer.done():
            answer.set_result(allowed)

    async def ask(self, message: int) -> bool:
        """Whether all have allowed it; no answer within `PATIENCE` seconds counts as yes."""
        answers = []
        for listener in list(self._listeners):
            change = next(self._changes)
            listener.asked[change] = asyncio.get_running_loop().create_future()
            answers.append(listener.asked[change])
            listener.tell(message, change)
        if answers:
            await asyncio.wait(answers, timeout=PATIENCE)
        return all(answer.result() for answer in answers if answer.done())

    def tell(self, message: int) -> None:
        for listener in list(self._listeners):
            listener.tell(message, 0)
