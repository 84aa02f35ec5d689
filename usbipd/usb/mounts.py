"""Reads the mount table and swap areas of this host, and unmounts file systems.  Linux.

Runs in the extension, in threads.  The table is that of process 1, hence of the host, if this process may
read it: mounts that exist only in another namespace are not seen.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from usbipd.errors import ClaimError
from usbipd.text import readable

UMOUNT_TIMEOUT: Final = 120.0
"""Seconds for one file system: a slow USB stick may have much to write."""

_PROGRAMS: Final = "/usr/bin:/bin:/usr/sbin:/sbin"
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the mount table (Linux Documentation/filesystems/proc.rst, 3.5)."""

    mount_id: int
    parent_id: int
    number: str
    """major:minor of the file system; an anonymous one if it can span several devices, like btrfs."""
    point: bytes
    source: bytes
    """The path of the block device for most file systems."""

    def __str__(self) -> str:
        return readable(self.point)


def read_mounts(table: Path) -> list[Mount]:
    """All mounts in the order of the table.  Raises `OSError`."""
    return [_parse_mount(line) for line in table.read_bytes().split(b"\n") if line]


def read_swaps(table: Path) -> list[bytes]:
    """The paths of all swap areas, devices and files.  Raises `OSError`."""
    try:
        lines = table.read_bytes().split(b"\n")
    except FileNotFoundError:  # a kernel without swap
        return []
    return [_unescape(line.split()[0]) for line in lines[1:] if line]


def order_of_unmounting(mounts: list[Mount]) -> list[Mount]:
    """Latest mount first, since it may cover earlier ones, but each after the mounts inside it: a moved mount
    is older than the one that contains it."""
    left = list(mounts)
    ordered = []
    while left:
        parents = {mount.parent_id for mount in left if mount.parent_id != mount.mount_id}
        last = next(mount for mount in reversed(left) if mount.mount_id not in parents)
        left.remove(last)
        ordered.append(last)
    return ordered


def mount_table_of_host(proc: Path) -> Path:
    """The table of process 1, or of this process if it may not read that one."""
    try:
        with (proc / "1/mountinfo").open():  # mode 0444, but only for some users: proc(5)
            return proc / "1/mountinfo"
    except OSError:
        return proc / "self/mountinfo"


def is_namespace_of_host(proc: Path) -> bool:
    """Whether this process shares the mount namespace of process 1 (mount_namespaces(7)).

    True also if that is unknown: only root may ask.
    """
    try:
        return (proc / "self/ns/mnt").readlink() == (proc / "1/ns/mnt").readlink()
    except OSError:
        return True


def umount(point: bytes) -> str | None:
    """Unmount the latest file system on `point`.  Returns the error message of umount, None on success.

    Waits until everything is written.  Raises `ClaimError` if umount does not exist, or if it takes longer
    than `UMOUNT_TIMEOUT`; it keeps running then, because killing it would not stop the kernel's writes.
    """
    program = shutil.which("umount", path=_PROGRAMS)
    if program is None:
        raise ClaimError(
            f"umount was not found in {_PROGRAMS}",
            code="no-umount",
            advice="install util-linux, or unmount the file system yourself",
        )
    process = subprocess.Popen(  # noqa: S603 - a fixed program, no shell, and a path of the kernel's
        [program, point],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={"PATH": _PROGRAMS, "LC_ALL": "C.UTF-8"},
        start_new_session=True,  # protects it from Ctrl-C at our terminal
    )
    try:
        _stdout, complaint = process.communicate(timeout=UMOUNT_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise ClaimError(
            f"{readable(point)} is still being unmounted after {UMOUNT_TIMEOUT:.0f} s",
            code="mounted",
            advice="wait until everything is written, then try again",
        ) from error
    if process.returncode == 0:
        return None
    return readable(b" ".join(complaint.split())) or f"exit code {process.returncode}"


def _parse_mount(line: bytes) -> Mount:
    fields = line.split(b" ")
    hyphen = fields.index(b"-", 6)  # after any number of optional fields
    return Mount(
        mount_id=int(fields[0]),
        parent_id=int(fields[1]),
        number=fields[2].decode("ascii"),
        point=_unescape(fields[4]),
        source=_unescape(fields[hyphen + 2]),
    )


def _unescape(field: bytes) -> bytes:
    """Decodes the kernel's octal escapes of space, tab, newline, backslash and # (fs/proc_namespace.c)."""
    return _OCTAL.sub(lambda octal: bytes([int(octal[1], 8)]), field)
