"""Listing devices as libusb shows them, elsewhere than on Linux."""

import pytest
import usb1

from usbipd.errors import UsbipdError
from usbipd.protocol.constants import Speed
from usbipd.usb.discovery import DeviceRecord
from usbipd.usb.libusb_devices import LibusbDevices


class FakeDevice:
    """As much of `usb1.USBDevice` as listing asks for."""

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


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> list[FakeDevice]:
    """The devices of the host, which a test adds."""
    devices: list[FakeDevice] = []
    monkeypatch.setattr(FakeContext, "devices", devices, raising=False)
    monkeypatch.setattr(usb1, "USBContext", FakeContext)
    return devices


def test_a_device_is_asked_for_its_strings_once(bus: list[FakeDevice]) -> None:
    bus.append(FakeDevice(20, [1, 4]))
    source = LibusbDevices()
    first, again = source.list_all().devices, source.list_all().devices
    assert first == again
    assert first == [
        DeviceRecord(
            busid="20-1.4",
            busnum=20,
            devnum=7,
            path="/usb/20-1.4",
            vendor_id=0x0781,
            product_id=0x5567,
            serial="4C530001",
            device_class=0,
            speed=Speed.HIGH,
            manufacturer=None,
            product=None,
        )
    ]
    assert bus[0].asked == 1
    device = bus.pop()
    assert source.list_all().devices == []
    bus.append(device)
    assert source.list_all().devices == first
    assert device.asked == 2, "it was gone"


def test_hubs_and_what_is_connected_nowhere_are_left_out(bus: list[FakeDevice]) -> None:
    bus += [FakeDevice(1, [], device_class=9), FakeDevice(1, [1], device_class=9), FakeDevice(2, [])]
    bus.append(FakeDevice(1, [2]))
    listing = LibusbDevices().list_all()
    assert [device.busid for device in listing.devices] == ["1-2"]
    assert listing.left_out["1-1"].code == "hub"


@pytest.mark.rule("speed-numbers", "speed-super-plus")
@pytest.mark.parametrize(("libusb", "wire"), [(1, 1), (2, 2), (3, 3), (4, 5), (5, 5)])
def test_speeds_are_numbered_as_on_the_wire(bus: list[FakeDevice], libusb: int, wire: int) -> None:
    bus.append(FakeDevice(1, [1], speed=libusb))
    assert LibusbDevices().list_all().devices[0].speed == wire


def test_a_host_without_libusb(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise OSError("libusb-1.0.so.0: cannot open shared object file")

    monkeypatch.setattr(usb1, "USBContext", missing)
    with pytest.raises(UsbipdError, match=r"libusb 1\.0 cannot be loaded") as caught:
        LibusbDevices().list_all()
    assert caught.value.advice is not None
    assert "apt install" in caught.value.advice


def test_a_libusb_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise usb1.USBErrorNoMem

    monkeypatch.setattr(usb1, "USBContext", fail)
    with pytest.raises(UsbipdError, match="cannot list devices"):
        LibusbDevices().list_all()
