"""Listing devices as Linux shows them in sysfs, which is a tree of files here.

A FIFO stands for an attribute that the kernel does not answer: reading it waits until it is written.
"""

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from tests.unit.usb.fake_sysfs import FakeSysfs
from usbipd.errors import UsbipdError
from usbipd.protocol.constants import Speed
from usbipd.simulated.descriptors import configuration_descriptor, interface_descriptor
from usbipd.usb import sysfs_devices
from usbipd.usb.discovery import DeviceRecord
from usbipd.usb.sysfs_descriptors import CLAIMABLE, UNUSABLE
from usbipd.usb.sysfs_devices import SysfsDevices

PATIENCE: Final = 30.0


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path)


@pytest.fixture
def devices(sysfs: FakeSysfs) -> SysfsDevices:
    return SysfsDevices(offer_imported=False, sysfs=sysfs.root)


def plug(sysfs: FakeSysfs, busid: str, *, devnum: int = 7, below: str = "", **attributes: str) -> Path:
    """A device in the state in which the kernel shows it; its directory."""
    directory = sysfs.add_device(busid, devnum, below=below)
    values = {"bDeviceClass": "00", "idVendor": "0781", "idProduct": "5567", "speed": "480"} | attributes
    for name, value in values.items():
        (directory / name).write_text(f"{value}\n")
    return directory


def busids(devices: SysfsDevices) -> list[str]:
    return sorted(device.busid for device in devices.list_all().devices)


def test_a_device_with_its_strings(sysfs: FakeSysfs, devices: SysfsDevices) -> None:
    directory = plug(sysfs, "3-1.4", manufacturer="SanDisk", serial="4C530001")
    sysfs.add_interface("3-1.4", 0, "usb-storage")
    assert devices.list_all().devices == [
        DeviceRecord(
            busid="3-1.4",
            busnum=3,
            devnum=7,
            path=str(directory),
            vendor_id=0x0781,
            product_id=0x5567,
            serial="4C530001",
            device_class=0,
            speed=Speed.HIGH,
            manufacturer="SanDisk",
            product=None,
        )
    ]


def test_hubs_are_left_out(sysfs: FakeSysfs, devices: SysfsDevices) -> None:
    plug(sysfs, "1-1", bDeviceClass="09")
    plug(sysfs, "1-1.2")
    plug(sysfs, "usb1", bDeviceClass="09")
    assert busids(devices) == ["1-1.2"]
    assert devices.list_all().left_out["1-1"].code == "hub"


def describe(directory: Path, number: int, *, total: int | None = None) -> None:
    """The device has one configuration with one interface."""
    device = bytes.fromhex("12 01 00 02 00 00 00 40 81 07 67 55 00 01 00 00 00 01")
    configuration = configuration_descriptor(interface_descriptor(number, 0, 0xFF))
    if total is not None:
        configuration = configuration[:2] + total.to_bytes(2, "little") + configuration[4:]
    (directory / "descriptors").write_bytes(device + configuration)


def test_what_usbfs_cannot_claim_is_left_out_and_remembered(sysfs: FakeSysfs, devices: SysfsDevices) -> None:
    describe(plug(sysfs, "1-1"), CLAIMABLE - 1)
    sysfs.add_interface("1-1", CLAIMABLE - 1, None)
    directory = plug(sysfs, "1-2")
    describe(directory, CLAIMABLE)
    sysfs.add_interface("1-2", CLAIMABLE, None)
    assert busids(devices) == ["1-1"]
    error = devices.list_all().left_out["1-2"]
    assert f"cannot claim interface {CLAIMABLE}, only numbers up to {CLAIMABLE - 1}" in error.message
    assert "usbip-host" in str(error.advice)
    (directory / "descriptors").unlink()
    assert devices.list_all().left_out["1-2"] is error


def test_what_libusb_refuses_is_left_out(sysfs: FakeSysfs, devices: SysfsDevices) -> None:
    describe(plug(sysfs, "1-1"), 0, total=0xFFFF)
    describe(plug(sysfs, "1-2"), 0, total=8)
    assert busids(devices) == ["1-1"]
    assert "claims to be 8 bytes long" in devices.list_all().left_out["1-2"].message


def test_what_has_no_descriptors_is_left_out(sysfs: FakeSysfs, devices: SysfsDevices) -> None:
    (plug(sysfs, "1-1") / "descriptors").write_bytes(b"\x12\x01")
    assert busids(devices) == []
    error = devices.list_all().left_out["1-1"]
    assert (error.code, error.message.partition(":")[0]) == (UNUSABLE, "its descriptors cannot be read")


def test_what_this_host_imported_is_offered_only_on_request(sysfs: FakeSysfs, devices: SysfsDevices) -> None:
    plug(sysfs, "2-1", below="platform/vhci_hcd.0/usb2")
    plug(sysfs, "1-1", below="pci0000:00/usb1")
    assert busids(devices) == ["1-1"]
    error = devices.list_all().left_out["2-1"]
    assert (error.code, "offer_imported = true" in str(error.advice)) == ("imported", True)
    assert busids(SysfsDevices(offer_imported=True, sysfs=sysfs.root)) == ["1-1", "2-1"]


@pytest.mark.rule("speed-numbers", "speed-super-plus")
@pytest.mark.parametrize(
    ("shown", "wire"),
    [("1.5", 1), ("12", 2), ("480", 3), ("5000", 5), ("10000", 5), ("20000", 5), ("unknown", 2)],
)
def test_speeds_are_numbered_as_on_the_wire(
    sysfs: FakeSysfs, devices: SysfsDevices, shown: str, wire: int
) -> None:
    plug(sysfs, "1-1", speed=shown)
    assert devices.list_all().devices[0].speed == wire


