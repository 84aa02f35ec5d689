"""Where this host has its USB devices, and who has them: the parts for its platform.

Used by the extension and by commands.  What is compiled for macOS only is imported there only.
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
    """Who has the devices, as far as the system knows."""
    if sys.platform == "darwin":
        from usbipd.usb.ioregistry import IORegistryOwnership

        return IORegistryOwnership()
    return SysfsOwnership()
