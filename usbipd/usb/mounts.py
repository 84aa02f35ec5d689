"""What is mounted on this host, what it swaps to, and how a file system is unmounted.  Linux.

Runs in the extension, in threads.  The table is that of process 1, so of the host, if we may read it: what is
mounted in another namespace only is not seen.
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
"""Seconds for one file system: a slow stick may have much to write."""

_PROGRAMS: Final = "/usr/bin:/bin:/usr/sbin:/sbin"
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the mount table (Linux Documentation/filesystems/proc.rst, 3.5)."""

    mount_id: int
    parent_id: int
    number: str
    """major:minor of the file system; one of its own for those that may have several devices, as btrfs."""
    point: bytes
    source: bytes
    """For most file systems the path of the block device."""

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
    """Later mounts first, which may lie over earlier ones, but none before those that are mounted in it: one
    that was moved is older than what it is in."""
    left = list(mounts)
    ordered = []
    while left:
        parents = {mount.parent_id for mount in left if mount.parent_id != mount.mount_id}
        last = next(mount for mount in reversed(left) if mount.mount_id not in parents)
        left.remove(last)
        ordered.append(last)
    return ordered


def mount_table_of_host(proc: Path) -> Path:
    """The table of process 1; ours where only root may read it, and we are not."""
    try:
        with (proc / "1/mountinfo").open():  # proc(5): a mode of 0444, and yet not for everybody
            return proc / "1/mountinfo"
    except OSError:
        return proc / "self/mountinfo"


def is_namespace_of_host(proc: Path) -> bool:
    """Whether process 1 sees the mounts that we see, and what we do to them (mount_namespaces(7)).

    True also where that cannot be told: only root may ask.
    """
    try:
        return (proc / "self/ns/mnt").readlink() == (proc / "1/ns/mnt").readlink()
    except OSError:
        return True


def umount(point: bytes) -> str | None:
    """Unmount the file system that was mounted on `point` last.  What umount complained, None if it worked.

    Waits until everything is written.  Raises `ClaimError` if there is no umount, or if it takes longer than
    `UMOUNT_TIMEOUT`; it goes on then, because killing it would not end what the kernel writes.
    """
    program = shutil.which("umount", path=_PROGRAMS)
    if program is None:
        raise ClaimError(
            f"there is no umount in {_PROGRAMS}", code="no-umount", advice="install util-linux, or unmount it"
        )
    process = subprocess.Popen(  # noqa: S603 - a fixed program, no shell, and a path of the kernel's
        [program, point],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={"PATH": _PROGRAMS, "LC_ALL": "C.UTF-8"},
        start_new_session=True,  # Ctrl-C at our terminal is not for it
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
    hyphen = fields.index(b"-", 6)  # behind any number of optional fields
    return Mount(
        mount_id=int(fields[0]),
        parent_id=int(fields[1]),
        number=fields[2].decode("ascii"),
        point=_unescape(fields[4]),
        source=_unescape(fields[hyphen + 2]),
    )


def _unescape(field: bytes) -> bytes:
    """What the kernel wrote as an octal escape: space, tab, newline, backslash, # (fs/proc_namespace.c)."""
    return _OCTAL.sub(lambda octal: bytes([int(octal[1], 8)]), field)
