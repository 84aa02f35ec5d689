"""Bindings: what is shared, as people ask for it and see it."""

import asyncio

import pytest

from tests.unit.extension.fakes import FakeSource, FakeSpawner, FakeSysfs, record, run, until
from usbipd.errors import ClaimError, UsbipdError
from usbipd.extension.manager import SystemExtensionManager
from usbipd.ipc.messages import Command, DeviceState
from usbipd.usb.discovery import DeviceRecord
from usbipd.usb.ownership import Ownership

BUSY = ClaimError("1-2: somebody has it", code="LIBUSB_ERROR_BUSY")


@pytest.fixture
def manager(spawner: FakeSpawner, sysfs: FakeSysfs) -> SystemExtensionManager:
    """Of a host with devices 1-2 and 1-3, held by drivers, and a simulated one."""
    sysfs.add_interface("1-2", 0, "usb-storage")
    sysfs.add_interface("1-3", 0, "usbhid")
    sysfs.add_interface("1-3", 1, "usbhid")
    sysfs.add_interface("1-3", 2, "snd-usb-audio")
    return SystemExtensionManager(
        [FakeSource(record("240-1", simulated=True)), FakeSource(record("1-2"), record("1-3"))],
        spawner,
        Ownership(sysfs.root, sysfs.mount_table),
        run_as=None,
        transfer_budget=1 << 20,
        log_level="info",
    )


async def states(manager: SystemExtensionManager) -> dict[str, DeviceState]:
    return {device.busid: device.state for device in await manager.list_devices()}


def test_simulated_devices_are_shared_from_the_start_and_no_other(manager: SystemExtensionManager) -> None:
    async def test() -> None:
        await manager.start()
        assert await states(manager) == {
            "240-1": DeviceState.SHARED,
            "1-2": DeviceState.NOT_SHARED,
            "1-3": DeviceState.NOT_SHARED,
        }
        await manager.stop()

    run(test())


def test_bind_and_unbind(manager: SystemExtensionManager, spawner: FakeSpawner) -> None:
    async def test() -> None:
        report = await manager.bind("1-2")
        assert (report.state, report.claim_method, report.worker_pid) == (DeviceState.SHARED, "fake", 1000)
        assert report.claim_time is not None
        assert report.counters is not None
        assert [device.bus_id for device in manager.get_claimed_devices()] == ["1-2"]
        assert await manager.bind("1-2") == report, "binding twice is no error"
        assert await manager.unbind("1-2") == ["1-2"]
        assert (await states(manager))["1-2"] is DeviceState.NOT_SHARED
        assert not spawner.last.channel.is_open

    run(test())


def test_unbind_all(manager: SystemExtensionManager) -> None:
    async def test() -> None:
        await manager.start()
        await manager.bind("1-3")
        assert await manager.unbind(None) == ["1-3", "240-1"]
        assert set((await states(manager)).values()) == {DeviceState.NOT_SHARED}
        assert await manager.unbind(None) == []
        assert (await manager.bind("240-1")).state is DeviceState.SHARED, "a simulated device comes back too"
        await manager.stop()

    run(test())


def test_unbinding_what_is_not_shared(manager: SystemExtensionManager) -> None:
    async def test() -> None:
        with pytest.raises(UsbipdError, match="1-2 is not shared"):
            await manager.unbind("1-2")

    run(test())


def test_binding_what_is_not_there(manager: SystemExtensionManager) -> None:
    async def test() -> None:
        with pytest.raises(UsbipdError, match="there is no device '7-7'"):
            await manager.bind("7-7")

    run(test())


def test_a_bind_that_fails_binds_nothing(manager: SystemExtensionManager, spawner: FakeSpawner) -> None:
    async def test() -> None:
        spawner.answers[Command.CLAIM] = BUSY
        with pytest.raises(ClaimError, match="somebody has it"):
            await manager.bind("1-2")
        assert (await states(manager))["1-2"] is DeviceState.NOT_SHARED
        with pytest.raises(UsbipdError, match="not shared"):
            await manager.unbind("1-2")

    run(test())


