"""`--watch`: the status until the user quits.  Runs in the caller's process."""

import os
import sys
import time
from collections.abc import Callable
from shutil import get_terminal_size
from typing import Protocol

from usbipd.cli.connection import ControlConnection
from usbipd.cli.documents import StatusDocument, render_line
from usbipd.cli.feed import answers, wait_for_reader
from usbipd.cli.live_view import LiveView, Quit, Text
from usbipd.cli.output import emit, say
from usbipd.cli.units import format_time
from usbipd.ipc.control_messages import StatusResult
from usbipd.ipc.messages import Command, Nothing


class View(Protocol):
    """Where the status is shown."""

    def show(self, status: StatusResult) -> None:
        """Show it.  Raises `UsbipdError` if the output cannot be written."""

    def tell(self, notice: str) -> None:
        """Report on the connection to the extension."""

    def wait(self, readable: int | None, seconds: float) -> bool:
        """As `Spectator.wait`.  Raises `Quit` if the user quits."""

    def close(self) -> None:
        """Show nothing more."""


def watch(
    extension: ControlConnection,
    view: View,
    interval: float,
    chosen: Callable[[StatusResult], StatusResult] = lambda status: status,
) -> None:
    """Show what `chosen` returns of the status until the user quits; `extension` is open.

    Raises the error of the first request; later an `ExtensionUnreachableError` only if another version of the
    extension comes back.
    """

    def ask(_is_new: bool) -> StatusResult:
        return extension.request(Command.STATUS, Nothing(), StatusResult)

    try:
        for status in answers(extension, ask, view, interval):
            view.show(chosen(status))
    except Quit:
        return
    finally:
        view.close()


def view_for(text: Text, *, as_json: bool) -> View:
    """The view for stdout: lines of JSON, a live view on a terminal, or else blocks of lines."""
    if as_json:
        return JsonLines()
    stdout = sys.stdout  # None if the caller has closed it
    has_cursor = os.environ.get("TERM", "dumb") not in ("", "dumb")
    on_terminal = stdout is not None and stdout.isatty() and has_cursor
    return LiveView(text) if on_terminal else Blocks(text)


class JsonLines:
    """One document a line."""

    def show(self, status: StatusResult) -> None:
        emit(render_line(StatusDocument(status=status)))

    def tell(self, notice: str) -> None:
        say(notice)

    def wait(self, readable: int | None, seconds: float) -> bool:
        return wait_for_reader(readable, seconds)

    def close(self) -> None:
        pass


class Blocks:
    """A block of lines for each status: the time, the status, an empty line."""

    def __init__(self, text: Text) -> None:
        self._text = text

    def show(self, status: StatusResult) -> None:
        emit(f"{format_time(time.time())}\n{self._text(status, get_terminal_size().columns)}\n")

    def tell(self, notice: str) -> None:
        say(f"{format_time(time.time())} {notice}")

    def wait(self, readable: int | None, seconds: float) -> bool:
        return wait_for_reader(readable, seconds)

    def close(self) -> None:
        pass
