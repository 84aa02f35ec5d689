"""Finds who holds a USB device and what uses it, and reattaches its drivers.  Runs in the extension.

On Linux the facts come from sysfs, /proc and the mount table.  Without these, only a claim can tell whether
the device is free.  All calls may block: use a thread.
"""

import logging
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from usbipd.errors import ClaimError
from usbipd.text import readable
from usbipd.usb.block_devices import BlockDevice, block_devices, describe_built, numbers_of_partners
from usbipd.usb.mounts import (
    Mount,
    is_namespace_of_host,
    mount_table_of_host,
    order_of_unmounting,
    read_mounts,
    read_swaps,
    umount,
)
from usbipd.usb.open_files import Program, programs_using

_LOG: Final = logging.getLogger(__name__)

USBFS: Final = "usbfs"  # the driver of an interface that a program has claimed: drivers/usb/core/devio.c
_DEVICE_DRIVER: Final = "usb"  # the driver of every ordinary device as a whole: drivers/usb/core/generic.c


NAMED_PROGRAMS: Final = 5
"""Number of programs named that keep a file system busy."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A driver or a program that holds a device or a part of it."""

    kind: Literal["driver", "program"]
    name: str
    """Empty if it is unknown which."""
    pid: int | None
    """Only of a program."""
    interface: int | None
    """The bInterfaceNumber that it holds; None for the whole device or if unknown."""

    def __str__(self) -> str:
        """For a sentence: `the driver usb-storage`, `the program virtualbox (pid 4711)`."""
        if not self.name:
            return f"another {self.kind}"
        pid = "" if self.pid is None else f" (pid {self.pid})"
        return f"the {self.kind} {self.name}{pid}"


class Ownership(Protocol):
    """The holders and uses of a device on this host.  All calls may block; a device may leave at any time."""

    def holders_of(self, busid: str) -> list[Holder]:
        """Its drivers and the programs that have it open; those that block a claim first.  Never raises."""

    def drivers_of(self, busid: str) -> list[str]:
        """The drivers that hold the device or its interfaces, each once."""

    def in_use(self, busid: str) -> list[str]:
        """What would lose the device: mount points (they begin with a slash) and, described in words, swap
        areas and volumes that are built on it.

        Raises `OSError` if the device leaves meanwhile, `UsbipdError` if the host does not know.
        """

    def unmount(self, busid: str) -> None:
        """Unmount all its file systems, nested ones first, and write everything.

        Raises `ClaimError` if that fails, with what is busy and what to do: `mounted` for a file system,
        `in-use` for a use that unmounting does not end.
        """

    def give_back(self, busid: str) -> None:
        """Reattach drivers to the interfaces that have none, as after plugging in.

        Raises `UsbipdError` if the host refuses.
        """


@dataclass(frozen=True, slots=True)
class _Use:
    """The present uses of a device."""

    blocks: list[BlockDevice]
    mounts: list[Mount]
    strangers: list[Mount]
    """The mounts of other devices."""
    swaps: list[str]

    @property
    def built(self) -> list[BlockDevice]:
        return [block for block in self.blocks if block.is_built]


