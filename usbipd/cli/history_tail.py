"""`usbipd history --follow`: new entries as they come, across restarts of the extension.

Runs in the caller's process.
"""

from collections.abc import Sequence
from shutil import get_terminal_size
from typing import Final

from usbipd.cli.colour import Paint
from usbipd.cli.connection import ControlConnection
from usbipd.cli.documents import HistoryEntryDocument, render_line
from usbipd.cli.feed import answers, wait_for_reader
from usbipd.cli.history_entries import COLUMNS, cells, fetch_history, fetch_page, format_entry
from usbipd.cli.output import emit, say
from usbipd.cli.selection import Selection
from usbipd.cli.table import Layout
from usbipd.ipc.control_messages import HistoryEntry

INTERVAL: Final = 2.0
"""Seconds between requests; entries that summarize many are not announced."""
_USUAL: Final = (
    "2026-12-01 08:30:00",
    "unplugged",
    "255-15",
    "0000:0000 a name of 20 cells",
    "192.168.100.100:65535",
)
"""The columns have room for this from the beginning, so most entries stay aligned."""


def follow_history(
    extension: ControlConnection, selection: Selection, limit: int | None, paint: Paint, *, as_json: bool
) -> None:
    """Print the newest `limit` of the selected entries, then each new one, until the caller is interrupted.

    Raises `UsbipdError` as `answers` does, and if the output cannot be written.
    """
    tail = HistoryTail(extension, selection, limit)
    printer = JsonLines() if as_json else Lines(paint)
    for entries in answers(extension, tail.new_entries, tail, INTERVAL):
        printer.print(entries)


class HistoryTail:
    """The entries since the last call."""

    def __init__(self, extension: ControlConnection, selection: Selection, limit: int | None) -> None:
        self._extension = extension
        self._selection = selection
        self._limit = limit
        """Of the first call."""
        self._last: HistoryEntry | None = None
        """The newest entry, selected or not."""

    def new_entries(self, is_reconnected: bool) -> list[HistoryEntry]:
        """The selected entries since the last call, the oldest first."""
        limit, self._limit = self._limit, None
        newest = next(iter(fetch_page(self._extension, 1)), None)
        if newest is None or newest == self._last:
            return []
        if self._last is not None and is_reconnected and not self._goes_on(newest, self._last):
            self.tell(
                "the history was replaced: "
                "the daemon was restarted without a state directory, or with another one"
            )
            self._last = None
        above = 0 if self._last is None else self._last.id
        entries = fetch_history(self._extension, limit, self._selection, above)
        self._last = newest
        return [entry for entry in entries[::-1] if entry.id <= newest.id]

    def _goes_on(self, newest: HistoryEntry, last: HistoryEntry) -> bool:
        """Whether `last` belongs to this history, which may have dropped it by now."""
        if newest.id < last.id:
            return False
        found = fetch_page(self._extension, 1, last.id + 1)
        return not found or found[0].id < last.id or found[0] == last

    def tell(self, notice: str) -> None:
        say(notice)

    def wait(self, readable: int | None, seconds: float) -> bool:
        return wait_for_reader(readable, seconds)


class JsonLines:
    """One document a line."""

    def print(self, entries: Sequence[HistoryEntry]) -> None:
        emit("".join(render_line(HistoryEntryDocument(entry=entry)) for entry in entries))


class Lines:
    """A title once, then the entries."""

    def __init__(self, paint: Paint) -> None:
        self._paint = paint
        self._width = 0
        self._layout: Layout | None = None

    def print(self, entries: Sequence[HistoryEntry]) -> None:
        width = get_terminal_size().columns
        before = self._layout.widths if self._layout is not None and width == self._width else None
        rows = [cells(entry) for entry in entries]
        if before is None:
            rows.append(_USUAL)
        layout = Layout.of(COLUMNS, rows, width, before)
        title = layout.title() if self._layout is None else ""
        self._layout, self._width = layout, width
        emit(title + "".join(format_entry(entry, layout, width, self._paint) for entry in entries))
