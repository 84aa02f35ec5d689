"""Claims: made, restored when their worker dies, released."""

import asyncio
import dataclasses
import gc
import mmap
import os
import struct

import pytest
from msgspec.structs import replace

from tests.unit.extension.fakes import (
    FakeSource,
    FakeSpawner,
    FakeStore,
    FakeSysfs,
    make_claimer,
    other_device,
    record,
    run,
    until,
)
from usbipd.counters import COUNTER_PAGE_SIZE
from usbipd.errors import ClaimError, UsbipdError
from usbipd.extension.device import ClaimState
from usbipd.extension.usb_stack import LINUX
from usbipd.ipc.children import ClaimParameters, ClaimResult, Confinement, DetachedParameters
from usbipd.ipc.control_messages import DeviceState, HistoryEvent
from usbipd.ipc.conversation import Event
from usbipd.ipc.messages import Command, EventName, Nothing
from usbipd.privileges import RunAs
from usbipd.protocol.constants import Speed
from usbipd.protocol.op import UsbDevice

REFUSED = ClaimError("1-2: another program holds it", code="LIBUSB_ERROR_BUSY", advice="close it")


class Host:
    """A claimer on a host with one device, 1-2."""

    def __init__(self, spawner: FakeSpawner, sysfs: FakeSysfs) -> None:
        self.source = FakeSource(record("1-2"))
        self.store = FakeStore()
        self.claimer = make_claimer(spawner, sysfs, self.source.find, self.store)

    def state(self) -> ClaimState:
        return self.claimer.shared_devices["1-2"].state

    async def release(self) -> None:
        await self.claimer.release_device("1-2", timeout=5)


@pytest.fixture
def host(spawner: FakeSpawner, sysfs: FakeSysfs) -> Host:
    return Host(spawner, sysfs)


@pytest.mark.rule("bug-identical-devices", "bug-devid-collision")
async def test_a_claim_and_its_end(host: Host, spawner: FakeSpawner) -> None:
    """The worker gets bus and device number: vendor and product do not distinguish two devices."""
    device = await host.claimer.claim_device(record("1-2"))
    assert (device.bus_id, device.vendor_id, device.product_id) == ("1-2", 0x1234, 0x5678)
    assert device.device_id == 1 << 16 | 12
    assert (device.product_string, device.claim_method) == ("Thing", "fake")
    asked = spawner.last.parameters(Command.CLAIM)
    assert isinstance(asked, ClaimParameters)
    assert (asked.busid, asked.busnum, asked.devnum) == ("1-2", 1, 12)
    assert asked.confinement == Confinement(run_as=RunAs(user="70000", uid=70000, gid=70000), root="/empty")
    assert asked.transfer_budget == 1 << 20
    assert host.claimer.is_device_claimed("1-2")
    assert host.state() is ClaimState.READY
    await host.release()
    assert spawner.last.commands == [Command.CLAIM, Command.RELEASE]
    assert not spawner.last.killed
    assert not host.claimer.is_device_claimed("1-2")
    assert not host.claimer.shared_devices


async def test_a_release_ends_with_the_worker(host: Host, spawner: FakeSpawner) -> None:
    await host.claimer.claim_device(record("1-2"))
    spawner.lingering = True
    release = asyncio.create_task(host.release())
    await until(lambda: Command.RELEASE in spawner.last.commands)
    done, _pending = await asyncio.wait({release}, timeout=0.05)
    assert not done
    spawner.last.die()
    await release
    assert not spawner.last.killed


