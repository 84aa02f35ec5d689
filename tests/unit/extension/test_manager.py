"""The manager as users see it: bind, unbind, detach, and reports."""

import asyncio
import dataclasses
import itertools
import resource
import time

import pytest

from tests.unit.extension.fakes import (
    PATIENCE,
    FakeSource,
    FakeSpawner,
    FakeStore,
    FakeSysfs,
    make_manager,
    record,
    run,
    until,
)
from tests.unit.extension.managed_host import BUSY, THING, Host
from usbipd.config import AccessRule
from usbipd.errors import ClaimError, UsbipdError
from usbipd.extension import manager
from usbipd.extension.device import LONGEST_TEXT, ClaimState
from usbipd.extension.store import Binding
from usbipd.ipc.control_messages import (
    BindParameters,
    DeviceState,
    HistoryEvent,
    LeftOutInfo,
)
from usbipd.ipc.messages import Command
from usbipd.usb.discovery import HUB, DeviceRecord
from usbipd.usb.identity import DeviceRule


async def test_simulated_devices_are_shared_from_the_start_and_no_other(host: Host) -> None:
    await host.manager.start()
    assert await host.states() == {
        "240-1": DeviceState.SHARED,
        "1-2": DeviceState.NOT_SHARED,
        "1-3": DeviceState.NOT_SHARED,
    }
    await host.manager.stop()


