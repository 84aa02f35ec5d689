"""Holders of a Mac's device, and reattaching its drivers.

test_registry.py runs it, in a separate process, on an IORegistry built by the test.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.mac.kernel.switches import Switches
from tests.mac.mac import Device
from tests.mac.rig import mac
from tests.mac.tree import BUSID, Tree
from usbipd.cli import bug_report
from usbipd.errors import ClaimError
from usbipd.usb import ioregistry
from usbipd.usb.ioregistry import IORegistryOwnership
from usbipd.usb.ownership import Holder

COMPOSITE = "AppleUSBHostCompositeDevice"
CLIENT = "AppleUSBHostFrameworkInterfaceClient"
NOT_PERMITTED = 0xE00002E2


@pytest.fixture
def ownership(tree: Tree) -> IORegistryOwnership:
    return IORegistryOwnership()


# ---- holders -------------------------------------------------------------------------------------


def test_a_driver_and_a_program_on_several_interfaces(tree: Tree, ownership: IORegistryOwnership) -> None:
    device = tree.add_device("Headset")
    tree.add(device, COMPOSITE)
    tree.add(device, "AppleUSBHostLegacyClient")
    hid = tree.add_interface(device, 0, UsbExclusiveOwner="AppleUserUSBHostHIDDevice")
    tree.add(tree.add(hid, "AppleUserUSBHostHIDDevice"), "IOHIDInterface")
    audio = tree.add_interface(device, 3, UsbExclusiveOwner="pid 412, usbaudiod")
    tree.add(audio, "AppleUSBAudioControlNub")
    tree.add(audio, CLIENT, "usbaudiod", IOUserClientCreator="pid 412, usbaudiod")
    tree.add_interface(device, 4, UsbExclusiveOwner="none")
    assert ownership.holders_of(BUSID) == [
        Holder("driver", "AppleUserUSBHostHIDDevice", None, 0),
        Holder("program", "usbaudiod", 412, 3),
        Holder("driver", "AppleUSBAudioControlNub", None, 3),
    ]
    assert ownership.drivers_of(BUSID) == ["AppleUserUSBHostHIDDevice", "AppleUSBAudioControlNub"]


def test_programs_that_opened_it_precede_connected_ones(tree: Tree, ownership: IORegistryOwnership) -> None:
    device = tree.add_device("Phone", UsbExclusiveOwner="pid 80418, OpenMTP Helper (")
    tree.add(device, "AppleUSBHostDeviceUserClient", IOUserClientCreator="pid 233, Brave, the Browser")
    mtp = tree.add_interface(device, 0, UsbExclusiveOwner="pid 46502, ptpcamerad")
    tree.add(mtp, CLIENT, IOUserClientCreator="pid 46502, ptpcamerad")
    assert ownership.holders_of(BUSID) == [
        Holder("program", "OpenMTP Helper (", 80418, None),
        Holder("program", "ptpcamerad", 46502, 0),
        Holder("program", "Brave, the Browser", 233, None),
    ]
    assert ownership.drivers_of(BUSID) == []


def test_a_driver_of_the_whole_device(tree: Tree, ownership: IORegistryOwnership) -> None:
    device = tree.add_device("ST-Link", UsbExclusiveOwner="AppleUSBCDCCompositeDevice")
    driver = tree.add(device, "AppleUSBCDCCompositeDevice")
    tree.add(driver, "SomethingOfTheDriver", IOUserClientCreator="pid 1, launchd")
    assert ownership.holders_of(BUSID) == [Holder("driver", "AppleUSBCDCCompositeDevice", None, None)]
    assert ownership.drivers_of(BUSID) == ["AppleUSBCDCCompositeDevice"]


def test_clients_of_a_driver_do_not_hold_the_device(tree: Tree, ownership: IORegistryOwnership) -> None:
    device = tree.add_device()
    driver = tree.add(tree.add_interface(device, 0), "AppleUSBACMData", UsbExclusiveOwner="x")
    tree.add(driver, "IOHIDLibUserClient", IOUserClientCreator="pid 170, WindowServer")
    assert ownership.holders_of(BUSID) == [Holder("driver", "AppleUSBACMData", None, 0)]


def test_a_driver_outside_the_kernel_has_its_own_name(tree: Tree, ownership: IORegistryOwnership) -> None:
    device = tree.add_device()
    tree.add(tree.add_interface(device, 0), "IOUserService", "FTDI\x1b[31m\nSerial")
    assert ownership.drivers_of(BUSID) == [r"FTDI\x1b[31m\nSerial"]


def test_internal_entries_hold_nothing(tree: Tree, ownership: IORegistryOwnership) -> None:
    tree.add(tree.add_device(UsbExclusiveOwner=COMPOSITE), COMPOSITE)
    assert ownership.holders_of(BUSID) == []
    assert ownership.drivers_of(BUSID) == []


def test_this_process_is_not_a_holder(tree: Tree, ownership: IORegistryOwnership) -> None:
    device = tree.add_device()
    ours = f"pid {os.getpid()}, usbipd"
    tree.add(device, "AppleUSBHostDeviceUserClient", IOUserClientCreator=ours)
    tree.add_interface(device, 0, UsbExclusiveOwner=ours)
    assert ownership.holders_of(BUSID) == []


@pytest.mark.parametrize("text", ["pid 12", "pid x, y", "12, y", "pid -1, y"])
def test_an_owner_that_is_not_a_program(tree: Tree, ownership: IORegistryOwnership, text: str) -> None:
    tree.add_device(UsbExclusiveOwner=text)
    assert ownership.holders_of(BUSID) == [Holder("driver", text, None, None)]


def test_no_such_device(tree: Tree, ownership: IORegistryOwnership) -> None:
    tree.add(None, "IOUSBHostDevice", locationID=0x14100000, PortNum=1, UsbExclusiveOwner="pid 1, other")
    assert ownership.holders_of(BUSID) == []
    assert ownership.drivers_of(BUSID) == []
    for ask in (ownership.in_use, ownership.unmount):
        with pytest.raises(
            ClaimError, match=r"cannot tell whether 20-2\.3 is in use: the IORegistry"
        ) as caught:
            ask(BUSID)
        assert caught.value.code == "in-use"
        assert caught.value.advice is not None
    ownership.give_back(BUSID)


def test_an_unreadable_registry_names_no_holder(
    tree: Tree, ownership: IORegistryOwnership, caplog: pytest.LogCaptureFixture
) -> None:
    tree.add_device(UsbExclusiveOwner="pid 1, other")
    tree.keep_changing()
    assert ownership.holders_of(BUSID) == []
    assert ownership.drivers_of(BUSID) == []
    assert "20-2.3: the IORegistry cannot be read: it keeps changing" in caplog.text


def test_the_registry_in_a_report(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tree.add_device("Stick", UsbExclusiveOwner="pid 7, usbipd")
    interface = tree.add_interface(device, 0, bInterfaceClass=8)
    tree.add(interface, "IOMedia", "Medium", BSD_Name="disk4")
    monkeypatch.setattr("usbipd.cli.bug_report.sys.platform", "darwin")
    entries = bug_report.registry_below(BUSID)
    assert entries is not None
    assert [(each.depth, each.class_name, each.name) for each in entries] == [
        (0, "IOUSBHostDevice", "Stick"),
        (1, "IOUSBHostInterface", "IOUSBHostInterface"),
        (2, "IOMedia", "Medium"),
    ]
    assert [each.owner for each in entries] == ["pid 7, usbipd", None, None]
    assert [each.interface for each in entries] == [None, 0, None]
    assert [each.bsd_name for each in entries] == [None, None, "disk4"]
    assert [each.registry_id for each in entries][:2] == [device, interface]
    assert bug_report.registry_below("20-9") == []
    assert (bug_report.interface_classes(BUSID), bug_report.interface_classes("20-9")) == ([8], [])


# ---- a device whose worker was killed ------------------------------------------------------------

HELD = "20-2"
HOLD = """
import sys
from usbipd._claim import Claim
claim = Claim(int(sys.argv[1]), int(sys.argv[2]), as_on_macos=True)
claim.take()
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(device: Device) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds a capture of the device."""
    command = [sys.executable, "-c", HOLD, *(str(number) for number in device.busid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture
def switch() -> Iterator[None]:
    """Restores the kernel's switches after the test."""
    yield
    mac().switch(**vars(Switches()))


