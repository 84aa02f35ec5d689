"""A Linux host made of files: sysfs, /proc and mount table."""

import os
from pathlib import Path

from usbipd.usb.ownership import SysfsOwnership


class FakeSysfs:
    """A directory like the USB part of sysfs, with the related parts of the host."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mount_table = root / "mountinfo"
        self.mount_table.write_text("")
        self.proc = root / "proc"
        self.dev = root / "dev"
        self.unmounted: list[str] = []
        self.busy: set[str] = set()
        """Mount points that cannot be unmounted."""
        self._probe = root / "bus/usb/drivers_probe"
        (root / "bus/usb/devices").mkdir(parents=True)
        (root / "class/block").mkdir(parents=True)
        self.proc.mkdir()
        self.dev.mkdir()
        self._probe.touch()

    def ownership(self) -> SysfsOwnership:
        """The view of this host."""
        return SysfsOwnership(self.root, self.mount_table, self.proc, self.dev, self._umount)

    @property
    def probed(self) -> str:
        """The interface whose drivers were last probed."""
        return self._probe.read_text()

    def hang_over_drivers(self) -> Path:
        """From now on a driver probe blocks until the returned descriptor is read."""
        self._probe.unlink()
        os.mkfifo(self._probe)
        return self._probe

    def add_device(self, busid: str, devnum: int = 12, driver: str = "usb", *, below: str = "") -> Path:
        """A device without interfaces, on the bus `below`; its directory.  Keeps an existing one."""
        device = self.root / "devices" / below / busid
        if not device.exists():
            device.mkdir(parents=True)
            (device / "busnum").write_text(busid.partition("-")[0] + "\n")
            (device / "devnum").write_text(f"{devnum}\n")
            self._bind(device, driver)
            (self.root / "bus/usb/devices" / busid).symlink_to(device)
        return device

    def add_interface(self, busid: str, number: int, driver: str | None) -> None:
        """The device has interface `number`, held by `driver`."""
        interface = self.add_device(busid) / f"{busid}:1.{number}"
        interface.mkdir()
        (self.root / "bus/usb/devices" / interface.name).symlink_to(interface)
        if driver is not None:
            self._bind(interface, driver)

    def add_block_device(self, under: Path, name: str, number: str) -> Path:
        """A block device with major:minor `number` below the directory `under`."""
        block = under / name
        (block / "holders").mkdir(parents=True)
        (block / "dev").write_text(number + "\n")
        (self.root / "class/block" / name).symlink_to(block)
        return block

    def add_built_device(self, kernel_name: str, number: str, /, *parts: Path, **attributes: str) -> Path:
        """A block device that is built on `parts`; `attributes` are those of device-mapper."""
        block = self.add_block_device(self.root / "devices/virtual/block", kernel_name, number)
        for part in parts:
            (part / "holders" / kernel_name).symlink_to(block)
        for attribute, value in attributes.items():
            (block / "dm").mkdir(exist_ok=True)
            (block / "dm" / attribute).write_text(value + "\n")
        return block

    def add_program(self, pid: int, name: str, *files: str, cwd: str = "/") -> None:
        """A running program that has `files` open."""
        process = self.proc / str(pid)
        (process / "fd").mkdir(parents=True)
        (process / "comm").write_text(name + "\n")
        (process / "cwd").symlink_to(cwd)
        for number, file in enumerate(files):
            (process / "fd" / str(number)).symlink_to(file)

    def mount(self, number: str, point: str, source: str, *, inside: int = 25) -> int:
        """A line of the mount table; `inside` is the mount on which it is mounted.  Its own id."""
        lines = self.mount_table.read_text()
        own = 100 + lines.count("\n")
        line = f"{own} {inside} {number} / {point} rw,relatime shared:1 - ext4 {source} rw\n"
        self.mount_table.write_text(lines + line)
        return own

    def swap(self, path: str) -> None:
        """The host swaps to `path`."""
        table = self.proc / "swaps"
        if not table.exists():
            table.write_text("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n")
        table.write_text(
            table.read_text() + f"{path}                               partition\t62460\t\t0\t\t-2\n"
        )

    def _bind(self, directory: Path, driver: str) -> None:
        target = self.root / "bus/usb/drivers" / driver
        target.mkdir(parents=True, exist_ok=True)
        (directory / "driver").symlink_to(target)

    def _umount(self, point: bytes) -> str | None:
        """Like umount: removes the latest mount there."""
        text = point.decode()
        if text in self.busy:
            return f"umount: {text}: target is busy."
        self.unmounted.append(text)
        lines = self.mount_table.read_text().splitlines(keepends=True)
        last = max(index for index, line in enumerate(lines) if line.split(" ")[4] == text)
        del lines[last]
        self.mount_table.write_text("".join(lines))
        return None
