"""Status, history and health, as requested over the control socket."""

import asyncio
import logging
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import usbipd
from tests.unit.extension.healthy_daemon import (
    PATIENCE,
    FakeChannel,
    FakeManager,
    FakeServer,
    FakeStore,
    binding,
    child,
    device,
    linux,
    shared_device,
)
from usbipd.counters import LATENCY_BUCKETS
from usbipd.errors import UsbipdError
from usbipd.extension import liveness
from usbipd.extension.device import LONGEST_TEXT
from usbipd.extension.status_monitor import StatusMonitor, resident_bytes
from usbipd.extension.store import LONGEST_REASON
from usbipd.ipc.control_messages import (
    HISTORY_PAGE,
    CheckState,
    Counters,
    HistoryEntry,
    HistoryEvent,
    HistoryParameters,
    HistoryResult,
    Latency,
    Rate,
    StatusResult,
)
from usbipd.ipc.conversation import Request, answer_frame
from usbipd.ipc.messages import MAX_MESSAGE, Command, Nothing
from usbipd.ipc.row import Role
from usbipd.log import ErrorCounter
from usbipd.privileges import user_name


def make_monitor(**changes: Any) -> StatusMonitor:
    """The monitor of a healthy daemon, with `changes` applied."""
    parts: dict[str, Any] = {
        "manager": FakeManager(),
        "server": FakeServer(listening=["127.0.0.1:3240"]),
        "store": FakeStore(),
        "discovery": None,
        "hotplug": None,
        "power": None,
        "errors": ErrorCounter(),
        "control_socket": Path("/nowhere/control.sock"),
        "run_as": None,
        "access": (),
        "host": linux(),
    }
    return StatusMonitor(**(parts | changes))


def full_status(monitor: StatusMonitor) -> StatusResult:
    return asyncio.run(monitor.get_full_status())


def test_status_of_the_extension() -> None:
    status = make_monitor().get_current_status()
    assert status.is_running
    assert [device.bus_id for device in status.claimed_devices] == ["1-2"]
    assert abs(status.last_start_time - time.time()) < PATIENCE
    assert status.error_count == 0
    assert status.memory_usage == pytest.approx(resident_bytes(os.getpid()), rel=0.5)


def test_full_status_of_the_whole_daemon() -> None:
    found = full_status(make_monitor())
    assert (found.version, found.pid, found.user) == (
        usbipd.__version__,
        os.getpid(),
        user_name(os.geteuid()),
    )
    assert found.listening == ["127.0.0.1:3240"]
    assert found.devices == [device()]
    assert found.bindings == [binding()]
    assert 0 <= found.uptime < PATIENCE
    assert (found.error_count, found.last_errors) == (0, [])


def test_full_status_of_a_daemon_that_is_shutting_down() -> None:
    monitor = make_monitor(manager=FakeManager(is_running=False))
    assert not monitor.get_current_status().is_running
    assert full_status(monitor).listening == []


def test_full_status_of_the_processes() -> None:
    """Ordered: extension, server, workers by busid; claims without a worker have none."""
    workers = {busid: child(busid=busid) for busid in ("1-3", "1-10")}
    shared = {busid: shared_device(busid, worker=worker) for busid, worker in workers.items()}
    shared["1-1"] = shared_device("1-1", worker=None)
    found = full_status(make_monitor(manager=FakeManager(shared_devices=shared)))
    assert [(each.role, each.user, each.busid) for each in found.processes] == [
        ("extension", user_name(os.geteuid()), None),
        ("server", "usbipd", None),
        ("worker", "usbipd", "1-10"),
        ("worker", "usbipd", "1-3"),
    ]
    memories = [each.memory for each in found.processes]
    assert all(memory is not None and memory > 1 << 20 for memory in memories)
    assert found.memory_usage == sum(memory or 0 for memory in memories)


def test_full_status_of_a_process_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "PING_TIMEOUT", 0.0)
    silent = child(Role.SERVER)
    silent.channel = FakeChannel(silent=True)  # type: ignore[assignment]
    found = full_status(make_monitor(server=FakeServer(silent)))
    assert [(each.role, each.silent_for is not None) for each in found.processes] == [
        ("extension", False),
        ("server", True),
        ("worker", False),
    ]


def test_full_status_while_there_is_no_server() -> None:
    found = full_status(make_monitor(server=FakeServer(child=None)))
    assert [each.role for each in found.processes] == ["extension", "worker"]


def test_a_process_that_has_just_ended_has_no_memory() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert resident_bytes(process.pid) is None
    found = full_status(make_monitor(server=FakeServer(child=child(Role.SERVER, pid=process.pid))))
    assert found.processes[1].memory is None
    assert found.memory_usage == sum(each.memory for each in found.processes if each.role != "server")


