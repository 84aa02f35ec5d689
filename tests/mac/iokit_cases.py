"""The compiled view of the IORegistry.  test_registry.py runs it, in a separate process."""

import errno
from collections.abc import Callable
from typing import Any

import pytest

from tests.mac.rig import mac
from tests.mac.tree import LOCATION, Tree
from usbipd._iokit import (
    ATTEMPTS,
    DeviceListener,
    Entry,
    entries_below,
    error_name,
    reenumerate,
    usb_devices,
)
from usbipd.errors import UsbipdError

EXCLUSIVE_ACCESS = 0xE00002C5
NO_DEVICE = 0xE00002C0


def shown(entries: list[Entry]) -> list[tuple[int, str, str]]:
    return [(entry.depth, entry.class_name, entry.name) for entry in entries]


# ---- devices -------------------------------------------------------------------------------------


def test_the_ports_of_a_device(tree: Tree) -> None:
    device = tree.add_device(idVendor=0x1234, idProduct="text", other=7)
    hub = tree.add_hub()
    found = {each.registry_id: each for each in usb_devices(("idVendor", "idProduct", "serial"))}
    assert found[device][1:] == (LOCATION, [2, 3], {"idVendor": 0x1234, "idProduct": "text"})
    assert found[hub].ports == [2]


@pytest.mark.parametrize(
    ("properties", "port"),
    [
        ({"PortNum": 17}, 17),
        ({"port": bytes([17, 0, 0, 0])}, 17),
        ({"usb-port-number": bytes([17, 0, 0, 0])}, 17),
        ({"usb-port-number": bytes([1])}, 1),
        ({"port": 4}, 4),
    ],
)
def test_properties_with_the_port_number(tree: Tree, properties: dict[str, Any], port: int) -> None:
    """Port 17 of an Intel Mac, whose locationID has the nibble a."""
    own = {key: value for key, value in properties.items() if key == "PortNum"}
    above = {key: value for key, value in properties.items() if key != "PortNum"}
    place = tree.add(None, "AppleUSB30XHCIPort", **above)
    tree.add(place, "IOUSBHostDevice", locationID=0x14A00000, **own)
    [device] = usb_devices(())
    assert (device.location, device.ports) == (0x14A00000, [port])


@pytest.mark.parametrize("properties", [{}, {"PortNum": 0}, {"PortNum": "2"}])
def test_a_device_without_a_connection(tree: Tree, properties: dict[str, Any]) -> None:
    tree.add(None, "AppleUSBRootHubDevice")
    tree.add(None, "IOUSBHostDevice", "Root Hub Simulation", locationID=0x14000000, **properties)
    [device] = usb_devices(())
    assert device.ports == []


def test_devices_of_the_old_class_only_and_of_both(tree: Tree) -> None:
    old = tree.add(None, "IOUSBDevice", "Phone", locationID=0x14100000, PortNum=1)
    both = tree.add(None, "IOUSBHostDevice", "Stick", locationID=0x14200000, PortNum=2)
    tree.add(None, "IOUSBDevice", "the same stick", locationID=0x14200000, PortNum=2)
    assert {each.registry_id for each in usb_devices(())} == {old, both}


def test_a_negative_location(tree: Tree) -> None:
    tree.add(None, "IOUSBHostDevice", locationID=0x80500000 - (1 << 32), PortNum=5)
    [device] = usb_devices(())
    assert device.location == 0x80500000


def test_an_entry_without_a_location_is_not_a_device(tree: Tree) -> None:
    tree.add(None, "IOUSBHostDevice", "without a location")
    assert usb_devices(()) == []


# ---- entries below a device ----------------------------------------------------------------------


