"""Who holds a USB device of a Mac, and where its disks are mounted.  Runs in the extension, on macOS only.

All that is said here comes from the IORegistry: below a device (IOUSBHostDevice) lie its interfaces
(IOUSBHostInterface), below each of these the driver that was matched to it, and beside the driver a *user
client* for every program that has a connection to it.  Two properties name who it is:

- `UsbExclusiveOwner` of a device or an interface: who has it open, so that nobody else can: a driver's class,
  or `pid 123, name`; "none" or not there: nobody has.
- `IOUserClientCreator` of a user client: `pid 123, name`.

A program that is only connected need not be in the way, nor need a driver: whether a claim works is known by
trying.  So those who have it open are named first.
"""

import logging
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import psutil

from usbipd._iokit import Entry, entries_below
from usbipd.errors import ClaimError, UsbipdError
from usbipd.log import LIMITED
from usbipd.text import readable
from usbipd.usb.ownership import Holder

_LOG: Final = logging.getLogger(__name__)

DISKUTIL: Final = Path("/usr/sbin/diskutil")
UNMOUNT_TIMEOUT: Final = 60.0
"""Seconds for one disk: a slow one writes all that it has not written yet."""

MAX_PORTS: Final = 6
"""The lower 24 bits of a locationID have a nibble for each hub on the way."""

OWNER: Final = "UsbExclusiveOwner"
CREATOR: Final = "IOUserClientCreator"
INTERFACE_NUMBER: Final = "bInterfaceNumber"
BSD_NAME: Final = "BSD Name"

_PLUMBING: Final = {"AppleUSBHostCompositeDevice", "AppleUSBHostLegacyClient"}
"""What macOS puts below every device: makes the interfaces, serves programs that use the older API."""

_PROGRAM: Final = re.compile(r"pid (\d+), (.*)", re.DOTALL)  # IOUserClient.cpp in XNU
_DISK: Final = re.compile(r"disk\d+")
# What a file system is mounted from: /dev/disk4s1; msdos://disk4s1/NAME for those outside the kernel
_SOURCE: Final = re.compile(r"(?:/dev/|\w+://)(disk\d+)(?:s\d+)*(?:/.*)?", re.DOTALL)

Mounts = Callable[[], Sequence[tuple[str, str]]]
"""The mount table: source and mount point of each file system, in the order in which they were mounted."""


def location_of(busid: str) -> int | None:
    """The locationID of the device at `busid`; None if there cannot be one.

    It says where the device is plugged in: the bus in the upper 8 bits, then a nibble for each port on the
    way.  libusb numbers buses by it (darwin_usb.c); its port numbers are the same as the nibbles.
    """
    bus, *ports = (int(number) for number in re.split(r"[-.]", busid))
    if len(ports) > MAX_PORTS or bus > 0xFF or any(not 0 < port <= 0xF for port in ports):
        return None
    location = bus << 24
    for place, port in enumerate(ports):
        location |= port << (20 - 4 * place)
    return location


def mounted_file_systems() -> list[tuple[str, str]]:
    """The mount table of this moment.  Does not block: no file system is asked (getfsstat, MNT_NOWAIT)."""
    # all: without it those with a URL for a source are left out
    return [(each.device, each.mountpoint) for each in psutil.disk_partitions(all=True)]


