"""The files of the store: their lock, their last good copy, and recovery from damage.

Runs in the extension, on the store's thread; everything blocks.  The state directory contains

    usbipd.sqlite                    the store, with SQLite's -wal and -shm
    usbipd.copy-v2.sqlite            its last good copy; 2 is the schema version
    usbipd.sqlite.damaged-20260504T123001Z, ...newer-v7-...
                                     a store that could not be used, unchanged, for users to inspect
    usbipd.lock                      locked by the one extension that uses the directory

An older release that finds the store of a newer one sets it aside and continues with its own copy, which the
newer release has not touched.  To replace the store with an older one, remove the copy too.
"""

import contextlib
import errno
import fcntl
import logging
import os
import re
import shlex
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final

from usbipd.errors import UsbipdError
from usbipd.extension import store_tables
from usbipd.extension.store_tables import RESTART, DamagedStoreError, NewerStoreError
from usbipd.paths import DATABASE, open_locked, prepare_state_directory

_LOG: Final = logging.getLogger(__name__)

LOCK: Final = "usbipd.lock"

_HEADER: Final = b"SQLite format 3\0"
_HEADER_SIZE: Final = 100
_VERSIONS: Final = slice(18, 20)
"""1 without, 2 with a write-ahead log (https://www.sqlite.org/fileformat.html, "File format version")."""

_BESIDE: Final = ("", "-wal", "-shm")
"""Suffixes of a database's files, which belong together."""

_KEPT: Final = re.compile(
    r"(?P<name>.+\.(?P<why>damaged|newer-v\d+)"
    r"-(?P<Y>\d{4})(?P<m>\d\d)(?P<d>\d\d)T(?P<H>\d\d)(?P<M>\d\d)(?P<S>\d\d)Z(?:-\d+)?)(?:-wal|-shm)?"
)

# SQLite errors that can also occur with a good file; any other error while a file is checked means damage.
_NOT_THE_FILE: Final = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PROTOCOL,
}
_UNREADABLE: Final = {sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ}

Failure = sqlite3.Error | UnicodeDecodeError | OSError | DamagedStoreError
FAILURES: Final = (sqlite3.Error, UnicodeDecodeError, OSError, DamagedStoreError)
"""Errors of SQLite, its undecodable messages, the system and this package: see `store_error`."""

_FREE_SPACE: Final = "free some space on that disk"
_MAKE_WRITABLE: Final = "make it and its directory writable, or choose another directory with --state DIR"
_CHECK_DISK: Final = (
    "check whether the disk is full and what the kernel logs, or choose another directory with --state DIR"
)
_ADVICE_OF_SQLITE: Final = {
    sqlite3.SQLITE_FULL: _FREE_SPACE,
    sqlite3.SQLITE_READONLY: _MAKE_WRITABLE,
    sqlite3.SQLITE_CANTOPEN: _MAKE_WRITABLE,
    sqlite3.SQLITE_BUSY: "close the other program that has it open",
    sqlite3.SQLITE_CORRUPT: RESTART,
    sqlite3.SQLITE_NOTADB: RESTART,
}
_ADVICE_OF_SYSTEM: Final = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EROFS: _MAKE_WRITABLE,
    errno.EACCES: _MAKE_WRITABLE,
    errno.EPERM: _MAKE_WRITABLE,
}


KEPT_ASIDE: Final = "store-kept"
"""The error code for an unusable file that was set aside earlier; harmless."""


def store_error(path: Path, error: Failure) -> UsbipdError:
    """The error that users see for a failure of the store at `path`."""
    reason, advice = str(error), error.advice if isinstance(error, DamagedStoreError) else _CHECK_DISK
    if isinstance(error, OSError):
        reason = error.strerror or reason
        advice = _ADVICE_OF_SYSTEM.get(error.errno or 0, advice)
    elif isinstance(error, sqlite3.Error):
        advice = _ADVICE_OF_SQLITE.get(_code(error) & 0xFF, advice)
    return UsbipdError(f"cannot use the store {path}: {reason}", code="store", advice=advice)


