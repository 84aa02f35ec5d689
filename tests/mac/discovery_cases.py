"""The list of a Mac's devices, and hotplug.  test_discovery.py runs it, in a separate process."""

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest
import usb1

from tests.mac.kernel.switches import Switches
from tests.mac.mac import Device
from tests.mac.rig import end, give_back, mac
from tests.mac.tree import BUSID, Tree, until
from usbipd._claim import Claim
from usbipd._iokit import DeviceListener
from usbipd.errors import UsbipdError
from usbipd.protocol.constants import Speed
from usbipd.usb import hotplug
from usbipd.usb.discovery import DeviceRecord
from usbipd.usb.host import host_devices
from usbipd.usb.hotplug import Hotplug
from usbipd.usb.registry_devices import RegistryDevices
from usbipd.usb.registry_events import RegistryListener

NO_DEVICE = 0xE00002C0
ACCESSIBLE: dict[str, Any] = {"idVendor": 0x0781, "idProduct": 0x5567, "bDeviceClass": 0, "USB_Address": 7}
"""Properties of a device that can be shared."""


def records() -> list[DeviceRecord]:
    return RegistryDevices().list_all().devices


def add(tree: Tree, **properties: object) -> DeviceRecord:
    """The record of a device with these properties."""
    device = tree.add_device(**{**ACCESSIBLE, **properties})
    [record] = records()
    assert (record.busid, record.registry_id) == (BUSID, device)
    return record


# ---- lists ---------------------------------------------------------------------------------------


def test_a_device(tree: Tree) -> None:
    device = tree.plug(location=0x14A00000, port=17)
    [record] = RegistryDevices().list_all().devices
    assert record == DeviceRecord(
        busid="20-17",
        busnum=20,
        devnum=device.address,
        path="/usb/20-17",
        vendor_id=0x1D6B,
        product_id=record.product_id,
        serial=record.serial,
        device_class=record.device_class,
        speed=Speed.HIGH,
        manufacturer=record.manufacturer,
        product=record.product,
        registry_id=device.registry_id,
    )
    assert None not in (record.serial, record.manufacturer, record.product)


