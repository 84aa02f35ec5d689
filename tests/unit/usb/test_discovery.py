"""Listing devices: the simulated ones, and the real ones as libusb and sysfs show them."""

import asyncio
from pathlib import Path

import pytest
import usb1

from usbipd.errors import UsbipdError
from usbipd.extension.simulation import SimulatedBus
from usbipd.protocol.constants import Speed
from usbipd.simulated.catalog import parse_simulate
from usbipd.usb import discovery
from usbipd.usb.discovery import DeviceDiscovery, DeviceRecord


class FakeDevice:
    """As much of `usb1.USBDevice` as discovery asks for."""

    def __init__(self, bus: int, ports: list[int], *, device_class: int = 0, speed: int = 3) -> None:
        self.getBusNumber = lambda: bus
        self.getPortNumberList = lambda: ports
        self.getDeviceAddress = lambda: 7
        self.getDeviceClass = lambda: device_class
        self.getDeviceSpeed = lambda: speed
        self.getVendorID = lambda: 0x0781
        self.getProductID = lambda: 0x5567
        self.getbcdDevice = lambda: 0x0100
        self.getManufacturerDescriptor = self.getProductDescriptor = lambda: 0
        self.getManufacturer = self.getProduct = lambda: None
        self.getSerialNumberDescriptor = lambda: 3
        self.asked = 0

    def getSerialNumber(self) -> str:  # noqa: N802
        self.asked += 1
        return "4C530001"


class FakeContext:
    """Stands for libusb: there is no USB hardware where tests run."""

    devices: list[FakeDevice]

    def __enter__(self) -> "FakeContext":
        return self

    def __exit__(self, *_error: object) -> None: ...

    def getDeviceList(self, *, skip_on_error: bool) -> list[FakeDevice]:  # noqa: N802
        assert skip_on_error
        return self.devices


def listed(
    monkeypatch: pytest.MonkeyPatch, *devices: FakeDevice, source: DeviceDiscovery | None = None
) -> list[DeviceRecord]:
    monkeypatch.setattr(FakeContext, "devices", list(devices), raising=False)
    monkeypatch.setattr(usb1, "USBContext", FakeContext)
    return asyncio.run((source or DeviceDiscovery()).list_devices())


def test_a_device_that_is_being_reset_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = FakeDevice(3, [1])
    addresses = [0, 0]
    device.getDeviceAddress = lambda: addresses.pop() if addresses else 7
    monkeypatch.setattr(discovery, "SYSFS_DEVICES", tmp_path)
    monkeypatch.setattr(discovery.sys, "platform", "linux")
    (tmp_path / "3-1").mkdir()
    assert [(found.busid, found.devnum) for found in listed(monkeypatch, device)] == [("3-1", 7)]


def test_a_device_that_never_gets_an_address_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    lost, other = FakeDevice(3, [1]), FakeDevice(3, [2])
    lost.getDeviceAddress = lambda: 0
    monkeypatch.setattr(discovery, "RESET_TIME", 0.0)
    monkeypatch.setattr(discovery.sys, "platform", "darwin")
    assert [found.busid for found in listed(monkeypatch, lost, other)] == ["3-2"]


def test_a_device_with_its_strings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(discovery, "SYSFS_DEVICES", tmp_path)
    monkeypatch.setattr(discovery.sys, "platform", "linux")
    (tmp_path / "3-1.4").mkdir()
    (tmp_path / "3-1.4" / "manufacturer").write_text("SanDisk\n")
    (tmp_path / "3-1.4" / "serial").write_text("4C530001\n")
    assert listed(monkeypatch, FakeDevice(3, [1, 4])) == [
        DeviceRecord(
            busid="3-1.4",
            busnum=3,
            devnum=7,
            path=str(tmp_path / "3-1.4"),
            vendor_id=0x0781,
            product_id=0x5567,
            serial="4C530001",
            device_class=0,
            speed=Speed.HIGH,
            manufacturer="SanDisk",
            product=None,
        )
    ]


