"""Where things lie while the daemon runs.  Used by the extension and by the CLI.

Root's daemon uses one fixed directory, so that every local user finds its control socket.  A daemon run
by any other user (development) has a private directory of that user.  Nothing here is ever derived from
the home of whoever ran sudo.
"""

import os
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from usbipd.errors import UsbipdError

CONTROL_SOCKET: Final = "control.sock"
CHROOT: Final = "empty"

MAX_SOCKET_PATH: Final = 103
"""Bytes of a Unix socket's path: sizeof(sun_path) - 1, the smaller one (macOS <sys/un.h>; Linux has 107)."""


def system_runtime_directory() -> Path:
    """The directory of root's daemon."""
    return Path("/var/run/usbipd" if sys.platform == "darwin" else "/run/usbipd")


def runtime_directory() -> Path:
    """The directory of a daemon that this process's user starts; it need not exist."""
    if os.geteuid() == 0:
        return system_runtime_directory()
    session = os.environ.get("XDG_RUNTIME_DIR", "")
    if session.startswith("/") and _is_ours(Path(session)):  # after `su` it may be another user's
        return Path(session, "usbipd")
    return Path(tempfile.gettempdir(), f"usbipd-{os.geteuid()}")


def control_socket() -> Path:
    """The socket on which a daemon may answer: this user's own if there is one, else root's.

    One in the usual place that somebody else has put there does not count.
    """
    own = runtime_directory() / CONTROL_SOCKET
    return own if _is_ours(own) else system_runtime_directory() / CONTROL_SOCKET


@dataclass(frozen=True, slots=True)
class RuntimeFiles:
    """What one extension keeps in its directory, beside the socket, which `IPCHandler` makes and removes."""

    control_socket: Path

    @property
    def directory(self) -> Path:
        return self.control_socket.parent

    @property
    def chroot(self) -> Path:
        """An empty directory that only root may write: the root directory of the server."""
        return self.directory / CHROOT

    def prepare(self) -> None:
        """Make the directory.

        Raises `UsbipdError` if the path is too long for a socket, or the directory belongs to or may be
        written by somebody else, who could then put a socket of his own in our place.
        """
        if len(os.fsencode(self.control_socket)) > MAX_SOCKET_PATH:
            raise UsbipdError(
                f"{self.control_socket}: longer than the {MAX_SOCKET_PATH} bytes that a Unix socket may have",
                code="bad-path",
                advice="choose a shorter path with --socket",
            )
        _make_directory(self.directory, 0o755 if os.geteuid() == 0 else 0o700)

    def prepare_chroot(self) -> None:
        """Make the server's empty root directory if we are root.  Raises `UsbipdError`."""
        if os.geteuid() == 0:
            _make_directory(self.chroot, 0o755)
            if any(self.chroot.iterdir()):
                raise UsbipdError(f"{self.chroot} is not empty", code="bad-path", advice="empty it")

    def remove(self) -> None:
        """Remove the directories; one that holds anything else stays."""
        for directory in (self.chroot, self.directory):
            try:
                directory.rmdir()
            except OSError:  # not there, not empty, or in a parent that we may not write
                continue


def _is_ours(path: Path) -> bool:
    """Whether `path` is there and belongs to this process's user."""
    try:
        return path.lstat().st_uid == os.geteuid()
    except OSError:
        return False


def _make_directory(path: Path, mode: int) -> None:
    """Make `path` unless it is there, and make sure that nobody else can write it."""
    try:
        path.mkdir(mode)
        path.chmod(mode)  # the umask does not decide who finds the socket
    except FileExistsError:
        pass
    except OSError as error:
        raise UsbipdError(
            f"{path}: {error.strerror}", code="bad-path", advice="choose another place with --socket"
        ) from error
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise UsbipdError(f"{path} is not a directory", code="bad-path", advice=f"remove {path}")
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsbipdError(
            f"{path} belongs to or may be written by another user (uid {found.st_uid}, "
            f"mode {stat.S_IMODE(found.st_mode):04o})",
            code="bad-path",
            advice=f"remove {path}, or choose another place with --socket",
        )