def test_a_list_opens_no_device_and_sends_nothing(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usbipd.usb.hotplug.sys.platform", "darwin")
    device = tree.plug()
    device.requests()
    for _ in range(3):
        assert len(records()) == 1
        assert hotplug._signature() == {device.registry_id}
    assert device.requests() == []
    assert device.counters.get("opens", 0) == 0
    assert device.counters.get("transfers", 0) == 0


def test_a_capture_keeps_the_registry_id_but_a_release_changes_it(tree: Tree) -> None:
    device = tree.plug(drivers={0: "hid"})
    [before] = records()
    claim = Claim(before.busnum, before.devnum, as_on_macos=True)
    claim.take()
    assert device.captured
    descriptor = claim.descriptors.fields
    assert (descriptor["idVendor"], descriptor["idProduct"]) == (before.vendor_id, before.product_id)
    [during] = records()
    assert during == before
    give_back(claim)
    end(claim)
    [after] = records()
    assert (after.busid, after.serial) == (before.busid, before.serial)
    assert after.registry_id != before.registry_id


@pytest.mark.parametrize("has_port_number", [True, False])
def test_a_worker_finds_the_same_devices(tree: Tree, has_port_number: bool) -> None:
    """Bus number, address and ports are libusb's."""
    mac().switch(has_port_number=has_port_number)
    tree.leaks = True  # libusb does not release the parents of a device
    try:
        hub = tree.plug(location=0x14900000, port=17)
        tree.plug(location=0x14910000, port=1, hub=hub)
        deep = tree.plug(location=0x14950000, port=5, hub=hub)
        tree.plug(location=0x14953000, port=3, hub=deep)
        tree.plug(location=0x02100000, port=1)
        found = {(each.busid, each.busnum, each.devnum) for each in records()}
        with usb1.USBContext() as context:
            listed = {
                (
                    f"{each.getBusNumber()}-{'.'.join(str(port) for port in each.getPortNumberList())}",
                    each.getBusNumber(),
                    each.getDeviceAddress(),
                )
                for each in context.getDeviceList()
            }
        assert found == listed
        assert {busid for busid, _, _ in found} == {"20-17", "20-17.1", "20-17.5", "20-17.5.3", "2-1"}
    finally:
        mac().switch(has_port_number=Switches.has_port_number)


def test_the_ports_of_macos_26(tree: Tree) -> None:
    """Older versions of libusb do not support them."""
    mac().switch(has_port_number=False, macos_version="26.1")
    try:
        tree.plug(location=0x01200000, port=2)
        assert [each.busid for each in records()] == ["1-2"]
    finally:
        mac().switch(has_port_number=Switches.has_port_number, macos_version=Switches.macos_version)


def test_devices_that_cannot_be_shared(tree: Tree) -> None:
    tree.add(None, "IOUSBHostDevice", "Root Hub Simulation", locationID=0x14000000, bDeviceClass=9)
    tree.add_device(idVendor=1, idProduct=2, bDeviceClass=0)
    listing = RegistryDevices().list_all()
    assert listing.devices == []
    assert {busid: error.code for busid, error in listing.left_out.items()} == {
        "20-2": "hub",
        "20-2.3": "no-answer",
    }


@pytest.mark.parametrize("lacking", ACCESSIBLE)
def test_a_device_that_lacks_properties(tree: Tree, lacking: str) -> None:
    tree.add_device(**{key: value for key, value in ACCESSIBLE.items() if key != lacking})
    listing = RegistryDevices().list_all()
    assert (listing.devices, listing.left_out[BUSID].code) == ([], "no-answer")


@pytest.mark.rule("speed-numbers", "speed-super-plus")
@pytest.mark.parametrize(
    ("registry", "wire"), [(0, 1), (1, 2), (2, 3), (3, 5), (4, 5), (5, 5), (-1, 2), ("2", 2)]
)
def test_speeds_are_numbered_as_on_the_wire(tree: Tree, registry: object, wire: int) -> None:
    assert add(tree, Device_Speed=registry).speed == wire


def test_an_unknown_speed_is_full_speed(tree: Tree) -> None:
    assert add(tree).speed == Speed.FULL


@pytest.mark.parametrize(
    ("properties", "serial"),
    [
        ({}, None),
        ({"kUSBSerialNumberString": "4C53"}, "4C53"),
        ({"USB_Serial_Number": "4C53"}, "4C53"),
        ({"kUSBSerialNumberString": "new", "USB_Serial_Number": "old"}, "new"),
        ({"kUSBSerialNumberString": "  4C 53 "}, "4C 53"),
        ({"kUSBSerialNumberString": "   "}, None),
        ({"kUSBSerialNumberString": ""}, None),
        ({"kUSBSerialNumberString": "a\x1b[2J\tb\u202e"}, "a\\x1b[2J\\tb\\u202e"),
        ({"kUSBSerialNumberString": 4}, None),
    ],
)
def test_texts_of_devices(tree: Tree, properties: dict[str, Any], serial: str | None) -> None:
    assert add(tree, **properties).serial == serial


def test_each_string_has_a_property(tree: Tree) -> None:
    record = add(tree, kUSBVendorString="V", kUSBProductString="P", kUSBSerialNumberString="S")
    assert (record.manufacturer, record.product, record.serial) == ("V", "P", "S")


def test_the_new_name_of_the_address(tree: Tree) -> None:
    rest = {key: value for key, value in ACCESSIBLE.items() if key != "USB_Address"}
    tree.add_device(**rest, kUSBAddress=9)
    [record] = records()
    assert record.devnum == 9


def test_an_unreadable_registry(tree: Tree) -> None:
    tree.fail("MATCH", NO_DEVICE, times=100)
    with pytest.raises(UsbipdError, match="the IORegistry cannot be read"):
        records()
    tree.fail("MATCH", NO_DEVICE, times=0)


def test_a_replugged_device_is_a_new_one(tree: Tree) -> None:
    device = tree.plug()
    [before] = records()
    device.replug()
    [after] = records()
    assert before.registry_id != after.registry_id
    assert (before.busid, before.serial) == (after.busid, after.serial)


def test_the_devices_of_this_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usbipd.usb.host.sys.platform", "darwin")
    assert isinstance(host_devices(), RegistryDevices)
    assert hotplug.host_listener() is RegistryListener


# ---- hotplug -------------------------------------------------------------------------------------


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hotplug without delays."""
    monkeypatch.setattr("usbipd.usb.hotplug.sys.platform", "darwin")
    monkeypatch.setattr(hotplug, "BURST", 0.0)
    monkeypatch.setattr(hotplug, "LATE", 0.0)
    monkeypatch.setattr(hotplug, "POLL_INTERVAL", 0.0)


def comes_and_goes(device: Callable[[], Device]) -> str | None:
    """Checks that each change is reported, and returns the problem of hotplug."""
    seen: list[list[str]] = []
    watch = Hotplug(lambda: seen.append([each.busid for each in records()]))

    async def test() -> None:
        watch.start()
        await until(lambda: [] in seen)
        plugged = await asyncio.to_thread(device)
        await until(lambda: seen[-1] == ["20-2"])
        await asyncio.to_thread(plugged.unplug)
        await until(lambda: seen[-1] == [])
        await asyncio.to_thread(plugged.replug)
        await until(lambda: seen[-1] == ["20-2"])
        before, seen[:] = records(), []
        await asyncio.to_thread(plugged.replug)
        await until(lambda: seen and records()[0].registry_id != before[0].registry_id)
        await watch.stop()
        await watch.stop()

    asyncio.run(test())
    return watch.problem


@pytest.mark.usefixtures("host")
def test_devices_that_come_and_go(tree: Tree) -> None:
    assert comes_and_goes(tree.plug) is None


@pytest.mark.usefixtures("host")
def test_an_iokit_without_notifications(tree: Tree) -> None:
    tree.fail("SUBSCRIBE", NO_DEVICE)
    problem = comes_and_goes(tree.plug)
    assert problem is not None
    assert problem.startswith(
        "IOKit sends no notifications of USB devices: "
        "IOServiceAddMatchingNotification: kIOReturnNoDevice (0xe00002c0); the list of devices is read every"
    )


def test_no_event_after_close(tree: Tree) -> None:
    calls: list[int] = []
    listener = DeviceListener(lambda: calls.append(os.getpid()))
    listener.close()
    listener.close()
    other: list[int] = []
    later = DeviceListener(lambda: other.append(1))
    tree.plug()
    asyncio.run(until(lambda: other))
    later.close()
    assert calls == []


def test_present_devices_are_not_announced(tree: Tree) -> None:
    tree.plug()
    calls: list[int] = []
    listener = DeviceListener(lambda: calls.append(1))
    listener.close()
    assert calls == []
