"""The `usbipd` command: its parser, from which man pages and completions come, and its dispatch.

Runs in the caller's process.
"""

import argparse
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from usbipd import __version__
from usbipd.cli.outcome import conclude
from usbipd.cli.verb import Parser, Verb, add_socket_argument

VERBS: Final[Mapping[str, str]] = {
    "list": "show the USB devices of this machine, or those that another one shares",
    "bind": "share a device with USB/IP clients, now and whenever it is plugged in",
    "unbind": "stop sharing a device and give it back to this machine",
    "detach": "end the session of the client that uses a device, which stays shared",
    "release": "reattach this machine's drivers to a device that a crash has left without them",
    "status": "show what is shared, with whom, and how the daemon is",
    "history": "show past claims, attachments, releases and failures",
    "doctor": "check the daemon and this machine and suggest fixes",
}
"""Each verb with its summary; its arguments and what it does are in the module of its name."""


def load(name: str) -> Verb:
    """The verb of this name.  Imports its module, which takes a while, and that of no other one."""
    match name:
        case "list":
            from usbipd.cli.list import VERB
        case "bind":
            from usbipd.cli.bind import VERB
        case "unbind":
            from usbipd.cli.unbind import VERB
        case "detach":
            from usbipd.cli.detach import VERB
        case "release":
            from usbipd.cli.release import VERB
        case "status":
            from usbipd.cli.status import VERB
        case "history":
            from usbipd.cli.history import VERB
        case "doctor":
            from usbipd.cli.doctor import VERB
        case _:
            raise ValueError(f"there is no verb {name!r}")
    return VERB


def build_parser(whole: Collection[str] = VERBS) -> argparse.ArgumentParser:
    """The command line of `usbipd`: every verb, and of those in `whole` what they take."""
    parser = Parser(
        prog="usbipd",
        description="Shares USB devices of this machine over USB/IP.",
        epilog="The daemon itself is `usbipd-ext`.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"usbipd {__version__}")
    add_socket_argument(parser, None)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, summary in VERBS.items():
        description = f"{summary[0].upper()}{summary[1:]}."
        subparser = verbs.add_parser(name, help=summary, description=description, allow_abbrev=False)
        if name in whole:
            verb = load(name)
            verb.add_arguments(subparser)
            add_socket_argument(subparser, argparse.SUPPRESS)
            subparser.set_defaults(verb=verb)
    return parser


def run(argv: Sequence[str]) -> int:
    """Parse and carry out one command; raises `UsbipdError`."""
    arguments = build_parser(whole=argv).parse_args(argv)  # a verb that it does not name cannot be meant
    verb: Verb = arguments.verb
    verb.check(arguments)

    from usbipd.cli.connection import ControlConnection  # here: help and a wrong usage do not ask anybody

    with ControlConnection(arguments.socket) as extension:
        if verb.requires_extension(arguments):
            extension.open()
        return verb.run(arguments, extension)


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    return conclude("usbipd", argv, lambda: run(argv))
