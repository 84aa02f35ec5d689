"""Devices are plugged in and unplugged: bound ones are claimed whenever they are present."""

import asyncio
import os
from dataclasses import replace

import pytest

from tests.unit.extension.fakes import (
    FakeChild,
    FakeSpawner,
    FakeSysfs,
    record,
    until,
)
from tests.unit.extension.managed_host import BUSY, THING, Host
from usbipd.errors import ClaimError, UsbipdError
from usbipd.extension import manager
from usbipd.extension.device import ClaimState
from usbipd.extension.store import StoredClaim
from usbipd.extension.usb_stack import LINUX
from usbipd.ipc.control_messages import (
    BindParameters,
    DeviceState,
    HardwareId,
    HistoryEvent,
)
from usbipd.ipc.conversation import Request
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command
from usbipd.usb.discovery import DeviceRecord


async def test_a_replugged_device_is_claimed_again(host: Host) -> None:
    await host.manager.start()
    await host.bind("1-2")
    for devnum in range(20, 25):
        host.unplug("1-2")
        await until(lambda: "1-2" not in host.manager.shared_devices)
        host.plug(replace(record("1-2"), devnum=devnum))
        await host.until_state("1-2", DeviceState.SHARED)
        assert host.manager.shared_devices["1-2"].record.devnum == devnum
    assert len(host.store.recorded(HistoryEvent.UNPLUGGED)) == 5
    assert len(host.store.recorded(HistoryEvent.CLAIMED)) == 1 + 1 + 5
    await host.manager.stop()


