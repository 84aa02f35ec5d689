"""Bindings: which devices they match, which clients they allow, and that they persist."""

import itertools
from dataclasses import replace

import pytest

from tests.unit.extension.fakes import (
    FakeSource,
    FakeSpawner,
    FakeSysfs,
    make_manager,
    record,
    until,
)
from tests.unit.extension.managed_host import BUSY, THING, Host
from usbipd.errors import ClaimError, UsbipdError
from usbipd.extension.bindings import MOST_BYTES, binding_info
from usbipd.extension.store import Binding
from usbipd.ipc.control_messages import (
    BindParameters,
    DeviceState,
    HardwareId,
    UnbindParameters,
)
from usbipd.ipc.conversation import Request, answer_frame
from usbipd.ipc.messages import Command, Nothing, encode
from usbipd.usb.discovery import DeviceRecord
from usbipd.usb.identity import DeviceRule


async def test_bindings_outlive_the_daemon(host: Host) -> None:
    await host.manager.start()
    await host.bind("1-2")
    await host.manager.stop()
    assert (await host.states())["1-2"] is DeviceState.NOT_SHARED
    await host.new_manager().start()
    assert (await host.states())["1-2"] is DeviceState.SHARED
    assert (await host.states())["1-3"] is DeviceState.NOT_SHARED
    await host.manager.stop()


async def test_simulated_devices_never_reach_the_store(host: Host) -> None:
    await host.manager.start()
    await host.unbind("240-1")
    await host.bind("240-1")
    assert not host.store.kept
    assert not host.store.held
    await host.manager.stop()


async def test_binding_by_busid_remembers_the_device(host: Host) -> None:
    """Another device at the port is not shared, and the same one at another port is not."""
    host.source.records["1-2"] = replace(record("1-2"), serial="A1")
    await host.bind("1-2")
    [rule] = host.store.kept
    assert rule == DeviceRule(0x1234, 0x5678, "A1", "1-2")
    await host.manager.stop()
    for stranger in (
        replace(record("1-2"), serial="B2"),
        replace(record("1-2"), serial="A1", product_id=1),
        replace(record("1-4"), serial="A1"),
    ):
        host.source.records = {stranger.busid: stranger}
        await host.new_manager().start()
        assert (await host.states())[stranger.busid] is DeviceState.NOT_SHARED
        await host.manager.stop()


async def test_binding_by_hardware_id(host: Host) -> None:
    result = await host.manager.bind(BindParameters(hardware=THING), "test")
    assert [device.state for device in result.devices] == [DeviceState.SHARED] * 3
    assert (result.binding.busid, result.binding.created_by) == (None, "test")
    unbound = await host.manager.unbind(UnbindParameters(hardware=THING), "test")
    assert unbound.busids == ["1-2", "1-3", "240-1"]


async def test_binding_a_hardware_id_without_a_device(host: Host) -> None:
    await host.manager.start()
    hardware = HardwareId(vendor_id=0x1234, product_id=0x5678, serial="S")
    result = await host.manager.bind(BindParameters(hardware=hardware), "test")
    assert result.devices == []
    host.plug(replace(record("1-7"), serial="S"))
    await host.until_state("1-7", DeviceState.SHARED)
    assert (await host.states())["1-2"] is DeviceState.NOT_SHARED
    await host.manager.stop()


async def test_a_daemon_with_simulated_devices_only_refuses_other_hardware_ids(
    spawner: FakeSpawner, sysfs: FakeSysfs
) -> None:
    device = record("240-1")
    source = FakeSource(device)
    manager = make_manager(spawner, sysfs, source, with_real=False)
    await manager.start()
    absent = HardwareId(vendor_id=0x0BAD, product_id=0xCAFE)
    with pytest.raises(
        UsbipdError, match="simulated devices only, and 0bad:cafe is not one of them"
    ) as caught:
        await manager.bind(BindParameters(hardware=absent), "test")
    assert caught.value.code == "no-device"
    assert "--real-devices" in (caught.value.advice or "")
    assert (await manager.survey()).bindings == []
    present = HardwareId(vendor_id=device.vendor_id, product_id=device.product_id)
    assert (await manager.bind(BindParameters(hardware=present), "test")).devices
    await manager.stop()


async def test_a_device_with_two_bindings_is_shared_until_both_are_removed(host: Host) -> None:
    await host.bind("1-2")
    await host.manager.bind(BindParameters(hardware=THING), "test")
    assert await host.unbind("1-2") == []
    assert (await host.states())["1-2"] is DeviceState.SHARED
    with pytest.raises(UsbipdError, match="shared by its hardware id") as caught:
        await host.unbind("1-2")
    assert caught.value.advice is not None
    assert "unbind 1234:5678`" in caught.value.advice
    await host.manager.unbind(UnbindParameters(hardware=THING), "test")
    assert set((await host.states()).values()) == {DeviceState.NOT_SHARED}


