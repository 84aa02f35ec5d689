"""Paths of a daemon: its runtime files, its state, its configuration.

Used by the extension, and by commands that inspect these files.  `control_socket.py` has the path of the
socket.  Root's daemon uses fixed directories; a daemon run by any other user (development) uses private
directories of that user.  No path depends on the home of the user who ran sudo.
"""

import contextlib
import fcntl
import os
import pwd
import shlex
import stat
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from usbipd.control_socket import MAX_SOCKET_PATH, has_listener
from usbipd.errors import UsbipdError
from usbipd.trusted_file import UntrustedError, open_trusted

CHROOT: Final = "empty"
DATABASE: Final = "usbipd.sqlite"
"""The store of bindings, claims and history, in the state directory."""

_RUNTIME_IS_ROOTS: Final = sys.platform != "darwin"
"""Whether only root can write the system's directory of runtime files.  On macOS /var/run may be writable by
the group `daemon`, which has services of the system as members."""


def state_directory() -> Path:
    """The directory for the persistent state of this user's daemon; it need not exist.

    Raises `UsbipdError` if the user has no home in the user database.
    """
    if os.geteuid() == 0:
        return Path("/Library/Application Support/usbipd" if sys.platform == "darwin" else "/var/lib/usbipd")
    if sys.platform == "darwin":
        return _home() / "Library" / "Application Support" / "usbipd"
    state = os.environ.get("XDG_STATE_HOME", "")
    return Path(state, "usbipd") if state.startswith("/") else _home() / ".local" / "state" / "usbipd"


def prepare_state_directory(directory: Path) -> None:
    """Create `directory` and its missing parents.

    Raises `UsbipdError` if that fails, or if another user can write or replace `directory`: that user could
    then replace our bindings.
    """
    try:
        missing = [above for above in reversed(directory.parents) if not above.exists()]
    except OSError as error:  # a directory without permission to search it
        raise _unusable(directory, error, "--state") from error
    for path in [*missing, directory]:
        _make_directory(path, 0o700, "--state")  # 0700: XDG Base Directory Specification, last section


def config_file() -> Path:
    """The default configuration file of root's daemon; it need not exist."""
    if sys.platform == "darwin":
        return Path("/Library/Application Support/usbipd/usbipd.toml")
    return Path("/etc/usbipd/usbipd.toml")


def launch_daemon() -> Path | None:
    """The file that describes the launchd job of the extension, on macOS; it need not exist."""
    if sys.platform == "darwin":
        return Path("/Library/LaunchDaemons/org.usbipd.extension.plist")
    return None


def systemd_unit() -> Path | None:
    """The unit of the service, if systemd runs and has it."""
    if not Path(_SYSTEMD_RUNS).is_dir():
        return None
    units = (Path(directory, "usbipd.service") for directory in _UNIT_DIRECTORIES)
    return next((unit for unit in units if unit.exists()), None)


