"""When devices come and go, from a libusb that the test speaks for."""

import asyncio
import threading
from collections.abc import Callable
from ctypes import c_void_p
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import usb1

from tests.unit.extension.fakes import run, until
from usbipd.usb import hotplug, libusb_events
from usbipd.usb.hotplug import Hotplug
from usbipd.usb.libusb_events import LibusbListener

ARRIVED, LEFT = 1, 2
INTERRUPTED, OTHER = -10, -99


class FakeLibusb:
    """As much of `usb1.libusb1` as hotplug uses; libusb's queue of events is a list with a condition."""

    LIBUSB_CAP_HAS_HOTPLUG = 1
    LIBUSB_HOTPLUG_MATCH_ANY = -1
    LIBUSB_HOTPLUG_EVENT_DEVICE_ARRIVED = ARRIVED
    LIBUSB_HOTPLUG_EVENT_DEVICE_LEFT = LEFT
    LIBUSB_HOTPLUG_NO_FLAGS = 0
    LIBUSB_ERROR_INTERRUPTED = INTERRUPTED
    libusb_context_p = c_void_p

    def __init__(self) -> None:
        self.has_hotplug = True
        self.init_code = self.register_code = 0
        self.waits: list[int] = []
        self.exited = False
        self.answers = threading.Event()
        """Not set: libusb hangs when it starts."""
        self.answers.set()
        self._changed = threading.Condition()
        self._queue: list[int] = []
        """Events, and negative: what waiting for events returns."""
        self._is_interrupted = False
        self._callback: Callable[..., int] | None = None
        self._wanted = 0

    def send(self, *events: int) -> None:
        """These happen, one after the other."""
        with self._changed:
            self._queue += events
            self._changed.notify()

    def libusb_has_capability(self, _capability: int) -> int:
        return int(self.has_hotplug)

    def libusb_init_context(self, context: Any, _options: None, _count: int) -> int:
        self.answers.wait()
        context._obj.value = 0xC0
        return self.init_code

    def libusb_hotplug_callback_fn_p(self, callback: Callable[..., int]) -> Callable[..., int]:
        return callback

    def libusb_hotplug_register_callback(
        self, _context: c_void_p, wanted: int, flags: int, *rest: Any
    ) -> int:
        *ids, self._callback, _data, _handle = rest
        assert (flags, ids) == (0, [-1, -1, -1])
        self._wanted = wanted
        return self.register_code

    def timeval(self, seconds: int, _microseconds: int) -> Any:
        self.waits.append(seconds)
        return c_void_p()

    def libusb_handle_events_timeout(self, _context: Any, _time: Any) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._is_interrupted)
            self._is_interrupted = False
            event = self._queue.pop(0) if self._queue else 0
        if event < 0:
            return event
        if event & self._wanted and self._callback is not None:
            assert self._callback(None, None, event, None) == 0, "it must not be deregistered"
        return 0

    def libusb_interrupt_event_handler(self, context: c_void_p) -> None:
        assert context.value == 0xC0
        assert not self.exited
        with self._changed:
            self._is_interrupted = True
            self._changed.notify()

    def libusb_error_name(self, code: int) -> bytes:
        return {OTHER: b"LIBUSB_ERROR_OTHER"}[code]

    def libusb_exit(self, _context: c_void_p) -> None:
        self.exited = True


class Host:
    """A `Hotplug` on a host whose libusb is a fake one."""

    def __init__(self) -> None:
        self.libusb = FakeLibusb()
        self.changes = 0
        self.threads: set[int] = set()
        self.hotplug = Hotplug(self._change, LibusbListener)

    def _change(self) -> None:
        self.changes += 1
        self.threads.add(threading.get_ident())

    async def start(self) -> None:
        """Start, and let the first change pass."""
        self.hotplug.start()
        await until(lambda: self.changes == 2 or self.hotplug.problem)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr(libusb_events, "_libusb", lambda: host.libusb)
    monkeypatch.setattr(hotplug, "BURST", 0.0)
    monkeypatch.setattr(hotplug, "LATE", 0.02)
    monkeypatch.setattr(hotplug, "POLL_INTERVAL", 0.0)
    return host


