"""A software Mac for tests: a kernel of its own each, and processes whose libusb is the darwin backend over
it.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mac.build import build, patches
from tests.mac.daemon import MacDaemon
from tests.mac.mac import Device, OwnMac
from tests.mac.machine import Machine

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def stock_libusb() -> Path:
    """The directory of libusb unmodified."""
    return build("stock")


@pytest.fixture(scope="session", params=["stock", "ours"])
def libusb(request: pytest.FixtureRequest) -> Path:
    """The directory of libusb, unmodified and with our patches."""
    variant: str = request.param
    if variant == "ours" and not patches(variant):
        pytest.skip("packaging/libusb has no patches")
    return build(variant)


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
    """`in_process("some_cases.py", *options)`: pytest in a process whose libusb is ours.  `cases.py` says
    what is there for its tests.
    """

    def run(cases: str | Path, *options: str) -> None:
        with OwnMac() as mac:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, HERE / cases],
                env=mac.environment(libusb),
                capture_output=True,
                text=True,
                timeout=600,
            )
        assert done.returncode == 0, done.stdout + done.stderr

    return run


# ---- whole daemons -----------------------------------------------------------------------------------------

StartDaemon = Callable[..., MacDaemon]


@pytest.fixture
def mac(kernel: OwnMac, stock_libusb: Path) -> Machine:
    """A Mac on which daemons can run."""
    return Machine(kernel, stock_libusb)


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