class SysfsOwnership:
    """`Ownership` of the devices of a Linux host.  The arguments are for tests."""

    def __init__(
        self,
        sysfs: Path = Path("/sys"),
        mount_table: Path | None = None,
        proc: Path = Path("/proc"),
        dev: Path = Path("/dev"),
        unmount: Callable[[bytes], str | None] = umount,
    ) -> None:
        self._sysfs = sysfs
        self._bus = sysfs / "bus/usb"
        self._mount_table = mount_table or mount_table_of_host(proc)
        self._proc = proc
        self._dev = dev
        self._umount = unmount

    def holders_of(self, busid: str) -> list[Holder]:
        """As in `Ownership`.  Reads all of /proc: some ten milliseconds on a busy host."""
        drivers = self._drivers(busid)
        held = [Holder("driver", name, None, number) for number, name in drivers if name != USBFS]
        claimed = [number for number, name in drivers if name == USBFS]
        programs = [Holder("program", each.name, each.pid, None) for each in self._programs_with(busid)]
        if not claimed:
            return held + programs  # a program that has it open need not hold it
        # The program is not visible: another user's, or in a container
        return (programs or [Holder("program", "", None, number) for number in claimed]) + held

    def drivers_of(self, busid: str) -> list[str]:
        """As in `Ownership`; in the order of the interfaces."""
        return list(dict.fromkeys(name for _number, name in self._drivers(busid)))

    def in_use(self, busid: str) -> list[str]:
        """As in `Ownership`; also through partitions, LVM, dm-crypt and md."""
        use = self._use(busid)
        points = dict.fromkeys(str(mount) for mount in use.mounts)
        return [*points, *(f"swap on {swap}" for swap in use.swaps), *_names(use.built)]

    def unmount(self, busid: str) -> None:
        """As in `Ownership`."""
        try:
            use = self._use(busid)
            _refuse_what_stays(busid, use)
            if use.mounts and not is_namespace_of_host(self._proc):
                raise ClaimError(
                    f"{busid} is in use: {', '.join(map(str, use.mounts))}, and this daemon has a private "
                    "mount namespace: what it unmounts stays mounted on the host",
                    code="mounted",
                    advice="unmount it on the host; if systemd runs the daemon, remove ProtectSystem=, "
                    "PrivateTmp= and the like from its unit",
                )
            for mount in order_of_unmounting(use.mounts):
                self._unmount(busid, mount, use.strangers)
            self._flush(busid, use.blocks)
            left = self.in_use(busid)
        except OSError as error:  # the device has left meanwhile
            raise ClaimError(f"cannot tell whether {busid} is in use: {error}", code="in-use") from error
        if left:
            raise ClaimError(
                f"{busid} is in use again: {', '.join(left)}",
                code="mounted",
                advice="another program mounts it automatically: stop that, then try again",
            )

    def give_back(self, busid: str) -> None:
        """As in `Ownership`; never raises.  For a worker that died before it could release its device."""
        for _number, interface in self._interfaces(busid):
            if _driver(interface) is None:
                try:
                    # Linux Documentation/ABI/testing/sysfs-bus-usb
                    (self._bus / "drivers_probe").write_text(interface.name)
                except OSError as error:
                    _LOG.warning("%s: no driver for %s: %s", busid, interface.name, error.strerror)

    def _device(self, busid: str) -> Path:
        return self._bus / "devices" / busid

    def _interfaces(self, busid: str) -> list[tuple[int, Path]]:
        """The interfaces of the active configuration; BUSID:bConfigurationValue.bInterfaceNumber in sysfs."""
        entries = (self._bus / "devices").glob("*:*.*")
        return sorted(
            (int(entry.name.rpartition(".")[2]), entry)
            for entry in entries
            if entry.name.startswith(f"{busid}:")
        )

    def _drivers(self, busid: str) -> list[tuple[int | None, str]]:
        """bInterfaceNumber (None for the whole device, as usbip-host holds it) and driver."""
        whole = _driver(self._device(busid))
        drivers: list[tuple[int | None, str]] = []
        if whole is not None and whole != _DEVICE_DRIVER:
            drivers.append((None, whole))
        for number, interface in self._interfaces(busid):
            name = _driver(interface)
            if name is not None:
                drivers.append((number, name))
        return drivers

    def _programs_with(self, busid: str) -> list[Program]:
        """The programs that have the device node open; in a container it need not be in /dev."""
        try:
            busnum, devnum = (int((self._device(busid) / name).read_text()) for name in ("busnum", "devnum"))
        except OSError:  # it is gone
            return []
        node = b"/bus/usb/%03d/%03d" % (busnum, devnum)  # drivers/usb/core/usb.c, usb_devnode
        return programs_using(self._proc, lambda path: path.endswith(node))

    def _use(self, busid: str) -> _Use:
        blocks = block_devices(self._sysfs, self._device(busid).resolve())
        if not blocks:
            return _Use([], [], [], [])
        numbers = {block.number for block in blocks} | numbers_of_partners(self._sysfs, blocks)
        mounts: list[Mount] = []
        strangers: list[Mount] = []
        for mount in read_mounts(self._mount_table):
            is_ours = mount.number in numbers or _number_of(mount.source) in numbers
            (mounts if is_ours else strangers).append(mount)
        nodes = {os.fsencode(f"/dev/{block.name}") for block in blocks}
        swaps = [
            readable(swap)
            for swap in read_swaps(self._proc / "swaps")
            if swap in nodes or any(_lies_in(swap, mount.point) for mount in mounts)
        ]
        return _Use(blocks, mounts, strangers, swaps)

    def _unmount(self, busid: str, mount: Mount, strangers: list[Mount]) -> None:
        """Raises `ClaimError`: `mounted`."""
        # umount takes the latest mount there, which must not be of another device.
        inside = [str(other) for other in strangers if mount.mount_id == other.parent_id]
        over = [str(other) for other in strangers if mount.point == other.point]
        if inside or over:
            others = " and ".join(dict.fromkeys(inside + over))
            raise ClaimError(
                f"{busid} is in use: {mount} cannot be unmounted, another file system is mounted on {others}",
                code="mounted",
                advice=f"unmount that first: umount {_quoted(inside + over)}",
            )
        complaint = self._umount(mount.point)
        if complaint is None:
            _LOG.info("%s: %s unmounted", busid, mount)
            return
        if all(mount.mount_id != other.mount_id for other in read_mounts(self._mount_table)):
            return  # another process was faster, or a mount that it shares took it along
        programs = programs_using(self._proc, lambda path: _lies_in(path, mount.point))
        if not programs:
            raise ClaimError(
                f"{busid} is in use: {mount} cannot be unmounted: {complaint}",
                code="mounted",
                advice=f"find the program that uses it (fuser -vm {_quoted([str(mount)])}), then try again",
            )
        raise ClaimError(
            f"{busid} is in use: {mount} cannot be unmounted, because "
            f"{_some(programs)} {'has' if len(programs) == 1 else 'have'} files open there: "
            f"{complaint}",
            code="mounted",
            advice="close them, then try again",
        )

    def _flush(self, busid: str, blocks: list[BlockDevice]) -> None:
        """Flush the caches of the block devices.  Raises `ClaimError`."""
        for block in blocks:
            try:
                descriptor = os.open(self._dev / block.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError:  # a card reader without a card
                continue
            try:
                os.fsync(descriptor)
            except OSError as error:
                raise ClaimError(
                    f"{busid}: cannot flush /dev/{block.name}, data may be lost: {error.strerror}",
                    code="not-written",
                    advice="check the file system before you use it again",
                ) from error
            finally:
                os.close(descriptor)


def _refuse_what_stays(busid: str, use: _Use) -> None:
    """Raises `ClaimError`, before any unmount, for a use that unmounting does not end."""
    if any(mount.point == b"/" for mount in use.mounts):
        raise ClaimError(
            f"{busid} is in use: this system runs from it",
            code="in-use",
            advice="it cannot be shared while this system runs",
        )
    if not use.swaps and not use.built:
        return
    built = {block.number for block in use.built}
    on_top = [str(mount) for mount in order_of_unmounting(use.mounts) if mount.number in built]
    steps = [f"swapoff {_quoted([swap])}" for swap in use.swaps]
    steps += [f"umount {_quoted(on_top)}"] if on_top else []
    steps += [describe_built(block)[1] for block in reversed(use.built)]
    uses = [*(f"swap on {swap}" for swap in use.swaps), *_names(use.built)]
    raise ClaimError(
        f"{busid} is in use: {', '.join(uses)}",
        code="in-use",
        advice=f"unmounting does not end that; first: {'; '.join(steps)}",
    )


def _names(built: list[BlockDevice]) -> list[str]:
    return [describe_built(block)[0] for block in built]


def _some(programs: list[Program]) -> str:
    """The first few: there may be hundreds."""
    names = [str(program) for program in programs[:NAMED_PROGRAMS]]
    if len(programs) > len(names):
        names.append(f"{len(programs) - len(names)} more")
    return " and ".join(names)


def _quoted(paths: list[str]) -> str:
    """Quoted for a shell."""
    return " ".join(shlex.quote(path) for path in dict.fromkeys(paths))


def _lies_in(path: bytes, point: bytes) -> bool:
    return path == point or path.startswith(point.rstrip(b"/") + b"/")


def _driver(directory: Path) -> str | None:
    try:
        return (directory / "driver").readlink().name
    except OSError:
        return None


def _number_of(source: bytes) -> str | None:
    """major:minor of the device `source`; None if it is not the path of a device."""
    if not source.startswith(b"/dev/"):  # other paths may be on a dead file server
        return None
    try:
        number = os.stat(source).st_rdev  # noqa: PTH116 - bytes
    except (OSError, ValueError):
        return None
    return f"{os.major(number)}:{os.minor(number)}"