class IORegistryOwnership:
    """`Ownership` of the devices of this Mac.

    Any thread.  Only `unmount` may block for long; nothing is sent to the device otherwise.
    """

    def __init__(self, mounts: Mounts = mounted_file_systems, diskutil: Path = DISKUTIL) -> None:
        self._mounts = mounts
        self._diskutil = diskutil

    def holders_of(self, busid: str) -> list[Holder]:
        """As in `Ownership`: who has it open, then who else is connected to it; without this process.

        An IORegistry that cannot be read is logged, and names nobody.
        """
        open_by: list[Holder] = []
        connected: list[Holder] = []
        for interface, entry in self._interfaces(busid):
            owner = entry.properties.get(OWNER)
            if entry.depth < 2 and isinstance(owner, str) and owner not in ("", "none", *_PLUMBING):
                open_by.append(_holder(owner, interface))
            creator = entry.properties.get(CREATOR)
            if isinstance(creator, str):
                connected.append(_holder(creator, interface))
            elif (driver := _driver(interface, entry)) is not None:
                connected.append(Holder("driver", driver, None, interface))
        found = dict.fromkeys(open_by + connected)
        return [holder for holder in found if holder.pid != os.getpid()]

    def drivers_of(self, busid: str) -> list[str]:
        """As in `Ownership`; none if the IORegistry cannot be read."""
        drivers = (_driver(interface, entry) for interface, entry in self._interfaces(busid))
        return list(dict.fromkeys(driver for driver in drivers if driver is not None))

    def in_use(self, busid: str) -> list[str]:
        """As in `Ownership`; also in a container (APFS, RAID).

        Raises `ClaimError`, code "in-use", if the IORegistry cannot be read: then nobody can tell.
        """
        return [point for points in self._mounted(busid).values() for point in points]

    def unmount(self, busid: str) -> None:
        """Asks diskutil to unmount all volumes of the device, those of a container before the disk below it.

        Blocks until all is written, `UNMOUNT_TIMEOUT` for each disk at most.  Raises `ClaimError`, code
        "mounted", with diskutil's words, which name the program that is in the way; and what `in_use` raises.
        """
        for disk in reversed(self._mounted(busid)):
            self._unmount_disk(busid, disk)
        if points := self.in_use(busid):
            raise _refusal(busid, f"it is still mounted on {', '.join(points)}")

    def give_back(self, busid: str) -> None:
        """Does nothing: when the process that has captured a device ends, macOS enumerates the device again
        and matches drivers to it as after plugging in (USBDeviceReEnumerate in IOUSBLib.h)."""

    def _unmount_disk(self, busid: str, disk: str) -> None:
        try:
            done = subprocess.run(  # noqa: S603 - no shell; `disk` is "disk" and a number
                [self._diskutil, "unmountDisk", disk],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C at our terminal is not for it
                timeout=UNMOUNT_TIMEOUT,
            )
        except subprocess.TimeoutExpired as error:
            raise _refusal(busid, f"{disk} is still being unmounted after {UNMOUNT_TIMEOUT:.0f} s") from error
        except OSError as error:
            raise _refusal(busid, f"{self._diskutil}: {error.strerror}") from error
        if done.returncode != 0:
            said = readable(b" ".join(done.stdout.split()))
            raise _refusal(busid, said or f"diskutil ended with exit code {done.returncode}")

    def _mounted(self, busid: str) -> dict[str, list[str]]:
        """The whole disks of the device that something is mounted from, with its mount points.

        The device's own disk comes first, then those made of it.
        """
        try:
            names = [entry.properties.get(BSD_NAME) for entry in _entries(busid)]
            mounts = self._mounts()
        except (OSError, UsbipdError) as error:
            raise ClaimError(f"cannot tell whether {busid} is in use: {error}", code="in-use") from error
        found = (_DISK.match(name) for name in names if isinstance(name, str))  # en5 is a network interface
        points: dict[str, list[str]] = {disk[0]: [] for disk in found if disk is not None}
        for source, point in mounts:
            disk = _SOURCE.fullmatch(source)
            if disk is not None and disk[1] in points:
                points[disk[1]].append(readable(point))
        return {disk: here for disk, here in points.items() if here}

    def _interfaces(self, busid: str) -> Iterator[tuple[int | None, Entry]]:
        """The device, its interfaces, and what is matched to them, each with its bInterfaceNumber if any.

        What lies deeper belongs to a driver.
        """
        try:
            entries = _entries(busid)
        except UsbipdError as error:
            _LOG.warning("%s: %s", busid, error, extra=LIMITED)
            return
        interface: int | None = None
        for entry in entries:
            if entry.depth == 1:
                number = entry.properties.get(INTERFACE_NUMBER)
                interface = number if isinstance(number, int) else None
            if entry.depth < 2 or (entry.depth == 2 and interface is not None):
                yield interface, entry


def registry_of(busid: str) -> list[Entry]:
    """The device and all that is below it, for a report.  Raises `UsbipdError`."""
    return _entries(busid)


def _entries(busid: str) -> list[Entry]:
    location = location_of(busid)
    if location is None:
        return []
    return entries_below(location, (OWNER, CREATOR, INTERFACE_NUMBER, BSD_NAME))


def _driver(interface: int | None, entry: Entry) -> str | None:
    """The name of the driver that `entry` is: its class, or its own name if it runs outside the kernel."""
    is_matched = entry.depth == 2 or (entry.depth == 1 and interface is None)
    if not is_matched or CREATOR in entry.properties or entry.class_name in _PLUMBING:
        return None
    return readable(entry.name if entry.class_name == "IOUserService" else entry.class_name)


def _holder(text: str, interface: int | None) -> Holder:
    program = _PROGRAM.fullmatch(text)
    if program is None:
        return Holder("driver", readable(text), None, interface)
    return Holder("program", readable(program[2]), int(program[1]), interface)


def _refusal(busid: str, reason: str) -> ClaimError:
    return ClaimError(
        f"{busid} cannot be unmounted: {reason}",
        code="mounted",
        advice="close the files and programs that use the disk, then try again",
    )