async def test_a_failed_listing_is_retried(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [UsbipdError("libusb cannot list devices", code="libusb")]
    list_devices = host.source.list_devices

    async def fail_once() -> list[DeviceRecord]:
        if failures:
            raise failures.pop()
        return await list_devices()

    await host.manager.start()
    await host.manager.bind(BindParameters(hardware=THING), "test")
    monkeypatch.setattr(manager, "LIST_RETRY", 0.0)
    monkeypatch.setattr(host.source, "list_devices", fail_once)
    host.plug(record("1-4"))
    await host.until_state("1-4", DeviceState.SHARED)
    assert not failures
    await host.manager.stop()


@pytest.mark.parametrize("devnum", [12, 99], ids=["reset", "replugged"])
async def test_the_history_has_the_end_of_a_claim_however_fast_the_device_is_replugged(
    host: Host, spawner: FakeSpawner, devnum: int
) -> None:
    await host.manager.start()
    await host.bind("1-2")
    for turn in range(1, 4):
        worker = spawner.last
        host.unplug("1-2")
        host.plug(replace(record("1-2"), devnum=devnum + turn))
        await until(lambda worker=worker: spawner.last is not worker)
        await host.until_state("1-2", DeviceState.SHARED)
        assert host.recorded_events("1-2") == ["claimed"] + ["unplugged", "claimed"] * turn
    await host.unbind("1-2")
    assert host.recorded_events("1-2")[-2:] == ["claimed", "released"]
    await host.manager.stop()


async def test_the_history_has_the_end_of_a_claim_if_its_worker_does_not_notice(
    host: Host, spawner: FakeSpawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.manager._claimer, "_stack", replace(LINUX, gone_time=0.001))
    await host.manager.start()
    await host.bind("1-2")
    worker = spawner.last
    host.plug(replace(record("1-2"), devnum=99))
    await until(lambda: spawner.last is not worker)
    await host.until_state("1-2", DeviceState.SHARED)
    assert host.recorded_events("1-2") == ["claimed", "unplugged", "claimed"]
    await host.manager.stop()
    assert host.recorded_events("1-2") == ["claimed", "unplugged", "claimed", "released"]


async def hold_and_lose(host: Host, spawner: FakeSpawner) -> None:
    """1-2 is held until its worker dies, and cannot be claimed again."""
    await host.manager.start()
    await host.bind("1-2")
    spawner.answers[Command.CLAIM] = ClaimError("another program holds it", code="LIBUSB_ERROR_BUSY")
    spawner.last.die()
    await until(lambda: host.manager.shared_devices["1-2"].state is ClaimState.FAILED)


async def test_the_history_of_a_device_that_fails_and_is_unplugged(host: Host, spawner: FakeSpawner) -> None:
    await hold_and_lose(host, spawner)
    host.unplug("1-2")
    await until(lambda: "1-2" not in host.manager.shared_devices)
    assert host.recorded_events("1-2") == ["claimed", "failed", "failed", "unplugged"]
    await host.manager.stop()


async def test_the_history_omits_the_release_of_a_device_that_was_not_held(
    host: Host, spawner: FakeSpawner
) -> None:
    await hold_and_lose(host, spawner)
    await host.unbind("1-2")
    assert host.recorded_events("1-2") == ["claimed", "failed", "failed"]
    await host.manager.stop()


async def test_a_device_shown_as_shared_can_be_attached(host: Host, spawner: FakeSpawner) -> None:
    """Not while a worker claims the device, the first one or a later one."""

    def silence_the_next(child: FakeChild) -> None:
        spawner.answers[Command.CLAIM] = "silence"
        child.killed = True  # this one exits as usual

    await host.manager.start()
    await host.bind("1-2")
    before = spawner.last
    silence_the_next(before)
    host.unplug("1-2")
    host.plug(replace(record("1-2"), devnum=99))
    await until(lambda: spawner.last is not before and spawner.last.asked)
    device = await host.device("1-2")
    assert (device.state, device.claim_method, device.error) == (DeviceState.NOT_SHARED, None, None)
    first = spawner.last
    del spawner.answers[Command.CLAIM]
    first.die()
    await host.until_state("1-2", DeviceState.SHARED)
    assert (await host.device("1-2")).claim_method is not None

    held = spawner.last
    silence_the_next(held)
    held.die()
    await until(lambda: spawner.last is not held and spawner.last.asked)
    device = await host.device("1-2")
    assert (device.state, device.claim_method) == (DeviceState.FAILED, None)
    assert device.error is not None
    assert device.error.startswith("the worker ended with ")
    assert device.next_try is not None
    del spawner.answers[Command.CLAIM]
    spawner.last.die()
    await host.until_state("1-2", DeviceState.SHARED)
    assert (await host.device("1-2")).error is None
    await host.manager.stop()


async def test_a_bootloader_is_shared_if_it_is_bound(host: Host) -> None:
    bootloader = replace(record("1-2"), product_id=0xB007, devnum=33)
    await host.manager.start()
    await host.bind("1-2")
    hardware = HardwareId(vendor_id=0x1234, product_id=0xB007)
    await host.manager.bind(BindParameters(hardware=hardware), "test")
    for device in (bootloader, replace(record("1-2"), devnum=34)):
        host.unplug("1-2")
        host.plug(device)
        await until(
            lambda device=device: (
                "1-2" in host.manager.shared_devices
                and host.manager.shared_devices["1-2"].record.product_id == device.product_id
                and host.manager.shared_devices["1-2"].claimed is not None
            )
        )
    await host.manager.stop()


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_worker_that_does_not_notice_that_its_device_is_gone(
    host: Host, spawner: FakeSpawner, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    monkeypatch.setattr(host.manager._claimer, "_stack", replace(LINUX, gone_time=0.001, end_time=0.01))
    await host.manager.start()
    await host.bind("1-2")
    if hangs:  # nor does it notice that its channel is closed
        spawner.answers[Command.CLAIM] = "silence"
    del host.source.records["1-2"]
    host.manager.devices_changed()
    await until(lambda: "1-2" not in host.manager.shared_devices)
    assert not spawner.last.channel.is_open
    assert spawner.last.killed == hangs
    await host.manager.stop()


async def test_a_device_that_cannot_be_claimed_at_the_start_affects_no_other(
    host: Host, spawner: FakeSpawner
) -> None:
    await host.bind("1-2")
    await host.bind("1-3")
    await host.manager.stop()
    disk = host.sysfs.root / "devices/1-2/1-2:1.0/host0/block"
    host.sysfs.add_block_device(disk, "sda", "8:0")
    host.sysfs.mount("8:0", "/media/stick", "/dev/sda")
    await host.new_manager().start()
    failed = await host.device("1-2")
    assert failed.state is DeviceState.FAILED
    assert "/media/stick" in str(failed.error)
    assert (await host.states())["1-3"] is DeviceState.SHARED
    assert len(host.store.recorded(HistoryEvent.FAILED)) == 1
    await host.manager.stop()


async def test_a_kernel_that_hangs_over_drivers_blocks_neither_start_nor_shutdown(
    host: Host, sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(manager, "DRIVERS_TIME", 0.01)
    probe = sysfs.hang_over_drivers()
    sysfs.add_interface("1-4", 0, None)
    host.source.records["1-4"] = record("1-4")
    host.store.held = {"1-4": StoredClaim("1-4", 0x1234, 0x5678, 1.0)}
    await host.manager.start()
    await host.manager.stop()
    assert "1-4: this host still scans for drivers after" in caplog.text
    with probe.open() as answered:
        assert answered.read() == "1-4:1.0"


async def test_an_orphaned_device_is_released_when_the_system_lists_it(host: Host, sysfs: FakeSysfs) -> None:
    """At the start, the system does not list it."""
    sysfs.add_interface("1-4", 0, None)
    host.store.held = {busid: StoredClaim(busid, 0x1234, 0x5678, 1.0) for busid in ("1-4", "9-9")}
    host.source.problem = "no answer about 1-4"
    await host.manager.start()
    assert set(host.store.held) == {"1-4", "9-9"}
    host.source.records["1-4"] = record("1-4")
    host.source.problem = None
    host.manager.devices_changed()
    await until(lambda: not host.store.held)
    assert sysfs.probed == "1-4:1.0"
    await host.manager.stop()


async def test_an_orphaned_device_that_is_bound_before_it_is_listed_is_kept(
    host: Host, sysfs: FakeSysfs
) -> None:
    sysfs.add_interface("1-4", 0, None)
    host.store.held = {"1-4": StoredClaim("1-4", 0x1234, 0x5678, 1.0)}
    host.source.problem = "no answer about 1-4"
    await host.manager.start()
    host.source.records["1-4"] = record("1-4")
    host.source.problem = None
    await host.bind("1-4")
    host.manager.devices_changed()
    await until(lambda: not host.manager._orphaned)
    assert set(host.store.held) == {"1-4"}
    assert sysfs.probed == ""
    await host.manager.stop()


async def test_an_orphaned_device_that_is_bound_during_its_release_is_recorded(
    host: Host, sysfs: FakeSysfs
) -> None:
    """If this extension is killed, the next one must know of the new claim."""
    sysfs.add_interface("1-4", 0, None)
    host.store.held = {"1-4": StoredClaim("1-4", 0x1234, 0x5678, 1.0)}
    host.source.problem = "no answer about 1-4"
    await host.manager.start()
    probe = sysfs.hang_over_drivers()
    host.source.records["1-4"] = record("1-4")
    host.source.problem = None
    host.manager.devices_changed()
    await until(lambda: not host.manager._orphaned)
    binding = asyncio.create_task(host.bind("1-4"))
    await asyncio.wait({binding}, timeout=0.2)
    answers = os.open(probe, os.O_RDWR)
    await binding
    host.manager.devices_changed()
    await until(lambda: not host.manager._changed.is_set())  # the change has been handled
    assert set(host.store.held) == {"1-4"}
    await host.manager.stop()
    os.close(answers)


async def test_an_orphaned_device_is_released_at_the_start(host: Host, sysfs: FakeSysfs) -> None:
    """All processes were killed at the same time, between claim and bind."""
    sysfs.add_interface("1-4", 0, None)
    host.source.records["1-4"] = record("1-4")
    host.store.held = {busid: StoredClaim(busid, 0x1234, 0x5678, 1.0) for busid in ("1-4", "9-9")}
    await host.manager.start()
    assert sysfs.probed == "1-4:1.0"
    assert not host.store.held
    await host.manager.stop()


@pytest.mark.parametrize("refused", [False, True])
async def test_a_device_unplugged_as_soon_as_it_is_claimed(
    host: Host, spawner: FakeSpawner, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    """DEVICE_GONE directly follows the answer.  `refused`: an earlier claim had failed."""
    answer = FakeChild._answer

    async def answer_and_go(child: FakeChild, request: Request) -> Message:
        if request.command is Command.CLAIM and child.busid == "1-2":
            asyncio.get_running_loop().call_soon(child.device_gone)
            if refused and [each.busid for each in spawner.children].count("1-2") == 1:
                child.device_gone()
                raise BUSY
        return await answer(child, request)

    monkeypatch.setattr(FakeChild, "_answer", answer_and_go)
    await host.manager.start()
    await host.manager._claimer.restore_claimed_devices([record("1-2")])
    device = host.manager.shared_devices["1-2"]
    await until(lambda: device.is_gone and device.worker is not None)
    assert device.worker is not None
    assert device.worker.channel.is_open, "this is no violation"
    host.unplug("1-2")
    await until(lambda: "1-2" not in host.manager.shared_devices)
    await host.manager.stop()
    assert host.recorded_events("1-2") == [*(["failed"] if refused else []), "claimed", "unplugged"]


async def test_a_device_unplugged_while_its_claim_fails(
    host: Host, spawner: FakeSpawner, caplog: pytest.LogCaptureFixture
) -> None:
    """This is not an error of the daemon."""
    await host.manager.start()
    spawner.answers[Command.CLAIM] = "silence"
    await host.manager._claimer.restore_claimed_devices([record("1-2")])
    await until(lambda: spawner.children and spawner.last.busid == "1-2" and spawner.last.asked)
    host.unplug("1-2")
    await until(lambda: "1-2" not in host.manager.shared_devices)
    await host.manager.stop()
    assert host.recorded_events("1-2") == ["failed", "unplugged"]
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_device_unplugged_while_it_is_being_claimed(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker reports a claim of a device that has been unplugged."""
    monkeypatch.setattr(host.manager._claimer, "_stack", replace(LINUX, gone_time=0.001))
    await host.bind("1-2")
    await host.manager.stop()
    await host.new_manager().start()
    host.unplug("1-2")
    await until(lambda: "1-2" not in host.manager.shared_devices)
    host.plug(record("1-2"))
    await until(lambda: "1-2" in host.manager.shared_devices)
    host.unplug("1-2")  # before a worker could notice
    await until(lambda: "1-2" not in host.manager.shared_devices)
    await host.manager.stop()
