"""Logs: one format for all processes, to stderr.  Used by every process.

    2026-05-04T12:30:01.123Z INFO worker[4711] 1-2: attached by 192.0.2.7:51234

Time is UTC, so that the lines of a process in a chroot agree with all others.  The role, the pid and
(in a worker) the busid are said once, by `configure`.  A message is one line: it may hold what a peer said,
who must neither write lines of his own nor drive the terminal that shows them.
"""

import logging
import os
import sys
import time
from typing import Final

from usbipd.errors import UsageError

LEVELS: Final = ("debug", "info", "warning", "error")
"""The names that configuration and command line take."""


class _Formatter(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        whole = time.strftime("%Y-%m-%dT%H:%M:%S", self.converter(record.created))
        return f"{whole}.{int(record.msecs):03d}Z"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line = super().formatMessage(record)  # without the traceback, which has lines of its own
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


class ErrorCounter(logging.Handler):
    """Counts what this process logged at level error or above, for `usbipd-ext --status`."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


def configure(role: str, busid: str | None = None, level: str = "info") -> None:
    """Send this process's logs to stderr.  Raises `UsageError` if `level` is not one of `LEVELS`."""
    who = f"{role}[{os.getpid()}]" + (f" {busid}" if busid else "")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(f"%(asctime)s %(levelname)s {who.replace('%', '%%')}: %(message)s"))
    logging.basicConfig(handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)  # its debug lines say nothing about us
    set_level(level)


def set_level(level: str) -> None:
    """Log from `level` on.  Raises `UsageError` if it is not one of `LEVELS`."""
    if level not in LEVELS:
        raise UsageError(f"log level {level!r} is unknown: one of {', '.join(LEVELS)}", code="bad-log-level")
    logging.getLogger().setLevel(level.upper())
