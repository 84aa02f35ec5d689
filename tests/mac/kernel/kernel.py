"""The kernel of a software Mac: one thread, one event loop, all its state.  Runs as a separate process."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from tests.mac.kernel.connection import Connection
from tests.mac.kernel.control import Control
from tests.mac.kernel.device import UsbDevice
from tests.mac.kernel.power import Power
from tests.mac.kernel.registry import Registry
from tests.mac.kernel.switches import Switches
from tests.mac.kernel.wire import Call


class Kernel:
    def __init__(self, switches: Switches | None = None) -> None:
        self._changed = asyncio.Event()
        self.switches = switches or Switches()
        self.registry = Registry(self.changed)
        self.power = Power()
        self.control = Control(self)
        self.devices: dict[int, UsbDevice] = {}
        self.connections: set[Connection] = set()
        self.journal: list[str] = []
        self.restless = False
        """Whether all iterators become invalid."""
        self.problems: list[str] = []
        """Internal errors of the kernel: they fail the test."""
        self._sessions = itertools.count(0x1000, 0x10)
        self._numbers = itertools.count(0x10)
        self._addresses: dict[int, int] = {}
        self._failures: dict[Call, list[int]] = {}
        self._iterations: dict[int, Callable[[], Coroutine[Any, Any, object]]] = {}
        self.iteration_count = 0
        self._tasks: set[asyncio.Task[object]] = set()

    def next_session(self) -> int:
        return next(self._sessions)

    def next_number(self) -> int:
        """A number for an object outside the registry."""
        return next(self._numbers)

    def next_address(self, bus: int) -> int:
        """An address from 1 to 127, per bus, skipping those in use."""
        used = {each.address for each in self.devices.values() if each.present and each.location >> 24 == bus}
        address = self._addresses.get(bus, 0)
        while True:
            address = address % 127 + 1
            if address not in used:
                self._addresses[bus] = address
                return address

    def note(self, line: str) -> None:
        self.journal.append(line)
        self.changed()

    def changed(self) -> None:
        """Wakes waiters (`until`)."""
        self._changed.set()

    async def until(
        self, condition: Callable[[], bool], seconds: float, describe: Callable[[], object]
    ) -> None:
        """Raises `TimeoutError` with a description of the actual state."""

        async def wait() -> None:
            while not condition():
                self._changed.clear()
                await self._changed.wait()

        try:
            await asyncio.wait_for(wait(), seconds)
        except TimeoutError as error:
            raise TimeoutError(f"not in {seconds} s: {describe()}") from error

    def spawn(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.problems.append(f"{type(error).__name__}: {error}")

    # ---- interference of tests ---------------------------------------------------------------------

    def fail(self, call: Call, code: int, times: int) -> None:
        self._failures[call] = [code] * times

    def failure(self, call: Call) -> int | None:
        codes = self._failures.get(call)
        return codes.pop() if codes else None

    def at_iteration(self, number: int, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Does `work` right before the step `number` of any iterator, counted from now."""
        self._iterations[self.iteration_count + number] = work

    def iteration(self) -> None:
        self.iteration_count += 1
        work = self._iterations.pop(self.iteration_count, None)
        if work is not None:
            coroutine = work()
            try:
                coroutine.send(None)
            except StopIteration:
                return
            raise RuntimeError("work at an iteration must not wait")

    # ---- life cycle --------------------------------------------------------------------------------

    async def serve(self, path: Path, on_ready: Callable[[], None]) -> None:
        """Listens on `path`, open to any user, until cancelled."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.problems.append(str(context)))
        server = await loop.create_unix_server(lambda: Connection(self), str(path))
        os.chmod(path, 0o777)  # noqa: PTH101
        on_ready()
        async with server:
            await server.serve_forever()