def test_what_came_before_it_listened_is_a_change(host: Host) -> None:
    async def test() -> None:
        host.hotplug.start()
        await until(lambda: host.changes)
        await host.hotplug.stop()

    run(test())


@pytest.mark.parametrize("event", [ARRIVED, LEFT])
def test_an_event_is_a_change_and_another_one_when_drivers_are_bound(host: Host, event: int) -> None:
    async def test() -> None:
        await host.start()
        host.libusb.send(event)
        await until(lambda: host.changes == 4)
        assert host.threads == {threading.get_ident()}, "called in the thread of the loop"
        assert host.hotplug.problem is None
        await host.hotplug.stop()

    run(test())


def test_a_burst_is_one_change(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        await host.start()
        monkeypatch.setattr(hotplug, "BURST", 0.02)
        monkeypatch.setattr(hotplug, "LATE", 0.04)
        for _ in range(100):
            host.hotplug._heard()
        await until(lambda: host.changes == 4)
        await host.hotplug.stop()
        assert host.changes == 4

    run(test())


def test_the_thread_sleeps_until_something_happens(host: Host) -> None:
    async def test() -> None:
        await host.start()
        host.libusb.send(ARRIVED)
        await until(lambda: host.changes == 4)
        await host.hotplug.stop()

    run(test())
    assert len(host.libusb.waits) == 2, "for the event, and for the end"
    assert min(host.libusb.waits) >= 3600


def test_stop_ends_the_thread_and_the_context(host: Host) -> None:
    async def test() -> None:
        await host.start()
        host.libusb.send(ARRIVED)
        await until(lambda: host.changes > 2)
        await host.hotplug.stop()
        assert host.libusb.exited
        assert not [thread for thread in threading.enumerate() if thread.name == "usb-hotplug"]
        host.hotplug._heard()  # one that was under way
        assert host.hotplug._soon is None
        await host.hotplug.stop()

    run(test())


def test_nothing_is_told_after_stop(host: Host) -> None:
    async def test() -> None:
        await host.start()
        host.hotplug._heard()
        await host.hotplug.stop()
        later = asyncio.Event()
        asyncio.get_running_loop().call_later(2 * hotplug.LATE, later.set)  # behind what was to be told
        await later.wait()
        assert host.changes == 2

    run(test())


def test_stop_at_once(host: Host) -> None:
    async def test() -> None:
        host.hotplug.start()
        await host.hotplug.stop()

    run(test())
    assert host.changes == 0
    assert host.hotplug.problem is None


def test_stop_without_start(host: Host) -> None:
    run(host.hotplug.stop())


def test_an_event_after_the_loop_has_ended(host: Host) -> None:
    async def test() -> None:
        await host.start()

    run(test())
    host.libusb.send(ARRIVED)
    listener = host.hotplug._listener
    assert listener is not None
    run(listener.stop())
    assert host.libusb.exited


def test_a_signal_does_not_end_it(host: Host) -> None:
    async def test() -> None:
        await host.start()
        host.libusb.send(INTERRUPTED)
        host.libusb.send(ARRIVED)
        await until(lambda: host.changes == 4)
        await host.hotplug.stop()

    run(test())


# Polling


def polls(host: Host, monkeypatch: pytest.MonkeyPatch, problem: str) -> None:
    """Hotplug does not work, says why, and hears of changes all the same."""
    present = {"1-1"}
    monkeypatch.setattr(hotplug, "_signature", lambda: frozenset(present))

    async def test() -> None:
        await host.start()
        assert host.hotplug.problem == f"{problem}; the list of devices is read every 0 s instead"
        await until(lambda: host.changes == 2)
        present.add("1-2")
        await until(lambda: host.changes == 4)
        present.discard("1-1")
        await until(lambda: host.changes == 6)
        await host.hotplug.stop()

    run(test())


def test_a_libusb_without_hotplug(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.libusb.has_hotplug = False
    polls(host, monkeypatch, "this libusb does not tell of devices that come and go")


def test_a_host_without_libusb(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("cannot find a suitable libusb-1.0")

    monkeypatch.setattr(libusb_events, "_libusb", fail)
    polls(host, monkeypatch, "libusb 1.0 cannot be loaded: cannot find a suitable libusb-1.0")


def test_a_libusb_that_does_not_start(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.libusb.init_code = OTHER
    polls(host, monkeypatch, "libusb does not start: LIBUSB_ERROR_OTHER (-99)")
    assert not host.libusb.exited, "there is no context"


def test_a_libusb_that_hangs_when_it_starts(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes are noticed all the same; if libusb starts in the end, it is listened to."""
    host.libusb.answers.clear()
    present: set[object] = set()
    monkeypatch.setattr(hotplug, "_signature", lambda: frozenset(present))
    monkeypatch.setattr(hotplug, "START_TIME", 0.01)

    async def test() -> None:
        host.hotplug.start()
        await until(lambda: host.hotplug.problem)
        await until(lambda: host.changes == 2)
        present.add("1-2")
        await until(lambda: host.changes == 4)
        host.libusb.answers.set()
        await until(lambda: host.hotplug.problem is None)
        await until(lambda: host.changes == 6)
        host.libusb.send(ARRIVED)
        await until(lambda: host.changes == 8)
        await host.hotplug.stop()

    run(test())


def test_a_libusb_that_hangs_does_not_keep_the_daemon_from_stopping(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.libusb.answers.clear()
    monkeypatch.setattr(libusb_events, "STOP_TIME", 0.01)

    async def test() -> None:
        host.hotplug.start()
        await host.hotplug.stop()

    run(test())
    [thread] = [each for each in threading.enumerate() if each.name == "usb-hotplug"]
    assert thread.daemon
    host.libusb.answers.set()
    thread.join()
    assert host.libusb.exited


def test_a_libusb_that_takes_no_callback(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.libusb.register_code = OTHER
    polls(
        host,
        monkeypatch,
        "libusb does not tell of devices that come and go: LIBUSB_ERROR_OTHER (-99)",
    )
    assert host.libusb.exited


def test_a_libusb_that_fails_later(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotplug, "_signature", lambda: frozenset([object()]))

    async def test() -> None:
        await host.start()
        host.libusb.send(OTHER)
        await until(lambda: host.hotplug.problem)
        changes = host.changes
        await until(lambda: host.changes > changes)
        await host.hotplug.stop()

    run(test())
    assert host.hotplug.problem is not None
    assert "hotplug events stopped: LIBUSB_ERROR_OTHER (-99)" in host.hotplug.problem


def test_a_list_that_fails_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[object] = [OSError("gone"), usb1.USBErrorNoMem(), frozenset("a")]

    def signature() -> object:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    host.libusb.has_hotplug = False
    monkeypatch.setattr(hotplug, "_signature", signature)

    async def test() -> None:
        host.hotplug.start()
        await until(lambda: host.changes)
        await host.hotplug.stop()

    run(test())


# What is asked of the host


def test_the_signature_of_sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotplug.sys, "platform", "linux")
    monkeypatch.setattr(hotplug, "SYSFS_DEVICES", tmp_path)
    empty = hotplug._signature()
    (tmp_path / "1-1").mkdir()
    (tmp_path / "1-1:1.0").mkdir()
    assert hotplug._signature() == empty
    (tmp_path / "1-1/devnum").write_text("5\n")
    first = hotplug._signature()
    assert first != empty
    (tmp_path / "1-1/devnum").write_text("6\n")
    assert hotplug._signature() != first


def test_the_signature_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotplug.sys, "platform", "darwin")
    devices = [SimpleNamespace(getBusNumber=lambda: 20, getDeviceAddress=lambda: 3)]

    class Context:
        def __enter__(self) -> "Context":
            return self

        def __exit__(self, *_error: object) -> None: ...

        def getDeviceList(self, *, skip_on_error: bool) -> list[SimpleNamespace]:  # noqa: N802
            assert skip_on_error
            return devices

    monkeypatch.setattr(usb1, "USBContext", Context)
    first = hotplug._signature()
    devices.clear()
    assert hotplug._signature() != first


def test_the_real_libusb() -> None:
    """No device comes here, but its functions are the ones that are called, and stop wakes it."""
    changes: list[bool] = []

    async def test() -> None:
        real = Hotplug(lambda: changes.append(True), LibusbListener)
        real.start()
        await until(lambda: changes or real.problem)
        await real.stop()
        if real.problem is not None:
            assert not changes
            pytest.skip(real.problem)

    asyncio.run(test())
    assert changes
