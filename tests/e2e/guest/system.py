"""Commands and the kernel's events.  Runs in the guest."""

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from tests.e2e.guest.scenario import StepError

PATIENCE: Final = 120.0
"""Timeout in seconds: in an emulated machine much takes seconds."""

JOB: Final = Path("/run/e2e")
"""The job directory: files here stay on the host when the machine is off."""

NETLINK_KOBJECT_UEVENT: Final = 15  # include/uapi/linux/netlink.h
KERNEL_EVENTS: Final = 1  # multicast group of the kernel itself; udevd's is 2

Found = TypeVar("Found")


def run(*command: str | Path) -> str:
    """The stdout of `command`.  Raises `StepError` with its output if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    line = " ".join(os.fspath(word) for word in command)
    print(f"$ {line}\n{done.stdout}{done.stderr}", end="", flush=True)
    if done.returncode != 0:
        raise StepError(f"`{line}` exited with {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def wait_for(what: str, find: Callable[[], Found | None], patience: float = PATIENCE) -> Found:
    """The first true result of `find`, which is called again at each kernel event.

    Also a few times a second, since not every change causes an event.  Raises `StepError`, which names
    `what`.
    """
    deadline = time.monotonic() + patience
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT) as events:
        events.bind((0, KERNEL_EVENTS))
        while True:
            if found := find():
                return found
            if time.monotonic() > deadline:
                raise StepError(f"timed out after {patience:.0f} s: {what}")
            if select.select([events], [], [], 0.2)[0]:
                try:
                    events.recv(65536)
                except OSError as error:  # ENOBUFS: events were lost, so check again
                    print(f"uevents: {error}", file=sys.stderr)
