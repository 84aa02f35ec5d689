"""Children that do not answer, or send too much: detected, and killed on request."""

import asyncio
import errno
import gc
import os
import threading
from dataclasses import replace

import pytest

from tests.unit.extension.fakes import (
    PATIENCE,
    FakeSource,
    FakeSpawner,
    FakeStore,
    FakeSysfs,
    make_claimer,
    record,
    until,
)
from tests.unit.extension.healthy_daemon import FakeChannel, child
from usbipd.errors import ClaimError, UsbipdError
from usbipd.extension import claimer as claimer_module
from usbipd.extension import liveness
from usbipd.extension.device import ClaimState
from usbipd.extension.liveness import silence_of
from usbipd.extension.supervisor import Child
from usbipd.extension.usb_stack import LINUX
from usbipd.ipc.control_messages import HistoryEvent
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command, Nothing
from usbipd.usb.ownership import SysfsOwnership

CLIENT = "192.0.2.1:5"


def test_a_child_that_answers_is_not_silent() -> None:
    assert asyncio.run(silence_of(child())) is None


async def test_a_silent_child_gets_one_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "PING_TIMEOUT", 0.01)
    channel = FakeChannel(silent=True)
    silent = child()
    silent.channel = channel  # type: ignore[assignment]
    first, second = await asyncio.gather(silence_of(silent), silence_of(silent))
    assert first is not None
    assert second is not None
    monkeypatch.setattr(liveness, "PING_TIMEOUT", 3600.0)
    silent.ping = silent.ping._replace(sent=silent.ping.sent - 3600)  # type: ignore[union-attr]
    async with asyncio.timeout(5):  # not another hour
        longer = await silence_of(silent)
    assert longer is not None
    assert longer >= 3600
    assert channel.asked == 1
    channel.close()
    assert await silence_of(silent) is None
    assert channel.asked == 1


class Host:
    """A claimer on a host with one real device, 1-2, which it holds for a client."""

    def __init__(self, spawner: FakeSpawner, sysfs: FakeSysfs) -> None:
        self.spawner = spawner
        self.store = FakeStore()
        self.claimer = make_claimer(spawner, sysfs, FakeSource(record("1-2")).find, self.store)

    async def attach(self) -> None:
        await self.claimer.claim_device(record("1-2"))
        self.claimer.shared_devices["1-2"].attached(CLIENT)

    async def until_replaced(self) -> None:
        await until(
            lambda: (
                len(self.spawner.children) == 2
                and self.claimer.shared_devices["1-2"].state is ClaimState.READY
            )
        )

    async def release(self) -> None:
        self.spawner.answers.clear()
        await self.claimer.release_device("1-2", timeout=5)


