"""Claims on macOS, where devices are captured and reappear with another address."""

import asyncio
import threading
from dataclasses import replace

import pytest

from tests.unit.extension.fakes import (
    PATIENCE,
    FakeChild,
    FakeSpawner,
    FakeSysfs,
    other_device,
    record,
    run,
    until,
)
from tests.unit.extension.managed_host import Host as LinuxHost
from usbipd.errors import ClaimError, UsbipdError
from usbipd.extension import driver_reattach
from usbipd.extension.device import ClaimState
from usbipd.extension.store import StoredClaim
from usbipd.extension.usb_stack import LINUX, MACOS
from usbipd.ipc.children import USELESS_WHEN_CONFINED, ClaimParameters
from usbipd.ipc.control_messages import DeviceState
from usbipd.ipc.conversation import Request
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command
from usbipd.usb.ownership import Holder

BUSY = ClaimError("1-2: a program has it", code="LIBUSB_ERROR_BUSY")
KEYBOARD = Holder("driver", "AppleUserUSBHostHIDDevice", None, 0)


class Mac(LinuxHost):
    """A Mac with two devices, 1-2 and 1-3, and their IORegistry.

    A worker that claims a device captures it; its drivers are reattached when it is enumerated again, by the
    worker that releases it or by `give_back`, which does not touch a device in use.
    """

    def __init__(self, spawner: FakeSpawner, sysfs: FakeSysfs) -> None:
        self.stack = replace(MACOS, gone_time=0.01)
        self.ownership = self
        self.holders = {"1-2": [KEYBOARD], "1-3": [KEYBOARD]}
        self.enumerated: list[str] = []
        self.error: Exception | None = None
        super().__init__(spawner, sysfs)

    def holders_of(self, busid: str) -> list[Holder]:
        return self.holders.get(busid, [])

    def drivers_of(self, busid: str) -> list[str]:
        return [each.name for each in self.holders_of(busid)]

    def in_use(self, busid: str) -> list[str]:
        return []

    def unmount(self, busid: str) -> None:
        raise AssertionError("nothing is mounted")

    def give_back(self, busid: str) -> None:
        if self.error is not None:
            raise self.error
        if self.holders_of(busid):
            return
        self.enumerated.append(busid)
        self.enumerate(busid)

    def enumerate(self, busid: str) -> None:
        """The device disappears and reappears."""
        self.holders[busid] = [KEYBOARD]
        before = self.source.records[busid]
        self.source.records[busid] = replace(before, devnum=before.devnum + 20)

    def capture(self, busid: str) -> None:
        """A worker has captured it."""
        self.holders[busid] = []


