"""The `usbipd` command: its parser, from which man pages and completions come, and its dispatch.

Runs in the caller's process.
"""

import argparse
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from usbipd import __version__
from usbipd.cli.arguments import Parser, add_socket_argument
from usbipd.cli.output import run_to_exit_code
from usbipd.cli.subcommand import Subcommand

SUBCOMMANDS: Final[Mapping[str, str]] = {
    "list": "show the USB devices of this machine, or those that another one shares",
    "bind": "share a device with USB/IP clients, now and whenever it is plugged in",
    "unbind": "stop sharing a device and give it back to this machine",
    "detach": "end the session of the client that uses a device, which stays shared",
    "release": "reattach this machine's drivers to a device that a crash has left without them",
    "status": "show what is shared, with whom, and how the daemon is",
    "history": "show past claims, attachments, releases and failures",
    "doctor": "check the daemon and this machine and suggest fixes",
}
"""Each command with its summary; its arguments and what it does are in the module of its name."""


def load(name: str) -> Subcommand:
    """The command of this name.  Imports its module, which takes a while, and that of no other one."""
    match name:
        case "list":
            from usbipd.cli.list import SUBCOMMAND
        case "bind":
            from usbipd.cli.bind import SUBCOMMAND
        case "unbind":
            from usbipd.cli.unbind import SUBCOMMAND
        case "detach":
            from usbipd.cli.detach import SUBCOMMAND
        case "release":
            from usbipd.cli.release import SUBCOMMAND
        case "status":
            from usbipd.cli.status import SUBCOMMAND
        case "history":
            from usbipd.cli.history import SUBCOMMAND
        case "doctor":
            from usbipd.cli.doctor import SUBCOMMAND
        case _:
            raise ValueError(f"there is no command {name!r}")
    return SUBCOMMAND


def build_parser(detailed: Collection[str] = SUBCOMMANDS) -> argparse.ArgumentParser:
    """The command line of `usbipd`: every command, and of those in `detailed` what they take."""
    parser = Parser(
        prog="usbipd",
        description="Shares USB devices of this machine over USB/IP.",
        epilog="The daemon itself is `usbipd-ext`.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"usbipd {__version__}")
    add_socket_argument(parser, None)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, summary in SUBCOMMANDS.items():
        description = f"{summary[0].upper()}{summary[1:]}."
        subparser = commands.add_parser(name, help=summary, description=description, allow_abbrev=False)
        if name in detailed:
            command = load(name)
            command.add_arguments(subparser)
            add_socket_argument(subparser, argparse.SUPPRESS)
            subparser.set_defaults(command=command)
    return parser


def run(argv: Sequence[str]) -> int:
    """Parse and carry out one command; raises `UsbipdError`."""
    arguments = build_parser(detailed=argv).parse_args(argv)  # no other command can be meant
    command: Subcommand = arguments.command
    command.check(arguments)

    from usbipd.cli.connection import ControlConnection  # here: help and a wrong usage do not ask anybody

    with ControlConnection(arguments.socket) as extension:
        if command.requires_extension(arguments):
            extension.open()
        return command.run(arguments, extension)


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    return run_to_exit_code("usbipd", argv, lambda: run(argv))
