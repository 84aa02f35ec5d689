"""Devices come and go: what is bound is claimed whenever it is there."""

from dataclasses import replace

import pytest

from tests.unit.extension.fakes import (
    FakeSpawner,
    FakeSysfs,
    record,
    run,
    until,
)
from tests.unit.extension.managed_host import Host
from usbipd.extension.store import StoredClaim
from usbipd.ipc.messages import Command
from usbipd.ipc.reports import (
    BindParameters,
    DeviceState,
    HardwareId,
    HistoryEvent,
)


def test_plugging_in_again_brings_the_claim_back(host: Host) -> None:
    async def test() -> None:
        await host.manager.start()
        await host.bind("1-2")
        for devnum in range(20, 25):
            host.unplug("1-2")
            await until(lambda: "1-2" not in host.manager.claims)
            host.plug(replace(record("1-2"), devnum=devnum))
            await host.until_state("1-2", DeviceState.SHARED)
            assert host.manager.claims["1-2"].record.devnum == devnum
        assert len(host.store.happened(HistoryEvent.UNPLUGGED)) == 5
        assert len(host.store.happened(HistoryEvent.CLAIMED)) == 1 + 1 + 5
        await host.manager.stop()

    run(test())


def test_a_bootloader_is_shared_if_it_is_bound(host: Host) -> None:
    async def test() -> None:
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
                    "1-2" in host.manager.claims
                    and host.manager.claims["1-2"].record.product_id == device.product_id
                    and host.manager.claims["1-2"].device is not None
                )
            )
        await host.manager.stop()

    run(test())


@pytest.mark.parametrize("hangs", [False, True])
def test_a_worker_that_does_not_notice_that_its_device_is_gone(
    host: Host, spawner: FakeSpawner, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    monkeypatch.setattr("usbipd.extension.claimer.PARTING_TIME", 0.001)
    monkeypatch.setattr("usbipd.extension.claimer.END_TIMEOUT", 0.01)

    async def test() -> None:
        await host.manager.start()
        await host.bind("1-2")
        if hangs:  # it does not notice either that its channel is closed
            spawner.answers[Command.CLAIM] = "silence"
        del host.source.records["1-2"]
        host.manager.devices_changed()
        await until(lambda: "1-2" not in host.manager.claims)
        assert not spawner.last.channel.is_open
        assert spawner.last.killed == hangs
        await host.manager.stop()

    run(test())


def test_what_cannot_be_claimed_at_the_start_has_failed_and_disturbs_nobody(
    host: Host, spawner: FakeSpawner
) -> None:
    async def test() -> None:
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
        assert len(host.store.happened(HistoryEvent.FAILED)) == 1
        await host.manager.stop()

    run(test())


def test_what_nobody_gave_back_goes_back_at_the_start(host: Host, sysfs: FakeSysfs) -> None:
    """All processes were killed at one moment, between claim and bind."""

    async def test() -> None:
        sysfs.add_interface("1-4", 0, None)
        host.source.records["1-4"] = record("1-4")
        host.store.held = {busid: StoredClaim(busid, 0x1234, 0x5678, 1.0) for busid in ("1-4", "9-9")}
        await host.manager.start()
        assert sysfs.probed == "1-4:1.0"
        assert not host.store.held
        await host.manager.stop()

    run(test())


def test_a_device_that_goes_while_it_is_being_claimed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker has it, as far as it knows; it is not there any more."""
    monkeypatch.setattr("usbipd.extension.claimer.PARTING_TIME", 0.001)

    async def test() -> None:
        await host.bind("1-2")
        await host.manager.stop()
        await host.new_manager().start()
        host.unplug("1-2")
        await until(lambda: "1-2" not in host.manager.claims)
        host.plug(record("1-2"))
        await until(lambda: "1-2" in host.manager.claims)
        host.unplug("1-2")  # before there is a worker that could hear of it
        await until(lambda: "1-2" not in host.manager.claims)
        await host.manager.stop()

    run(test())