def test_the_device_and_its_descendants_depth_first(tree: Tree) -> None:
    tree.add(tree.add_hub(), "IOUSBHostDevice", "Another", locationID=0x14210000)
    device = tree.add_device("Keyboard")
    first = tree.add_interface(device, 0)
    second = tree.add_interface(device, 1)
    tree.add(first, "AppleUserUSBHostHIDDevice")
    tree.add(second, "IOUserService", "VendorDriver")
    assert shown(entries_below(device, ())) == [
        (0, "IOUSBHostDevice", "Keyboard"),
        (1, "IOUSBHostInterface", "IOUSBHostInterface"),
        (2, "AppleUserUSBHostHIDDevice", "AppleUserUSBHostHIDDevice"),
        (1, "IOUSBHostInterface", "IOUSBHostInterface"),
        (2, "IOUserService", "VendorDriver"),
    ]


def test_a_missing_device_has_no_entries(tree: Tree) -> None:
    device = tree.add_device()
    interface = tree.add_interface(device, 0)
    assert entries_below(interface, ()) == []
    tree.remove(device)
    assert entries_below(device, ()) == []


def test_requested_properties(tree: Tree) -> None:
    device = tree.add_device(bInterfaceNumber=3, UsbExclusiveOwner="AppleUSBACMControl", kUSBString="no")
    [entry] = entries_below(device, ("UsbExclusiveOwner", "bInterfaceNumber", "BSD Name"))
    assert entry.properties == {"UsbExclusiveOwner": "AppleUSBACMControl", "bInterfaceNumber": 3}


def test_a_property_of_another_type_is_omitted(tree: Tree) -> None:
    device = tree.add_device(signature=bytes(9))
    [entry] = entries_below(device, ("signature",))
    assert entry.properties == {}


def test_a_name_that_is_not_utf_8(tree: Tree) -> None:
    device = tree.add_device("St\udcfcck")
    [entry] = entries_below(device, ())
    assert entry.name == r"St\xfcck"


@pytest.mark.parametrize("text", ["", "x" * 511, "x" * 512, "x" * 900, "y" + "ü" * 300])
def test_a_long_property_is_truncated(tree: Tree, text: str) -> None:
    device = tree.add_device(text=text)
    [entry] = entries_below(device, ("text",))
    expected = text.encode()[:512].decode(errors="ignore")
    assert entry.properties == {"text": expected}


# ---- the device is removed while it is read ------------------------------------------------------


def add_composite(tree: Tree) -> int:
    device = tree.add_device()
    for number in range(3):
        interface = tree.add_interface(device, number)
        tree.add(tree.add(interface, "Driver"), "Client")
    return device


@pytest.mark.parametrize(
    "read", [lambda device: entries_below(device, ()), lambda device: usb_devices(())], ids=["below", "all"]
)
def test_removed_at_any_step(tree: Tree, read: Callable[[int], list[object]]) -> None:
    device = add_composite(tree)
    before = tree.steps
    complete = read(device)
    steps = tree.steps - before
    for step in range(1, steps + 1):
        tree.remove_before(step, device)
        found = read(device)
        assert len(found) <= len(complete)  # entries found earlier may still be listed
        left = read(device)
        assert left == [each for each in found if each in left]
        device = add_composite(tree)
    assert steps > 5
    assert len(read(device)) == len(complete)


def test_a_removed_interface_is_not_listed(tree: Tree) -> None:
    device = tree.add_device()
    tree.add_interface(device, 0)
    gone = tree.add_interface(device, 1)
    before = tree.steps
    assert len(entries_below(device, ())) == 3
    tree.remove_before(tree.steps - before - 2, gone)  # between the two interfaces
    assert len(entries_below(device, ())) == 2


def test_a_tree_that_keeps_changing(tree: Tree) -> None:
    device = tree.add_device()
    tree.keep_changing()
    for read in (lambda: entries_below(device, ()), lambda: usb_devices(())):
        with pytest.raises(UsbipdError, match="the IORegistry cannot be read: it keeps changing") as caught:
            read()
        assert caught.value.code == "iokit"


# ---- errors --------------------------------------------------------------------------------------

