"""Calls that hang in the system do not keep the process from exiting."""

import asyncio
import sys
import threading
from types import ModuleType

import pytest

from usbipd.errors import UsbipdError
from usbipd.usb import daemon_thread
from usbipd.usb.daemon_thread import close_in_time


@pytest.fixture
def hang() -> threading.Event:
    """A hanging call waits for this."""
    return threading.Event()


def test_a_close_that_hangs(hang: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_thread, "CLOSE_TIME", 0.01)
    asyncio.run(close_in_time(lambda: hang.wait() and None))  # which waits for the threads of its executor
    assert not hang.is_set()
    hang.set()


def test_a_close_that_fails() -> None:
    def close() -> None:
        raise UsbipdError("it does not close")

    with pytest.raises(UsbipdError, match="does not close"):
        asyncio.run(close_in_time(close))


async def test_a_power_listener_that_does_not_close(
    hang: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its queue is stuck in a callback."""

    class Listener:
        def __init__(self, _tell: object) -> None:
            pass

        def close(self) -> None:
            hang.wait()

    iokit = ModuleType("usbipd._iokit")
    vars(iokit).update(WAKES="wakes", PowerListener=Listener)
    monkeypatch.setitem(sys.modules, "usbipd._iokit", iokit)
    monkeypatch.delitem(sys.modules, "usbipd.usb.power", raising=False)
    monkeypatch.setattr(daemon_thread, "CLOSE_TIME", 0.01)
    from usbipd.usb.power import PowerWatch

    power = PowerWatch(lambda: None)
    power.start()
    await power.stop()
    assert not hang.is_set()
    hang.set()
    del sys.modules["usbipd.usb.power"]
