"""Who holds a USB device, what is lost if it is taken, and how it gets back.  Runs in the extension.

On Linux sysfs, /proc and the mount table have the answers.  A host without them has nothing to say here:
whether a claim works is then known by trying.  All of it may block: call it in a thread.
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
_DEVICE_DRIVER: Final = (
    "usb"  # the driver of a whole device that is nothing special: drivers/usb/core/generic.c
)


NAMED_PROGRAMS: Final = 5
"""How many of those that keep a file system busy are named."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A driver or a program that has a device, or a part of it."""

    kind: Literal["driver", "program"]
    name: str
    """Empty: there is one, but it cannot be told which."""
    pid: int | None
    """Of a program."""
    interface: int | None
    """The bInterfaceNumber that it holds; None: the whole device, or it is not known."""

    def __str__(self) -> str:
        """For a sentence: `the driver usb-storage`, `the program virtualbox (pid 4711)`."""
        if not self.name:
            return f"another {self.kind}"
        pid = "" if self.pid is None else f" (pid {self.pid})"
        return f"the {self.kind} {self.name}{pid}"


class Ownership(Protocol):
    """What this host knows of who has a device.  Everything may block; a device may be gone at any time."""

    def holders_of(self, busid: str) -> list[Holder]:
        """The programs that have the device open and its drivers; who is in the way first.  Never raises."""

    def drivers_of(self, busid: str) -> list[str]:
        """The drivers that hold the device or interfaces of it, each once."""

    def in_use(self, busid: str) -> list[str]:
        """What would be lost with the device: mount points (they begin with a slash) and, described in words,
        swap areas and volumes that are built on it.

        Raises `OSError` if it goes while it is looked at, `UsbipdError` if the host does not say.
        """

    def unmount(self, busid: str) -> None:
        """Unmount all its file systems, nested ones first, and write everything.

        Raises `ClaimError` if that cannot be, with what is busy and what to do: `mounted` a file system,
        `in-use` something that unmounting does not end.
        """

    def give_back(self, busid: str) -> None:
        """Find drivers for the interfaces that have none, as after plugging in.

        Raises `UsbipdError` if the host refuses.
        """


@dataclass(frozen=True, slots=True)
class _Use:
    """What a device is used for."""

    blocks: list[BlockDevice]
    mounts: list[Mount]
    strangers: list[Mount]
    """The mounts of other devices."""
    swaps: list[str]

    @property
    def built(self) -> list[BlockDevice]:
        return [block for block in self.blocks if block.is_built]


class SysfsOwnership:
    """What Linux says about the devices of one host.  The arguments are for tests."""

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
            return held + programs  # to have it open is not to hold it
        # None is seen: of another user, or in a container
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
                    f"{busid} is in use: {', '.join(map(str, use.mounts))}, and this daemon has a mount "
                    "namespace of its own: what it unmounts stays mounted on the host",
                    code="mounted",
                    advice="unmount it on the host; if systemd runs the daemon, remove ProtectSystem=, "
                    "PrivateTmp= and the like from its unit",
                )
            for mount in order_of_unmounting(use.mounts):
                self._unmount(busid, mount, use.strangers)
            self._flush(busid, use.blocks)
            left = self.in_use(busid)
        except OSError as error:  # a device that goes while it is looked at
            raise ClaimError(f"cannot tell whether {busid} is in use: {error}", code="in-use") from error
        if left:
            raise ClaimError(
                f"{busid} is in use again: {', '.join(left)}",
                code="mounted",
                advice="something mounts it by itself: end that, then try again",
            )

    def give_back(self, busid: str) -> None:
        """As in `Ownership`; never raises.  For a worker that died before it could give its device back."""
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
        """Those of the active configuration, by number: BUSID:bConfigurationValue.bInterfaceNumber."""
        entries = (self._bus / "devices").glob("*:*.*")
        return sorted(
            (int(entry.name.rpartition(".")[2]), entry)
            for entry in entries
            if entry.name.startswith(f"{busid}:")
        )

    def _drivers(self, busid: str) -> list[tuple[int | None, str]]:
        """bInterfaceNumber (None: the whole device, as usbip-host has it) and driver."""
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
        """Those that have the device's node open; in a container it may lie elsewhere than in /dev."""
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
        # umount takes what was mounted there last, which must not be somebody else's.
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
            return  # somebody else was faster, or it went with a mount that it shares
        programs = programs_using(self._proc, lambda path: _lies_in(path, mount.point))
        if not programs:
            raise ClaimError(
                f"{busid} is in use: {mount} cannot be unmounted: {complaint}",
                code="mounted",
                advice=f"see what keeps it (fuser -vm {_quoted([str(mount)])}), then try again",
            )
        raise ClaimError(
            f"{busid} is in use: {mount} cannot be unmounted, because "
            f"{_some(programs)} {'has' if len(programs) == 1 else 'have'} files open there: "
            f"{complaint}",
            code="mounted",
            advice="close them, then try again",
        )

    def _flush(self, busid: str, blocks: list[BlockDevice]) -> None:
        """Write what the caches of the block devices still have.  Raises `ClaimError`."""
        for block in blocks:
            try:
                descriptor = os.open(self._dev / block.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError:  # a card reader without a card
                continue
            try:
                os.fsync(descriptor)
            except OSError as error:
                raise ClaimError(
                    f"{busid}: not everything could be written to /dev/{block.name}: {error.strerror}",
                    code="not-written",
                    advice="check the file system before you use it again",
                ) from error
            finally:
                os.close(descriptor)


def _refuse_what_stays(busid: str, use: _Use) -> None:
    """Raises `ClaimError` for what unmounting does not end; nothing is unmounted then."""
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
    """Not all of them: there may be hundreds."""
    names = [str(program) for program in programs[:NAMED_PROGRAMS]]
    if len(programs) > len(names):
        names.append(f"{len(programs) - len(names)} more")
    return " and ".join(names)


def _quoted(paths: list[str]) -> str:
    """For a shell."""
    return " ".join(shlex.quote(path) for path in dict.fromkeys(paths))


def _lies_in(path: bytes, point: bytes) -> bool:
    return path == point or path.startswith(point.rstrip(b"/") + b"/")


def _driver(directory: Path) -> str | None:
    try:
        return (directory / "driver").readlink().name
    except OSError:
        return None


def _number_of(source: bytes) -> str | None:
    """major:minor of the device `source`; None if it is not the path of one."""
    if not source.startswith(b"/dev/"):  # others may lie on a server that is dead
        return None
    try:
        number = os.stat(source).st_rdev  # noqa: PTH116 - bytes
    except (OSError, ValueError):
        return None
    return f"{os.major(number)}:{os.minor(number)}"