@pytest.fixture
def mac(spawner: FakeSpawner, sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> Mac:
    mac = Mac(spawner, sysfs)
    answer = FakeChild._answer

    async def capture_and_release(child: FakeChild, request: Request) -> Message:
        result = await answer(child, request)
        if child.busid in mac.source.records and request.command is Command.CLAIM:
            mac.capture(child.busid)
        if child.busid in mac.source.records and request.command is Command.RELEASE:
            mac.enumerate(child.busid)
        return result

    monkeypatch.setattr(FakeChild, "_answer", capture_and_release)
    return mac


def departing(mac: Mac) -> bool:
    """Whether a worker is given time to notice that its device was unplugged."""
    tasks = [device.departing for device in mac.manager.shared_devices.values()]
    return any(task is not None and not task.done() for task in tasks)


async def settle(mac: Mac) -> None:
    """Wait until changes are handled and workers have had time to notice."""
    mac.manager.devices_changed()
    await until(lambda: not mac.manager._changed.is_set() and not departing(mac))


async def test_a_worker_keeps_a_device_that_was_reset(mac: Mac, spawner: FakeSpawner) -> None:
    """A reset enumerates it again: the worker keeps it, the address changes."""
    await mac.manager.start()
    await mac.bind("1-2")
    worker = spawner.last
    mac.plug(replace(record("1-2"), devnum=99))
    await settle(mac)
    assert worker.channel.is_open
    assert mac.manager.shared_devices["1-2"].state is ClaimState.READY
    await mac.manager.stop()
    assert worker.commands == [Command.CLAIM, Command.RELEASE]


async def test_a_device_that_disappears_during_a_reset(mac: Mac, spawner: FakeSpawner) -> None:
    mac.stack = replace(MACOS, gone_time=0.2)
    await mac.new_manager().start()
    await mac.bind("1-2")
    del mac.source.records["1-2"]
    mac.manager.devices_changed()
    await until(lambda: departing(mac))
    mac.plug(replace(record("1-2"), devnum=99))
    await settle(mac)
    assert spawner.last.channel.is_open
    assert mac.recorded_events("1-2") == ["claimed"]
    await mac.manager.stop()


@pytest.mark.parametrize("replaced", [True, False], ids=["another device", "no device"])
async def test_a_worker_that_does_not_notice(mac: Mac, spawner: FakeSpawner, replaced: bool) -> None:
    await mac.manager.start()
    await mac.bind("1-2")
    if replaced:
        mac.plug(other_device(record("1-2")))
    else:
        del mac.source.records["1-2"]
        mac.manager.devices_changed()
    await until(lambda: "1-2" not in mac.manager.shared_devices)
    assert not spawner.last.channel.is_open
    await mac.manager.stop()


async def test_a_replugged_device_is_retried_at_once(mac: Mac, spawner: FakeSpawner) -> None:
    await mac.manager.start()
    await mac.bind("1-2")
    device = mac.manager.shared_devices["1-2"]
    spawner.answers[Command.CLAIM] = BUSY
    spawner.last.die()
    await until(lambda: device.failure is not None and device.failure.error.code == BUSY.code)
    device.recheck.clear()
    mac.source.records["1-2"] = replace(record("1-2"), devnum=99)
    mac.manager._claimer.compare(list(mac.source.records.values()))
    assert device.recheck.is_set()
    await mac.manager.stop()


async def test_a_release_enumerates_once(mac: Mac) -> None:
    """The worker does it."""
    await mac.manager.start()
    await mac.bind("1-2")
    assert mac.drivers_of("1-2") == []
    await mac.unbind("1-2")
    assert (mac.enumerated, mac.drivers_of("1-2")) == ([], [KEYBOARD.name])
    assert not mac.store.held
    await mac.manager.stop()


@pytest.mark.parametrize("answer", ["silence", UsbipdError("stuck", code="release-failed")], ids=str)
async def test_a_device_that_its_worker_does_not_release(
    mac: Mac, spawner: FakeSpawner, answer: UsbipdError | str
) -> None:
    mac.stack = replace(mac.stack, release_time=0.01)
    await mac.new_manager().start()
    await mac.bind("1-2")
    spawner.answers[Command.RELEASE] = answer
    await mac.unbind("1-2")
    assert (mac.enumerated, mac.drivers_of("1-2")) == (["1-2"], [KEYBOARD.name])
    assert not mac.store.held
    spawner.answers.clear()
    await mac.manager.stop()


async def test_a_worker_that_was_killed_is_replaced_as_it_is(mac: Mac, spawner: FakeSpawner) -> None:
    await mac.manager.start()
    await mac.bind("1-2")
    spawner.last.die()
    await until(lambda: len(spawner.children) == 3 and mac.manager.shared_devices["1-2"].claimed is not None)
    await mac.unbind("1-2")
    assert mac.enumerated == [], "the next worker has released it"
    await mac.manager.stop()


async def test_workers_that_crash_while_claiming_do_not_enumerate_endlessly(
    mac: Mac, spawner: FakeSpawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = FakeChild._answer

    async def crash(child: FakeChild, request: Request) -> Message:
        if request.command is Command.CLAIM and child.busid == "1-2":
            child.die()
            await asyncio.Event().wait()
        return await answer(child, request)

    await mac.manager.start()
    await mac.bind("1-2")
    monkeypatch.setattr(FakeChild, "_answer", crash)
    spawner.last.die()
    await until(lambda: len(spawner.children) >= 6)
    assert mac.enumerated == []
    await mac.unbind("1-2")
    assert (mac.enumerated, mac.drivers_of("1-2")) == (["1-2"], [KEYBOARD.name])
    await mac.manager.stop()


async def test_a_first_worker_that_crashes(
    mac: Mac, spawner: FakeSpawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other worker will claim the device."""

    async def crash(child: FakeChild, _request: Request) -> Message:
        mac.capture("1-2")
        child.die()
        await asyncio.Event().wait()
        raise AssertionError

    await mac.manager.start()
    monkeypatch.setattr(FakeChild, "_answer", crash)
    with pytest.raises(ClaimError, match="the worker ended with signal SIGKILL"):
        await mac.bind("1-2")
    assert (mac.enumerated, mac.drivers_of("1-2")) == (["1-2"], [KEYBOARD.name])
    assert not mac.store.held
    await mac.manager.stop()


def a_worker_of_no_use(mac: Mac, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next worker captures its device, cannot use it once confined, and releases it."""
    answer = FakeChild._answer

    async def refuse(child: FakeChild, request: Request) -> Message:
        monkeypatch.setattr(FakeChild, "_answer", answer)
        child.asked.append(request)
        del mac.source.records["1-2"]
        raise UsbipdError("interface 0 cannot be claimed", code=USELESS_WHEN_CONFINED)

    monkeypatch.setattr(FakeChild, "_answer", refuse)


async def test_a_second_try_waits_for_the_device(
    mac: Mac, spawner: FakeSpawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker with less confinement claims it at its new address."""
    mac.stack = replace(MACOS, gone_time=PATIENCE)
    await mac.new_manager().start()
    a_worker_of_no_use(mac, monkeypatch)
    binding = asyncio.create_task(mac.bind("1-2"))
    await until(lambda: "1-2" not in mac.source.records)
    lists = mac.source.lists
    await until(lambda: mac.source.lists > lists)
    mac.source.records["1-2"] = replace(record("1-2"), devnum=99, registry_id=2)
    await binding
    asked = [child.parameters(Command.CLAIM) for child in spawner.children if child.busid == "1-2"]
    assert [each.devnum for each in asked if isinstance(each, ClaimParameters)] == [12, 99]
    await mac.manager.stop()


async def test_a_second_try_times_out(
    mac: Mac, spawner: FakeSpawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    await mac.manager.start()
    a_worker_of_no_use(mac, monkeypatch)
    with pytest.raises(ClaimError, match=r"1-2 was released and did not reappear within 0\.01 s"):
        await mac.bind("1-2")
    assert [child.busid for child in spawner.children].count("1-2") == 1
    assert "1-2" not in mac.manager.shared_devices
    assert not mac.store.held
    await mac.manager.stop()


async def test_a_claim_that_is_refused_leaves_the_device_alone(mac: Mac, spawner: FakeSpawner) -> None:
    """Another program holds it: enumerating it would interrupt that program."""
    await mac.manager.start()
    mac.holders["1-2"] = []
    spawner.answers[Command.CLAIM] = BUSY
    with pytest.raises(ClaimError):
        await mac.bind("1-2")
    assert mac.enumerated == []
    await mac.manager.stop()


async def test_an_orphan_that_cannot_be_claimed_again_is_released_once(
    mac: Mac, spawner: FakeSpawner
) -> None:
    await mac.manager.start()
    await mac.bind("1-2")
    spawner.answers[Command.CLAIM] = BUSY
    spawner.last.die()
    await until(lambda: len(spawner.children) >= 6)
    assert mac.enumerated == ["1-2"]
    await mac.manager.stop()


def held(*busids: str) -> dict[str, StoredClaim]:
    return {busid: StoredClaim(busid, 0x1234, 0x5678, 1.0) for busid in busids}


async def test_devices_of_a_killed_daemon_are_released_at_the_start(
    mac: Mac, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Concurrently; devices with drivers or another holder are left alone, bound ones are claimed."""
    give_back, both = mac.give_back, threading.Barrier(2, timeout=PATIENCE)

    def wait_for_both(busid: str) -> None:
        both.wait()
        give_back(busid)

    await mac.bind("1-3")
    await mac.manager.stop()
    for busid in ("1-4", "1-5", "1-6"):
        mac.source.records[busid] = record(busid)
    mac.holders |= {"1-2": [], "1-3": [], "1-4": [], "1-5": [KEYBOARD]}
    mac.holders["1-6"] = [Holder("program", "virtual machine", 1, None)]
    mac.store.held = held("1-2", "1-3", "1-4", "1-5", "1-6")
    monkeypatch.setattr(mac, "give_back", wait_for_both)
    await mac.new_manager().start()
    assert sorted(mac.enumerated) == ["1-2", "1-4"]
    assert set(mac.store.held) == {"1-3"}
    await mac.until_state("1-3", DeviceState.SHARED)
    await mac.manager.stop()


def test_a_device_that_cannot_be_released_stays_recorded(mac: Mac, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this daemon and the next one."""

    async def test() -> None:
        mac.holders["1-2"] = []
        mac.store.held = held("1-2")
        mac.error = UsbipdError("1-2 cannot be enumerated again: not permitted", code="iokit")
        await mac.manager.start()
        assert set(mac.store.held) == {"1-2"}
        assert await mac.manager.orphans() == ["1-2"]
        await mac.manager.stop()
        mac.error = None
        await mac.new_manager().start()
        assert mac.enumerated == ["1-2"]
        assert not mac.store.held
        assert await mac.manager.orphans() == []
        await mac.manager.stop()

    monkeypatch.setattr(driver_reattach, "DRIVERS_TIME", 1.0)
    run(test())


async def test_the_daemon_stops_when_each_worker_has_released_its_device(
    mac: Mac, spawner: FakeSpawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All concurrently, and each for longer than on Linux."""
    answer, released = FakeChild._answer, asyncio.Event()

    async def take_long(child: FakeChild, request: Request) -> Message:
        if request.command is Command.RELEASE:
            child.asked.append(request)
            await released.wait()
        return await answer(child, request)

    await mac.manager.start()
    await mac.bind("1-2")
    await mac.bind("1-3")
    monkeypatch.setattr(FakeChild, "_answer", take_long)
    stopping = asyncio.create_task(mac.manager.stop())
    await until(lambda: all(Command.RELEASE in worker.commands for worker in spawner.children))
    await asyncio.wait({stopping}, timeout=1.2 * LINUX.stop_time)
    assert not any(worker.killed for worker in spawner.children)
    released.set()
    await stopping
    assert not any(worker.killed for worker in spawner.children)
    assert mac.enumerated == []


async def test_an_ioregistry_that_hangs_does_not_block_shutdown(
    mac: Mac, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, hang = threading.Event(), threading.Event()

    def in_use(_busid: str) -> list[str]:
        asked.set()
        hang.wait(PATIENCE)
        hang.set()
        return []

    await mac.manager.start()
    monkeypatch.setattr(mac, "in_use", in_use)
    binding = asyncio.create_task(mac.bind("1-2"))
    await until(asked.is_set)
    binding.cancel()
    await asyncio.wait({binding})
    await mac.manager.stop()
    assert not hang.is_set()
    hang.set()