KERNELS = [
    {},
    {"capture_unconfigures": False},
    {"reenumeration_changes_address": False, "has_port_number": False},
    {"plain_reenumeration_ends_capture": False},
    {"reenumeration_seconds": 0.3, "driver_seconds": 0.1},
]


@pytest.mark.usefixtures("switch")
@pytest.mark.parametrize("values", KERNELS, ids=str)
def test_a_capture_that_outlives_its_process_is_released(
    tree: Tree, ownership: IORegistryOwnership, values: dict[str, Any]
) -> None:
    mac().switch(capture_survives_owner=True, **values)
    device = tree.plug(drivers={0: "hid"})
    device.until("drivers", [0])
    session, registry_id = device.session, device.registry_id
    with held(device) as process:
        assert ownership.drivers_of(HELD) == []
        [holder, *_] = ownership.holders_of(HELD)
        assert (holder.kind, holder.pid) == ("program", process.pid)
        kill(process)
    device.until("captor", 0)
    assert device.captured
    assert device.registry_id == registry_id
    ownership.give_back(HELD)
    assert device.present
    assert not device.captured
    assert (device.session != session, device.registry_id != registry_id) == (True, True)
    device.until("drivers", [0])
    assert ownership.drivers_of(HELD) == ["AppleUserUSBHostHIDDevice"]
    ownership.give_back(HELD)
    assert device.counters["reenumerations"] == 1


