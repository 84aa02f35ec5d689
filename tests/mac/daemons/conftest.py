"""Macs on which daemons run."""

import os
import signal
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from tests.mac.build import build, patches
from tests.mac.daemons.daemon import MacDaemon
from tests.mac.mac import OwnMac
from tests.mac.machine import Machine

VARIANTS: Final = ("stock", "ours") if patches("ours") else ("stock",)
"""Those that exist."""

StartDaemon = Callable[..., MacDaemon]


@pytest.fixture
def variant() -> str:
    """The libusb of the Mac (build.py): with our patches if there are any.  Tests may choose another one."""
    return VARIANTS[-1]


@pytest.fixture
def mac(kernel: OwnMac, variant: str) -> Machine:
    """A Mac on which daemons can run."""
    return Machine(kernel, build(variant))


@pytest.fixture
def start(mac: Machine) -> Iterator[StartDaemon]:
    """Starts a daemon on this Mac: `start()`, `start(user=UID)`."""
    if os.geteuid() != 0:
        pytest.skip("only root can capture devices, and become other users")
    started: list[MacDaemon] = []

    def start(*, user: int | None = None) -> MacDaemon:
        started.append(MacDaemon(mac, user=user))
        return started[-1]

    yield start
    codes = [each.process.poll() for each in started]
    for each in started:
        each.kill()
    for each, code in zip(started, codes, strict=True):
        assert code in (None, 0, -signal.SIGKILL), f"the extension ended with {code}:\n{each.log_text()}"


@pytest.fixture
def daemon(start: StartDaemon) -> MacDaemon:
    """A daemon that root has started."""
    return start()
