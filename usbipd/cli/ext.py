"""The `usbipd-ext` command: runs the extension, or asks a running one how it is.

`--status` runs in the caller's process; `--run` makes this process the extension.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from usbipd import __version__
from usbipd.cli.outcome import conclude
from usbipd.cli.verb import Parser, add_json_argument, add_socket_argument
from usbipd.errors import UsageError

if TYPE_CHECKING:
    from usbipd.config import ServerConfig

RUN_ONLY: Final = ("listen", "simulate", "real_devices", "config", "log_level")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line of `usbipd-ext`."""
    parser = Parser(
        prog="usbipd-ext",
        description="The daemon of usbipd: claims USB devices and shares them over USB/IP.",
        epilog="`usbipd` chooses what is shared.",
        allow_abbrev=False,
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--run", action="store_true", help="run the daemon in the foreground")
    action.add_argument("--status", action="store_true", help="show the running daemon and its processes")
    action.add_argument("--version", action="version", version=f"usbipd-ext {__version__}")
    add_socket_argument(parser, None)
    add_json_argument(parser)
    run = parser.add_argument_group("with --run")
    run.add_argument(
        "--listen",
        metavar="ADDR",
        action="append",
        help="where clients may connect: a numeric address, with or without a port; may come several times "
        "(default: as configured, else 127.0.0.1:3240)",
    )
    run.add_argument(
        "--simulate",
        metavar="NAME[:OPTION=VALUE]...[,NAME...]",
        help="share simulated devices instead of this machine's: mass-storage (options size and file), "
        "keyboard, serial, loopback, audio; a name may come several times",
    )
    run.add_argument(
        "--real-devices", action="store_true", help="offer this machine's devices beside the simulated ones"
    )
    run.add_argument("--config", metavar="FILE", type=Path, help="configuration file (see usbipd.toml)")
    run.add_argument(
        "--log-level",
        metavar="LEVEL",
        help="debug, info, warning or error (default: as configured, else info)",
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Parse and carry out one command; raises `UsbipdError`."""
    arguments = build_parser().parse_args(argv)
    return run_extension(arguments) if arguments.run else show_extension(arguments)


def show_extension(arguments: argparse.Namespace) -> int:
    """`usbipd-ext --status`."""
    for option in RUN_ONLY:
        if getattr(arguments, option):
            raise UsageError(f"--{option.replace('_', '-')} goes with --run, not with --status", code="usage")
    from usbipd.cli.connection import ControlConnection
    from usbipd.cli.status import show_status

    with ControlConnection(arguments.socket) as extension:
        extension.open()
        show_status(extension, as_json=arguments.json, with_processes=True)
    return 0


def run_extension(arguments: argparse.Namespace) -> int:
    """`usbipd-ext --run`: be the extension until a signal ends it."""
    if arguments.json:
        raise UsageError("--json goes with --status, not with --run", code="usage")
    # Imported here: a command that only asks shall not wait for any of it.
    from usbipd import paths
    from usbipd.extension import process
    from usbipd.simulated.catalog import parse_simulate

    return process.run(
        config=configuration(arguments),
        simulate=[] if arguments.simulate is None else parse_simulate(arguments.simulate),
        with_real=arguments.simulate is None or arguments.real_devices,
        socket_path=arguments.socket or paths.runtime_directory() / paths.CONTROL_SOCKET,
    )


def configuration(arguments: argparse.Namespace) -> "ServerConfig":
    """The file of --config under what the command line says otherwise.  Raises `UsageError`."""
    from msgspec.structs import replace

    from usbipd.config import ServerConfig, load, parse_listen

    config = load(arguments.config) if arguments.config else ServerConfig()
    if arguments.listen:
        config = replace(config, listen=tuple(str(parse_listen(text)) for text in arguments.listen))
    if arguments.log_level:
        config = replace(config, log_level=arguments.log_level)
    return config


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    return conclude("usbipd-ext", argv, lambda: run(argv))