_SYSTEMD_RUNS: Final = "/run/systemd/system"
"""A directory that exists if systemd runs (sd_booted(3))."""
_UNIT_DIRECTORIES: Final = (
    "/etc/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
"""From systemd.unit(5), table 1."""


class RuntimeFiles(msgspec.Struct, frozen=True):
    """Files of one extension in its directory, except the socket, which `IPCHandler` creates and removes."""

    control_socket: Path

    @property
    def directory(self) -> Path:
        return self.control_socket.parent

    @property
    def chroot(self) -> Path:
        """The root directory of the server: empty, and writable only by root."""
        return self.directory / CHROOT

    @property
    def pid_file(self) -> Path:
        """The extension's pid, for log rotation (newsyslog.conf(5))."""
        return self.control_socket.with_suffix(".pid")

    def write_pid(self) -> None:
        """Write our pid, once we have the control socket.  Raises `UsbipdError`."""
        try:
            self.pid_file.write_text(f"{os.getpid()}\n")
            self.pid_file.chmod(0o644)
        except OSError as error:
            raise _unusable(self.pid_file, error, "--socket") from error

    def prepare(self) -> bool:
        """Create the directory if missing; returns whether it was created.

        Raises `UsbipdError` if the path is too long for a socket, or if another user can write or replace the
        directory: that user could then replace our socket.
        """
        if len(os.fsencode(self.control_socket)) > MAX_SOCKET_PATH:
            raise UsbipdError(
                f"{self.control_socket}: a path of a Unix socket has at most {MAX_SOCKET_PATH} bytes",
                code="bad-path",
                advice="choose a shorter path with --socket",
            )
        existed = os.path.lexists(self.directory)
        mode = 0o755 if os.geteuid() == 0 else 0o700
        _make_directory(self.directory, mode, "--socket", above=_RUNTIME_IS_ROOTS)
        return not existed

    def lock(self) -> int:
        """Lock the directory for this extension; returns the descriptor that holds the lock while it is open.

        Otherwise two extensions that start at the same time could each take the other's socket for a stale
        one.  Raises `OSError`, or `UsbipdError` if another extension holds the lock.
        """
        try:
            return open_locked(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        except BlockingIOError as error:
            raise UsbipdError(
                f"an extension is already running: its socket is in {self.directory}",
                code="already-running",
                advice=f"{self._how_to_see()}; stop it first, or choose another directory with --socket",
            ) from error

    def _how_to_see(self) -> str:
        """How to show the extension with a socket in the directory, perhaps under another name.  Raises
        `OSError`."""
        for path in sorted(self.directory.iterdir()):
            if path.is_socket() and has_listener(os.fspath(path)):
                return f"`usbipd-ext --status --socket {shlex.quote(os.fspath(path))}` shows it"
        return "it is starting or stopping"

    def remove_stale_pid(self) -> None:
        """Remove the pid file of a killed extension; keep that of a running one.

        The pid may now belong to another process, to which log rotation would send SIGHUP.  The start reports
        any obstacle.
        """
        # ValueError: a path without a last part
        with contextlib.suppress(OSError, ValueError, UsbipdError):
            if not self.pid_file.is_file():
                return
            self.prepare()  # checks it: nothing is removed from another user's directory
            lock = self.lock()
            try:
                self.pid_file.unlink()
            finally:
                os.close(lock)

    def prepare_chroot(self) -> None:
        """Create the server's empty root directory if we are root.  Raises `UsbipdError`."""
        if os.geteuid() == 0:
            _make_directory(self.chroot, 0o755, "--socket", above=_RUNTIME_IS_ROOTS)
            if any(self.chroot.iterdir()):
                raise UsbipdError(
                    f"{self.chroot} is not empty",
                    code="bad-path",
                    advice="choose another place with --socket",
                )

    def remove(self, *, made: bool) -> None:
        """Remove the pid file, the server's root directory and, if we `made` it, the directory of both.

        A directory with other files stays.
        """
        with contextlib.suppress(OSError):
            self.pid_file.unlink()
        for directory in (self.chroot, self.directory) if made else (self.chroot,):
            try:
                directory.rmdir()
            except OSError:  # missing, not empty, or in a parent that we may not write
                continue


def _home() -> Path:
    """The home of the effective user; not $HOME, which sudo may leave unchanged."""
    try:
        return Path(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError as error:
        raise UsbipdError(
            f"the user database has no entry for uid {os.geteuid()}, so there is no home to keep state in",
            code="bad-path",
            advice="choose a place with --state",
        ) from error


def open_locked(path: Path, flags: int) -> int:
    """Open `path` with `flags` and lock it until the descriptor is closed.

    Raises `OSError`; `BlockingIOError` if another process holds the lock.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _make_directory(path: Path, mode: int, option: str, *, above: bool = True) -> None:
    """Create `path` if missing, and ensure that no other user can write it.

    `option` is the command line option that chooses another place.  With `above`, root accepts only a path
    that no other user can change.
    """
    parent = _open_parent(path, option) if above and os.geteuid() == 0 else None
    try:
        found = _made(path if parent is None else Path(path.name or "."), mode, parent)
    except OSError as error:
        raise _unusable(path, error, option) from error
    finally:
        if parent is not None:
            os.close(parent)
    if not stat.S_ISDIR(found.st_mode):
        raise UsbipdError(
            f"{path} is not a directory", code="bad-path", advice=f"choose another place with {option}"
        )
    if (danger := writable_by_others(path, found, {os.geteuid()})) is not None:
        raise UsbipdError(danger, code="bad-path", advice=_OWN_PLACE.format(option))


def writable_by_others(path: Path, found: os.stat_result, owners: Collection[int]) -> str | None:
    """A clause that says that a user other than `owners` can write the directory `path`; None if none can."""
    if found.st_uid in owners and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return None
    mode = stat.S_IMODE(found.st_mode)
    return f"{path} belongs to or may be written by another user (uid {found.st_uid}, mode {mode:04o})"


_OWN_PLACE: Final = "choose another place with {}, in a directory that only you can change"


def _made(path: Path, mode: int, parent: int | None) -> os.stat_result:
    """Creates the directory `path`, in the directory of `parent`, if missing; returns its status.

    Raises `OSError`.
    """
    try:
        os.mkdir(path, mode, dir_fd=parent)
    except FileExistsError:
        return os.stat(path, dir_fd=parent, follow_symlinks=False)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.fchmod(descriptor, mode)  # whatever the umask is
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _open_parent(path: Path, option: str) -> int:
    """The parent directory of `path`, if only root can replace it.  Raises `UsbipdError`."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    try:
        if path.parent == Path("/"):  # cannot be replaced
            return os.open("/", flags | os.O_CLOEXEC)
        return open_trusted(path.parent, flags)
    except UntrustedError as error:
        raise UsbipdError(
            f"{path}: another user can replace this directory: {error}",
            code="bad-path",
            advice=_OWN_PLACE.format(option),
        ) from error
    except OSError as error:
        raise _unusable(path, error, option) from error


def _unusable(path: Path, error: OSError, option: str) -> UsbipdError:
    return UsbipdError(
        f"{path}: {error.strerror}", code="bad-path", advice=f"choose another place with {option}"
    )
