"""The USB devices that libusb lists, where there is no sysfs: macOS.  Runs in the extension, in a thread.

Each list uses a separate libusb context, because a new one scans for devices itself, in IOKit (darwin_init in
darwin_usb.c).  libusb opens a device to read its strings, once.
"""

from collections.abc import Callable

import usb1

from usbipd.errors import UsbipdError
from usbipd.protocol.constants import USB_CLASS_HUB, Speed
from usbipd.usb.device_strings import AskedStrings
from usbipd.usb.discovery import HUB, DeviceRecord, Listing


class LibusbDevices:
    """As `HostDevices`."""

    def __init__(self) -> None:
        self._asked = AskedStrings()

    def notify(self, on_late: Callable[[], None]) -> None:
        """As in `HostDevices`: libusb answers about all devices or about none."""

    def list_all(self) -> Listing:
        """As in `HostDevices`: each new device costs some control transfers.

        Raises `UsbipdError` if libusb is missing or fails.
        """
        try:
            with usb1.USBContext() as context:
                # All of it first: an iterator that an error leaves half used keeps its references, and
                # closing the context waits for these, for ever.
                found = list(context.getDeviceList(skip_on_error=True))
                hubs = {_busid(each): HUB for each in found if each.getDeviceClass() == USB_CLASS_HUB}
                devices = [self._describe(each) for each in found if _busid(each) not in hubs]
        except usb1.USBError as error:
            raise UsbipdError(f"libusb cannot list devices: {error}", code="libusb") from error
        except OSError as error:
            raise UsbipdError(
                f"libusb 1.0 cannot be loaded: {error}",
                code="no-libusb",
                advice="Debian: apt install libusb-1.0-0    macOS: brew install libusb",
            ) from error
        known = [device for device in devices if device is not None]
        self._asked.keep({device.busid for device in known})
        return Listing(known, hubs)

    def _describe(self, device: usb1.USBDevice) -> DeviceRecord | None:
        """None: it is connected nowhere, as a root hub."""
        if not device.getPortNumberList():
            return None
        busid = _busid(device)
        strings = self._asked.ask(busid, device)
        return DeviceRecord(
            busid=busid,
            busnum=device.getBusNumber(),
            devnum=device.getDeviceAddress(),
            path=f"/usb/{busid}",
            vendor_id=device.getVendorID(),
            product_id=device.getProductID(),
            serial=strings.serial,
            device_class=device.getDeviceClass(),
            speed=Speed.of_libusb(device.getDeviceSpeed()),
            manufacturer=strings.manufacturer,
            product=strings.product,
        )


def _busid(device: usb1.USBDevice) -> str:
    """Linux's own numbering (drivers/usb/core/usb.c, usb_alloc_dev), which libusb shares."""
    return f"{device.getBusNumber()}-{'.'.join(str(port) for port in device.getPortNumberList())}"
