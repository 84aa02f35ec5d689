"""Chooses the implementation of the device list and of `Ownership` for this platform.

Used by the extension and by commands.  Modules compiled only for macOS are imported only there.
"""

import sys

from usbipd.usb.discovery import HostDevices
from usbipd.usb.ownership import Ownership, SysfsOwnership
from usbipd.usb.sysfs_devices import SysfsDevices


def host_devices(*, offer_imported: bool = False) -> HostDevices:
    """The system's list of devices."""
    if sys.platform == "linux":
        return SysfsDevices(offer_imported=offer_imported)
    from usbipd.usb.registry_devices import RegistryDevices

    return RegistryDevices()


def host_ownership() -> Ownership:
    """The system's view of who holds the devices."""
    if sys.platform == "darwin":
        from usbipd.usb.ioregistry import IORegistryOwnership

        return IORegistryOwnership()
    return SysfsOwnership()
