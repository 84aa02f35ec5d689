"""Fetches the history page by page, and formats its entries.

Runs in the caller's process.
"""

from collections.abc import Sequence
from typing import Final

from usbipd.cli.colour import Paint, plain
from usbipd.cli.connection import ControlConnection
from usbipd.cli.device import hardware_id
from usbipd.cli.selection import Selection, entry_name
from usbipd.cli.table import Column, Layout, wrap
from usbipd.cli.units import format_bytes, format_duration, format_time
from usbipd.ipc.control_messages import HISTORY_PAGE, HistoryEntry, HistoryParameters, HistoryResult
from usbipd.ipc.messages import Command


def fetch_history(
    extension: ControlConnection,
    limit: int | None,
    selection: Selection = Selection(),  # noqa: B008 - immutable
    above: int = 0,
) -> list[HistoryEntry]:
    """The newest `limit` of the selected entries with an id above `above`, the newest first; None: all.

    Stops at a page whose entries are all too old: single ones may be out of order, after the clock was set
    back.
    """
    entries: list[HistoryEntry] = []
    before: int | None = None
    while limit is None or len(entries) < limit:
        size = HISTORY_PAGE if limit is None or selection != Selection() else limit - len(entries)
        page = fetch_page(extension, min(size, HISTORY_PAGE), before)
        page = [entry for entry in page if entry.id > above]
        if not page or all(selection.is_older(entry) for entry in page):
            break
        entries += [entry for entry in page if selection.fits(entry)]
        before = page[-1].id
    return entries[:limit]


def fetch_page(extension: ControlConnection, limit: int, before: int | None = None) -> list[HistoryEntry]:
    """The newest `limit` entries, or those with an id below `before`; the newest first."""
    parameters = HistoryParameters(limit=limit, before=before)
    return extension.request(Command.HISTORY, parameters, HistoryResult).entries


COLUMNS: Final = (
    Column("TIME"),
    Column("EVENT", state=True),
    Column("BUSID"),
    Column("DEVICE", minimum=8),
    Column("CLIENT", minimum=9),
)


def format_history(entries: Sequence[HistoryEntry], width: int, paint: Paint = plain) -> str:
    """A title, then a line and the details of each entry, in the given order."""
    layout = Layout.of(COLUMNS, [cells(entry) for entry in entries], width)
    return layout.title() + "".join(format_entry(entry, layout, width, paint) for entry in entries)


def cells(entry: HistoryEntry) -> tuple[str, ...]:
    """The cells of the line."""
    return (
        format_time(entry.time),
        entry.event.value,
        entry.busid or "",
        _device(entry),
        entry.client or "",
    )


def format_entry(entry: HistoryEntry, layout: Layout, width: int, paint: Paint) -> str:
    """The line of the entry, then its details."""
    details = _details(entry)
    return layout.line(cells(entry), paint) + (wrap(details, width, "    ") if details else "")


def _device(entry: HistoryEntry) -> str:
    name = entry_name(entry)
    if entry.vendor_id is None or entry.product_id is None:
        return name
    return f"{hardware_id(entry.vendor_id, entry.product_id)} {name}".rstrip()


def _details(entry: HistoryEntry) -> str:
    """Duration, traffic and reason."""
    figures = [] if entry.count == 1 else [f"{entry.count} times, the last one shown"]
    if entry.seconds is not None:
        duration = format_duration(entry.seconds)
        figures.append(f"after {duration}" if entry.count == 1 else f"{duration} in all")
    if entry.bytes_in is not None:
        figures.append(f"{format_bytes(entry.bytes_in)} in")
    if entry.bytes_out is not None:
        figures.append(f"{format_bytes(entry.bytes_out)} out")
    return ": ".join(part for part in (", ".join(figures), entry.reason) if part)
