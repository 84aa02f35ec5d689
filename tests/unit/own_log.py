"""What a process of the daemon logs, limits and all, for tests that flood it."""

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
        """How many lines with `text` were logged, with those that were counted only."""
        return count(self.lines(text))


def count(lines: list[str]) -> int:
    """How many lines these stand for."""
    counts = (re.search(r": (\d+) more lines like this, the last one: ", line) for line in lines)
    return sum(1 if each is None else int(each[1]) for each in counts)


@contextlib.contextmanager
def own_log(level: str = "info") -> Iterator[OwnLog]:
    """Log as a process of the daemon does, and nowhere else."""
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
