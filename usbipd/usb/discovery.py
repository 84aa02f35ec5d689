"""Which USB devices this host has.  Runs in the extension, in a thread of its executor.

Each listing uses a libusb context of its own, because a new one looks for devices itself, in sysfs or IOKit
(op_init in linux_usbfs.c, darwin_init in darwin_usb.c).  A second list of the same context has only what
libusb was told since: on Debian by udevd, and nothing at all where udevd does not run.  Nothing is opened on
Linux, where sysfs has all the strings; elsewhere libusb opens a device to read them, once.
"""

import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import usb1

from usbipd.errors import UsbipdError
from usbipd.ipc.children import SimulatedSpec
from usbipd.protocol.constants import USB_CLASS_HUB, Speed
from usbipd.usb.device_strings import AskedStrings, strings_in_sysfs

SYSFS_DEVICES: Final = Path("/sys/bus/usb/devices")  # Linux Documentation/ABI/testing/sysfs-bus-usb

RESET_TIME: Final = 2.0
"""Seconds in which a bus reset is over; a device that is without an address after that is left out."""
RESET_LOOK: Final = 0.05
"""Seconds between two looks while a device is being reset."""

IMPORTED: Final = "/vhci_hcd."  # in the path of a device on a virtual bus: drivers/usb/usbip/vhci_hcd.c


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """One device that could be shared: where it is, and what is known without claiming it."""

    busid: str
    busnum: int
    devnum: int
    path: str
    """As OP_REP_* shows it: in sysfs on Linux, a name of ours elsewhere."""
    vendor_id: int
    product_id: int
    serial: str | None
    """iSerialNumber's string; logged at debug level only."""
    device_class: int
    speed: Speed
    manufacturer: str | None
    product: str | None
    simulated: SimulatedSpec | None = None


class DeviceSource(Protocol):
    """Something that has devices: this host, or a set of simulated ones."""

    async def list_devices(self) -> list[DeviceRecord]:
        """The devices of this moment, ordered by busid.  Raises `UsbipdError`."""


class DeviceDiscovery:
    """The devices on this host's buses.

    Without hubs, which nobody could use alone, and without those that this host itself imported: sharing them
    again could run in a circle (usbip_bind.c refuses them too).
    """

    def __init__(self) -> None:
        self._asked = AskedStrings()

    async def list_devices(self) -> list[DeviceRecord]:
        """Takes milliseconds on Linux; on macOS each new device costs some control transfers.

        While a device is being reset, Linux shows its address as 0 (hub_port_reset, drivers/usb/core/hub.c):
        it is neither gone nor another one, so that is waited for.  Raises `UsbipdError` if libusb is missing
        or fails.
        """
        deadline = time.monotonic() + RESET_TIME
        while True:
            devices = await asyncio.to_thread(self._list_devices)
            settled = [device for device in devices if device.devnum != 0]
            if len(settled) == len(devices) or time.monotonic() > deadline:
                return settled
            await asyncio.sleep(RESET_LOOK)

    def _list_devices(self) -> list[DeviceRecord]:
        try:
            with usb1.USBContext() as context:
                # All of it first: an iterator that an error leaves half used keeps its references, and
                # closing the context waits for these, for ever.
                found = [_describe(each, self._asked) for each in context.getDeviceList(skip_on_error=True)]
        except usb1.USBError as error:
            raise UsbipdError(f"libusb cannot list devices: {error}", code="libusb") from error
        except OSError as error:
            raise UsbipdError(
                f"libusb 1.0 cannot be loaded: {error}",
                code="no-libusb",
                advice="Debian: apt install libusb-1.0-0    macOS: brew install libusb",
            ) from error
        devices = [record for record in found if record is not None]
        self._asked.keep({device.busid for device in devices})
        own = [device for device in devices if IMPORTED not in device.path]
        return sorted(own, key=lambda device: (device.busnum, device.busid))


def _describe(device: usb1.USBDevice, asked: AskedStrings) -> DeviceRecord | None:
    """None: it is a hub, or has vanished while it was looked at, which is no error."""
    if device.getDeviceClass() == USB_CLASS_HUB or not device.getPortNumberList():
        return None
    busnum: int = device.getBusNumber()
    # Linux's own numbering (drivers/usb/core/usb.c, usb_alloc_dev), which libusb shares
    busid = f"{busnum}-{'.'.join(str(port) for port in device.getPortNumberList())}"
    if sys.platform == "linux":
        try:
            path = str((SYSFS_DEVICES / busid).resolve(strict=True))
        except OSError:
            return None
        strings = strings_in_sysfs(SYSFS_DEVICES / busid)
    else:
        path = f"/usb/{busid}"
        strings = asked.ask(busid, device)
    return DeviceRecord(
        busid=busid,
        busnum=busnum,
        devnum=device.getDeviceAddress(),
        path=path,
        vendor_id=device.getVendorID(),
        product_id=device.getProductID(),
        serial=strings.serial,
        device_class=device.getDeviceClass(),
        speed=Speed.of_libusb(device.getDeviceSpeed()),
        manufacturer=strings.manufacturer,
        product=strings.product,
    )
