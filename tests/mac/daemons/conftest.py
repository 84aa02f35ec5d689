"""Fixtures: Macs on which daemons run."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from tests.mac.build import build, patches
from tests.mac.daemons.daemon import CONFIG, MacDaemon
from tests.mac.mac import OwnMac
from tests.mac.machine import Machine

VARIANTS: Final = ("stock", "ours") if patches("ours") else ("stock",)
"""The existing variants."""

StartDaemon = Callable[..., MacDaemon]


@pytest.fixture
def variant() -> str:
    """The libusb of the Mac (build.py): with our patches if any.  Tests can choose another."""
    return VARIANTS[-1]


@pytest.fixture
def mac(kernel: OwnMac, variant: str) -> Machine:
    """A Mac on which daemons can run."""
    return Machine(kernel, build(variant))


@contextmanager
def started(machine: Machine) -> Iterator[StartDaemon]:
    """Starts daemons on this Mac, `start()` or `start(user=UID, config=TEXT)`, and stops them."""
    if os.geteuid() != 0:
        pytest.skip("only root can capture devices and become other users")
    daemons: list[MacDaemon] = []

    def start(*, user: int | None = None, config: str = CONFIG) -> MacDaemon:
        daemons.append(MacDaemon(machine, user=user, config=config))
        return daemons[-1]

    try:
        yield start
    finally:
        codes = [each.process.poll() for each in daemons]
        for each in daemons:
            each.kill()
    for each, code in zip(daemons, codes, strict=True):
        assert code in (None, 0, -signal.SIGKILL), f"the extension exited with {code}:\n{each.log_text()}"


@pytest.fixture
def start(mac: Machine) -> Iterator[StartDaemon]:
    """`start()` starts a daemon on this Mac."""
    with started(mac) as start:
        yield start


@pytest.fixture
def daemon(start: StartDaemon) -> MacDaemon:
    """A daemon started by root."""
    return start()
