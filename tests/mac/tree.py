"""Sets up the IORegistry and the mounted disks for a test, in a process of a software Mac.

Entries are their registry ids.
"""

import asyncio
import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

from tests.mac.mac import Device
from tests.mac.rig import PATIENCE, mac

HUB_LOCATION, LOCATION, BUSID = 0x14200000, 0x14230000, "20-2.3"
"""Locations of a hub, and of the device that `Tree.add_device` adds by default."""


async def until(condition: Callable[[], object]) -> None:
    """Returns when the condition is true; fails after ten seconds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.001)


class Tree:
    """Adds entries, plugs devices in, and removes all of them at the end."""

    def __init__(self) -> None:
        self._library: Final = ctypes.CDLL("libusb-1.0.so.0")
        self._library.software_mac_references.restype = ctypes.c_long
        self._library.software_mac_values.restype = ctypes.c_long
        self._library.CFRunLoopGetCurrent()  # this thread keeps it
        self.leaks = False
        """Whether leftover references and values at the end are expected."""
        self._hub: int | None = None
        self._roots: list[int] = []
        self._devices: list[Device] = []

    def __enter__(self) -> Self:
        self._before = self._held()
        return self

    def __exit__(self, *exception: object) -> None:
        mac().call("restless", False)
        for root in list(self._roots):
            self.remove(root)
        for device in self._devices:
            device.unplug()
        end = time.monotonic() + PATIENCE
        while not self.leaks and self._held() != self._before:  # the thread of a queue ends asynchronously
            assert time.monotonic() < end, "references or values were not released"
            time.sleep(0.001)

    def _held(self) -> tuple[int, int]:
        gc.collect()
        return self._library.software_mac_references(), self._library.software_mac_values()

    def add(self, parent: int | None, class_name: str, name: str = "", **properties: Any) -> int:
        """A new entry; `_` in the name of a property stands for a space."""
        entry: int = mac().call("add_entry", parent, class_name, name, **properties)
        if parent is None:
            self._roots.append(entry)
        return entry

    def add_hub(self) -> int:
        """The hub at 20-2."""
        if self._hub is None:
            self._hub = self.add(
                None, "IOUSBHostDevice", "Hub", locationID=HUB_LOCATION, PortNum=2, bDeviceClass=9
            )
        return self._hub

    def add_device(self, name: str = "Device", **properties: Any) -> int:
        """The device at 20-2.3."""
        return self.add(self.add_hub(), "IOUSBHostDevice", name, locationID=LOCATION, PortNum=3, **properties)

    def add_interface(self, device: int, number: int, **properties: Any) -> int:
        return self.add(device, "IOUSBHostInterface", bInterfaceNumber=number, **properties)

    def add_disk(self, device: int, name: str) -> int:
        """The only interface of a stick, down to its medium, the disk `name`."""
        driver = self.add(self.add_interface(device, 0), "IOUSBMassStorageDriver")
        return self.add(driver, "IOMedia", "SanDisk Media", BSD_Name=name)

    def remove(self, entry: int) -> None:
        """Removes the entry with everything below it."""
        mac().call("remove_entry", entry)
        if entry == self._hub:
            self._hub = None
        if entry in self._roots:
            self._roots.remove(entry)

    def remove_before(self, step: int, entry: int) -> None:
        """Removes the entry before an iterator returns the `step`-th object."""
        mac().call("at_iteration", step, "remove_entry", entry)

    @property
    def steps(self) -> int:
        """The number of iterator steps."""
        return int(mac().call("iterations"))

    def keep_changing(self) -> None:
        """Makes all iterators over children invalid."""
        mac().call("restless")

    def fail(self, call: str, code: int, times: int = 1) -> None:
        """Makes the next calls of the kernel (kernel/wire.py) fail."""
        mac().call("fail", call, code, times)

    def plug(self, **options: Any) -> Device:
        """Plugs in a device, like `Mac.plug`."""
        device = mac().plug(**options)
        self._devices.append(device)
        return device


class Disks:
    """A mount table, and a diskutil that unmounts its disks."""

    def __init__(self, directory: Path) -> None:
        self._table = directory / "mounted"
        self._table.touch()
        self._calls = directory / "calls"
        self.diskutil = directory / "diskutil"
        self.let_diskutil(r'sed -i "/\b$2\b\|\b$2s/d" "$TABLE"; echo "Unmount was successful"')

    def let_diskutil(self, do: str) -> None:
        """Sets diskutil's shell code; $TABLE has a file system per line: source, tab, mount point."""
        self.diskutil.write_text(f'#!/bin/sh\nTABLE={self._table}\necho "$*" >> {self._calls}\n{do}\n')
        self.diskutil.chmod(0o755)

    def mount(self, source: str, point: str) -> None:
        with self._table.open("a", errors="surrogateescape") as table:
            table.write(f"{source}\t{point}\n")

    def mounts(self) -> list[tuple[str, str]]:
        lines = self._table.read_text(errors="surrogateescape").splitlines()
        return [(source, point) for source, _, point in (line.partition("\t") for line in lines)]

    @property
    def asked(self) -> list[str]:
        """The arguments of diskutil's calls."""
        return self._calls.read_text().splitlines() if self._calls.exists() else []
