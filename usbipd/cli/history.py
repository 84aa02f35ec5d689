"""`usbipd history`: what happened.  Runs in the caller's process.

People read the newest entry last, where a terminal leaves them; the document has it first.
"""

import argparse

from usbipd.cli.arguments import add_json_argument, count
from usbipd.cli.connection import ControlConnection
from usbipd.cli.device import hardware_id, known_name
from usbipd.cli.documents import HistoryDocument, render
from usbipd.cli.output import emit, say
from usbipd.cli.subcommand import Subcommand, always
from usbipd.cli.table import Column, format_table, wrap
from usbipd.cli.terminal import terminal_width
from usbipd.cli.units import format_bytes, format_duration, format_time
from usbipd.ipc.control_messages import HISTORY_PAGE, HistoryEntry, HistoryParameters, HistoryResult
from usbipd.ipc.messages import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit",
        metavar="N",
        type=count,
        default=20,
        help="how many of the newest entries to show (default: %(default)d)",
    )
    add_json_argument(parser)


def run(arguments: argparse.Namespace, extension: ControlConnection) -> int:
    entries = fetch_history(extension, arguments.limit)
    if arguments.json:
        emit(render(HistoryDocument(entries=entries)))
    elif entries:
        emit(format_history(entries[::-1], terminal_width()))
    else:
        say("Nothing has happened yet.")
    return 0


def fetch_history(extension: ControlConnection, limit: int) -> list[HistoryEntry]:
    """The newest `limit` entries, the newest first, page by page until there are no more."""
    entries: list[HistoryEntry] = []
    while len(entries) < limit:
        parameters = HistoryParameters(
            limit=min(limit - len(entries), HISTORY_PAGE), before=entries[-1].id if entries else None
        )
        page = extension.request(Command.HISTORY, parameters, HistoryResult).entries
        if not page:
            break
        entries += page
    return entries


def format_history(entries: list[HistoryEntry], width: int) -> str:
    """A line for each of `entries`, in their order, and below it what else is known."""
    columns = (
        Column("TIME"),
        Column("EVENT"),
        Column("BUSID"),
        Column("DEVICE", minimum=8),
        Column("CLIENT", minimum=9),
    )
    rows = [
        (
            format_time(entry.time),
            entry.event.value,
            entry.busid or "",
            _device(entry),
            entry.client or "",
        )
        for entry in entries
    ]
    title, *lines = format_table(columns, rows, width).splitlines()
    text = f"{title}\n"
    for line, entry in zip(lines, entries, strict=True):
        text += f"{line}\n"
        if details := _details(entry):
            text += wrap(details, width, "    ")
    return text


def _device(entry: HistoryEntry) -> str:
    if entry.vendor_id is None or entry.product_id is None:
        return entry.product or ""
    name = known_name(entry.vendor_id, entry.product_id, entry.product)
    return f"{hardware_id(entry.vendor_id, entry.product_id)} {name or ''}".rstrip()


def _details(entry: HistoryEntry) -> str:
    """How long what has ended lasted, what went through it, and why."""
    figures = [] if entry.count == 1 else [f"{entry.count} times, the last one shown"]
    if entry.seconds is not None:
        duration = format_duration(entry.seconds)
        figures.append(f"after {duration}" if entry.count == 1 else f"{duration} in all")
    if entry.bytes_in is not None:
        figures.append(f"{format_bytes(entry.bytes_in)} in")
    if entry.bytes_out is not None:
        figures.append(f"{format_bytes(entry.bytes_out)} out")
    return ": ".join(part for part in (", ".join(figures), entry.reason) if part)


SUBCOMMAND = Subcommand(
    add_arguments=add_arguments,
    requires_extension=always,
    run=run,
)