CALLS = {
    "MATCH": "IOServiceGetMatchingServices",
    "DESCRIBE": "IORegistryEntryGetRegistryEntryID",
    "CHILDREN": "IORegistryEntryGetChildIterator",
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_fails_once_is_retried(tree: Tree, call: str) -> None:
    device = add_composite(tree)
    tree.fail(call, NO_DEVICE)
    assert len(entries_below(device, ("BSD Name",))) == 10


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_keeps_failing_is_named(tree: Tree, call: str) -> None:
    device = add_composite(tree)
    tree.fail(call, EXCLUSIVE_ACCESS, times=ATTEMPTS)
    with pytest.raises(UsbipdError) as caught:
        entries_below(device, ("BSD Name",))
    reason = f"{CALLS[call]}: kIOReturnExclusiveAccess (0xe00002c5)"
    assert (caught.value.message, caught.value.code) == (f"the IORegistry cannot be read: {reason}", "iokit")


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (0xE00002BC, "kIOReturnError (0xe00002bc)"),
        (EXCLUSIVE_ACCESS, "kIOReturnExclusiveAccess (0xe00002c5)"),
        (EXCLUSIVE_ACCESS - (1 << 32), "kIOReturnExclusiveAccess (0xe00002c5)"),
        (0xE00002CD, "kIOReturnNotOpen (0xe00002cd)"),
        (0xE00002D5, "kIOReturnBusy (0xe00002d5)"),
        (0xE00002D9, "kIOReturnNotAttached (0xe00002d9)"),
        (0xE00002E2, "kIOReturnNotPermitted (0xe00002e2)"),
        (0xE00002EB, "kIOReturnAborted (0xe00002eb)"),
        (0xE00002ED, "kIOReturnNotResponding (0xe00002ed)"),
        (0xE00002F0, "kIOReturnNotFound (0xe00002f0)"),
        (0xE00002CB, "0xe00002cb"),
        (0xE00002DC, "0xe00002dc"),
        (0x10000003, "0x10000003"),
        (errno.EBUSY, "0x00000010"),
    ],
)
def test_errors_by_name(code: int, name: str) -> None:
    assert error_name(code) == name


# ---- a device is enumerated again ----------------------------------------------------------------


def test_a_device_is_enumerated_again(tree: Tree) -> None:
    device = tree.plug(drivers={0: "hid"})
    session, registry_id = device.session, device.registry_id
    reenumerate(registry_id)
    device.until("drivers", [0])
    assert (device.session != session, device.registry_id != registry_id) == (True, True)
    assert device.counters["reenumerations"] == 1
    assert device.opener == 0


def test_a_missing_device_is_not_enumerated(tree: Tree) -> None:
    with pytest.raises(UsbipdError, match="the device does not exist") as caught:
        reenumerate(4711)
    assert caught.value.code == "iokit"


@pytest.mark.parametrize(
    ("call", "name"), [("DEVICE_OPEN", "USBDeviceReEnumerate"), ("RE_ENUMERATE", "USBDeviceReEnumerate")]
)
def test_a_refusal_is_named(tree: Tree, call: str, name: str) -> None:
    device = tree.plug()
    session = device.session
    tree.fail(call, EXCLUSIVE_ACCESS)
    with pytest.raises(UsbipdError) as caught:
        reenumerate(device.registry_id)
    assert caught.value.message == f"{name}: kIOReturnExclusiveAccess (0xe00002c5)"
    assert (device.session, device.opener) == (session, 0)


# ---- devices come and go -------------------------------------------------------------------------


def test_a_listener_that_cannot_be_created_holds_nothing(tree: Tree) -> None:
    tree.fail("SUBSCRIBE", NO_DEVICE)
    with pytest.raises(UsbipdError, match="IOServiceAddMatchingNotification: kIOReturnNoDevice") as caught:
        DeviceListener(print)
    assert caught.value.code == "iokit"


def test_a_dropped_listener_is_closed(tree: Tree) -> None:
    del (listener := [DeviceListener(print)])[:]
    assert listener == []
    assert mac().call("problems") == []
