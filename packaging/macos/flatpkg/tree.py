"""A directory as a package installs it: every entry with its mode and content, all owned by root.

Runs in `make pkg`.  What does not belong in a package is refused here, with its path.
"""

import os
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

MAX_FILE: Final = 0xFFFF_FFFF
"""Bytes: the limit of the 32-bit size in a Bom."""
MAX_PATH: Final = 1023
"""Bytes without the final NUL: PATH_MAX of macOS <sys/syslimits.h>."""
MAX_NAME: Final = 255
"""Bytes: NAME_MAX there."""


class UnfitError(Exception):
    """Something that cannot be packed; the message says what and where."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A directory, a regular file or a symbolic link."""

    path: str
    """`.`, or `./` and the path in the tree."""
    mode: int
    """Type and permissions, as in `st_mode`."""
    content: bytes
    """The file's content, or the link's target; empty for a directory."""

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)


def read_tree(root: Path) -> list[Entry]:
    """`root` and all entries below it; a directory precedes its contents.

    Raises `UnfitError`.
    """
    try:
        if not root.is_dir():
            raise UnfitError(f"{root}: no such directory")
        entries = [Entry(".", stat.S_IFDIR | 0o755, b""), *_entries(root, PurePosixPath())]
    except OSError as error:
        raise UnfitError(f"{error.filename}: {error.strerror}") from error
    _refuse_twins(entries)
    known = {entry.path: entry for entry in entries}
    for entry in entries:
        if entry.is_link:
            _check_link(entry, known)
    return entries


def _entries(root: Path, place: PurePosixPath) -> Iterator[Entry]:
    for name in sorted(os.listdir(root / place), key=os.fsencode):  # noqa: PTH208 - only names are needed
        inner = place / name
        path = f"./{inner}"
        _check_name(name, path)
        found = (root / inner).lstat()
        if stat.S_ISLNK(found.st_mode):
            # A link has no permissions on Linux; on macOS it is created with these.
            yield Entry(path, stat.S_IFLNK | 0o755, os.fsencode((root / inner).readlink()))
            continue
        _check_mode(found.st_mode, path)
        if stat.S_ISDIR(found.st_mode):
            yield Entry(path, found.st_mode, b"")
            yield from _entries(root, inner)
            continue
        if found.st_size > MAX_FILE:
            raise UnfitError(
                f"{path}: {found.st_size} bytes, more than the {MAX_FILE} that a package can list"
            )
        yield Entry(path, found.st_mode, (root / inner).read_bytes())


def _check_name(name: str, path: str) -> None:
    try:
        raw = name.encode()
    except UnicodeEncodeError as error:
        raise UnfitError(f"{path!r}: the name is not UTF-8") from error
    if not name.isprintable():
        raise UnfitError(f"{path!r}: the name has unprintable characters")
    if len(raw) > MAX_NAME:
        raise UnfitError(f"{path}: the name has {len(raw)} bytes, more than the {MAX_NAME} of macOS")
    if len(path.encode()) > MAX_PATH:
        raise UnfitError(
            f"{path}: the path has {len(path.encode())} bytes, more than the {MAX_PATH} of macOS"
        )


def _check_mode(mode: int, path: str) -> None:
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise UnfitError(f"{path}: neither a regular file nor a directory nor a symbolic link")
    if mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX) or mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnfitError(
            f"{path}: mode {stat.S_IMODE(mode):04o}: files that root installs are writable by root only, "
            "and have no set-id or sticky bit"
        )


def _check_link(entry: Entry, known: dict[str, Entry]) -> None:
    """Raises `UnfitError` unless the link leads to something in the tree, on any volume."""
    target = os.fsdecode(entry.content)
    if target.startswith("/"):
        raise UnfitError(f"{entry.path}: points to {target}, which differs on another volume")
    reached = os.path.normpath(f"{PurePosixPath(entry.path).parent}/{target}")
    if reached == ".." or reached.startswith("../"):
        raise UnfitError(f"{entry.path}: points to {target}, outside the package")
    if f"./{reached}" not in known and reached != ".":
        raise UnfitError(f"{entry.path}: points to {target}, which is not in the package")


def _refuse_twins(entries: list[Entry]) -> None:
    """Raises `UnfitError` for two names that differ only in case, which a Mac's usual file system ignores."""
    seen: dict[str, str] = {}
    for entry in entries:
        folded = unicodedata.normalize("NFD", entry.path).casefold()
        if folded in seen:
            raise UnfitError(f"{entry.path}: the same file as {seen[folded]} on a Mac")
        seen[folded] = entry.path
