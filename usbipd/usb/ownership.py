"""Who holds a USB device, and how it gets back to its drivers.  Runs in the extension.

All answers come from Linux's sysfs and mount table; a host without them has nothing to say here, and whether
a claim works is known by trying.  The functions read and write files and may block: call them in a thread.
"""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_LOG: Final = logging.getLogger(__name__)

USBFS: Final = "usbfs"  # the driver of an interface that a program has claimed: drivers/usb/core/devio.c


class Ownership:
    """What sysfs says about the devices of one host."""

    def __init__(self, sysfs: Path = Path("/sys"), mount_table: Path = Path("/proc/self/mountinfo")) -> None:
        self._bus = sysfs / "bus/usb"
        self._block_devices = sysfs / "class/block"
        self._mount_table = mount_table

    def drivers_of(self, busid: str) -> list[str]:
        """The drivers that hold interfaces of the device, each once, in the order of the interfaces."""
        drivers = (_driver(interface) for interface in self._interfaces(busid))
        return list(dict.fromkeys(driver for driver in drivers if driver is not None))

    def mount_points_of(self, busid: str) -> list[str]:
        """Where file systems of the device are mounted, also through partitions, LVM, dm-crypt or md."""
        devices = set(self._block_numbers(busid))
        if not devices:
            return []
        points = []
        for line in self._mount_table.read_text(errors="surrogateescape").splitlines():
            # Linux Documentation/filesystems/proc.rst, 3.5: the third field is major:minor, the fifth the
            # mount point; the second after the hyphen is the source, which tells for file systems that have
            # numbers of their own (btrfs)
            before, _, after = line.partition(" - ")
            _id, _parent, number, _root, point, *_options = before.split(" ")
            _kind, source, *_super_options = after.split(" ")
            if number in devices or _number_of(source) in devices:
                points.append(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point))
        return points

    def give_back(self, busid: str) -> None:
        """Let the kernel look for drivers of the interfaces that have none, as after plugging in.

        For a worker that died before it could give its device back.
        """
        for interface in self._interfaces(busid):
            if _driver(interface) is None:
                try:
                    # Linux Documentation/ABI/testing/sysfs-bus-usb
                    (self._bus / "drivers_probe").write_text(interface.name)
                except OSError as error:
                    _LOG.warning("%s: no driver for %s: %s", busid, interface.name, error.strerror)

    def _interfaces(self, busid: str) -> list[Path]:
        """The interfaces of the active configuration: BUSID:bConfigurationValue.bInterfaceNumber."""
        return sorted((self._bus / "devices").glob(f"{busid}:*"))

    def _block_numbers(self, busid: str) -> Iterator[str]:
        """major:minor of the device's disks, their partitions and what is built on these."""
        device = (self._bus / "devices" / busid).resolve()
        for entry in self._block_devices.glob("*"):
            if device in entry.resolve().parents:
                yield from self._numbers_upwards(entry.resolve())

    def _numbers_upwards(self, block: Path) -> Iterator[str]:
        yield (block / "dev").read_text().strip()
        for holder in (block / "holders").glob("*"):
            yield from self._numbers_upwards(holder.resolve())


def _driver(interface: Path) -> str | None:
    try:
        return (interface / "driver").readlink().name
    except OSError:
        return None


def _number_of(source: str) -> str | None:
    """major:minor of the block device `source`; None if it is not the path of one."""
    try:
        number = os.stat(source).st_rdev  # noqa: PTH116 - `source` may be any word
    except (OSError, ValueError):
        return None
    return f"{os.major(number)}:{os.minor(number)}" if number else None
