"""The log of a daemon process, with its limits, for tests that flood it."""

import contextlib
import io
import logging
import re
from collections.abc import Iterator

from usbipd import log


class OwnLog:
    """The lines so far."""

    def __init__(self, stream: io.StringIO) -> None:
        self._stream = stream

    def lines(self, text: str) -> list[str]:
        """Those with `text` in them."""
        return [line for line in self._stream.getvalue().splitlines() if text in line]

    def count(self, text: str) -> int:
        """The number of lines with `text`, including those that were only counted."""
        return count(self.lines(text))


def count(lines: list[str]) -> int:
    """The number of lines that these represent."""
    counts = (re.search(r": (\d+) more lines like this, the last one: ", line) for line in lines)
    return sum(1 if each is None else int(each[1]) for each in counts)


@contextlib.contextmanager
def own_log(level: str = "info") -> Iterator[OwnLog]:
    """Log as a process of the daemon does, only to this object."""
    root = logging.getLogger()
    handlers, before = root.handlers[:], root.level
    root.handlers[:] = []
    stream = io.StringIO()
    try:
        with contextlib.redirect_stderr(stream):
            log.configure("server", level=level)
        yield OwnLog(stream)
    finally:
        root.handlers[:] = handlers
        root.setLevel(before)
