"""The drivers that macOS matches to interfaces, as the IORegistry shows them.  Runs in the kernel."""

from dataclasses import dataclass
from typing import Final

from tests.mac.kernel.registry import Entry, Properties, Registry


@dataclass(frozen=True)
class Driver:
    """The entries below an interface: classes from the outermost in, each with its properties."""

    chain: tuple[tuple[str, Properties], ...]
    exclusive: bool = True
    """Whether it has the interface open, so that no program can open it."""

    def attach(self, registry: Registry, interface: Entry) -> Entry:
        entry = interface
        first = None
        for class_name, properties in self.chain:
            entry = registry.add(entry, (class_name,), properties=properties)
            first = first or entry
        assert first is not None
        return first


DRIVERS: Final = {
    "hid": Driver((("AppleUserUSBHostHIDDevice", {}), ("IOHIDInterface", {}))),
    "storage": Driver(
        (
            ("IOUSBMassStorageDriver", {}),
            ("IOSCSILogicalUnitNub", {}),
            ("IOBlockStorageDriver", {}),
            ("IOMedia", {"BSD Name": "disk4"}),
        )
    ),
    "audio": Driver((("AppleUSBAudioDevice", {}),)),
    "serial": Driver(
        (("AppleUSBCDCACMData", {}), ("IOSerialBSDClient", {"IOCalloutDevice": "/dev/cu.usbmodem1"})),
        exclusive=False,
    ),
}
"""By the name in `plug`.  The serial port's does not exclude programs, as observed with DriverKit's."""
