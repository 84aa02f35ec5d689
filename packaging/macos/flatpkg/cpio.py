"""cpio archives in the portable ASCII format, "odc": POSIX.1-1988, pax(1) "cpio Interchange Format".

Runs in `make pkg`.
"""

from collections.abc import Iterable
from typing import Final

from flatpkg.tree import Entry, UnfitError

_TRAILER: Final = "TRAILER!!!"
_MAX_6: Final = 0o777_777
_MAX_11: Final = 0o777_7777_7777


def archive(entries: Iterable[Entry], time: int) -> bytes:
    """The entries, owned by root (0:0) and modified at `time`, seconds since 1970.  Raises `UnfitError`."""
    if not 0 <= time <= _MAX_11:
        raise UnfitError(f"time {time}: a cpio archive has 0 to {_MAX_11}")
    written = bytearray()
    for number, entry in enumerate(entries, 1):
        if number > _MAX_6:
            raise UnfitError(f"{entry.path}: one entry more than the {_MAX_6} of a cpio archive")
        written += _record(entry.path, entry.mode, entry.content, number, time)
    return bytes(written + _record(_TRAILER, 0, b"", 0, 0))


def _record(path: str, mode: int, content: bytes, inode: int, time: int) -> bytes:
    name = path.encode() + b"\0"
    if len(name) > _MAX_6:
        raise UnfitError(f"{path[:60]}...: a name of {len(name)} bytes; a cpio archive has {_MAX_6} at most")
    if len(content) > _MAX_11:
        raise UnfitError(f"{path}: {len(content)} bytes; a cpio archive has {_MAX_11} at most")
    device = owner = group = special = 0
    links = 1
    header = "070707" + "".join(
        f"{value:06o}" for value in (device, inode, mode, owner, group, links, special)
    )
    return f"{header}{time:011o}{len(name):06o}{len(content):011o}".encode() + name + content
