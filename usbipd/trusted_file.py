"""Opens files by paths that only root can change.  Used by root's extension, for its configuration and log.

A path is a chain of directories and symbolic links; a user who can change one of them decides which file root
opens.  So the path is walked name by name: each directory is opened and checked, the next name is looked up
in that open directory, and a link is followed only if root created it.  Nothing can be replaced between check
and use.

A user can change a directory that they own or may write.  In a sticky one, such as /tmp, they can change only
their own entries; there, as everywhere, the next entry must belong to root.  A group whose members can become
root anyway (`privileges.GROUPS_OF_ROOT`) counts as root.
"""

import errno
import grp
import os
import stat
from collections import deque
from pathlib import Path
from typing import Final

from usbipd.privileges import GROUPS_OF_ROOT, user_name

_MOST_LINKS: Final = 40  # the limit of Linux: include/linux/namei.h, MAXSYMLINKS
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class UntrustedError(Exception):
    """Another user can replace or change the file of a path; the message names the place and the user."""


def open_trusted(path: Path, flags: int, mode: int = 0o600, *, every_directory: bool = True) -> int:
    """Like os.open, with O_CLOEXEC, for a path and a file that only root can change.

    Without `every_directory`, the file's directory, created by root, may be below one that others can write,
    such as /var/log on some systems: they could move it away, but not replace it with one of root's.  For a
    user other than root, every path is accepted.  Raises `OSError` and `UntrustedError`.
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
    """The current directory of a walk."""

    def __init__(self) -> None:
        self.path = Path("/")
        self.descriptor = os.open("/", _DIRECTORY)

    def begin(self) -> None:
        """Return to the root."""
        self._go(os.open("/", _DIRECTORY), Path("/"))

    def enter(self, name: str) -> None:
        """Raises `OSError`."""
        path = Path(os.path.normpath(self.path / name))  # no part of it is a link, so `..` is the parent
        self._go(os.open(name, _DIRECTORY, dir_fd=self.descriptor), path)

    def target_of(self, name: str) -> Path | None:
        """The target of the link `name`; None if it is not a link or does not exist.

        Raises `OSError`, and `UntrustedError` if root did not create it.
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
    """A clause on a user other than root who can change this directory or file; None if no user can."""
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
