"""Logging: one format for all processes, to stderr or to syslog(3).  Used by every process.

    2026-05-04T12:30:01.123Z INFO worker[4711] 1-2: attached by 192.0.2.7:51234

Time is UTC, so that the lines of a process in a chroot agree with all others; syslog adds its own time and
gets the line from the level on.  `configure` sets the role, the pid and (in a worker) the busid.  A message
is one line: it may quote a peer, which must neither forge log lines nor control the terminal that shows them.

No process waits for the reader of stderr: otherwise a stopped terminal or pager would block every process of
the daemon, and any client can make it log.  Lines that are not read in time are dropped and counted.

A line that others can cause at will is logged with `extra=LIMITED`: `limiter.py` passes the first few and
counts the rest.  A log at level debug is not limited.
"""

import contextlib
import logging
import os
import select
import sys
import syslog
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, TextIO

from usbipd.errors import UsageError
from usbipd.ipc.control_messages import LoggedError
from usbipd.limiter import Limiter
from usbipd.text import readable

if TYPE_CHECKING:  # a worker does not load it
    import asyncio

LEVELS: Final = ("debug", "info", "warning", "error")
"""The names in configuration and command line."""

DESTINATIONS: Final = ("stderr", "syslog")
"""Where lines go; syslog is the system's log: the journal on Linux, the unified log on macOS.  A log file is
stderr to all processes (`log_file.py`)."""

LIMITED: Final = {"is_limited": True}
"""`extra` of a line that a client, another user or a device can cause.  The limit applies per process and
line, whatever its arguments: the format string is the kind."""

LAST_ERRORS: Final = 20
"""Errors that `ErrorCounter` remembers."""
LONGEST_ERROR: Final = 500
"""Characters that it keeps of each."""

PATIENCE: Final = 1.0
"""Seconds that a line waits for the reader; lines after a dropped one do not wait."""

_LOG: Final = logging.getLogger(__name__)

_PIECE: Final = select.PIPE_BUF // 4
"""Characters written at a time: a pipe that has room at all takes that many bytes whole."""

_SYSLOG_SOCKETS: Final = ("/dev/log", "/var/run/syslog")  # _PATH_LOG in Linux's and macOS's syslog.h

_PRIORITIES: Final = {
    logging.DEBUG: syslog.LOG_DEBUG,
    logging.INFO: syslog.LOG_NOTICE,  # macOS keeps LOG_INFO only in memory (os_log(5))
    logging.WARNING: syslog.LOG_WARNING,
    logging.ERROR: syslog.LOG_ERR,
    logging.CRITICAL: syslog.LOG_CRIT,
}

_ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class _Formatter(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        whole = time.strftime("%Y-%m-%dT%H:%M:%S", self.converter(record.created))
        return f"{whole}.{int(record.msecs):03d}Z"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return readable(super().formatMessage(record))

    def formatException(self, ei: _ExceptionInfo) -> str:  # noqa: N802
        return "\n".join(map(readable, super().formatException(ei).split("\n")))


class _Lines(NamedTuple):
    """A line and the number of lines of its kind that it represents."""

    last: logging.LogRecord
    number: int = 1

    @property
    def record(self) -> logging.LogRecord:
        """The record to log."""
        if self.number == 1:
            return self.last
        attributes = {**vars(self.last), "msg": "%d more lines like this, the last one: %s"}
        attributes |= {"args": (self.number, self.last.getMessage()), "exc_info": None, "exc_text": None}
        return logging.makeLogRecord(attributes)


def _merge(held: _Lines, new: _Lines) -> _Lines:
    return _Lines(new.last, held.number + new.number)


class _Output(logging.StreamHandler[TextIO]):
    """The destination of this process's lines."""

    def __init__(self, who: str) -> None:
        super().__init__(sys.stderr)
        self._limiter = Limiter(self._write, _merge)
        self._who = who
        self._to_syslog = False
        self._lost = 0
        """Lines dropped since the last one that was written."""
        self._is_torn = False
        """Whether a part of a dropped line was written."""
        self.send_to("stderr")

    def send_to(self, to: str) -> None:
        self._to_syslog = to == "syslog"
        if self._to_syslog:
            # Opened now: a chroot has no path to it.  The line itself names role and pid.
            syslog.openlog("usbipd", syslog.LOG_NDELAY, syslog.LOG_DAEMON)
        clock = "" if self._to_syslog else "%(asctime)s "
        self.setFormatter(_Formatter(f"{clock}%(levelname)s {self._who.replace('%', '%%')}: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if _is_limited(record) and logging.getLogger().level > logging.DEBUG:
            self._limiter.add((record.levelno, record.msg), _Lines(record))
        else:
            self._write(_Lines(record))

    def use_timer(self, loop: "asyncio.AbstractEventLoop") -> None:
        def locked(callback: Callable[[], None]) -> None:
            with self._guard():
                callback()

        def call_later(delay: float, callback: Callable[[], None]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed; `close` writes what is held
                loop.call_soon_threadsafe(loop.call_later, delay, locked, callback)

        with self._guard():
            self._limiter.use_timer(call_later)

    def tell_left_out(self) -> None:
        """Write how many lines were left out since the last such count."""
        with self._guard():
            self._limiter.flush()

    def close(self) -> None:
        self.tell_left_out()
        super().close()

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Hold the lock under which `emit` is called."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def _write(self, lines: _Lines) -> None:
        record = lines.record
        try:
            if not self._to_syslog:
                self._write_to_reader(self.format(record))
                return
            for line in self.format(record).split("\n"):  # a traceback has more than one
                syslog.syslog(_PRIORITIES.get(record.levelno, syslog.LOG_NOTICE), line)
        except Exception:
            self.handleError(record)

    def _write_to_reader(self, text: str) -> None:
        """Raises `OSError`."""
        text += self.terminator
        if self._lost:
            text = f"{self.terminator if self._is_torn else ''}{self._gap()}{self.terminator}{text}"
        for start in range(0, len(text), _PIECE):
            if not self._has_room(0.0 if self._lost else PATIENCE):
                self._lost += 1
                self._is_torn |= start > 0
                return
            self.stream.write(text[start : start + _PIECE])
            self.flush()
        self._lost, self._is_torn = 0, False

    def _gap(self) -> str:
        what = "%d log lines dropped: the log reader was too slow"
        attributes = {"levelno": logging.WARNING, "levelname": "WARNING", "msg": what, "args": (self._lost,)}
        return self.format(logging.makeLogRecord(attributes))

    def _has_room(self, seconds: float) -> bool:
        """Whether a piece can be written now or within `seconds`."""
        poll = select.poll()
        try:
            poll.register(self.stream, select.POLLOUT)
        except (OSError, ValueError, TypeError):  # not a file of the system
            return True
        return bool(poll.poll(seconds * 1000))  # also if the reader is gone: the write then fails


class ErrorCounter(logging.Handler):
    """Counts this process's lines of level error or above, for `usbipd-ext --status`."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.count = 0
        self.last: deque[LoggedError] = deque(maxlen=LAST_ERRORS)
        """The newest is last.  One line each, without traceback; only the newest of a limited kind."""
        self._limited: dict[str, LoggedError] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        try:
            message = record.getMessage()
            if record.exc_info is not None and record.exc_info[1] is not None:
                message += f": {record.exc_info[1]!r}"
            error = LoggedError(time=record.created, message=readable(message, LONGEST_ERROR))
            if _is_limited(record):
                before = self._limited.get(record.msg)
                if before is not None and before in self.last:
                    self.last.remove(before)
                self._limited[record.msg] = error
            self.last.append(error)
        except Exception:
            self.handleError(record)


def configure(role: str, busid: str | None = None, level: str = "info", to: str = "stderr") -> None:
    """Start logging.  Raises `UsageError` if `level` is not in `LEVELS` or `to` not in `DESTINATIONS`."""
    who = f"{role}[{os.getpid()}]" + (f" {busid}" if busid else "")
    logging.basicConfig(handlers=[_Output(who)], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)  # its debug lines do not concern us
    set_level(level)
    if to == "syslog" and not any(map(os.path.exists, _SYSLOG_SOCKETS)):
        _LOG.warning("no syslog daemon answers on this host: log lines are lost until one does")
    send_to(to)


def set_level(level: str) -> None:
    """Log lines of `level` and above.  Raises `UsageError` if it is not in `LEVELS`."""
    if level not in LEVELS:
        raise UsageError(f"unknown log level {level!r}: use one of {', '.join(LEVELS)}", code="bad-log-level")
    logging.getLogger().setLevel(level.upper())


def send_to(to: str) -> None:
    """Send this process's lines there from now on.  Raises `UsageError` if `to` is not in `DESTINATIONS`.

    For syslog, call it before a chroot, which has no path to the socket.  So a process in a chroot loses a
    syslog daemon that creates a new socket when it restarts; systemd and launchd keep the socket.
    """
    if to not in DESTINATIONS:
        raise UsageError(
            f"unknown log destination {to!r}: use one of {', '.join(DESTINATIONS)}",
            code="bad-log-destination",
        )
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Output):
            handler.send_to(to)


def check_destination(to: str) -> None:
    """Checks that `to` is one of `DESTINATIONS` or an absolute path.  Raises `UsageError`."""
    if to not in DESTINATIONS and not (to.startswith("/") and "\0" not in to):
        raise UsageError(
            f"unknown log destination {to!r}: use {', '.join(DESTINATIONS)}, or the absolute path of a file",
            code="bad-log-destination",
        )


def use_timer(loop: "asyncio.AbstractEventLoop") -> None:
    """Let an event loop write the count of left-out lines as soon as it is due.

    Without a loop it is written with the next limited line, or when the process exits.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Output):
            handler.use_timer(loop)


def tell_left_out() -> None:
    """Write the count of left-out lines now; call it before the log moves."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Output):
            handler.tell_left_out()


def take_over(descriptor: int) -> None:
    """Log, in a child, to the file of `descriptor`, which the caller still owns."""
    os.dup2(descriptor, 1)  # stdout of a child is its log
    os.dup2(descriptor, 2)


def _is_limited(record: logging.LogRecord) -> bool:
    return getattr(record, "is_limited", False)
