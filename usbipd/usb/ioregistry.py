"""Who holds a USB device of a Mac, where its disks are mounted, and how its drivers are reattached.

Runs in the extension, on macOS only.  All facts come from the IORegistry.  A device is found there by its
busid in the list of devices (registry_devices.py).  No locationID is computed from a busid: port 17 of an
Intel Mac is 14a00000.

Below a device (IOUSBHostDevice) are its interfaces (IOUSBHostInterface), below each of these the driver that
was matched to it, and beside the driver a *user client* for each program that has a connection to it.  Two
properties name the holder:

- `UsbExclusiveOwner` of a device or an interface: the holder that has it open: a driver's class or
  `pid 123, name`; "none" or absent if it is not open.
- `IOUserClientCreator` of a user client: `pid 123, name`.

A program or driver that is only connected need not block a claim; only a claim can tell.  So holders that
have the device open are named first.
"""

import logging
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import psutil

from usbipd._iokit import Device, Entry, entries_below, reenumerate, usb_devices
from usbipd.errors import ClaimError, UsbipdError
from usbipd.log import LIMITED
from usbipd.text import readable
from usbipd.usb.ownership import Holder
from usbipd.usb.registry_devices import busid_of

_LOG: Final = logging.getLogger(__name__)

DISKUTIL: Final = Path("/usr/sbin/diskutil")
UNMOUNT_TIMEOUT: Final = 60.0
"""Seconds for one disk: a slow one may have much to write."""

RETURN_TIME: Final = 10.0
"""Seconds that macOS has to enumerate a device again; it took 1.7 in a measurement."""
REFUSAL_TIME: Final = 2.0
"""Seconds until a refusal of IOKit is final: the kernel may still be cleaning up a killed process."""
LOOK_INTERVAL: Final = 0.05
"""Seconds between two checks of a device that is being enumerated."""

OWNER: Final = "UsbExclusiveOwner"
CREATOR: Final = "IOUserClientCreator"
INTERFACE_NUMBER: Final = "bInterfaceNumber"
INTERFACE_CLASS: Final = "bInterfaceClass"
BSD_NAME: Final = "BSD Name"

_PLUMBING: Final = {"AppleUSBHostCompositeDevice", "AppleUSBHostLegacyClient"}
"""Drivers that macOS matches to every device: they create the interfaces and serve the older API."""

_PROGRAM: Final = re.compile(r"pid (\d+), (.*)", re.DOTALL)  # IOUserClient.cpp in XNU
_DISK: Final = re.compile(r"disk\d+")
# What a file system is mounted from: /dev/disk4s1; msdos://disk4s1/NAME for those outside the kernel
_SOURCE: Final = re.compile(r"(?:/dev/|\w+://)(disk\d+)(?:s\d+)*(?:/.*)?", re.DOTALL)

Mounts = Callable[[], Sequence[tuple[str, str]]]
"""The mount table: source and mount point of each file system, in mount order."""


def mounted_file_systems() -> list[tuple[str, str]]:
    """The current mount table.  Does not block: no file system is asked (getfsstat, MNT_NOWAIT)."""
    # all: otherwise sources that are URLs are left out
    return [(each.device, each.mountpoint) for each in psutil.disk_partitions(all=True)]