class StoreFile:
    """The files in one state directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.path = self.directory / DATABASE
        self.problems: list[str] = []
        """What recovery found and did when the store was opened, one sentence each."""
        self._copy_problem: UsbipdError | None = None
        self._lock: int | None = None

    def open(self) -> sqlite3.Connection:
        """Open the store; an unusable one is set aside and replaced by its last good copy.

        Raises `UsbipdError` if another extension uses the directory or other users can write to it, and any
        of `FAILURES` if its disk fails.
        """
        prepare_state_directory(self.directory)
        self._lock = _lock(self.directory)
        # The files of a bad store are renamed before they are closed: SQLite then leaves its log unchanged,
        # else it would write the log back and delete it.
        with ExitStack() as closed_last:
            try:
                connection = self._open(closed_last)
            except FileNotFoundError:
                self._restore(f"{self.path} was missing", "damaged")
            except NewerStoreError as error:
                self._restore(f"{self.path} is of a newer release ({error})", f"newer-v{error.version}")
            except DamagedStoreError as error:
                self._restore(f"{self.path} was damaged ({error})", "damaged")
            else:
                closed_last.pop_all()
                return self._started(connection)
        with ExitStack() as closed:
            connection = self._open(closed)
            closed.pop_all()
        return self._started(connection)

    def save_copy(self, connection: sqlite3.Connection) -> None:
        """Replace the last good copy; if that fails, the older one stays and `problems_now` reports it."""
        copy = self._copy(len(store_tables.MIGRATIONS))
        try:
            _write_database(connection, copy)
            self._copy_problem = None
        except FAILURES as error:
            failure = store_error(copy, error)
            self._copy_problem = UsbipdError(
                f"cannot back up the store: {failure}", code=failure.code, advice=failure.advice
            )
            _LOG.error("%s", self._copy_problem)

    def problems_now(self) -> list[UsbipdError]:
        """What is wrong with the files now, and (code `KEPT_ASIDE`) the files that were set aside."""
        problems = []
        if not self.path.exists():
            message = f"{self.path} was removed while in use"
            problems.append(UsbipdError(message, code="store", advice=RESTART))
        if self._copy_problem is not None:
            problems.append(self._copy_problem)
        return problems + self._kept()

    def close(self) -> None:
        """Let another extension use the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _open(self, closed: ExitStack) -> sqlite3.Connection:
        """Connect to the store, check it and migrate it to our version; `closed` closes the connection.

        Raises `FileNotFoundError`, `DamagedStoreError`, `NewerStoreError`.
        """
        _check_header(self.path)
        self.path.chmod(0o600)
        with _damage():
            connection = closed.enter_context(closing(store_tables.connect(str(self.path))))
            store_tables.verify(connection)
            version = store_tables.version_of(connection)
            missing = self._generation_of_copy(version) - store_tables.generation_of(connection)
            if missing > 0:
                changes = "change" if missing == 1 else "changes"
                raise DamagedStoreError(f"it lacks {missing} {changes} of the bindings")
            ours = len(store_tables.MIGRATIONS)
            if version < ours:
                self._copy(ours).unlink(missing_ok=True)  # stale: an older release was installed since
                store_tables.migrate(connection, ours)
                store_tables.verify(connection)
            connection.execute("PRAGMA journal_mode = WAL")
        return connection

    def _started(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        self.save_copy(connection)
        for problem in self.problems:
            _LOG.warning("%s", problem)
        return connection

    def _restore(self, finding: str, why: str) -> None:
        """Set the store aside, and replace it with the last good copy, or else an empty store."""
        kept = self._set_aside(self.path, why)
        copies = [self._copy(version) for version in range(len(store_tables.MIGRATIONS), 0, -1)]
        if kept is not None:
            finding += f"; it was saved as {kept.name}"
        elif not any(copy.exists() for copy in copies):  # the first start
            self._start_empty()
            return
        for copy in copies:
            if copy.exists() and self._restore_from(copy, finding):
                return
        self._start_empty()
        self.problems.append(f"{finding}; no good copy exists, so all bindings are lost: bind again")

    def _restore_from(self, copy: Path, finding: str) -> bool:
        """Restore `copy`; returns whether it was good."""
        try:
            with closing(_open_copy(copy)) as source:
                count = store_tables.count_bindings(source)
                made = _moment(time.gmtime(copy.stat().st_mtime))
                _write_database(source, self.path)
        except DamagedStoreError as error:
            kept = self._set_aside(copy, "damaged")
            assert kept is not None
            self.problems.append(f"{copy} was damaged too ({error}); it was saved as {kept.name}")
            return False
        bindings = "1 binding" if count == 1 else f"{count} bindings"
        self.problems.append(f"{finding}; restored the last good copy, of {made}, with {bindings}")
        return True

    def _start_empty(self) -> None:
        with closing(store_tables.create()) as empty:
            _write_database(empty, self.path)

    def _generation_of_copy(self, version: int) -> int:
        """The generation of the last good copy; 0: none is good."""
        copy = self._copy(version)
        try:
            with closing(_open_copy(copy)) as connection:
                return store_tables.generation_of(connection)
        except FileNotFoundError:
            return 0
        except DamagedStoreError as error:
            self.problems.append(f"{copy} was damaged ({error}); it was replaced, nothing is lost")
            return 0

    def _copy(self, version: int) -> Path:
        return self.directory / f"usbipd.copy-v{version}.sqlite"

    def _set_aside(self, path: Path, why: str) -> Path | None:
        """Rename a database; returns its new path, or None if it does not exist."""
        existing = [beside for beside in _BESIDE if os.path.lexists(f"{path}{beside}")]
        if not existing:
            return None
        wanted = kept = f"{path}.{why}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        number = 1
        while any(os.path.lexists(f"{kept}{beside}") for beside in _BESIDE):
            number += 1
            kept = f"{wanted}-{number}"
        for beside in existing:
            Path(f"{path}{beside}").rename(f"{kept}{beside}")
        # After a power failure, a log left behind would be applied to the database that takes its place.
        _sync_directory(self.directory)
        return Path(kept)

    def _kept(self) -> list[UsbipdError]:
        found = {
            match["name"]: match for name in self.directory.iterdir() if (match := _KEPT.fullmatch(name.name))
        }
        kept = []
        for name in sorted(found):
            why = "it was damaged" if found[name]["why"] == "damaged" else "it was of a newer release"
            when = "{}-{}-{} {}:{}:{} UTC".format(*found[name].group(*"YmdHMS"))
            kept.append(
                UsbipdError(
                    f"{self.directory / name} was set aside on {when} because {why}",
                    code=KEPT_ASIDE,
                    advice="Check whether you still need anything in it.\n"
                    f"Remove it: `sudo rm {shlex.quote(str(self.directory / name))}*`.",
                )
            )
        return kept


def _lock(directory: Path) -> int:
    try:
        return open_locked(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
    except BlockingIOError as error:
        raise UsbipdError(
            f"{directory} is in use by another usbipd",
            code="store-in-use",
            advice="stop the other one, or choose another directory with --state DIR",
        ) from error


def _check_header(path: Path) -> None:
    """Raises `FileNotFoundError`, and `DamagedStoreError` for damage that SQLite does not report as such."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise DamagedStoreError("it is not a regular file")
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_SIZE)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise DamagedStoreError(f"it cannot be read: {error.strerror}") from error
    if not header:
        raise DamagedStoreError("it is empty")
    if len(header) < _HEADER_SIZE or not header.startswith(_HEADER):
        raise DamagedStoreError("it is not an SQLite database")
    if not set(header[_VERSIONS]) <= {1, 2}:  # SQLite would report it as read-only
        raise DamagedStoreError("it is in an unknown format")


@contextmanager
def _damage() -> Iterator[None]:
    """Turns SQLite's errors about a bad file into `DamagedStoreError`; errors of a bad disk propagate."""
    try:
        yield
    except UnicodeDecodeError as error:  # SQLite's message quotes damaged text
        raise DamagedStoreError(str(error)) from error
    except sqlite3.Error as error:
        code = _code(error)
        if code & 0xFF in _NOT_THE_FILE and code not in _UNREADABLE:
            raise
        raise DamagedStoreError(str(error)) from error


def _code(error: sqlite3.Error) -> int:
    """SQLite's extended result code; 0 for errors that Python detected, such as text that is not UTF-8."""
    return getattr(error, "sqlite_errorcode", 0)


def _open_copy(path: Path) -> sqlite3.Connection:
    """A read-only connection to a good copy.  Raises `FileNotFoundError` and `DamagedStoreError`."""
    _check_header(path)
    with ExitStack() as closed, _damage():
        connection = closed.enter_context(closing(store_tables.connect(f"{path.as_uri()}?mode=ro", uri=True)))
        try:
            store_tables.verify(connection)
        except NewerStoreError as error:  # contradicts its name
            raise DamagedStoreError(str(error)) from error
        closed.pop_all()
    return connection


def _write_database(source: sqlite3.Connection, path: Path) -> None:
    """Replace `path` with a copy of `source`, a single file.  Atomic, even if we are killed."""
    new = Path(f"{path}.new")
    try:
        _remove(new)
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with closing(store_tables.connect(str(new))) as target:
            target.execute("PRAGMA synchronous = OFF")  # `_sync` below is enough
            source.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")  # `backup` copied the source's mode
        _sync(new, os.O_RDWR)
        new.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            _remove(new)
        raise
    _sync_directory(path.parent)


def _remove(database: Path) -> None:
    """Remove a database, with the files that an earlier, killed attempt may have left."""
    for beside in (*_BESIDE, "-journal"):
        Path(f"{database}{beside}").unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    _sync(directory, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
        if hasattr(fcntl, "F_FULLFSYNC"):  # macOS, where fsync(2) does not reach the medium
            with contextlib.suppress(OSError):  # not all file systems support it
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    finally:
        os.close(descriptor)


def _moment(utc: time.struct_time) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", utc)