@pytest.fixture
def host(spawner: FakeSpawner, sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(claimer_module, "DISCONNECT_TIMEOUT", 0.01)
    return Host(spawner, sysfs)


@pytest.mark.parametrize(
    "answer",
    ["silence", Nothing(), UsbipdError("no client is attached", code="not-attached")],
    ids=["silent", "lies", "denies"],
)
async def test_detach_ends_a_worker_that_does_not_end_the_session(
    host: Host, answer: Message | UsbipdError | str
) -> None:
    """It is killed, which ends the session; the next worker claims the device."""
    await host.attach()
    host.spawner.answers[Command.DISCONNECT] = answer
    assert await host.claimer.disconnect("1-2", "anna") == CLIENT
    assert host.spawner.children[0].killed
    await host.until_replaced()
    [ended] = host.store.recorded(HistoryEvent.DETACHED)
    assert ended["client"] == CLIENT
    await host.release()


async def test_detach_of_a_client_that_leaves_at_the_same_time(host: Host) -> None:
    """The worker sends DETACHED before it answers that it has no client: it is not killed."""
    await host.attach()
    host.spawner.answers[Command.DISCONNECT] = UsbipdError("no client is attached", code="not-attached")
    host.spawner.last.detach()
    with pytest.raises(UsbipdError, match="no client is attached"):
        await host.claimer.disconnect("1-2", "anna")
    assert not host.spawner.last.killed
    await host.release()


async def test_a_worker_that_the_kernel_does_not_end(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for its device, unreachable by signals."""
    monkeypatch.setattr(claimer_module, "KILL_TIMEOUT", 0.01)
    kill = host.spawner.kill
    await host.attach()
    host.spawner.answers[Command.DISCONNECT] = "silence"
    survivors: list[Child] = []
    monkeypatch.setattr(host.spawner, "kill", survivors.append)
    with pytest.raises(UsbipdError, match="hangs in the kernel waiting for 1-2") as caught:
        await host.claimer.disconnect("1-2", "anna")
    assert caught.value.advice == "unplug the device"
    assert len(host.spawner.children) == 1
    [survivor] = survivors
    kill(survivor)
    await host.until_replaced()
    await host.release()


async def test_drivers_are_reattached_after_a_killed_worker_has_ended(
    host: Host, sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is unbound while its worker is being killed, which holds the interfaces until it ends."""
    kill = host.spawner.kill
    await host.attach()
    sysfs.add_interface("1-2", 0, None)
    # it neither ends the session nor exits when its channel is closed
    host.spawner.answers.update({Command.DISCONNECT: "silence", Command.CLAIM: "silence"})
    killed: list[Child] = []
    monkeypatch.setattr(host.spawner, "kill", killed.append)
    detaching = asyncio.create_task(host.claimer.disconnect("1-2", "anna"))
    await until(lambda: killed)
    killed[0].channel.close()  # a process that is killed closes its descriptors one after the other
    releasing = asyncio.create_task(host.claimer.release_device("1-2", timeout=PATIENCE))
    await asyncio.sleep(0.1)
    assert not sysfs.probed
    kill(killed[0])
    await asyncio.gather(detaching, releasing)
    assert sysfs.probed == "1-2:1.0"


async def test_a_device_that_hangs_costs_one_worker(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel holds the lock, and no signal ends the worker: no second one is started."""
    for name in ("CLAIM_TIMEOUT", "KILL_TIMEOUT"):
        monkeypatch.setattr(claimer_module, name, 0.01)
    monkeypatch.setattr(host.claimer, "_stack", replace(LINUX, end_time=0.01))
    kill = host.spawner.kill
    host.spawner.answers[Command.CLAIM] = "silence"
    survivors: list[Child] = []
    monkeypatch.setattr(host.spawner, "kill", survivors.append)
    await host.claimer.restore_claimed_devices([record("1-2")])
    device = host.claimer.shared_devices["1-2"]
    await until(lambda: device.failure is not None and device.failure.error.code == "hangs")
    with pytest.raises(ClaimError, match="hangs in the kernel waiting for 1-2") as caught:
        await host.claimer.claim_device(record("1-2"))  # nor for another claim
    assert (caught.value.code, caught.value.advice) == ("hangs", "unplug the device")
    assert len(host.spawner.children) == 1
    kill(survivors[0])
    host.spawner.answers.clear()
    await host.claimer.claim_device(record("1-2"))
    assert len(host.spawner.children) == 2
    monkeypatch.undo()
    await host.release()


async def test_a_host_that_hangs_over_drivers_costs_one_thread(host: Host, sysfs: FakeSysfs) -> None:
    sysfs.add_interface("1-2", 0, None)
    probe = sysfs.hang_over_drivers()
    for _try in range(3):
        with pytest.raises(UsbipdError, match="1-2: this host still scans for drivers after") as caught:
            await host.claimer._reattacher.reattach("1-2", 0.01)
        assert caught.value.code == "hangs"
    assert len(calls()) == 1
    again = asyncio.create_task(host.claimer._reattacher.reattach("1-2", PATIENCE))
    await asyncio.sleep(0)
    answers = os.open(probe, os.O_RDWR)
    await again
    await until(lambda: not calls())
    # the one that hung, and one for changes since
    assert os.read(answers, 100) == b"1-2:1.0" * 2
    os.close(answers)


async def test_a_first_try_waits_once_for_a_host_that_hangs_over_drivers(
    host: Host, sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(claimer_module, "DRIVERS_TIME", 0.01)
    sysfs.add_interface("1-2", 0, None)
    probe = sysfs.hang_over_drivers()
    host.spawner.answers[Command.CLAIM] = ClaimError("1-2 is busy", code="LIBUSB_ERROR_BUSY")
    with pytest.raises(ClaimError):
        await host.claimer.claim_device(record("1-2"))
    answers = os.open(probe, os.O_RDWR)
    await until(lambda: not calls())
    os.close(answers)
    assert caplog.text.count("still scans for drivers") == 1


async def test_a_try_without_memory_for_counters_leaves_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(claimer_module, "counter_page", fail)
    with pytest.raises(ClaimError, match="no worker process could be started"):
        await host.claimer.claim_device(record("1-2"))
    assert not host.store.held


def calls() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "usbipd-call"]


async def test_a_scan_for_drivers_that_fails(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_self: SysfsOwnership, _busid: str) -> None:
        raise OSError("no such bus")

    monkeypatch.setattr(SysfsOwnership, "give_back", fail)
    with pytest.raises(UsbipdError, match="1-2: cannot scan for drivers: no such bus"):
        await host.claimer._reattacher.reattach("1-2", PATIENCE)
    gc.collect()
    assert "never retrieved" not in caplog.text


@pytest.mark.parametrize("what", ["detach", "restored", "device_gone"])
async def test_an_event_sent_twice_ends_the_worker(host: Host, what: str) -> None:
    """So the work that a worker can cause is bounded by our requests; one that sends more is replaced."""
    await host.attach()
    worker = host.spawner.last
    if what == "restored":
        worker.detach()
    getattr(worker, what)()
    getattr(worker, what)()
    await host.until_replaced()
    assert not worker.channel.is_open
    await host.release()


async def test_a_restored_event_without_a_client_before_it(host: Host) -> None:
    await host.claimer.claim_device(record("1-2"))
    host.spawner.last.restored()
    await host.until_replaced()
    await host.release()


async def test_the_store_lists_exactly_the_devices_without_drivers(host: Host) -> None:
    host.spawner.answers[Command.CLAIM] = ClaimError("it is in use", code="LIBUSB_ERROR_BUSY")
    with pytest.raises(ClaimError):
        await host.claimer.claim_device(record("1-2"))
    assert not host.store.held
    host.spawner.answers.clear()
    await host.claimer.claim_device(record("1-2"))
    assert list(host.store.held) == ["1-2"]
    await host.release()
    assert not host.store.held