async def test_an_internal_error_is_logged_and_not_mistaken_for_an_unplugged_device(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fault() -> tuple[mmap.mmap, int]:
        raise AttributeError("no such thing")

    monkeypatch.setattr("usbipd.extension.claimer.counter_page", fault)
    with pytest.raises(ClaimError, match="internal error: see the log"):
        await host.claimer.claim_device(record("1-2"))
    assert "claiming 1-2 failed" in caplog.text
    await host.release()


async def test_a_second_claim_has_no_effect(host: Host, spawner: FakeSpawner) -> None:
    first = await host.claimer.claim_device(record("1-2"))
    assert await host.claimer.claim_device(record("1-2")) == first
    assert len(spawner.children) == 1
    await host.release()


async def test_the_page_of_counters_is_shared_and_cannot_shrink(host: Host, spawner: FakeSpawner) -> None:
    await host.claimer.claim_device(record("1-2"))
    page = spawner.last.descriptor
    assert page is not None
    assert os.fstat(page).st_size == COUNTER_PAGE_SIZE
    os.pwrite(page, struct.pack("=Q", 77), 0)
    counters = host.claimer.shared_devices["1-2"].counters()
    assert counters is not None
    assert counters.urbs == 77
    if hasattr(os, "memfd_create"):
        with pytest.raises(PermissionError):
            os.ftruncate(page, 0)
    await host.release()


async def test_a_claim_that_fails_leaves_nothing(host: Host, spawner: FakeSpawner, sysfs: FakeSysfs) -> None:
    sysfs.add_interface("1-2", 0, None)
    spawner.answers[Command.CLAIM] = REFUSED
    with pytest.raises(ClaimError, match="another program holds it") as caught:
        await host.claimer.claim_device(record("1-2"))
    assert caught.value.code == "LIBUSB_ERROR_BUSY"
    assert "try again" in str(caught.value.advice)
    assert not host.claimer.shared_devices
    assert not spawner.last.channel.is_open
    assert sysfs.probed == "1-2:1.0", "the host scans for its driver"


async def test_no_worker_can_be_started(host: Host, spawner: FakeSpawner) -> None:
    spawner.error = OSError(11, "no more processes")
    with pytest.raises(ClaimError, match="no more processes"):
        await host.claimer.claim_device(record("1-2"))
    assert not host.claimer.shared_devices


async def test_a_worker_that_dies_is_replaced(host: Host, spawner: FakeSpawner) -> None:
    await host.claimer.claim_device(record("1-2"))
    device = host.claimer.shared_devices["1-2"]
    device.attached("192.0.2.1:5")
    spawner.last.die()
    await until(lambda: len(spawner.children) == 2 and host.state() is ClaimState.READY)
    assert device.client is None
    assert host.claimer.is_device_claimed("1-2")
    await host.release()


async def test_a_worker_that_breaks_the_rules_is_replaced(host: Host, spawner: FakeSpawner) -> None:
    await host.claimer.claim_device(record("1-2"))
    spawner.last.detach()  # no client is attached
    await until(lambda: len(spawner.children) == 2 and host.state() is ClaimState.READY)
    assert not spawner.children[0].channel.is_open
    await host.release()


async def test_a_device_that_cannot_be_claimed_again_is_failed_until_it_can(
    host: Host, spawner: FakeSpawner
) -> None:
    await host.claimer.claim_device(record("1-2"))
    spawner.answers[Command.CLAIM] = REFUSED
    spawner.last.die()
    await until(lambda: host.state() is ClaimState.FAILED)
    device = host.claimer.shared_devices["1-2"]
    assert device.shown is DeviceState.FAILED
    assert device.failure is not None
    assert "another program holds it" in device.failure.error.message
    assert not host.claimer.is_device_claimed("1-2")
    del spawner.answers[Command.CLAIM]
    await until(lambda: host.state() is ClaimState.READY)
    assert device.failure is None
    await host.release()


async def test_a_failed_claim_can_be_requested_again(host: Host, spawner: FakeSpawner) -> None:
    await host.claimer.claim_device(record("1-2"))
    spawner.answers[Command.CLAIM] = REFUSED
    spawner.last.die()
    await until(lambda: host.state() is ClaimState.FAILED)
    with pytest.raises(ClaimError, match="another program holds it"):
        await host.claimer.claim_device(record("1-2"))
    assert not host.claimer.shared_devices


async def test_the_history_records_the_end_of_a_worker(host: Host, spawner: FakeSpawner) -> None:
    """With or without a client; a worker that exits because its device was unplugged is no failure."""
    await host.claimer.claim_device(record("1-2"))
    spawner.last.die()
    await until(lambda: len(host.store.recorded(HistoryEvent.CLAIMED)) == 2)
    [failure] = host.store.recorded(HistoryEvent.FAILED)
    assert failure["busid"] == "1-2"
    assert failure["reason"].startswith("the worker ended with ")
    host.source.records.clear()
    spawner.last.device_gone()
    spawner.last.die()
    await until(lambda: not host.claimer.shared_devices)
    assert len(host.store.recorded(HistoryEvent.FAILED)) == 1
    assert len(host.store.recorded(HistoryEvent.UNPLUGGED)) == 1


@pytest.mark.parametrize("announced", [True, False], ids=["the worker says so", "the worker just dies"])
async def test_an_unplugged_device_is_dropped(host: Host, spawner: FakeSpawner, announced: bool) -> None:
    await host.claimer.claim_device(record("1-2"))
    host.source.records.clear()
    if announced:
        spawner.last.device_gone()
    spawner.last.die()
    await until(lambda: not host.claimer.shared_devices)
    assert len(spawner.children) == 1


async def test_another_device_at_the_port_is_not_mistaken_for_the_old_one(
    host: Host, spawner: FakeSpawner
) -> None:
    await host.claimer.claim_device(record("1-2"))
    host.source.records["1-2"] = other_device(record("1-2"))
    spawner.last.die()
    await until(lambda: not host.claimer.shared_devices)


async def test_a_device_that_was_unplugged_before_a_repeated_claim(host: Host, spawner: FakeSpawner) -> None:
    """The earlier try took time to end: a device listed before that may have been unplugged."""
    await host.claimer.claim_device(record("1-2"))
    spawner.answers[Command.CLAIM] = REFUSED
    spawner.last.die()
    await until(lambda: host.state() is ClaimState.FAILED)
    host.source.records.clear()
    with pytest.raises(ClaimError, match="was released or unplugged"):
        await host.claimer.claim_device(record("1-2"))
    assert not host.claimer.shared_devices


@pytest.mark.parametrize("answer", ["silence", UsbipdError("stuck", code="release-failed")], ids=str)
async def test_a_device_that_its_worker_does_not_release(
    host: Host, spawner: FakeSpawner, sysfs: FakeSysfs, answer: UsbipdError | str
) -> None:
    sysfs.add_interface("1-2", 0, None)
    await host.claimer.claim_device(record("1-2"))
    spawner.answers[Command.RELEASE] = answer
    await host.claimer.release_device("1-2", timeout=0.01)
    assert not spawner.last.channel.is_open
    assert sysfs.probed == "1-2:1.0"
    assert not host.claimer.shared_devices


async def test_a_release_while_the_worker_is_claiming(
    host: Host, spawner: FakeSpawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.claimer, "_stack", dataclasses.replace(LINUX, end_time=0.01))
    spawner.answers[Command.CLAIM] = "silence"
    claiming = asyncio.create_task(host.claimer.claim_device(record("1-2")))
    await until(lambda: spawner.children and spawner.last.asked)
    await host.claimer.release_device("1-2", timeout=5)
    with pytest.raises(ClaimError, match="released"):
        await claiming
    assert spawner.last.killed
    assert not host.claimer.shared_devices


async def test_a_claim_replaces_the_one_in_progress(
    host: Host, spawner: FakeSpawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bound device is plugged in, and is bound again while it is being claimed."""
    monkeypatch.setattr(host.claimer, "_stack", dataclasses.replace(LINUX, end_time=0.2))
    spawner.answers[Command.CLAIM] = "silence"
    await host.claimer.restore_claimed_devices([record("1-2")])
    await until(lambda: spawner.children and spawner.last.asked)
    asking = asyncio.create_task(host.claimer.claim_device(record("1-2")))
    await until(lambda: not host.claimer.shared_devices)
    await host.claimer.restore_claimed_devices([record("1-2")])  # as after a hotplug event
    del spawner.answers[Command.CLAIM]
    await asking
    assert host.claimer.is_device_claimed("1-2")
    await host.claimer.restore_claimed_devices([record("1-2")])
    assert [child.killed for child in spawner.children] == [True, False]


async def test_on_end_is_called_after_a_release(host: Host, spawner: FakeSpawner) -> None:
    """Devices plugged in meanwhile were not claimed: the manager lists them again."""
    ends: list[bool] = []
    host.claimer._on_end = lambda: ends.append(host.claimer.is_device_claimed("1-2"))
    await host.claimer.claim_device(record("1-2"))
    releasing = asyncio.create_task(host.release())
    await until(lambda: not host.claimer.shared_devices)
    await host.claimer.restore_claimed_devices([record("1-2")])
    await releasing
    assert (ends, len(spawner.children)) == ([False], 1)


def test_releasing_an_unclaimed_device_has_no_effect(host: Host) -> None:
    run(host.release())


async def test_a_mounted_device_is_refused(host: Host, spawner: FakeSpawner, sysfs: FakeSysfs) -> None:
    sysfs.add_interface("1-2", 0, "usb-storage")
    disk = sysfs.add_block_device(sysfs.root / "devices/1-2/1-2:1.0/host0/block", "sda", "8:0")
    sysfs.add_block_device(disk, "sda1", "8:1")
    sysfs.mount("8:1", "/media/stick", "/dev/sda1")
    with pytest.raises(ClaimError, match="1-2 is in use on this host: /media/stick") as caught:
        await host.claimer.claim_device(record("1-2"))
    assert caught.value.code == "mounted"
    assert "`usbipd bind 1-2 --force`" in str(caught.value.advice)
    assert not spawner.children


async def test_all_devices_are_claimed_again(spawner: FakeSpawner, sysfs: FakeSysfs) -> None:
    records = [record(f"240-{port}", simulated=True) for port in range(1, 5)]
    host = Host(spawner, sysfs)
    host.source = FakeSource(*records)
    host.claimer._find_device = host.source.find
    await host.claimer.restore_claimed_devices(records)
    assert sorted(host.claimer.shared_devices) == ["240-1", "240-2", "240-3", "240-4"]
    await asyncio.gather(*(host.claimer.release_device(each.busid, timeout=5) for each in records))
    assert all(not child.channel.is_open for child in spawner.children)


async def test_a_worker_sends_detached_before_it_reads_release(host: Host) -> None:
    """The client leaves during an unbind: the worker's DETACHED is no violation."""
    await host.claimer.claim_device(record("1-2"))
    device = host.claimer.shared_devices["1-2"]
    device.attached("192.0.2.1:1")
    await host.release()
    device.on_event(Event(EventName.DETACHED, DetachedParameters(reason="the client has gone")))
    device.on_event(Event(EventName.RESTORED, Nothing()))
    assert device.state is ClaimState.ENDED


async def test_a_first_claim_whose_caller_was_cancelled(host: Host, spawner: FakeSpawner) -> None:
    """As after Ctrl-C during the start: asyncio logs no exception that was never retrieved."""
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    spawner.answers[Command.CLAIM] = "silence"
    asking = asyncio.create_task(host.claimer.claim_device(record("1-2")))
    await until(lambda: spawner.children and spawner.last.commands)
    asking.cancel()
    await asyncio.wait({asking})
    await host.claimer.release_device("1-2", timeout=0.01)
    gc.collect()
    assert complaints == []


async def test_a_worker_that_did_not_release_in_time_is_killed(
    host: Host, spawner: FakeSpawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.claimer, "_stack", dataclasses.replace(LINUX, end_time=3600.0))
    await host.claimer.claim_device(record("1-2"))
    spawner.answers[Command.RELEASE] = "silence"
    await host.claimer.release_device("1-2", timeout=0.01)
    assert spawner.last.killed


DEVICE = UsbDevice(
    path="/sys/devices/1-2",
    busid="1-2",
    busnum=1,
    devnum=12,
    speed=Speed.HIGH,
    idVendor=0x1234,
    idProduct=0x5678,
    bcdDevice=0,
    bDeviceClass=0,
    bDeviceSubClass=0,
    bDeviceProtocol=0,
    bConfigurationValue=1,
    bNumConfigurations=1,
    interfaces=(),
)


@pytest.mark.parametrize(
    ("device", "complaint"),
    [
        (replace(DEVICE, busid="1-3"), "the worker claimed 1-3"),
        (replace(DEVICE, devnum=13), "the worker claimed 1-2"),
        (replace(DEVICE, bDeviceClass=256), "cannot be described to clients"),
        (replace(DEVICE, idVendor=-1), "cannot be described to clients"),
    ],
)
async def test_a_worker_that_reports_another_device(
    host: Host, spawner: FakeSpawner, device: UsbDevice, complaint: str
) -> None:
    """A device that cannot be encoded would break the list of all devices."""
    spawner.answers[Command.CLAIM] = ClaimResult(device=device, claim_method="fake", user="nobody")
    with pytest.raises(ClaimError, match=complaint):
        await host.claimer.claim_device(record("1-2"))
    assert not host.claimer.shared_devices
    assert not spawner.last.channel.is_open


async def test_a_device_unplugged_while_its_mounts_are_checked(
    host: Host, spawner: FakeSpawner, sysfs: FakeSysfs
) -> None:
    sysfs.add_interface("1-2", 0, "usb-storage")
    disk = sysfs.add_block_device(sysfs.root / "devices/1-2/1-2:1.0/host0/block", "sda", "8:0")
    (disk / "dev").unlink()
    with pytest.raises(ClaimError, match="cannot tell whether 1-2 is in use"):
        await host.claimer.claim_device(record("1-2"))
    assert not spawner.children


async def test_the_driver_is_reattached_after_a_worker_was_killed(
    host: Host, spawner: FakeSpawner, sysfs: FakeSysfs
) -> None:
    """The second worker finds no driver, so it has none to reattach."""
    await host.claimer.claim_device(record("1-2"))
    sysfs.add_interface("1-2", 0, None)  # as the first worker left it
    spawner.last.die()
    await until(lambda: len(spawner.children) == 2 and host.state() is ClaimState.READY)
    await host.release()
    assert sysfs.probed == "1-2:1.0"
    assert not spawner.last.killed