@pytest.mark.parametrize(
    "parameters", [BindParameters(), BindParameters(busid="1-2", hardware=THING)], ids=["neither", "both"]
)
async def test_a_bind_takes_either_a_busid_or_a_hardware_id(host: Host, parameters: BindParameters) -> None:
    with pytest.raises(UsbipdError, match="either a busid or a hardware id"):
        await host.manager.bind(parameters, "test")


@pytest.mark.slow
async def test_the_size_of_all_bindings_is_limited(host: Host) -> None:
    allow = [f"2001:db8:{number:x}::/48" for number in range(64)]
    rule = DeviceRule(2, 0)
    size = len(encode(binding_info(Binding(rule, None, tuple(allow), 1.0, "root"), [])))
    for number in range(MOST_BYTES // size - 20):
        rule = DeviceRule(2, number)
        host.store.kept[rule] = Binding(rule, None, tuple(allow), 1.0, "root")
    await host.manager.start()
    await host.bind("1-2")

    async def bind(product_id: int, allow: list[str]) -> None:
        hardware = HardwareId(vendor_id=1, product_id=product_id)
        await host.manager.bind(BindParameters(hardware=hardware, allow=allow), "test")

    async def bind_without_end() -> None:
        for number in itertools.count():
            await bind(number, allow)

    with pytest.raises(UsbipdError, match="cannot add another binding: limit reached") as caught:
        await bind_without_end()
    assert caught.value.code == "too-many-bindings"
    assert caught.value.advice is not None
    listed = await host.manager.survey()
    assert len(listed.bindings) == len(host.store.kept) + 1 > 500
    answer_frame(Request(1, Command.LIST, Nothing(), None, "test", 0.0), listed, is_long=True)
    await bind(0xFFFF, [])  # a small binding still fits
    await host.bind("1-2")  # and a bound device can be bound again
    await host.manager.stop()


async def test_a_device_is_compared_only_with_bindings_of_its_port_and_ids(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else 1,000 devices with a binding each would take a million comparisons per client request."""
    compared: list[DeviceRule] = []

    def fits(rule: DeviceRule, record: DeviceRecord) -> bool:
        compared.append(rule)
        return rule.busid in (None, record.busid)

    devices = [record(f"1-{port}") for port in range(1, 41)]
    for device in devices:
        host.source.records[device.busid] = device
        rule = DeviceRule.of_port(device)
        host.store.kept[rule] = Binding(rule, "Thing", (), 1.0, "root")
    await host.manager.bind(BindParameters(hardware=THING), "test")
    await host.manager.start()
    await until(lambda: all(device.claimed is not None for device in host.manager.shared_devices.values()))
    monkeypatch.setattr(DeviceRule, "fits", fits)
    assert len(host.manager.offers(["192.0.2.7"]).devices) == 41
    assert len(compared) == 2 * 41, "each device with the binding of its port and that of its hardware id"
    compared.clear()
    listed = await host.manager.survey()
    assert [binding.devices for binding in listed.bindings if binding.busid == "1-7"] == [["1-7"]]
    assert [len(binding.devices) for binding in listed.bindings if binding.busid is None] == [41]
    assert len(compared) == 2 * 41
    await host.manager.stop()


async def test_a_bind_that_cannot_be_stored_binds_nothing(host: Host) -> None:
    host.store.error = UsbipdError("the disk is full", code="store")
    with pytest.raises(UsbipdError, match="disk is full"):
        await host.bind("1-2")
    assert (await host.states())["1-2"] is DeviceState.NOT_SHARED
    assert not host.manager.shared_devices


async def test_an_unbind_that_cannot_be_stored_unbinds_nothing(host: Host) -> None:
    await host.bind("1-2")
    host.store.error = UsbipdError("the disk is full", code="store")
    with pytest.raises(UsbipdError, match="disk is full"):
        await host.unbind("1-2")
    assert (await host.states())["1-2"] is DeviceState.SHARED
    host.store.error = None
    assert await host.unbind("1-2") == ["1-2"]


async def test_a_failed_bind_does_not_end_the_claim_of_another_binding(
    host: Host, spawner: FakeSpawner
) -> None:
    await host.manager.start()
    await host.bind("1-2")
    spawner.answers[Command.CLAIM] = BUSY
    spawner.last.die()
    await host.until_state("1-2", DeviceState.FAILED)
    with pytest.raises(ClaimError):
        await host.bind("1-2")
    del spawner.answers[Command.CLAIM]
    await host.until_state("1-2", DeviceState.SHARED)
    await host.manager.stop()


async def test_a_bind_with_an_invalid_allow_list_binds_nothing(host: Host, spawner: FakeSpawner) -> None:
    with pytest.raises(UsbipdError, match="junk"):
        await host.bind("1-2", "junk")
    assert not spawner.children
    assert not host.store.kept


async def test_an_invalid_stored_allow_list_denies_all_clients(host: Host) -> None:
    rule = DeviceRule.of_port(record("1-2"))
    host.store.kept[rule] = Binding(rule, "Thing", ("junk",), 1.0, "root")
    await host.manager.start()
    assert (await host.states())["1-2"] is DeviceState.SHARED
    assert [device.busid for device in host.manager.offers(["127.0.0.1"]).devices] == ["240-1"]
    await host.manager.stop()
