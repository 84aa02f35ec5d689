"""The end of a parent: real processes, of which the one in the middle is killed."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from usbipd.extension import parent as module
from usbipd.extension.parent import watch_parent

PATIENCE = 10.0

LAUNCHER = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]]).wait()"

WATCHER = """
import asyncio, os, sys
from usbipd.extension.parent import watch_parent

calls = []

async def main():
    pid = os.getppid()
    descriptors = set(os.listdir("/dev/fd"))
    print("up", flush=True)
    {before}
    ended = asyncio.Event()
    watch = watch_parent(pid, lambda: (calls.append(1), ended.set()))
    print("watching", flush=True)
    await ended.wait()
    for _turn in range(10):
        await asyncio.sleep(0)
    watch.close()
    print(len(calls), set(os.listdir("/dev/fd")) == descriptors, flush=True)

asyncio.run(main())
"""


@contextmanager
def family(before: str) -> Iterator[subprocess.Popen[str]]:
    """A launcher whose child runs `before` and then watches it; the pipes go to and come from the child."""
    command = [sys.executable, "-c", LAUNCHER, WATCHER.format(before=before)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as launcher:
        yield launcher


def said(launcher: subprocess.Popen[str]) -> str:
    assert launcher.stdout is not None
    return launcher.stdout.readline().strip()


def test_a_parent_that_is_killed() -> None:
    with family("") as launcher:
        assert said(launcher) == "up"
        assert said(launcher) == "watching"
        launcher.send_signal(signal.SIGKILL)
        assert said(launcher) == "1 True", "it is called once, and no descriptor stays open"


@pytest.mark.parametrize("reaped", [False, True])
def test_a_parent_that_has_been_killed_before(reaped: bool) -> None:
    with family("sys.stdin.readline()") as launcher:
        assert said(launcher) == "up"
        launcher.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, launcher.pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
        assert launcher.stdin is not None
        launcher.stdin.write("go on\n")
        launcher.stdin.flush()
        assert said(launcher) == "watching"
        assert said(launcher) == "1 True"


def watch_in_loop(pid: int, *, close: bool) -> int:
    """How often it is said that our parent has ended."""

    async def watch() -> int:
        calls: list[None] = []
        watched = watch_parent(pid, lambda: calls.append(None))
        if close:
            watched.close()
        for _turn in range(10):
            await asyncio.sleep(0)
        watched.close()
        return len(calls)

    return asyncio.run(watch())


def test_a_parent_that_lives() -> None:
    assert watch_in_loop(os.getppid(), close=False) == 0


def test_a_number_that_is_no_longer_our_parents() -> None:
    assert watch_in_loop(os.getpid(), close=False) == 1


def test_nothing_is_said_after_the_end_of_the_watch() -> None:
    assert watch_in_loop(os.getpid(), close=True) == 0


class Kqueue:
    """The BSD's way, on a socket: readable once the test says that the process has ended."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.gone = False
        self._ours, self._tests = socket.socketpair()

    def control(self, events: list[tuple[object, ...]], count: int) -> None:
        assert count == 0
        if self.gone:
            raise ProcessLookupError
        self.asked += events

    def fileno(self) -> int:
        return self._ours.fileno()

    def close(self) -> None:
        self._ours.close()

    def process_ends(self) -> None:
        self._tests.close()


@pytest.fixture
def kqueue(monkeypatch: pytest.MonkeyPatch) -> Kqueue:
    queue = Kqueue()
    names = {name: name for name in ("KQ_FILTER_PROC", "KQ_EV_ADD", "KQ_NOTE_EXIT")}
    fake = SimpleNamespace(kqueue=lambda: queue, kevent=lambda *fields: fields, **names)
    monkeypatch.setattr(module, "_BSD", fake)
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    return queue


def test_where_there_is_kqueue(kqueue: Kqueue) -> None:
    async def watch() -> None:
        ended = asyncio.Event()
        watch_parent(os.getppid(), ended.set)
        assert kqueue.asked == [(os.getppid(), "KQ_FILTER_PROC", "KQ_EV_ADD", "KQ_NOTE_EXIT")]
        await asyncio.sleep(0)
        assert not ended.is_set()
        kqueue.process_ends()
        async with asyncio.timeout(PATIENCE):
            await ended.wait()
        assert kqueue.fileno() == -1, "it is closed"

    asyncio.run(watch())


def test_kqueue_of_a_process_that_is_gone(kqueue: Kqueue) -> None:
    kqueue.gone = True
    assert watch_in_loop(os.getppid(), close=False) == 1
    assert kqueue.fileno() == -1
    kqueue.process_ends()
