"""The compiled view of the IORegistry, on an IOKit that the test makes."""

import errno
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.fake_iokit.registry import FakeRegistry, load, needs_fake
from usbipd.errors import UsbipdError

pytestmark = needs_fake

LOCATION = 0x14230000
EXCLUSIVE_ACCESS = 0xE00002C5
NO_DEVICE = 0xE00002C0


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    registry = FakeRegistry(load())
    yield registry
    registry.assert_balanced()


@pytest.fixture
def iokit(registry: FakeRegistry) -> ModuleType:
    from usbipd import _iokit

    return _iokit


def shown(entries: list) -> list[tuple[int, str, str]]:
    return [(entry.depth, entry.class_name, entry.name) for entry in entries]


def test_the_device_and_what_is_below_it_depth_first(registry: FakeRegistry, iokit: ModuleType) -> None:
    registry.add_device(0x14100000, "Another")
    device = registry.add_device(LOCATION, "Keyboard")
    first = registry.add_interface(device, 0)
    second = registry.add_interface(device, 1)
    registry.add(first, "AppleUserUSBHostHIDDevice")
    registry.add(second, "IOUserService", "VendorDriver")
    assert shown(iokit.entries_below(LOCATION, ())) == [
        (0, "IOUSBHostDevice", "Keyboard"),
        (1, "IOUSBHostInterface", "IOUSBHostInterface"),
        (2, "AppleUserUSBHostHIDDevice", "AppleUserUSBHostHIDDevice"),
        (1, "IOUSBHostInterface", "IOUSBHostInterface"),
        (2, "IOUserService", "VendorDriver"),
    ]


def test_a_device_that_is_not_there_has_no_entries(registry: FakeRegistry, iokit: ModuleType) -> None:
    registry.add_device(0x14100000)
    registry.add(None, "IOUSBHostDevice", "without a location")
    assert iokit.entries_below(LOCATION, ()) == []


def test_the_class_of_old_systems(registry: FakeRegistry, iokit: ModuleType) -> None:
    registry.add(None, "IOUSBDevice", "Old", locationID=LOCATION)
    assert shown(iokit.entries_below(LOCATION, ())) == [(0, "IOUSBDevice", "Old")]


def test_a_location_that_comes_back_negative(registry: FakeRegistry, iokit: ModuleType) -> None:
    registry.add_device(0x80500000 - (1 << 32), "Keyboard of a MacBook")
    assert len(iokit.entries_below(0x80500000, ())) == 1


def test_properties_that_were_asked_for(registry: FakeRegistry, iokit: ModuleType) -> None:
    registry.add_device(LOCATION, bInterfaceNumber=3, UsbExclusiveOwner="AppleUSBACMControl", kUSBString="no")
    [entry] = iokit.entries_below(LOCATION, ("UsbExclusiveOwner", "bInterfaceNumber", "BSD Name"))
    assert entry.properties == {"UsbExclusiveOwner": "AppleUSBACMControl", "bInterfaceNumber": 3}


def test_a_property_of_another_type_is_left_out(registry: FakeRegistry, iokit: ModuleType) -> None:
    registry.add_device(LOCATION, odd=None)
    [entry] = iokit.entries_below(LOCATION, ("odd",))
    assert entry.properties == {}


def test_texts_that_are_not_utf_8(registry: FakeRegistry, iokit: ModuleType) -> None:
    registry.add_device(LOCATION, b"St\xfcck", BSD_Name=b"\xff\xfe")
    [entry] = iokit.entries_below(LOCATION, ("BSD Name",))
    assert (entry.name, entry.properties) == (r"St\xfcck", {"BSD Name": r"\xff\xfe"})


@pytest.mark.parametrize("text", ["", "x" * 511, "x" * 512, "x" * 900, "y" + "ü" * 300])
def test_a_long_property_is_cut_off(registry: FakeRegistry, iokit: ModuleType, text: str) -> None:
    registry.add_device(LOCATION, text=text)
    [entry] = iokit.entries_below(LOCATION, ("text",))
    expected = text.encode()[:512].decode(errors="backslashreplace")
    assert entry.properties == {"text": expected}


def test_a_device_that_comes_again_has_another_registry_id(registry: FakeRegistry, iokit: ModuleType) -> None:
    first = registry.add_device(LOCATION)
    [before] = iokit.entries_below(LOCATION, ())
    registry.remove(first)
    registry.add_device(LOCATION)
    [after] = iokit.entries_below(LOCATION, ())
    assert before.registry_id >= 1 << 32
    assert before.registry_id != after.registry_id


# ---- the device goes while it is looked at -------------------------------------------------------


def add_composite(registry: FakeRegistry) -> int:
    device = registry.add_device(LOCATION)
    for number in range(3):
        interface = registry.add_interface(device, number)
        registry.add(registry.add(interface, "Driver"), "Client")
    return device


def test_removed_at_any_step_of_the_walk(registry: FakeRegistry, iokit: ModuleType) -> None:
    add_composite(registry)
    before = registry.steps
    complete = iokit.entries_below(LOCATION, ())
    steps = registry.steps - before
    assert len(complete) == 10
    for step in range(1, steps + 1):
        registry = FakeRegistry(load())
        registry.remove_before(step, add_composite(registry))
        # what was in hand already may still be told of
        assert all(entry in complete for entry in iokit.entries_below(LOCATION, ()))
        assert iokit.entries_below(LOCATION, ()) == []
        registry.assert_balanced()


def test_an_interface_that_goes_is_not_there(registry: FakeRegistry, iokit: ModuleType) -> None:
    device = registry.add_device(LOCATION)
    registry.add_interface(device, 0)
    gone = registry.add_interface(device, 1)
    registry.remove_before(4, gone)  # between the two interfaces
    assert len(iokit.entries_below(LOCATION, ())) == 2


def test_a_tree_that_never_stands_still(registry: FakeRegistry, iokit: ModuleType) -> None:
    registry.add_device(LOCATION)
    registry.keep_changing()
    with pytest.raises(UsbipdError, match="the IORegistry cannot be read: it keeps changing") as caught:
        iokit.entries_below(LOCATION, ())
    assert caught.value.code == "iokit"


# ---- errors --------------------------------------------------------------------------------------

CALLS = [
    "IOServiceGetMatchingServices",
    "IOObjectGetClass",
    "IORegistryEntryGetName",
    "IORegistryEntryGetRegistryEntryID",
    "IORegistryEntryGetChildIterator",
]


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_fails_once_is_tried_again(registry: FakeRegistry, iokit: ModuleType, call: str) -> None:
    add_composite(registry)
    registry.fail(call, NO_DEVICE)
    assert len(iokit.entries_below(LOCATION, ("BSD Name",))) == 10


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_keeps_failing_is_named(registry: FakeRegistry, iokit: ModuleType, call: str) -> None:
    add_composite(registry)
    registry.fail(call, EXCLUSIVE_ACCESS, times=iokit.ATTEMPTS)
    with pytest.raises(UsbipdError) as caught:
        iokit.entries_below(LOCATION, ("BSD Name",))
    reason = f"{call}: kIOReturnExclusiveAccess (0xe00002c5)"
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
    load()
    from usbipd._iokit import error_name

    assert error_name(code) == name
