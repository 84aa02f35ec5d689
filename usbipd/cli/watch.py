"""`--watch`: the status again and again, across restarts of the extension.  Runs in the caller's process.

The extension tells when something has changed; whatever happens, it is asked once in an interval.  When it
goes away that is said once, and it is looked for until it is back.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final, NoReturn, Protocol

from usbipd.cli.connection import ControlConnection
from usbipd.cli.documents import StatusDocument, render_line
from usbipd.cli.output import emit, say
from usbipd.cli.table import display_width, shorten, wrap
from usbipd.cli.terminal import terminal_size, terminal_width
from usbipd.cli.units import format_clock, format_time
from usbipd.errors import ExtensionUnreachableError, UsbipdError
from usbipd.ipc.control_messages import StatusResult
from usbipd.ipc.messages import Command, Nothing

FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 2.0
"""Seconds between attempts to reach an extension that is gone."""

Text = Callable[[StatusResult, int], str]
"""The status for people, in lines of at most so many cells."""


class View(Protocol):
    """Where the status is shown."""

    def show(self, status: StatusResult) -> None:
        """Show it.  Raises `UsbipdError` if the output cannot be written."""

    def tell(self, notice: str) -> None:
        """Say something about the watching itself."""

    def close(self) -> None:
        """Nothing more is shown."""


def watch(
    extension: ControlConnection, view: View, interval: float, pause: Callable[[float], None] = time.sleep
) -> NoReturn:
    """Show the status until the caller is interrupted; `extension` is open.

    Raises what the extension answers to the first request, and later an `ExtensionUnreachableError` only if
    another version of it comes back.
    """
    feed = _Feed(extension, interval)
    seen = lost = False
    delay = FIRST_PAUSE
    try:
        while True:
            try:
                status = feed.next_status()
            except UsbipdError as error:
                if not seen or error.code == "version":
                    raise
                if not lost:
                    gone = isinstance(error, ExtensionUnreachableError)
                    what = "lost the extension" if gone else "the daemon could not report its status"
                    view.tell(f"{what}: {error.message}; trying again")
                lost = True
                feed.drop()
                pause(delay)
                delay = min(2 * delay, LONGEST_PAUSE)
                continue
            if lost:
                view.tell("the extension is back")
            seen, lost, delay = True, False, FIRST_PAUSE
            view.show(status)
    finally:
        view.close()


class _Feed:
    """One status after the other, each when it is time for it."""

    def __init__(self, extension: ControlConnection, interval: float) -> None:
        self._extension = extension
        self._interval = interval
        self._connected = True
        self._watching = False

    def next_status(self) -> StatusResult:
        """At once after a connect, else at a change or after the interval.  Raises `UsbipdError`."""
        if self._watching:
            self._extension.wait_for_events(self._interval)
        else:
            if not self._connected:
                self._extension.open()
                self._connected = True
            self._extension.request(Command.WATCH, Nothing(), Nothing)
            self._watching = True
        return self._extension.request(Command.STATUS, Nothing(), StatusResult)

    def drop(self) -> None:
        """Begin anew next time."""
        self._extension.close()
        self._connected = self._watching = False


def view_for(text: Text, *, as_json: bool) -> View:
    """What fits the output: lines of JSON, a live view on a terminal, or else one block after the other."""
    if as_json:
        return JsonLines()
    stdout = sys.stdout  # None if the caller has closed it
    on_terminal = stdout is not None and stdout.isatty() and os.environ.get("TERM") != "dumb"
    return LiveView(text) if on_terminal else Blocks(text)


class JsonLines:
    """One document a line."""

    def show(self, status: StatusResult) -> None:
        emit(render_line(StatusDocument(status=status)))

    def tell(self, notice: str) -> None:
        say(notice)

    def close(self) -> None:
        pass


class Blocks:
    """A block of lines for each status, under the time at which it was shown, and an empty line after it."""

    def __init__(self, text: Text) -> None:
        self._text = text

    def show(self, status: StatusResult) -> None:
        emit(f"{format_time(time.time())}\n{self._text(status, terminal_width())}\n")

    def tell(self, notice: str) -> None:
        say(f"{format_time(time.time())} {notice}")

    def close(self) -> None:
        pass


class LiveView:
    """The newest status in place of the one before; under its first line what there was to tell last."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._status: StatusResult | None = None
        self._notice = ""

    def show(self, status: StatusResult) -> None:
        self._draw(status)

    def tell(self, notice: str) -> None:
        self._notice = f"{format_clock(time.time())} {notice}"
        if self._status is not None:
            self._draw(self._status)

    def close(self) -> None:
        if self._status is not None:
            emit("\n")  # the terminal may have shown ^C where the cursor stands

    def _draw(self, status: StatusResult) -> None:
        width, height = terminal_size()
        # What the terminal showed before goes where one can scroll back to it.
        begin = "\n" * (height - 1) if self._status is None else ""
        self._status = status
        lines = [f"{format_time(time.time())}   Ctrl-C ends"]
        if self._notice:
            lines += wrap(self._notice, width).splitlines()
        lines += ["", *self._text(status, width).splitlines()]
        emit(begin + frame(lines, width, height))


# ECMA-48 (control functions for character-imaging devices): CUP, EL, ED
_HOME: Final = "\x1b[H"
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"


def frame(lines: Sequence[str], width: int, height: int) -> str:
    """`lines` from the upper left corner on, over what stood there; the cursor comes to stand under them.

    Nothing is cleared before it is written anew, so nothing flickers.  What does not fit is left out, and
    that is said.
    """
    room = max(height - 1, 1)
    if len(lines) > room:
        left_out = len(lines) - room + 1
        lines = [*lines[: room - 1], f"... {left_out} more lines: the terminal is too small"]
    shown = [shorten(line, width) for line in lines]
    # A line of full width leaves the cursor on its last cell, which clearing would take away.
    return (
        _HOME
        + "".join(f"{line}{_CLEAR_LINE if display_width(line) < width else ''}\n" for line in shown)
        + _CLEAR_BELOW
    )
