"""Our daemon's processes, from outside: what /proc shows of them, and kill -9.  Runs in the guest."""

import os
import re
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tests.e2e.guest.server import Usbipd, command_of
from tests.e2e.guest.system import wait_for

EXTENSION, SERVER = "extension", "server"

_CHILD: Final = re.compile(r" -m usbipd @(server|worker \S+)")


def worker(busid: str) -> str:
    """What `processes` calls the worker of a device."""
    return f"worker {busid}"


def processes(daemon: Usbipd) -> list[tuple[str, int]]:
    """What each process of ours is, and its pid, in order; whoever is its parent by now."""
    found = [(EXTENSION, daemon.process.pid)] if daemon.process.poll() is None else []
    for path in Path("/proc").glob("[0-9]*"):
        if match := _CHILD.search(command_of(int(path.name))):
            found.append((match[1], int(path.name)))
    return sorted(found)


def kill(pids: Iterable[int]) -> None:
    """kill -9, one after the other; one that has ended is none."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_until_ended(pids: Iterable[int]) -> None:
    """Until none of these is there, or each is a zombie that only waits to be reaped."""
    pids = list(pids)
    wait_for(f"the end of the processes {pids}", lambda: not any(command_of(pid) for pid in pids))


@dataclass(frozen=True)
class Usage:
    """What a process holds."""

    descriptors: tuple[str, ...]
    """What each open descriptor is, without the numbers of sockets and the like."""
    threads: int
    memory: int
    """KiB that are its own, without what it shares with files."""

    @classmethod
    def of(cls, pid: int) -> Self:
        """Of the process `pid`."""
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        links = []
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # it was closed meanwhile
                links.append(re.sub(r"\[\d+\]", "", str(path.readlink())))
        return cls(
            tuple(sorted(links)),
            int(fields["Threads"]),
            int(fields["RssAnon"].split()[0]),
        )
