"""Arrivals and departures of devices, from a fake listener."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.extension.fakes import run, until
from usbipd.errors import UsbipdError
from usbipd.usb import hotplug
from usbipd.usb.hotplug import Hotplug


class Announcer:
    """An `EventListener` that the test controls, on a separate thread."""

    def __init__(self) -> None:
        self.problem: str | None = None
        """Why it cannot listen; set before it is started."""
        self.is_started = self.is_stopped = False

    def listen(self, on_event: Callable[[], None], on_end: Callable[[str], None]) -> "Announcer":
        self._on_event, self._on_end = on_event, on_end
        return self

    def start(self) -> None:
        self.is_started = True
        if self.problem is None:
            self.announce()
        else:
            self.fail(self.problem)

    async def stop(self) -> None:
        self.is_stopped = True

    def announce(self) -> None:
        """A device has arrived or left."""
        _in_a_thread(self._on_event)

    def fail(self, reason: str) -> None:
        """It can no longer listen."""
        _in_a_thread(lambda: self._on_end(reason))


def _in_a_thread(call: Callable[[], None]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


class Host:
    """A `Hotplug` with the listener above."""

    def __init__(self) -> None:
        self.listener = Announcer()
        self.changes = 0
        self.threads: set[int] = set()
        self.hotplug = Hotplug(self._change, self.listener.listen)

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
    monkeypatch.setattr(hotplug, "BURST", 0.0)
    monkeypatch.setattr(hotplug, "LATE", 0.02)
    monkeypatch.setattr(hotplug, "POLL_INTERVAL", 0.0)
    return host


async def test_earlier_changes_count_as_a_change(host: Host) -> None:
    host.hotplug.start()
    await until(lambda: host.changes)
    await host.hotplug.stop()


async def test_an_event_is_a_change_and_another_after_drivers_are_bound(host: Host) -> None:
    await host.start()
    host.listener.announce()
    await until(lambda: host.changes == 4)
    assert host.threads == {threading.get_ident()}, "called in the thread of the loop"
    assert host.hotplug.problem is None
    await host.hotplug.stop()


async def test_a_burst_is_one_change(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    await host.start()
    monkeypatch.setattr(hotplug, "BURST", 0.02)
    monkeypatch.setattr(hotplug, "LATE", 0.04)
    for _ in range(100):
        host.hotplug._schedule_change()
    await until(lambda: host.changes == 4)
    await host.hotplug.stop()
    assert host.changes == 4


async def test_stop_ends_the_listener(host: Host) -> None:
    await host.start()
    host.listener.announce()
    await until(lambda: host.changes > 2)
    await host.hotplug.stop()
    assert host.listener.is_stopped
    host.hotplug._schedule_change()  # one in flight
    assert host.hotplug._soon is None
    await host.hotplug.stop()


async def test_no_change_is_reported_after_stop(host: Host) -> None:
    await host.start()
    host.hotplug._schedule_change()
    await host.hotplug.stop()
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(2 * hotplug.LATE, later.set)  # after the pending changes
    await later.wait()
    assert host.changes == 2


async def test_stop_at_once(host: Host) -> None:
    host.hotplug.start()
    await host.hotplug.stop()
    await asyncio.sleep(0)
    assert host.changes == 0
    assert host.hotplug.problem is None


def test_stop_without_start(host: Host) -> None:
    run(host.hotplug.stop())


def test_an_event_after_the_loop_has_ended(host: Host) -> None:
    run(host.start())
    host.listener.announce()
    host.listener.fail("it has no loop either")
    assert host.hotplug.problem is None


# Polling


def polls(host: Host, monkeypatch: pytest.MonkeyPatch, problem: str) -> None:
    """Hotplug does not work, reports why, and still notices changes."""
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


def test_a_host_without_events(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.listener.problem = "this host does not tell"
    polls(host, monkeypatch, "this host does not tell")


async def test_a_listener_that_hangs_when_it_starts(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes are still noticed; if it starts late, it is used."""
    present: set[object] = set()
    monkeypatch.setattr(hotplug, "_signature", lambda: frozenset(present))
    monkeypatch.setattr(hotplug, "START_TIME", 0.01)
    monkeypatch.setattr(host.listener, "start", lambda: None)
    host.hotplug.start()
    await until(lambda: host.hotplug.problem)
    await until(lambda: host.changes == 2)
    present.add("1-2")
    await until(lambda: host.changes == 4)
    host.listener.announce()
    await until(lambda: host.hotplug.problem is None)
    await until(lambda: host.changes == 6)
    host.listener.announce()
    await until(lambda: host.changes == 8)
    await host.hotplug.stop()


async def test_a_listener_that_fails_later(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotplug, "_signature", lambda: frozenset([object()]))
    await host.start()
    host.listener.fail("it stopped")
    await until(lambda: host.hotplug.problem)
    changes = host.changes
    await until(lambda: host.changes > changes)
    await host.hotplug.stop()
    assert host.hotplug.problem is not None
    assert host.hotplug.problem.startswith("it stopped; ")


async def test_a_list_that_fails_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[object] = [OSError("gone"), UsbipdError("no answer", code="iokit"), frozenset("a")]

    def signature() -> object:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    host.listener.problem = "this host does not tell"
    monkeypatch.setattr(hotplug, "_signature", signature)
    host.hotplug.start()
    await until(lambda: host.changes)
    await host.hotplug.stop()


# Queries to the host


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
