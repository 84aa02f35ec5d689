"""`usbipd history`: past events.  Runs in the caller's process.

The text has the newest entry last, above the prompt; the document has it first.
"""

import argparse
from shutil import get_terminal_size
from typing import Final

from usbipd.cli.arguments import add_color_argument, add_json_argument, count
from usbipd.cli.colour import paint_for
from usbipd.cli.connection import ControlConnection
from usbipd.cli.documents import HistoryDocument, render
from usbipd.cli.history_entries import fetch_history, format_history
from usbipd.cli.output import emit, say
from usbipd.cli.selection import Selection, device, moment
from usbipd.cli.subcommand import Subcommand, always

LIMIT: Final = 20
"""Entries shown without --limit and --since."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit",
        metavar="N",
        type=count,
        help=f"show the newest N entries (default: {LIMIT}; with --since, all)",
    )
    parser.add_argument(
        "--since",
        metavar="WHEN",
        type=moment,
        help="show entries since this time: 10m, 2h, 3d (ago), today, 2026-12-01 or 2026-12-01T08:30",
    )
    parser.add_argument(
        "--device",
        metavar="DEVICE",
        type=device,
        help="show only entries of this device: busid, VID:PID or part of the name",
    )
    parser.add_argument(
        "--follow",
        action="store_true",
        help="then print new entries as they come, until Ctrl-C; with --json, one document per line",
    )
    add_color_argument(parser)
    add_json_argument(parser)


def run(arguments: argparse.Namespace, extension: ControlConnection) -> int:
    selection = Selection(arguments.since, arguments.device)
    limit = arguments.limit or (LIMIT if arguments.since is None else None)
    paint = paint_for(arguments.color)
    if arguments.follow:
        from usbipd.cli.history_tail import follow_history  # here: only --follow needs it

        follow_history(extension, selection, limit, paint, as_json=arguments.json)
        return 0
    entries = fetch_history(extension, limit, selection)
    if arguments.json:
        emit(render(HistoryDocument(entries=entries)))
    elif entries:
        emit(format_history(entries[::-1], get_terminal_size().columns, paint))
    else:
        say("The history is empty." if selection == Selection() else "No entry matches.")
    return 0


SUBCOMMAND = Subcommand(
    add_arguments=add_arguments,
    requires_extension=always,
    run=run,
    usage="[OPTIONS]",
    examples=(
        ("show the newest entries", "usbipd history"),
        ("show what happened to a device since yesterday", "usbipd history --since 1d --device 1-1"),
        ("print new entries as they come", "usbipd history --follow"),
        ("print the last 5, for a script", "usbipd history --limit 5 --json"),
    ),
)
