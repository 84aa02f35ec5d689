"""Finds programs that have a file open, in /proc of Linux.  Runs in the extension, in threads.

Only root sees programs of other users.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from usbipd.text import readable


@dataclass(frozen=True, slots=True)
class Program:
    """A running program."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def programs_using(proc: Path, is_meant: Callable[[bytes], bool]) -> list[Program]:
    """The programs with an open file, working directory, root or executable whose path `is_meant`, by pid.

    Reads only the text of the links and touches no file, so a dead file server cannot block the call.
    """
    pids = sorted(int(entry.name) for entry in proc.glob("[0-9]*"))
    return [
        Program(pid, _name(proc / str(pid)))
        for pid in pids
        if any(is_meant(path) for path in _paths(proc / str(pid)))
    ]


def _paths(process: Path) -> Iterator[bytes]:
    # Linux Documentation/filesystems/proc.rst, 1.1; the path of a deleted file ends with " (deleted)"
    try:
        links = list((process / "fd").iterdir())
    except OSError:  # it has exited, or belongs to another user
        return
    for link in (*links, process / "cwd", process / "root", process / "exe"):
        try:
            yield os.fsencode(link.readlink())
        except OSError:
            continue


def _name(process: Path) -> str:
    try:
        return readable((process / "comm").read_bytes().strip()) or "?"
    except OSError:
        return "?"
