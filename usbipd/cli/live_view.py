"""A status that stays on the terminal and scrolls with keys.  Runs in the caller's process.

A refresh formats the newest status once and draws only the lines that fit.  Keys redraw the same lines at
another offset: they neither send a request nor format anything.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from shutil import get_terminal_size
from typing import Final

from usbipd.cli.keys import Key
from usbipd.cli.output import emit
from usbipd.cli.table import display_width, shorten, wrap
from usbipd.cli.terminal_keys import TerminalKeys
from usbipd.cli.units import format_clock, format_time
from usbipd.ipc.control_messages import StatusResult

Text = Callable[[StatusResult, int], str]
"""Formats the status in lines of at most so many cells."""


class Quit(Exception):  # noqa: N818 - it is no error
    """`q` was typed."""


class LiveView:
    """The newest status in place of the previous one; the last notice is below the title."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._status: StatusResult | None = None
        self._time = 0.0
        """Of its arrival."""
        self._notice = ""
        self._lines: list[str] = []
        self._width = 0
        """The width that `_lines` is formatted for; 0: not formatted yet."""
        self._top = 0
        """Index of the first line shown."""
        self._page = 1
        """Lines of the status that fit on the screen."""
        self._is_fresh = True
        """Whether the screen shows the output of other programs."""
        self._exit = ExitStack()
        self._keys = self._exit.enter_context(TerminalKeys())

    def show(self, status: StatusResult) -> None:
        """Raises `UsbipdError` if the terminal cannot be written to."""
        self._status, self._time, self._width = status, time.time(), 0
        self._draw()

    def tell(self, notice: str) -> None:
        self._notice = f"{format_clock(time.time())} {notice}"
        self._draw()

    def wait(self, readable: int | None, seconds: float) -> bool:
        """Raises `Quit`."""
        until = time.monotonic() + seconds
        while True:
            woken = self._keys.wait(readable, until - time.monotonic())
            if Key.QUIT in woken.keys:
                raise Quit
            for key in woken.keys:
                self._scroll(key)
            if woken.is_ours_again:
                self._is_fresh = True
            if woken.keys or woken.is_changed or woken.is_ours_again:
                self._draw()
            if woken.is_readable:
                return True
            if time.monotonic() >= until:
                return False

    def close(self) -> None:
        if self._status is not None and not self._keys.has_keys:
            emit("\n")  # the terminal may have echoed ^C at the cursor
        self._exit.close()

    def _scroll(self, key: Key) -> None:
        last = max(0, len(self._lines) - self._page)
        top = {
            Key.UP: self._top - 1,
            Key.DOWN: self._top + 1,
            Key.PAGE_UP: self._top - self._page,
            Key.PAGE_DOWN: self._top + self._page,
            Key.HOME: 0,
            Key.END: last,
        }[key]
        self._top = min(max(0, top), last)

    def _draw(self) -> None:
        if self._status is None or not self._keys.is_in_foreground():
            return
        width, height = get_terminal_size()
        if width != self._width:
            self._lines, self._width = self._text(self._status, width).splitlines(), width
        notice = wrap(self._notice, width).splitlines() if self._notice else []
        self._page = max(1, height - 1 - len(notice) - 2)
        self._top = min(self._top, max(0, len(self._lines) - self._page))
        shown = self._lines[self._top : self._top + self._page]
        # Move the previous content of the screen to the scrollback.
        begin = "\n" * (height - 1) if self._is_fresh else ""
        self._is_fresh = False
        emit(begin + frame([self._title(len(shown), width), *notice, "", *shown], width, height))

    def _title(self, shown: int, width: int) -> str:
        place, scroll = "", ""
        quit_by = "q quits" if self._keys.has_keys else "Ctrl-C quits"
        if shown < len(self._lines):
            place = f"   {self._top + 1}-{self._top + shown} of {len(self._lines)}"
            scroll = "arrows, PgUp, PgDn scroll; " if self._keys.has_keys else ""
        title = f"{format_time(self._time)}{place}   {scroll}{quit_by}"
        return title if len(title) <= width else f"{quit_by}{place}   {format_clock(self._time)}"


# ECMA-48 (control functions for character-imaging devices): CUP, EL, ED
_HOME: Final = "\x1b[H"
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"


def frame(lines: Sequence[str], width: int, height: int) -> str:
    """`lines` from the upper left corner, over the previous content; the cursor ends up below them.

    Nothing is cleared before it is overwritten, so nothing flickers.  It never scrolls: lines and cells
    beyond the terminal are left out.
    """
    shown = [shorten(line, width) for line in lines[: max(height - 1, 1)]]
    # A line of full width leaves the cursor on its last cell, which clearing would take away.
    return (
        _HOME
        + "".join(f"{line}{_CLEAR_LINE if display_width(line) < width else ''}\n" for line in shown)
        + _CLEAR_BELOW
    )
