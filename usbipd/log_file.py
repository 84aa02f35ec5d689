"""The log file of a daemon: opened by the extension, stderr to all its processes.

Log rotation renames the file and sends SIGHUP (newsyslog(8), logrotate(8)).  The extension then opens the
path again and sends the new file to its children: they lack the right to open it and, in a chroot, the path.

Descriptor 2 is that file, so the last words of Python or a library are logged too.
"""

import errno
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from usbipd.errors import UsageError
from usbipd.trusted_file import UntrustedError, open_trusted

STDERR: Final = 2

# Another user could use a symbolic link to make root write into another file.  The open of a FIFO must fail,
# not block.
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


class LogFile:
    """A context in which stderr is the file at `path`; None keeps stderr."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._before: int | None = None

    def __enter__(self) -> Self:
        """Raises `UsageError`, with stderr unchanged."""
        if self.path is not None:
            before = os.dup(STDERR)
            try:
                self.reopen()
            except UsageError:
                os.close(before)
                raise
            self._before = before
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restores stderr, where the parent process can read why we exit."""
        if self._before is not None:
            os.dup2(self._before, STDERR)
            os.close(self._before)
            self._before = None

    def reopen(self) -> None:
        """Switch to the file that is at the path now; creates it if missing, readable by root and its group.
        Raises `UsageError` and keeps the old file."""
        assert self.path is not None, "only a file can be reopened"
        descriptor = _open(self.path, _FLAGS | os.O_CREAT)
        os.dup2(descriptor, STDERR)
        os.close(descriptor)


def check_log_file(path: Path) -> None:
    """Check that a daemon of this user could log to `path`; creates no file.  Raises `UsageError`."""
    try:
        os.close(_open(path, _FLAGS))
    except UsageError as error:
        is_new = isinstance(error.__cause__, FileNotFoundError) and path.parent.is_dir()
        if not is_new:
            raise
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise _unusable(path, os.strerror(errno.EACCES)) from error


def _open(path: Path, flags: int) -> int:
    """Raises `UsageError`."""
    try:
        descriptor = open_trusted(path, flags, 0o640, every_directory=False)
    except UntrustedError as error:
        if _is_special(path):  # such as /dev/null, which every user can write
            raise _unusable(path, "not a regular file") from error
        raise _unusable(
            path,
            f"another user can replace it: {error}",
            "choose a directory that only root can change, such as /var/log",
        ) from error
    except OSError as error:
        what = "a symbolic link" if error.errno == errno.ELOOP else error.strerror  # O_NOFOLLOW
        raise _unusable(path, what or str(error)) from error
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
        return descriptor
    os.close(descriptor)
    if stat.S_ISREG(
        found.st_mode
    ):  # a link by a user who may not write the file, on a system with unprotected links
        raise _unusable(path, "a file that has other hard links")
    raise _unusable(path, "not a regular file")


def _is_special(path: Path) -> bool:
    """Whether a device, FIFO or socket is at the path now; only for the message."""
    try:
        kind = stat.S_IFMT(path.lstat().st_mode)
    except OSError:
        return False
    return kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)


def _unusable(
    path: Path,
    what: str,
    advice: str = "name a file in a directory that exists, or stderr or syslog, with --log-to or log_to",
) -> UsageError:
    return UsageError(f"cannot log to {path}: {what}", code="bad-log-file", advice=advice)
