"""What the log says of clients that may not come: all of it, in few lines.  Runs in the server.

The first one is named at once.  Those that come within a minute of that line are counted, and a second line
says how many they were; as long as there are more, there is one line a minute.  Nothing runs when nobody is
refused.
"""

import logging
from collections.abc import Callable
from typing import Final

_LOG: Final = logging.getLogger(__name__)

INTERVAL: Final = 60.0
"""Seconds between two lines, at least."""


class Refusals:
    """The refused clients since the last line of the log."""

    def __init__(self, call_later: Callable[[float, Callable[[], None]], object]) -> None:
        """`call_later` is the event loop's: calls a function after so many seconds."""
        self._call_later = call_later
        self._quiet = False
        """Whether a line was written less than `INTERVAL` ago."""
        self._count = 0
        self._last = ""

    def add(self, peer: str) -> None:
        """A client at this address and port was refused."""
        if self._quiet:
            self._count += 1
            self._last = peer
        else:
            self._say(f"{peer} refused: its address is not allowed")

    def _say(self, line: str) -> None:
        _LOG.info("%s", line)
        self._count = 0
        self._quiet = True
        self._call_later(INTERVAL, self._interval_over)

    def _interval_over(self) -> None:
        self._quiet = False
        if self._count:
            more = f"{self._count} more refused within {INTERVAL:g} s"
            self._say(f"{more}: their addresses are not allowed; the last was {self._last}")
