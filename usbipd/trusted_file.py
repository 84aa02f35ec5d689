"""Opens files by paths that only root can change.  Used by root's extension, for its configuration and log.

A path is a chain of directories and symbolic links, and a user who can change one of them decides which file
root opens.  So it is walked name by name: each directory is opened and examined, the next name is looked up
in that very directory, and a link is followed only where root made it.  Nothing can be replaced between the
look and the use.

A user can change a directory that belongs to them or that they may write.  In a sticky one, such as /tmp,
they can change only what is theirs; there, as everywhere, what comes next has to be root's.  A group whose
members may become root anyway (`privileges.GROUPS_OF_ROOT`) is as good as root.
"""

import errno
import grp
import os
import stat
from collections import deque
from pathlib import Path
from typing import Final

from usbipd.privileges import GROUPS_OF_ROOT, user_name

_MOST_LINKS: Final = 40  # as Linux follows: include/linux/namei.h, MAXSYMLINKS
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class UntrustedError(Exception):
    """Another user can change which file a path names, or what is in it; the message says where, and who."""


def open_trusted(path: Path, flags: int, mode: int = 0o600, *, every_directory: bool = True) -> int:
    """Like os.open, with O_CLOEXEC, for a path and a file that only root can change.

    Without `every_directory`, root may have made the file's own directory below one that others may write, as
    /var/log is on some systems: they could move it away, and put nothing of root's in its place.  For a user
    other than root, any path is good.  Raises `OSError` and `UntrustedError`.
    """
    if os.geteuid() != 0:
        return os.open(path, flags | os.O_CLOEXEC, mode)
    names = deque(path.absolute().parts[1:])
    links = 0
    walk = _Walk()
    try:
        while names:
            name = names.popleft()
            fault = _who_can_change(walk.path, os.fstat(walk.descriptor))
            if fault is not None and (every_directory or not names):
                raise UntrustedError(fault)
            target = walk.target_of(name)
            if target is None and names:
                walk.enter(name)
                continue
            if target is None:
                return walk.open_file(name, flags, mode)
            links += 1
            if links > _MOST_LINKS or (not names and flags & os.O_NOFOLLOW):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if fault is not None:
                raise UntrustedError(fault)
            if target.is_absolute():
                walk.begin()
            names.extendleft(part for part in reversed(target.parts) if part != "/")
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    finally:
        walk.close()


class _Walk:
    """A directory on the way."""

    def __init__(self) -> None:
        self.path = Path("/")
        self.descriptor = os.open("/", _DIRECTORY)

    def begin(self) -> None:
        """Go back to the root."""
        self._go(os.open("/", _DIRECTORY), Path("/"))

    def enter(self, name: str) -> None:
        """Raises `OSError`."""
        path = Path(os.path.normpath(self.path / name))  # no part of it is a link, so `..` is what it seems
        self._go(os.open(name, _DIRECTORY, dir_fd=self.descriptor), path)

    def target_of(self, name: str) -> Path | None:
        """Where the link `name` leads; None: it is none, or does not exist.

        Raises `OSError`, and `UntrustedError` if root has not made it.
        """
        try:
            found = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not stat.S_ISLNK(found.st_mode):
            return None
        if found.st_uid != 0:
            raise UntrustedError(f"{self.path / name} belongs to {user_name(found.st_uid)}")
        return Path(os.readlink(name, dir_fd=self.descriptor))

    def open_file(self, name: str, flags: int, mode: int) -> int:
        """Raises `OSError`, and `UntrustedError` if others can change it."""
        file = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=self.descriptor)
        fault = _who_can_change(self.path / name, os.fstat(file))
        if fault is not None:
            os.close(file)
            raise UntrustedError(fault)
        return file

    def close(self) -> None:
        os.close(self.descriptor)

    def _go(self, descriptor: int, path: Path) -> None:
        os.close(self.descriptor)
        self.descriptor, self.path = descriptor, path


def _who_can_change(path: Path, found: os.stat_result) -> str | None:
    """A user other than root that can change this directory or file, in words; None: there is none."""
    if found.st_uid != 0:
        return f"{path} belongs to {user_name(found.st_uid)}"
    if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX:
        return None
    if found.st_mode & stat.S_IWOTH:
        return f"{path} may be written by every user"
    if found.st_mode & stat.S_IWGRP and found.st_gid not in GROUPS_OF_ROOT:
        return f"{path} may be written by the group {_group_name(found.st_gid)}"
    return None


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