@pytest.mark.usefixtures("switch")
def test_a_device_being_enumerated_is_left_alone(tree: Tree, ownership: IORegistryOwnership) -> None:
    mac().switch(capture_survives_owner=False, reenumeration_seconds=0.3)
    device = tree.plug(drivers={0: "hid"})
    with held(device) as process:
        kill(process)
    mac().call("until_journal", f"left {device.location:08x}")
    ownership.give_back(HELD)
    device.until("drivers", [0])
    assert device.counters["reenumerations"] == 1


def test_a_device_held_by_a_process_is_left_alone(tree: Tree, ownership: IORegistryOwnership) -> None:
    device = tree.plug(drivers={0: "hid"})
    registry_id = device.registry_id
    with held(device):
        ownership.give_back(HELD)
        assert device.captured
        assert device.registry_id == registry_id


def test_a_device_held_by_drivers_is_left_alone(tree: Tree, ownership: IORegistryOwnership) -> None:
    device = tree.plug(drivers={0: "hid"})
    ownership.give_back(HELD)
    assert device.counters.get("reenumerations", 0) == 0


def test_without_root_nothing_is_done(tree: Tree, ownership: IORegistryOwnership) -> None:
    device = tree.plug()
    os.seteuid(65534)
    try:
        ownership.give_back(HELD)
    finally:
        os.seteuid(0)
    assert device.counters.get("reenumerations", 0) == 0


def test_a_temporary_refusal_is_retried(tree: Tree, ownership: IORegistryOwnership) -> None:
    device = tree.plug()
    tree.fail("DEVICE_OPEN", NOT_PERMITTED, times=3)
    ownership.give_back(HELD)
    assert device.counters["reenumerations"] == 1


def test_a_permanent_refusal(
    tree: Tree, ownership: IORegistryOwnership, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.plug()
    tree.fail("RE_ENUMERATE", NOT_PERMITTED, times=1000)
    monkeypatch.setattr(ioregistry, "REFUSAL_TIME", 0.0)
    monkeypatch.setattr(ioregistry, "LOOK_INTERVAL", 0.0)
    with pytest.raises(ClaimError) as caught:
        ownership.give_back(HELD)
    tree.fail("RE_ENUMERATE", NOT_PERMITTED, times=0)
    assert caught.value.message == (
        "the drivers of 20-2 could not be reattached: "
        "USBDeviceReEnumerate: kIOReturnNotPermitted (0xe00002e2)"
    )
    assert (caught.value.code, caught.value.advice) == ("not-released", "plug the device in again")


@pytest.mark.usefixtures("switch")
def test_a_device_that_does_not_come_back(
    tree: Tree, ownership: IORegistryOwnership, monkeypatch: pytest.MonkeyPatch
) -> None:
    mac().switch(reenumeration_seconds=600.0)
    tree.plug()
    monkeypatch.setattr(ioregistry, "RETURN_TIME", 0.0)
    with pytest.raises(ClaimError, match="could not be reattached: it has not come back within 0 s"):
        ownership.give_back(HELD)
