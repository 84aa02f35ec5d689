"""`usbipd release` reattaches drivers to a device that no worker holds, in any state."""

import os
from dataclasses import replace

import pytest

from tests.unit.extension.fakes import FakeSpawner, FakeSysfs, other_device, record, until
from tests.unit.extension.managed_host import THING, Host
from usbipd.errors import ClaimError, UsbipdError
from usbipd.extension import claimer
from usbipd.extension.device import ClaimState
from usbipd.extension.store import StoredClaim
from usbipd.extension.usb_stack import LINUX
from usbipd.ipc.control_messages import BindParameters
from usbipd.ipc.messages import Command


@pytest.fixture(autouse=True)
def uid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon seems to run as root, even if the tests do not."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def add_orphan(host: Host) -> None:
    """1-4, whose driver has not been reattached."""
    host.sysfs.add_interface("1-4", 0, None)
    host.source.records["1-4"] = record("1-4")


async def test_a_device_without_drivers(host: Host, sysfs: FakeSysfs) -> None:
    add_orphan(host)
    assert await host.manager.release("1-4") == []
    assert sysfs.probed == "1-4:1.0"


async def test_a_device_that_has_its_drivers(host: Host, sysfs: FakeSysfs) -> None:
    assert await host.manager.release("1-3") == ["usbhid", "snd-usb-audio"]
    assert sysfs.probed == ""


async def test_a_released_device_is_no_longer_orphaned(host: Host) -> None:
    add_orphan(host)
    host.store.held = {"1-4": StoredClaim("1-4", 0x1234, 0x5678, 1.0)}
    await host.manager._reattacher.load()
    assert await host.manager.orphans() == ["1-4"]
    await host.manager.release("1-4")
    assert await host.manager.orphans() == []
    assert not host.store.held


async def test_a_device_that_a_worker_holds(host: Host, spawner: FakeSpawner) -> None:
    await host.bind("1-2")
    with pytest.raises(UsbipdError, match="1-2 is shared") as caught:
        await host.manager.release("1-2")
    assert caught.value.advice == "`usbipd unbind 1-2` stops sharing it and releases it"
    await host.manager.bind(BindParameters(hardware=THING), "test")
    with pytest.raises(UsbipdError, match="1-3 is shared") as caught:
        await host.manager.release("1-3")
    assert "`usbipd unbind 1234:5678`" in str(caught.value.advice)
    assert spawner.last.commands == [Command.CLAIM]
    await host.manager.stop()


async def test_a_bound_device_that_cannot_be_claimed(host: Host, spawner: FakeSpawner) -> None:
    await host.bind("1-2")
    spawner.answers[Command.CLAIM] = ClaimError("a program has it", code="LIBUSB_ERROR_BUSY")
    spawner.last.die()
    await until(lambda: host.manager.shared_devices["1-2"].state is ClaimState.FAILED)
    with pytest.raises(UsbipdError, match="1-2 is bound") as caught:
        await host.manager.release("1-2")
    assert "`usbipd unbind 1-2`" in str(caught.value.advice)
    await host.manager.stop()


async def test_another_device_at_the_port_of_a_shared_one(host: Host) -> None:
    """The worker has not noticed yet that its device was unplugged."""
    await host.bind("1-2")
    host.source.records["1-2"] = other_device(record("1-2"))
    with pytest.raises(UsbipdError, match="1-2 is shared") as caught:
        await host.manager.release("1-2")
    assert "`usbipd unbind 1-2`" in str(caught.value.advice)
    await host.manager.stop()


async def test_a_device_whose_killed_worker_hangs(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("KILL_TIMEOUT", 0.01), ("CLAIM_TIMEOUT", 0.01)):
        monkeypatch.setattr(claimer, name, value)
    monkeypatch.setattr(host.manager._claimer, "_stack", replace(LINUX, end_time=0.01))
    host.spawner.answers[Command.CLAIM] = "silence"
    kill, survivors = host.spawner.kill, []
    monkeypatch.setattr(host.spawner, "kill", survivors.append)
    with pytest.raises(ClaimError):
        await host.bind("1-2")
    with pytest.raises(ClaimError, match="hangs in the kernel waiting for 1-2"):
        await host.manager.release("1-2")
    kill(survivors[0])
    assert await host.manager.release("1-2") == ["usb-storage"]


@pytest.mark.parametrize(
    ("busid", "code"), [("7-7", "no-device"), ("240-1", "simulated"), ("2-1", "hub")], ids=str
)
async def test_devices_that_cannot_be_released(host: Host, busid: str, code: str) -> None:
    host.source.left_out["2-1"] = UsbipdError("it is a hub", code="hub")
    with pytest.raises(UsbipdError) as caught:
        await host.manager.release(busid)
    assert caught.value.code == code


async def test_only_root_can_reattach_drivers(
    host: Host, sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    add_orphan(host)
    with pytest.raises(UsbipdError, match="1-4 cannot be released: this daemon does not run as root"):
        await host.manager.release("1-4")
    assert sysfs.probed == ""


async def test_a_host_that_does_not_find_drivers_in_time(
    host: Host, sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_orphan(host)
    probe = sysfs.hang_over_drivers()
    monkeypatch.setattr(host.manager, "_stack", replace(LINUX, release_time=0.01))
    with pytest.raises(UsbipdError, match="1-4: this host still scans for drivers") as caught:
        await host.manager.release("1-4")
    assert caught.value.advice == "unplug the device and plug it in again"
    with probe.open() as answered:
        assert answered.read() == "1-4:1.0"
