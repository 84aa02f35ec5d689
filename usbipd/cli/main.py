"""The `usbipd` command: its parser, from which man pages and completions come, and its dispatch.

Runs in the caller's process.
"""

import argparse
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from usbipd import __version__
from usbipd.cli.arguments import Parser, add_socket_argument, example_text
from usbipd.cli.output import run_to_exit_code, say
from usbipd.cli.subcommand import Subcommand, never
from usbipd.errors import UsageError

SUBCOMMANDS: Final[Mapping[str, str]] = {
    "list": "show the USB devices of this machine, or those that another machine shares",
    "bind": "share a device with USB/IP clients, now and whenever it is plugged in",
    "unbind": "stop sharing a device and return it to this machine",
    "detach": "disconnect the client that uses a device; the device stays shared",
    "release": "reattach this machine's drivers to a device that lost them in a crash",
    "status": "show shared devices, their clients and the state of the daemon",
    "history": "show past claims, attachments, releases and failures",
    "doctor": "check the daemon and this machine and suggest fixes",
    "help": "list the commands, or show the options and examples of one",
}
"""Each command and its summary; the module of its name has the rest."""

FIRST_STEPS: Final = (
    ("find the device and its busid, here 1-1", "usbipd list"),
    ("share it", "sudo usbipd bind 1-1"),
    ("attach it on the client; bind prints this line with the address", "sudo usbip attach -r HOST -b 1-1"),
)
"""How to share a first device."""


def load(name: str) -> Subcommand:
    """The command of this name.  Imports its module, which is slow, and no other command's."""
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
        case "help":
            return HELP
        case _:
            raise ValueError(f"unknown command {name!r}")
    return SUBCOMMAND


def build_parser(detailed: Collection[str] = SUBCOMMANDS) -> Parser:
    """The command line of `usbipd`: every command; arguments only of those in `detailed`."""
    parser = Parser(
        prog="usbipd",
        usage="%(prog)s [OPTIONS] COMMAND",
        description="Shares USB devices of this machine over USB/IP.",
        epilog=example_text("first steps", FIRST_STEPS)
        + "\n\nSee `usbipd help COMMAND` for one command.  The daemon itself is `usbipd-ext`.",
    )
    parser.add_argument(
        "-V", "--version", action="version", version=f"usbipd {__version__}", help="show the version"
    )
    add_socket_argument(parser, None)
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(prog="usbipd", metavar="COMMAND", title="commands")
    for name, summary in SUBCOMMANDS.items():
        description = f"{summary[0].upper()}{summary[1:]}."
        subparser = commands.add_parser(name, help=summary, description=description)
        if name in detailed:
            command = load(name)
            command.add_arguments(subparser)
            add_socket_argument(subparser, argparse.SUPPRESS)
            subparser.usage = f"%(prog)s {command.usage}"
            subparser.epilog = example_text("examples", command.examples)
            subparser.set_defaults(command=command, prog=subparser.prog)
    return parser


def run(argv: Sequence[str]) -> int:
    """Parse and run one command; raises `UsbipdError`."""
    parser = build_parser(detailed=argv)  # only a command in argv can be the one to run
    try:
        arguments = parser.parse_args(argv)
    except UsageError:
        build_parser().parse_args(argv)  # fails too, and knows the options of all commands
        raise
    command: Subcommand | None = arguments.command
    if command is None:
        say(parser.format_help().rstrip())
        return UsageError.exit_code
    try:
        command.check(arguments)
    except UsageError as error:
        error.advice = error.advice or f"see `{arguments.prog} --help`"
        raise

    from usbipd.cli.connection import ControlConnection  # here: help and usage errors do not need it

    with ControlConnection(arguments.socket) as extension:
        if command.requires_extension(arguments):
            extension.open()
        return command.run(arguments, extension)


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    return run_to_exit_code("usbipd", argv, lambda: run(argv))


# ---- usbipd help -------------------------------------------------------------------------------------------


def _add_help_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", metavar="COMMAND", nargs="?", help="the command (default: list all)")


def _show_help(arguments: argparse.Namespace, _extension: object) -> int:
    """Print the help page and exit.  Raises `UsageError` for an unknown command."""
    topic: list[str] = [] if arguments.topic is None else [arguments.topic]
    build_parser(detailed=topic).parse_args([*topic, "--help"])
    return 0


HELP: Final = Subcommand(
    add_arguments=_add_help_arguments,
    requires_extension=never,
    run=_show_help,
    usage="[COMMAND]",
    examples=(("show the options of bind, with examples", "usbipd help bind"),),
)