class IORegistryOwnership:
    """`Ownership` of the devices of this Mac.

    Any thread.  Only `unmount` may block for long; nothing else sends data to the device.
    """

    def __init__(self, mounts: Mounts = mounted_file_systems, diskutil: Path = DISKUTIL) -> None:
        self._mounts = mounts
        self._diskutil = diskutil

    def holders_of(self, busid: str) -> list[Holder]:
        """As in `Ownership`: those that have it open, then those connected to it; without this process.

        Logs an IORegistry that cannot be read, and returns no holder.
        """
        return _holders(_entries_or_none(busid))

    def drivers_of(self, busid: str) -> list[str]:
        """As in `Ownership`; none if the IORegistry cannot be read."""
        drivers = (_driver(interface, entry) for interface, entry in _interfaces(_entries_or_none(busid)))
        return list(dict.fromkeys(driver for driver in drivers if driver is not None))

    def in_use(self, busid: str) -> list[str]:
        """As in `Ownership`; also in a container (APFS, RAID).

        Raises `ClaimError`, code "in-use", if the IORegistry cannot be read or does not have the device.
        """
        return [point for points in self._mounted(busid).values() for point in points]

    def unmount(self, busid: str) -> None:
        """Asks diskutil to unmount all volumes of the device, those of a container before the disk below it.

        Blocks until all is written, at most `UNMOUNT_TIMEOUT` per disk.  Raises `ClaimError`, code "mounted",
        with diskutil's message, which names the program that uses the disk; and all that `in_use` raises.
        """
        for disk in reversed(self._mounted(busid)):
            self._unmount_disk(busid, disk)
        if points := self.in_use(busid):
            raise _unmount_error(busid, f"it is still mounted on {', '.join(points)}")

    def give_back(self, busid: str) -> None:
        """As in `Ownership`: makes macOS enumerate a device again whose capture has outlived its process.

        Skips a device that a driver or a running process holds.  Only root can capture, so without root this
        does nothing.  A device without drivers looks the same captured or not: it is enumerated again in both
        cases.  Blocks until the device is back, at most `REFUSAL_TIME` and `RETURN_TIME`.  Raises
        `ClaimError`, code "not-released", if it does not return, and `UsbipdError` if the IORegistry cannot
        be read.
        """
        if os.geteuid() != 0:
            return
        deadline = time.monotonic() + REFUSAL_TIME
        registry_id: int | None = None
        while (device := _left_captured(busid, registry_id)) is not None:
            registry_id = device.registry_id
            try:
                reenumerate(registry_id)
            except UsbipdError as error:
                if time.monotonic() > deadline:
                    raise _not_released(busid, error.message) from error
                time.sleep(LOOK_INTERVAL)
            else:
                _await_return(busid, registry_id)

    def _unmount_disk(self, busid: str, disk: str) -> None:
        try:
            done = subprocess.run(  # noqa: S603 - no shell; `disk` is "disk" and a number
                [self._diskutil, "unmountDisk", disk],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # protects it from Ctrl-C at our terminal
                timeout=UNMOUNT_TIMEOUT,
            )
        except subprocess.TimeoutExpired as error:
            raise _unmount_error(
                busid, f"{disk} is still being unmounted after {UNMOUNT_TIMEOUT:.0f} s"
            ) from error
        except OSError as error:
            raise _unmount_error(busid, f"{self._diskutil}: {error.strerror}") from error
        if done.returncode != 0:
            said = readable(b" ".join(done.stdout.split()))
            raise _unmount_error(busid, said or f"diskutil ended with exit code {done.returncode}")

    def _mounted(self, busid: str) -> dict[str, list[str]]:
        """The whole disks of the device that are in use by mounts, with the mount points.

        The disk of the device comes first, then those built on it.
        """
        try:
            entries = _entries(busid)
            mounts = self._mounts()
        except (OSError, UsbipdError) as error:
            raise ClaimError(f"cannot tell whether {busid} is in use: {error}", code="in-use") from error
        if not entries:
            raise ClaimError(
                f"cannot tell whether {busid} is in use: the IORegistry does not have it",
                code="in-use",
                advice="see `usbipd list`; if it is still listed, plug the device in again",
            )
        names = [entry.properties.get(BSD_NAME) for entry in entries]
        found = (_DISK.match(name) for name in names if isinstance(name, str))  # en5 is a network interface
        points: dict[str, list[str]] = {disk[0]: [] for disk in found if disk is not None}
        for source, point in mounts:
            disk = _SOURCE.fullmatch(source)
            if disk is not None and disk[1] in points:
                points[disk[1]].append(readable(point))
        return {disk: here for disk, here in points.items() if here}


def registry_of(busid: str) -> list[Entry]:
    """The device and all entries below it, for a report.  Raises `UsbipdError`."""
    return _entries(busid)


