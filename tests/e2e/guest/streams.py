"""Data that must pass through a device unchanged.  Runs in the guest."""

import os
import select
import termios
import threading
import tty
from collections.abc import Callable

from tests.e2e.guest.scenario import StepError, check
from tests.e2e.guest.system import PATIENCE, wait_for
from tests.e2e.guest.usb import UsbDevice


def check_same(received: bytes, sent: bytes) -> None:
    """Raises `StepError` unless both are equal; it reports the length of the common prefix."""
    if received != sent:
        pairs = enumerate(zip(received, sent, strict=False))
        same = next((index for index, (a, b) in pairs if a != b), min(len(received), len(sent)))
        raise StepError(f"{len(received)} bytes arrived, not {len(sent)}; the first {same} are as expected")


def write_all(port: int, data: bytes) -> None:
    """Write all of `data` to the descriptor `port`."""
    view = memoryview(data)
    while view:
        view = view[os.write(port, view) :]


def read_all(port: int, length: int) -> bytes:
    """Read `length` bytes from the descriptor `port`.  Raises `StepError` if they do not arrive."""
    received = bytearray()
    while len(received) < length:
        check(bool(select.select([port], [], [], PATIENCE)[0]), f"{len(received)} of {length} bytes arrived")
        received += os.read(port, length - len(received))
    return bytes(received)


def check_tty_echoes(device: UsbDevice) -> None:
    """Raises `StepError` unless a serial port echoes its input."""
    sent = os.urandom(1 << 16)
    port = os.open(wait_for("a tty of the serial port", device.tty), os.O_RDWR | os.O_NOCTTY)
    try:
        tty.setraw(port, termios.TCSANOW)
        with Background(lambda: write_all(port, sent)):
            received = read_all(port, len(sent))
    finally:
        os.close(port)
    check_same(received, sent)


class Background:
    """Runs an action in a thread during a `with` block; its exception is raised at the end of the block."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self._action()
        except Exception as error:
            self._error = error

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *failure: object) -> None:
        if failure[0] is None:
            self._thread.join()
        if self._error is not None:
            raise self._error
