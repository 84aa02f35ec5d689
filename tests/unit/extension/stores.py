"""Bindings, and state directories as left by a killed extension, for tests of the store."""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from usbipd.extension.store import Binding, Store, StoredClaim
from usbipd.extension.store_tables import MIGRATIONS
from usbipd.ipc.control_messages import HistoryEvent
from usbipd.usb.identity import DeviceRule

DATABASE = "usbipd.sqlite"
LOG = f"{DATABASE}-wal"
VERSION = len(MIGRATIONS)
COPY = f"usbipd.copy-v{VERSION}.sqlite"
CLAIM = StoredClaim("1-2", 0x0781, 0x5567, 1_777_890_601.5)


def binding(serial: str | None = "S1", busid: str | None = None, *, product: str = "Stick") -> Binding:
    rule = DeviceRule(0x0781, 0x5567, serial, busid)
    return Binding(rule, product, ("192.0.2.0/24",), 1_777_890_600.25, "anna")


BINDINGS = [binding("S1"), binding("S2", "1-2"), binding(None, "3-2.4")]


class Files(dict[str, bytes]):
    """The files of a state directory; their contents are not printed by a failing test."""

    def __repr__(self) -> str:
        return f"Files({list(self)})"

    @classmethod
    def of(cls, directory: Path) -> "Files":
        return cls({path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()})

    def write(self, directory: Path) -> None:
        """Create `directory` with these files."""
        directory.mkdir(mode=0o700)
        for name, data in self.items():
            (directory / name).write_bytes(data)


@contextmanager
def fast_directory() -> Iterator[Path]:
    """A path for a state directory, in memory if possible, which is faster than a disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name, "state")


def after_a_kill() -> Files:
    """The files of a killed extension with `BINDINGS` and `CLAIM`: everything is still in the log."""

    async def fill(directory: Path) -> Files:
        store = await Store.open(directory)
        for one in BINDINGS:
            await store.add_binding(one)
        await store.begin_claim(CLAIM)
        store.record(HistoryEvent.CLAIMED, busid="1-2")
        await store.history(1)
        files = Files.of(directory)
        await store.close()
        return files

    with fast_directory() as directory:
        return asyncio.run(fill(directory))


def after_an_end() -> Files:
    """The same after an orderly shutdown: no log is left."""
    with fast_directory() as directory:
        after_a_kill().write(directory)
        asyncio.run(reopen(directory))
        return Files.of(directory)


async def reopen(directory: Path) -> tuple[list[Binding], list[str]]:
    """Open and close a store; returns its bindings and the problems that recovery found."""
    store = await Store.open(directory)
    try:
        return await store.bindings(), store.problems
    finally:
        await store.close()


def child(work: Callable[[], None]) -> int:
    """Run `work` in a separate process, and return the process."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
