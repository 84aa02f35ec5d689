"""A software Mac for tests: a separate kernel for each, and processes with libusb's darwin backend on it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuzz import heap
from tests.mac.build import build, patches
from tests.mac.mac import VARIABLE, Device, OwnMac
from tests.mac.rig import find_iokit
from tests.mac.tree import Tree

if VARIABLE in os.environ:  # a process of a software Mac, which runs cases
    find_iokit()

HERE = Path(__file__).parent
SANITIZED = "-asan" if heap.allocated() is not None else ""
"""Suffix of the variants for a process under sanitizers."""


@pytest.fixture(scope="session")
def stock_libusb() -> Path:
    """The directory of unmodified libusb."""
    return build(f"stock{SANITIZED}")


@pytest.fixture(scope="session", params=["stock", "ours"])
def libusb(request: pytest.FixtureRequest) -> Path:
    """The directory of libusb, unmodified and with our patches."""
    variant: str = request.param
    if variant == "ours" and not patches(variant):
        pytest.skip("packaging/libusb has no patches")
    return build(f"{variant}{SANITIZED}")


@pytest.fixture
def kernel() -> Iterator[OwnMac]:
    """A running kernel with the default switches and nothing plugged in."""
    with OwnMac() as mac:
        yield mac


@pytest.fixture
def plug(kernel: OwnMac) -> Callable[..., Device]:
    """`plug(kind, location=, port=, drivers=)`: see `Mac.plug`."""
    return kernel.plug


@pytest.fixture
def environment(kernel: OwnMac, libusb: Path) -> dict[str, str]:
    """The environment of a process of `kernel`, with each libusb."""
    return kernel.environment(libusb)


@pytest.fixture
def in_process(libusb: Path) -> Callable[..., None]:
    """`in_process("some_cases.py", *options, **switches)`: runs pytest in a process with this libusb.

    It has a separate kernel, with these switches from the start; rig.py has helpers for its tests.
    """

    def run(cases: str | Path, *options: str, **switches: object) -> None:
        with OwnMac() as mac:
            mac.switch(**switches)
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, HERE / cases],
                env=mac.environment(libusb),
                capture_output=True,
                text=True,
                timeout=600,
            )
        assert done.returncode == 0, done.stdout + done.stderr

    return run


@pytest.fixture
def tree() -> Iterator[Tree]:
    """The IORegistry of this process's kernel, for cases; fails if references are left at the end."""
    with Tree() as tree:
        yield tree