def interface_classes(busid: str) -> list[int]:
    """bInterfaceClass of each interface of the active configuration.  Raises `UsbipdError`."""
    classes = (entry.properties.get(INTERFACE_CLASS) for entry in _entries(busid) if entry.depth == 1)
    return [number for number in classes if isinstance(number, int)]


def _find(busid: str) -> Device | None:
    """The device at `busid`, None if it does not exist.  Raises `UsbipdError`, also if two exist."""
    found = [device for device in usb_devices(()) if device.ports and busid_of(device) == busid]
    if len(found) > 1:
        raise UsbipdError(f"the IORegistry has {len(found)} devices at {busid}", code="iokit")
    return found[0] if found else None


def _entries(busid: str) -> list[Entry]:
    device = _find(busid)
    return [] if device is None else _entries_of(device)


def _entries_of(device: Device) -> list[Entry]:
    return entries_below(device.registry_id, (OWNER, CREATOR, INTERFACE_NUMBER, INTERFACE_CLASS, BSD_NAME))


def _entries_or_none(busid: str) -> list[Entry]:
    """The entries; none, with a log line, if the IORegistry cannot be read."""
    try:
        return _entries(busid)
    except UsbipdError as error:
        _LOG.warning("%s: %s", busid, error, extra=LIMITED)
        return []


def _interfaces(entries: list[Entry]) -> Iterator[tuple[int | None, Entry]]:
    """The device, its interfaces, and the drivers matched to them, each with its bInterfaceNumber if any.

    Deeper entries belong to a driver.
    """
    interface: int | None = None
    for entry in entries:
        if entry.depth == 1:
            number = entry.properties.get(INTERFACE_NUMBER)
            interface = number if isinstance(number, int) else None
        if entry.depth < 2 or (entry.depth == 2 and interface is not None):
            yield interface, entry


def _holders(entries: list[Entry]) -> list[Holder]:
    """Those that have the device open, then those connected to it; without this process."""
    open_by: list[Holder] = []
    connected: list[Holder] = []
    for interface, entry in _interfaces(entries):
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


def _left_captured(busid: str, registry_id: int | None) -> Device | None:
    """The device, if it still has `registry_id` and no driver and no running process holds it."""
    device = _find(busid)
    if device is None or registry_id not in (None, device.registry_id):
        return None
    holders = _holders(_entries_of(device))
    is_held = any(holder.pid is None or psutil.pid_exists(holder.pid) for holder in holders)
    return None if is_held else device


def _await_return(busid: str, registry_id: int) -> None:
    """Waits until the device has been enumerated again.  Raises `ClaimError`."""
    deadline = time.monotonic() + RETURN_TIME
    while (device := _find(busid)) is None or device.registry_id == registry_id:
        if time.monotonic() > deadline:
            raise _not_released(busid, f"it has not returned within {RETURN_TIME:.0f} s")
        time.sleep(LOOK_INTERVAL)


def _driver(interface: int | None, entry: Entry) -> str | None:
    """The driver name of `entry`: its class, or its entry name if it runs outside the kernel."""
    is_matched = entry.depth == 2 or (entry.depth == 1 and interface is None)
    if not is_matched or CREATOR in entry.properties or entry.class_name in _PLUMBING:
        return None
    return readable(entry.name if entry.class_name == "IOUserService" else entry.class_name)


def _holder(text: str, interface: int | None) -> Holder:
    program = _PROGRAM.fullmatch(text)
    if program is None:
        return Holder("driver", readable(text), None, interface)
    return Holder("program", readable(program[2]), int(program[1]), interface)


def _not_released(busid: str, reason: str) -> ClaimError:
    return ClaimError(
        f"the drivers of {busid} could not be reattached: {reason}",
        code="not-released",
        advice="plug the device in again",
    )


def _unmount_error(busid: str, reason: str) -> ClaimError:
    return ClaimError(
        f"{busid} cannot be unmounted: {reason}",
        code="mounted",
        advice="close the files and programs that use the disk, then try again",
    )