def test_a_device_that_fails_later_is_shown_as_failed(
    manager: SystemExtensionManager, spawner: FakeSpawner
) -> None:
    async def test() -> None:
        await manager.bind("1-2")
        spawner.answers[Command.CLAIM] = BUSY
        spawner.last.die()
        await until(lambda: manager.claims["1-2"].error)
        report = next(device for device in await manager.list_devices() if device.busid == "1-2")
        assert (report.state, report.error) == (DeviceState.FAILED, "1-2: somebody has it")
        assert report.worker_pid is None
        assert await manager.unbind("1-2") == ["1-2"]

    run(test())


def test_drivers_are_named_but_not_our_own(manager: SystemExtensionManager, sysfs: FakeSysfs) -> None:
    async def test() -> None:
        drivers = {device.busid: device.drivers for device in await manager.list_devices()}
        assert drivers == {"240-1": [], "1-2": ["usb-storage"], "1-3": ["usbhid", "snd-usb-audio"]}
        await manager.bind("1-2")
        interface = sysfs.root / "bus/usb/devices/1-2:1.0"
        (interface / "driver").unlink()
        (interface / "driver").symlink_to(sysfs.root / "bus/usb/drivers/usbfs")
        drivers = {device.busid: device.drivers for device in await manager.list_devices()}
        assert drivers["1-2"] == []
        await manager.stop()
        drivers = {device.busid: device.drivers for device in await manager.list_devices()}
        assert drivers["1-2"] == ["usbfs"], "another program's"

    run(test())


def test_nothing_is_claimed_once_the_daemon_ends(
    manager: SystemExtensionManager, spawner: FakeSpawner
) -> None:
    async def test() -> None:
        await manager.start()
        await manager.stop()
        assert not manager.claims
        with pytest.raises(UsbipdError, match="ending"):
            await manager.bind("1-2")
        assert all(not child.channel.is_open for child in spawner.children)

    run(test())


def test_a_bind_under_way_is_ended_with_the_daemon(
    manager: SystemExtensionManager, spawner: FakeSpawner
) -> None:
    async def test() -> None:
        spawner.answers[Command.CLAIM] = "silence"
        binding = asyncio.create_task(manager.bind("1-2"))
        await until(lambda: spawner.children and spawner.last.asked)
        await manager.stop()
        with pytest.raises(ClaimError, match="released"):
            await binding
        assert spawner.last.killed

    run(test())


def test_the_end_waits_for_an_unbind_under_way(manager: SystemExtensionManager, spawner: FakeSpawner) -> None:
    async def test() -> None:
        await manager.bind("1-2")
        spawner.lingering = True
        unbind = asyncio.create_task(manager.unbind("1-2"))
        await until(lambda: Command.RELEASE in spawner.last.commands)
        stop = asyncio.create_task(manager.stop())
        done, _pending = await asyncio.wait({stop}, timeout=0.05)
        assert not done
        spawner.last.die()
        await stop
        assert await unbind == ["1-2"]

    run(test())


def test_a_bind_that_still_looks_for_its_device_at_the_end_claims_nothing(
    manager: SystemExtensionManager, spawner: FakeSpawner
) -> None:
    async def test() -> None:
        bind = asyncio.create_task(manager.bind("1-2"))
        await asyncio.sleep(0)  # it has the lock, and looks
        await manager.stop()
        with pytest.raises(UsbipdError, match="the daemon is ending"):
            await bind
        assert not spawner.children

    class SlowSource(FakeSource):
        async def list_devices(self) -> list[DeviceRecord]:
            for _turn in range(10):
                await asyncio.sleep(0)
            return await super().list_devices()

    manager._sources = [SlowSource(record("1-2"))]
    run(test())