def test_a_thousand_bound_devices_start_with_one_list(
    spawner: FakeSpawner, sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim uses the record that it is given."""
    monkeypatch.setattr(manager, "FIRST_CLAIMS", 3 * PATIENCE)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    records = [
        dataclasses.replace(record(), busid=f"{bus}-{port}", busnum=bus, devnum=port)
        for bus, port in itertools.product(range(1, 11), range(1, 101))
    ]
    source, store = FakeSource(*records), FakeStore()
    rule = DeviceRule(0x1234, 0x5678)
    store.kept[rule] = Binding(rule, "Thing", (), 1.0, "root")

    async def test() -> None:
        many = make_manager(spawner, sysfs, source, store=store)
        await many.start()
        assert len(many.get_claimed_devices()) == len(records)
        assert source.lists == 1
        await many.stop()

    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, limits[1]), limits[1]))
    try:
        run(test())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_bind_and_unbind(host: Host, spawner: FakeSpawner) -> None:
    info = await host.bind("1-2")
    assert (info.state, info.claim_method, info.worker_pid) == (DeviceState.SHARED, "fake", 1000)
    assert info.claim_time is not None
    assert info.counters is not None
    assert [device.bus_id for device in host.manager.get_claimed_devices()] == ["1-2"]
    assert await host.bind("1-2") == info, "binding twice is no error"
    assert len(host.store.kept) == 1
    assert await host.unbind("1-2") == ["1-2"]
    assert (await host.states())["1-2"] is DeviceState.NOT_SHARED
    assert not spawner.last.channel.is_open
    assert not host.store.kept
    assert not host.store.held


async def test_unbind_all(host: Host) -> None:
    await host.manager.start()
    await host.bind("1-3")
    assert await host.unbind(None) == ["1-3", "240-1"]
    assert set((await host.states()).values()) == {DeviceState.NOT_SHARED}
    assert await host.unbind(None) == []
    assert (await host.bind("240-1")).state is DeviceState.SHARED, (
        "a simulated device can be bound again, too"
    )
    await host.manager.stop()


async def test_unbinding_a_device_that_is_not_shared(host: Host) -> None:
    with pytest.raises(UsbipdError, match="1-2 is not shared"):
        await host.unbind("1-2")


async def test_binding_a_device_that_does_not_exist(host: Host) -> None:
    with pytest.raises(UsbipdError, match="device '7-7' does not exist"):
        await host.bind("7-7")


async def test_binding_a_device_that_is_not_offered(host: Host) -> None:
    host.source.left_out["2-1"] = UsbipdError("it is imported", code="imported", advice="offer_imported")
    with pytest.raises(UsbipdError, match="2-1 cannot be shared: it is imported") as caught:
        await host.bind("2-1")
    assert (caught.value.code, caught.value.advice) == ("imported", "offer_imported")


async def test_what_is_not_offered_is_listed_with_its_reason_except_hubs(host: Host) -> None:
    host.source.left_out = {"2-2": HUB, "2-1": UsbipdError("it is imported", code="imported")}
    listed = await host.manager.survey()
    assert listed.left_out == [
        LeftOutInfo(busid="2-1", reason="it is imported", code="imported", advice=None)
    ]


async def test_a_bind_that_fails_binds_nothing(host: Host, spawner: FakeSpawner) -> None:
    spawner.answers[Command.CLAIM] = BUSY
    with pytest.raises(ClaimError, match="another program holds it"):
        await host.bind("1-2")
    assert (await host.states())["1-2"] is DeviceState.NOT_SHARED
    with pytest.raises(UsbipdError, match="not shared"):
        await host.unbind("1-2")


async def test_a_device_that_fails_later_is_shown_as_failed(host: Host, spawner: FakeSpawner) -> None:
    await host.bind("1-2")
    spawner.answers[Command.CLAIM] = BUSY
    spawner.last.die()
    await until(lambda: host.manager.shared_devices["1-2"].state is ClaimState.FAILED)
    info = await host.device("1-2")
    assert info.state is DeviceState.FAILED
    assert "another program holds it" in str(info.error)
    assert info.advice is not None
    assert info.next_try is not None
    assert info.worker_pid is None
    assert await host.unbind("1-2") == ["1-2"]


async def test_drivers_are_reported_except_our_own(host: Host, sysfs: FakeSysfs) -> None:
    drivers = {device.busid: device.drivers for device in await host.manager.list_devices()}
    assert drivers == {"240-1": [], "1-2": ["usb-storage"], "1-3": ["usbhid", "snd-usb-audio"]}
    await host.bind("1-2")
    interface = sysfs.root / "bus/usb/devices/1-2:1.0"
    (interface / "driver").unlink()
    (interface / "driver").symlink_to(sysfs.root / "bus/usb/drivers/usbfs")
    drivers = {device.busid: device.drivers for device in await host.manager.list_devices()}
    assert drivers["1-2"] == []
    sysfs.add_interface("1-2", 1, "usbhid")
    drivers = {device.busid: device.drivers for device in await host.manager.list_devices()}
    assert drivers["1-2"] == ["usbhid"], "only a part of it is ours"
    (sysfs.root / "bus/usb/devices/1-2:1.1/driver").unlink()
    await host.manager.stop()
    drivers = {device.busid: device.drivers for device in await host.manager.list_devices()}
    assert drivers["1-2"] == ["usbfs"], "another program's"


async def test_nothing_is_claimed_during_shutdown(host: Host, spawner: FakeSpawner) -> None:
    await host.manager.start()
    await host.manager.stop()
    assert not host.manager.shared_devices
    with pytest.raises(UsbipdError, match="the daemon is shutting down"):
        await host.bind("1-2")
    assert all(not child.channel.is_open for child in spawner.children)


async def test_a_bind_in_progress_ends_at_shutdown(host: Host, spawner: FakeSpawner) -> None:
    spawner.answers[Command.CLAIM] = "silence"
    binding = asyncio.create_task(host.bind("1-2"))
    await until(lambda: spawner.children and spawner.last.asked)
    await host.manager.stop()
    with pytest.raises(ClaimError, match="released"):
        await binding
    assert spawner.last.killed


async def test_shutdown_waits_for_an_unbind_in_progress(host: Host, spawner: FakeSpawner) -> None:
    await host.bind("1-2")
    spawner.lingering = True
    unbind = asyncio.create_task(host.unbind("1-2"))
    await until(lambda: Command.RELEASE in spawner.last.commands)
    stop = asyncio.create_task(host.manager.stop())
    done, _pending = await asyncio.wait({stop}, timeout=0.05)
    assert not done
    spawner.last.die()
    await stop
    assert await unbind == ["1-2"]


def test_a_bind_that_lists_devices_during_shutdown_claims_nothing(host: Host, spawner: FakeSpawner) -> None:
    async def test() -> None:
        bind = asyncio.create_task(host.bind("1-2"))
        await asyncio.sleep(0)  # it has the lock, and lists the devices
        await host.manager.stop()
        with pytest.raises(UsbipdError, match="the daemon is shutting down"):
            await bind
        assert not spawner.children

    class SlowSource(FakeSource):
        async def list_devices(self) -> list[DeviceRecord]:
            for _turn in range(10):
                await asyncio.sleep(0)
            return await super().list_devices()

    host.source = SlowSource(record("1-2"))
    host.new_manager()
    run(test())


# ---- clients -----------------------------------------------------------------------------------------------


async def test_which_clients_can_see_a_device(host: Host) -> None:
    host.new_manager((AccessRule(busid="1-3", allow=("192.0.2.0/24",)),))
    await host.manager.start()
    await host.bind("1-2", "192.0.2.7", "2001:db8::/32")
    await host.bind("1-3")

    def offered(address: str) -> list[str]:
        return sorted(device.busid for device in host.manager.offers([address]).devices)

    assert offered("192.0.2.7") == ["1-2", "1-3", "240-1"]
    assert offered("192.0.2.8") == ["1-3", "240-1"]
    assert offered("2001:db8::1") == ["1-2", "240-1"]
    assert offered("198.51.100.1") == ["240-1"]
    together = host.manager.offers(["192.0.2.7", "192.0.2.8", "192.0.2.9", "192.0.2.7"])
    busids = [[together.devices[index].busid for index in indices] for indices in together.lists]
    assert [sorted(each) for each in busids] == [["1-2", "1-3", "240-1"], ["1-3", "240-1"]]
    assert together.list_of == [0, 1, 1, 0]
    await host.bind("1-2")  # the same rule again, for all clients
    assert offered("198.51.100.1") == ["1-2", "240-1"]
    await host.manager.stop()


async def test_one_of_several_bindings_allows_the_client(host: Host) -> None:
    await host.bind("1-2", "192.0.2.7")
    await host.manager.bind(BindParameters(hardware=THING, allow=["198.51.100.0/24"]), "test")
    device = host.manager.shared_devices["1-2"]
    assert host.manager.find_for("1-2", "192.0.2.7") is device
    assert host.manager.find_for("1-2", "198.51.100.1") is device
    assert host.manager.find_for("1-2", "203.0.113.1") is None
    await host.manager.stop()


async def test_a_client_that_is_attached_stays_so_when_a_list_changes(host: Host) -> None:
    await host.bind("1-2")
    host.manager.shared_devices["1-2"].attached("192.0.2.1:5")
    await host.bind("1-2", "198.51.100.1")
    assert (await host.device("1-2")).client == "192.0.2.1:5"
    assert host.manager.find_for("1-2", "192.0.2.1") is None
    await host.manager.stop()


async def test_detach_ends_the_session_and_leaves_the_device_shared(host: Host) -> None:
    await host.bind("1-2")
    host.manager.shared_devices["1-2"].attached("192.0.2.1:5")
    report = await host.device("1-2")
    assert report.client == "192.0.2.1:5"
    assert report.claim_time is not None
    assert report.attach_time is not None
    assert report.claim_time <= report.attach_time <= time.time()
    assert await host.manager.detach("1-2", "anna") == "192.0.2.1:5"
    await host.until_state("1-2", DeviceState.SHARED)
    assert (await host.device("1-2")).attach_time is None
    [ended] = host.store.recorded(HistoryEvent.DETACHED)
    assert (ended["client"], ended["busid"], ended["reason"]) == ("192.0.2.1:5", "1-2", "by anna")
    host.manager.shared_devices["1-2"].attached("192.0.2.1:6")
    host.spawner.last.detach()
    await host.until_state("1-2", DeviceState.SHARED)
    ended = host.store.recorded(HistoryEvent.DETACHED)[-1]
    assert ended["reason"] != "by anna", "that client left on its own"
    with pytest.raises(UsbipdError, match="no client uses 1-2"):
        await host.manager.detach("1-2", "anna")
    await host.manager.stop()


async def test_bindings_are_reported_with_what_they_share(host: Host) -> None:
    await host.bind("1-2", "192.0.2.7")
    host.source.records.clear()
    [info] = (await host.manager.survey()).bindings
    assert (info.busid, info.allow, info.product) == ("1-2", ["192.0.2.7"], "Thing")
    assert info.devices == []


async def test_stored_bindings_are_used(host: Host) -> None:
    rule = DeviceRule(0x1234, 0x5678)
    host.store.kept[rule] = Binding(rule, "Thing", (), 1.0, "root")
    await host.manager.start()
    assert set((await host.states()).values()) == {DeviceState.SHARED}
    await host.manager.stop()


async def test_a_long_error_is_truncated(host: Host, spawner: FakeSpawner) -> None:
    """However long a worker's text, the devices fit into one answer."""
    spawner.answers[Command.CLAIM] = ClaimError("e" * 9999, code="odd", advice="a" * 9999)
    host.source.records = {"1-2": record("1-2")}
    host.simulated.records.clear()
    rule = DeviceRule.of_port(record("1-2"))
    host.store.kept[rule] = Binding(rule, "Thing", (), 1.0, "root")
    await host.manager.start()
    await host.until_state("1-2", DeviceState.FAILED)
    device = await host.device("1-2")
    assert device.error is not None
    assert device.advice is not None
    assert (len(device.error), len(device.advice)) == (LONGEST_TEXT, LONGEST_TEXT)
    await host.manager.stop()