def test_a_device_that_vanishes_while_it_is_looked_at(sysfs: FakeSysfs, devices: SysfsDevices) -> None:
    (plug(sysfs, "1-1") / "speed").unlink()
    (plug(sysfs, "1-2") / "idVendor").write_text("")
    (sysfs.root / "bus/usb/devices/1-3").symlink_to(sysfs.root / "devices/1-3")
    plug(sysfs, "1-4")
    assert busids(devices) == ["1-4"]


def test_a_device_that_is_being_reset_is_not_asked(sysfs: FakeSysfs, devices: SysfsDevices) -> None:
    os.mkfifo(plug(sysfs, "1-1", devnum=0) / "serial")
    [device] = devices.list_all().devices
    assert (device.busid, device.devnum) == ("1-1", 0)


def test_a_kernel_without_usb(tmp_path: Path) -> None:
    (tmp_path / "bus").mkdir()
    assert SysfsDevices(offer_imported=False, sysfs=tmp_path).list_all().devices == []


def test_a_host_without_sysfs(tmp_path: Path) -> None:
    with pytest.raises(UsbipdError, match=r"bus/usb/devices: No such file") as caught:
        SysfsDevices(offer_imported=False, sysfs=tmp_path).list_all()
    assert caught.value.advice is not None
    assert "mount -t sysfs" in caught.value.advice


# Devices that are stuck


@pytest.fixture
def late(devices: SysfsDevices, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a device that was left out can be listed."""
    monkeypatch.setattr(sysfs_devices, "ANSWER_TIME", 0.05)
    event = threading.Event()
    devices.notify(event.set)
    return event


def answer(directory: Path, text: str) -> None:
    """What the kernel says in the end."""
    with (directory / "serial").open("w") as fifo:
        fifo.write(text)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "usb-answer"]


def test_a_stuck_device_is_left_out_until_it_answers(
    sysfs: FakeSysfs, devices: SysfsDevices, late: threading.Event
) -> None:
    stuck = plug(sysfs, "1-1")
    os.mkfifo(stuck / "serial")
    plug(sysfs, "1-2", serial="S2")
    for _ in range(5):
        listing = devices.list_all()
        assert [device.busid for device in listing.devices] == ["1-2"]
        assert listing.unanswered is not None
        assert "does not answer about 1-1" in listing.unanswered
        assert listing.left_out["1-1"].code == "no-answer"
        assert len(readers()) == 1, "one thread, however many ask"
    assert not late.is_set()
    answer(stuck, "S1\n")
    assert late.wait(PATIENCE)
    listing = devices.list_all()
    assert sorted((device.busid, device.serial) for device in listing.devices) == [
        ("1-1", "S1"),
        ("1-2", "S2"),
    ]
    assert (listing.unanswered, listing.left_out) == (None, {})


def test_a_known_device_that_gets_stuck_is_listed(
    sysfs: FakeSysfs, devices: SysfsDevices, late: threading.Event
) -> None:
    directory = plug(sysfs, "1-1", serial="S1")
    first = devices.list_all()
    (directory / "serial").unlink()
    os.mkfifo(directory / "serial")
    assert devices.list_all() == first


def test_another_device_at_the_port_is_read_again(sysfs: FakeSysfs, devices: SysfsDevices) -> None:
    directory = plug(sysfs, "1-1", serial="S1")
    assert devices.list_all().devices[0].serial == "S1"
    (directory / "serial").write_text("S2\n")
    (directory / "devnum").write_text("8\n")
    assert devices.list_all().devices[0].serial == "S2"


def test_a_late_answer_about_the_device_before_this_one(
    sysfs: FakeSysfs, devices: SysfsDevices, late: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes when the strings of this one have been read, and before they are looked at."""
    directory = plug(sysfs, "1-1", devnum=7)
    fifo = directory / "serial"
    os.mkfifo(fifo)
    assert busids(devices) == []
    [of_old] = readers()
    fifo.rename(directory / "fifo")
    (directory / "serial").write_text("new\n")
    (directory / "devnum").write_text("8\n")
    join = threading.Thread.join

    def old_answers_first(self: threading.Thread, timeout: float | None = None) -> None:
        monkeypatch.undo()
        join(self, PATIENCE)
        (directory / "fifo").write_text("old\n")
        join(of_old, PATIENCE)

    monkeypatch.setattr(threading.Thread, "join", old_answers_first)
    devices.list_all()
    assert late.wait(PATIENCE), "they are to be listed again"
    assert [device.serial for device in devices.list_all().devices] == ["new"]


def test_many_stuck_devices_cost_few_threads(
    sysfs: FakeSysfs, devices: SysfsDevices, late: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysfs_devices, "MOST_WAITING", 2)
    stuck = [plug(sysfs, f"1-{port}") for port in range(1, 6)]
    for directory in stuck:
        os.mkfifo(directory / "serial")
    listing = devices.list_all()
    assert (len(listing.left_out), len(readers())) == (5, 2)
    for directory in stuck:
        (directory / "serial").rename(directory / "fifo")
        (directory / "serial").write_text("S\n")
        with suppress(OSError):  # no thread reads it
            os.close(os.open(directory / "fifo", os.O_WRONLY | os.O_NONBLOCK))
    for thread in readers():
        thread.join(PATIENCE)
    assert late.is_set()
    assert len(devices.list_all().devices) == 5
