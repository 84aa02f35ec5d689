"""The USB devices that macOS shows in the IORegistry.  Runs in the extension, in a thread.

libusb is not used: each new context opens every device and sends it a request (darwin_cache_device_descriptor
in darwin_usb.c), which some devices do not survive (libusb pull request 1789), and libusb_exit may hang.
Reading the registry sends nothing to a device and opens none.

A worker finds its device by bus number and address, which are the same here and in libusb.
"""

from collections.abc import Callable
from typing import Final

from usbipd._iokit import Device, usb_devices
from usbipd.errors import UsbipdError
from usbipd.protocol.constants import USB_CLASS_HUB, Speed
from usbipd.usb.device_strings import clean
from usbipd.usb.discovery import HUB, DeviceRecord, Listing

# IOUSBHostFamilyDefinitions.h and USBSpec.h: many properties have two names, from before and after OS X 10.11
_ADDRESS: Final = ("USB Address", "kUSBAddress")
_VENDOR: Final = ("kUSBVendorString", "USB Vendor Name")
_PRODUCT: Final = ("kUSBProductString", "USB Product Name")
_SERIAL: Final = ("kUSBSerialNumberString", "USB Serial Number")
_NUMBERS: Final = ("idVendor", "idProduct", "bDeviceClass", "Device Speed")
_KEYS: Final = (*_ADDRESS, *_VENDOR, *_PRODUCT, *_SERIAL, *_NUMBERS)

_SPEEDS: Final = (Speed.LOW, Speed.FULL, Speed.HIGH)
"""Indexed as in USB.h, from kUSBDeviceSpeedLow on; all higher numbers are super speed."""

_INCOMPLETE: Final = UsbipdError(
    "macOS does not know its address, idVendor or idProduct",
    code="no-answer",
    advice="plug the device in again",
)


class RegistryDevices:
    """As `HostDevices`."""

    def notify(self, on_late: Callable[[], None]) -> None:
        """As in `HostDevices`; never calls: the registry lists all devices or fails."""

    def list_all(self) -> Listing:
        """As in `HostDevices`; takes milliseconds.  Raises `UsbipdError` if the IORegistry cannot be read."""
        devices, left_out = [], {}
        for device in usb_devices(_KEYS):
            if not device.ports:  # a root hub
                continue
            found = _describe(device)
            if isinstance(found, DeviceRecord):
                devices.append(found)
            else:
                left_out[busid_of(device)] = found
        return Listing(devices, left_out)


def busid_of(device: Device) -> str:
    """BUS-PORT[.PORT...], as Linux writes it (drivers/usb/core/usb.c, usb_alloc_dev)."""
    return f"{_bus(device)}-{'.'.join(str(port) for port in device.ports)}"


def _bus(device: Device) -> int:
    return device.location >> 24  # as libusb: process_new_device in darwin_usb.c


def _describe(device: Device) -> DeviceRecord | UsbipdError:
    """The record of the device, or the reason why it cannot be shared."""
    address = _number(device, *_ADDRESS)
    vendor_id, product_id = _number(device, "idVendor"), _number(device, "idProduct")
    device_class, speed = _number(device, "bDeviceClass"), _number(device, "Device Speed")
    if device_class == USB_CLASS_HUB:
        return HUB
    if address is None or vendor_id is None or product_id is None or device_class is None:
        return _INCOMPLETE
    busid = busid_of(device)
    return DeviceRecord(
        busid=busid,
        busnum=_bus(device),
        devnum=address,
        path=f"/usb/{busid}",
        vendor_id=vendor_id,
        product_id=product_id,
        serial=_text(device, *_SERIAL),
        device_class=device_class,
        speed=_speed(speed),
        manufacturer=_text(device, *_VENDOR),
        product=_text(device, *_PRODUCT),
        registry_id=device.registry_id,
    )


def _speed(number: int | None) -> Speed:
    """An unknown number counts as full speed, as in libusb."""
    if number is None or number < 0:
        return Speed.FULL
    return _SPEEDS[number] if number < len(_SPEEDS) else Speed.SUPER


def _number(device: Device, *names: str) -> int | None:
    values = (device.properties.get(name) for name in names)
    return next((value for value in values if isinstance(value, int)), None)


def _text(device: Device, *names: str) -> str | None:
    values = (device.properties.get(name) for name in names)
    return next((clean(value) for value in values if isinstance(value, str)), None)