def test_elsewhere_than_on_linux_the_device_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery.sys, "platform", "darwin")
    device = FakeDevice(20, [1, 4])
    source = DeviceDiscovery()
    first, again = (listed(monkeypatch, device, source=source) for _ in range(2))
    assert first == again
    assert (first[0].path, first[0].serial, first[0].manufacturer) == ("/usb/20-1.4", "4C530001", None)
    assert device.asked == 1
    assert listed(monkeypatch, source=source) == []
    assert listed(monkeypatch, device, source=source) == first
    assert device.asked == 2, "it was gone"


def test_hubs_and_what_hangs_nowhere_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(discovery, "SYSFS_DEVICES", tmp_path)
    (tmp_path / "1-2").mkdir()
    devices = [FakeDevice(1, [], device_class=9), FakeDevice(1, [1], device_class=9), FakeDevice(2, [])]
    assert listed(monkeypatch, *devices, FakeDevice(1, [2]))[0].busid == "1-2"


def test_what_this_host_imported_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(discovery, "SYSFS_DEVICES", tmp_path)
    monkeypatch.setattr(discovery.sys, "platform", "linux")
    imported = tmp_path / "platform" / "vhci_hcd.0" / "usb2" / "2-1"
    imported.mkdir(parents=True)
    (tmp_path / "2-1").symlink_to(imported)
    (tmp_path / "1-1").mkdir()
    devices = listed(monkeypatch, FakeDevice(2, [1]), FakeDevice(1, [1]))
    assert [device.busid for device in devices] == ["1-1"]


@pytest.mark.rule("speed-numbers", "speed-super-plus")
@pytest.mark.parametrize(("libusb", "wire"), [(1, 1), (2, 2), (3, 3), (4, 5), (5, 5)])
def test_speeds_are_numbered_as_on_the_wire(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, libusb: int, wire: int
) -> None:
    monkeypatch.setattr(discovery, "SYSFS_DEVICES", tmp_path)
    (tmp_path / "1-1").mkdir()
    assert listed(monkeypatch, FakeDevice(1, [1], speed=libusb))[0].speed == wire


def test_a_device_that_vanishes_while_it_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """libusb has it in its list, sysfs has it no more: no error, and the others are listed."""
    monkeypatch.setattr(discovery, "SYSFS_DEVICES", tmp_path)
    monkeypatch.setattr(discovery.sys, "platform", "linux")
    (tmp_path / "1-2").mkdir()
    devices = listed(monkeypatch, FakeDevice(1, [1]), FakeDevice(1, [2]))
    assert [device.busid for device in devices] == ["1-2"]


def test_a_host_without_libusb(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise OSError("libusb-1.0.so.0: cannot open shared object file")

    monkeypatch.setattr(usb1, "USBContext", missing)
    with pytest.raises(UsbipdError, match=r"libusb 1\.0 cannot be loaded") as caught:
        asyncio.run(DeviceDiscovery().list_devices())
    assert caught.value.advice is not None
    assert "apt install" in caught.value.advice


def test_a_libusb_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise usb1.USBErrorNoMem

    monkeypatch.setattr(usb1, "USBContext", fail)
    with pytest.raises(UsbipdError, match="cannot list devices"):
        asyncio.run(DeviceDiscovery().list_devices())


@pytest.mark.rule("bug-devid-collision")
def test_simulated_devices_have_a_bus_of_their_own() -> None:
    specs = parse_simulate("mass-storage,keyboard,keyboard")
    devices = asyncio.run(SimulatedBus(specs).list_devices())
    assert [(device.busid, device.busnum, device.devnum) for device in devices] == [
        ("240-1", 240, 2),
        ("240-2", 240, 3),
        ("240-3", 240, 4),
    ]
    assert [device.simulated for device in devices] == specs
    assert all(device.vendor_id and device.product for device in devices)
