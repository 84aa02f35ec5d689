"""The `usbipd` command: its parser, from which man pages and completions come, and its dispatch.

Runs in the caller's process.
"""

import argparse
from collections.abc import Sequence
from typing import Final

from usbipd import __version__
from usbipd.cli import bind, detach, doctor, history, status, unbind
from usbipd.cli import list as list_verb
from usbipd.cli.connection import ControlConnection
from usbipd.cli.outcome import conclude
from usbipd.cli.verb import Parser, Verb, add_socket_argument

VERBS: Final = (
    list_verb.VERB,
    bind.VERB,
    unbind.VERB,
    detach.VERB,
    status.VERB,
    history.VERB,
    doctor.VERB,
)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line of `usbipd`."""
    parser = Parser(
        prog="usbipd",
        description="Shares USB devices of this machine over USB/IP.",
        epilog="The daemon itself is `usbipd-ext`.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"usbipd {__version__}")
    add_socket_argument(parser, None)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb in VERBS:
        description = f"{verb.summary[0].upper()}{verb.summary[1:]}."
        subparser = verbs.add_parser(
            verb.name, help=verb.summary, description=description, allow_abbrev=False
        )
        verb.add_arguments(subparser)
        add_socket_argument(subparser, argparse.SUPPRESS)
        subparser.set_defaults(verb=verb)
    return parser


def run(argv: Sequence[str]) -> int:
    """Parse and carry out one command; raises `UsbipdError`."""
    arguments = build_parser().parse_args(argv)
    verb: Verb = arguments.verb
    verb.check(arguments)
    with ControlConnection(arguments.socket) as extension:
        if verb.requires_extension(arguments):
            extension.open()
        return verb.run(arguments, extension)


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    return conclude("usbipd", argv, lambda: run(argv))