def test_a_process_that_may_not_be_looked_at_has_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS only root can inspect processes of other users."""

    def refuse(_process: psutil.Process) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "memory_info", refuse)
    assert resident_bytes(os.getpid()) is None


def test_full_status_of_errors() -> None:
    errors = ErrorCounter()
    logger = logging.Logger("test")
    logger.addHandler(errors)
    logger.error("first")
    logger.error("second")
    found = full_status(make_monitor(errors=errors))
    assert found.error_count == 2
    assert [error.message for error in found.last_errors] == ["first", "second"]


def test_full_status_when_libusb_fails() -> None:
    with pytest.raises(UsbipdError, match="cannot list"):
        full_status(make_monitor(manager=FakeManager(error=UsbipdError("libusb cannot list devices"))))


def test_history() -> None:
    entries = [HistoryEntry(id=number, time=1.7e9, event=HistoryEvent.CLAIMED) for number in (3, 2, 1)]
    monitor = make_monitor(store=FakeStore(entries=entries))
    assert asyncio.run(monitor.get_claim_history(2)) == entries[:2]
    assert asyncio.run(monitor.get_claim_history(2, before=2)) == entries[2:]


def test_a_page_of_the_history_fits_into_one_answer() -> None:
    entry = HistoryEntry(id=1, time=1.7e9, event=HistoryEvent.FAILED, reason="\N{BUG}" * LONGEST_REASON)
    page = HistoryResult(entries=[entry] * HISTORY_PAGE)
    answer_frame(
        Request(1, Command.HISTORY, HistoryParameters(limit=HISTORY_PAGE), None, "test", 0.0),
        page,
        is_long=True,
    )  # may raise


LONGEST_STRING = "\N{EURO SIGN}" * 126
"""UTF-16 units that a string descriptor has room for (USB 2.0, 9.6.7), as three bytes each."""


NUMBERS = dict.fromkeys(("urbs", "bytes_in", "bytes_out", "errors", "unlinks", "in_flight"), 2**48)
USED = {
    "client": "x" * 80,
    "claim_method": "libusb, captured",
    "claim_time": 1.7e9,
    "attach_time": 1.7e9,
    "worker_pid": 2**22,
    "counters": Counters(**NUMBERS, latency_us=[2**32] * LATENCY_BUCKETS),
    "rate": Rate(urbs=1.5, bytes_in=1.5, bytes_out=1.5),
    "latency": Latency(p50_us=2**32, p99_us=2**32),
}
BROKEN = {"error": "e" * LONGEST_TEXT, "advice": "a" * LONGEST_TEXT, "next_try": 1.7e9}


@pytest.mark.parametrize("state", [USED, BROKEN], ids=["used", "broken"])
def test_a_thousand_devices_fit_into_one_answer(state: dict[str, Any]) -> None:
    """With texts of maximum length, and with a binding and a worker each."""
    text = {"serial": LONGEST_STRING, "manufacturer": LONGEST_STRING, "product": LONGEST_STRING}
    busids = [f"{number // 100}-1.2.3.{number % 100}" for number in range(1000)]
    manager = FakeManager(
        shared_devices={busid: shared_device(busid, worker=child(busid=busid)) for busid in busids},
        devices=[device(busid, **text, **state) for busid in busids],
        bindings=[binding(busid, serial=LONGEST_STRING, product=LONGEST_STRING) for busid in busids],
    )
    status = full_status(make_monitor(manager=manager))
    answer, rest = answer_frame(
        Request(1, Command.STATUS, Nothing(), None, "test", 0.0), status, is_long=True
    )
    assert rest is not None
    assert len(answer) <= MAX_MESSAGE


def test_health() -> None:
    health = asyncio.run(make_monitor(store=FakeStore(problems=["it was damaged"])).perform_health_check())
    states = {check.name: check.state for check in health.checks}
    assert states["rights"] is CheckState.OK
    assert states["store"] is CheckState.WARNING
    assert states["control-socket"] is CheckState.FAILED


class SlowStore(FakeStore):
    """Counts its checks, and blocks them."""

    def __init__(self) -> None:
        super().__init__()
        self.checked = 0
        self.go_on = asyncio.Event()

    async def check(self) -> list[str]:
        self.checked += 1
        await self.go_on.wait()
        return []


async def test_who_asks_for_health_at_the_same_time_shares_one_examination() -> None:
    store = SlowStore()
    monitor = make_monitor(store=store)
    impatient, *others = [asyncio.create_task(monitor.perform_health_check()) for _each in range(5)]
    while not store.checked:  # noqa: ASYNC110 - no event exists for this
        await asyncio.sleep(0)
    impatient.cancel()
    store.go_on.set()
    first, *rest = await asyncio.gather(*others)
    assert all(each is first for each in rest)
    assert store.checked == 1
    assert impatient.cancelled()
    assert await monitor.perform_health_check() is not first, "a later caller gets a new run"
    assert store.checked == 2
