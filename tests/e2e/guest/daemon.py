"""Our daemon's processes, from outside: /proc and kill -9.  Runs in the guest."""

import os
import re
import signal
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tests.e2e.guest.scenario import StepError
from tests.e2e.guest.server import Usbipd, command_of
from tests.e2e.guest.system import wait_for

EXTENSION, SERVER = "extension", "server"

_NUMBERS: Final = re.compile(r"\[\d+\]|(?<=^/dev/bus/usb)/\d+/\d+")
_CHILD: Final = re.compile(r" -m usbipd @(server|worker \S+)")


def worker(busid: str) -> str:
    """The name of a device's worker in `processes`."""
    return f"worker {busid}"


def processes(daemon: Usbipd) -> list[tuple[str, int]]:
    """Role and pid of each of our processes, in order, including orphans."""
    found = [(EXTENSION, daemon.process.pid)] if daemon.process.poll() is None else []
    for path in Path("/proc").glob("[0-9]*"):
        if match := _CHILD.search(command_of(int(path.name))):
            found.append((match[1], int(path.name)))
    return sorted(found)


def kill(pids: Iterable[int]) -> None:
    """kill -9, one after the other; pids that have exited are ignored."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_until_ended(pids: Iterable[int]) -> None:
    """Wait until none of these exists except as a zombie."""
    pids = list(pids)
    wait_for(f"the end of the processes {pids}", lambda: not any(command_of(pid) for pid in pids))


@dataclass(frozen=True)
class Usage:
    """The resources of a process."""

    descriptors: tuple[str, ...]
    """Open descriptors by kind, without the numbers of sockets, USB devices and the like."""
    threads: int
    memory: int
    """Private memory in KiB, without file mappings."""

    @classmethod
    def of(cls, pid: int) -> Self:
        """The usage of the process `pid`."""
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        links = []
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # it was closed meanwhile
                links.append(_NUMBERS.sub("", str(path.readlink())))
        return cls(
            tuple(sorted(links)),
            int(fields["Threads"]),
            int(fields["RssAnon"].split()[0]),
        )


def excess(name: str, was: Usage, now: Usage, spare_memory: int, spare_threads: int) -> list[str]:
    """How the process `name` uses more than it, or its predecessor, used before.

    Less is fine: `was` may have been measured under load.  `spare_memory`, in KiB, and `spare_threads` are
    the permitted growth.
    """
    found = []
    if more := Counter(now.descriptors) - Counter(was.descriptors):
        found.append(f"{name} has more descriptors: {dict(more)}")
    if now.threads > was.threads + spare_threads:
        found.append(f"{name} had {was.threads} threads and has {now.threads}")
    if now.memory > was.memory + spare_memory:
        found.append(f"{name} had {was.memory} KiB and has {now.memory}")
    return found


def check_usage(daemon: Usbipd, before: Mapping[str, Usage], spare_memory: int, spare_threads: int) -> None:
    """Wait until the processes of these names have no `excess`.  Raises `StepError`."""
    wrong: list[str] = []

    def find() -> bool:
        wrong.clear()
        running = dict(processes(daemon))
        for name, was in before.items():
            wrong.extend(excess(name, was, Usage.of(running[name]), spare_memory, spare_threads))
        return not wrong

    try:
        wait_for("the processes to hold no more than before", find)
    except StepError as error:
        raise StepError(f"{error}; {'; '.join(wrong)}") from None
