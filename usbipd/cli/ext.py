"""The `usbipd-ext` command: runs the extension, or queries a running one.

`--run` makes this process the extension; the rest runs in the caller's process.  `__main__` loads the
extension's modules, which are slow to import, only for `--run`.
"""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, get_args

from usbipd import __version__
from usbipd.cli.arguments import (
    Parser,
    add_color_argument,
    add_json_argument,
    add_socket_argument,
    add_watch_argument,
    check_networks,
    example_text,
    interval,
    network,
    path,
)
from usbipd.cli.output import run_to_exit_code
from usbipd.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from usbipd.config import ServerConfig
    from usbipd.simulated.spec import SimulatedSpec

    RunDaemon = Callable[[ServerConfig, Sequence[SimulatedSpec], bool, Path, Path | None], int]
    """`run` of `usbipd/extension/process.py`."""

RUN: Final = "--run"
STATUS: Final = "--status"
HEALTH: Final = "--health"
CHECK_CONFIG: Final = "--check-config"

EXAMPLES: Final = (
    ("share devices of this machine with the network", "sudo usbipd-ext --run --listen 0.0.0.0"),
    ("share simulated devices on loopback, without root", "usbipd-ext --run --simulate keyboard,serial"),
    ("check usbipd.toml and print it", "sudo usbipd-ext --check-config"),
    ("show the processes of the daemon", "usbipd-ext --status"),
)

ACTIONS_OF_OPTION: Final[Mapping[str, tuple[str, ...]]] = {
    "--listen": (RUN,),
    "--allow": (RUN,),
    "--simulate": (RUN,),
    "--real-devices": (RUN,),
    "--config": (RUN, CHECK_CONFIG),
    "--state": (RUN,),
    "--log-level": (RUN,),
    "--log-to": (RUN,),
    "--watch": (STATUS,),
    "--json": (STATUS, HEALTH, CHECK_CONFIG),
    "--color": (STATUS, HEALTH),
    "--socket": (RUN, STATUS, HEALTH),
}
"""Each option and the actions that take it."""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line of `usbipd-ext`."""
    parser = Parser(
        prog="usbipd-ext",
        usage="%(prog)s --run | --status | --health | --check-config [OPTIONS]",
        description="The daemon of usbipd: claims USB devices and shares them over USB/IP.",
        epilog=example_text("examples", EXAMPLES) + "\n\nUse `usbipd` to choose what is shared.",
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument(RUN, action="store_true", help="run the daemon in the foreground")
    action.add_argument(STATUS, action="store_true", help="show the running daemon and its processes")
    action.add_argument(
        HEALTH, action="store_true", help="check the daemon and this machine and suggest fixes"
    )
    action.add_argument(CHECK_CONFIG, action="store_true", help="check the configuration file and print it")
    action.add_argument(
        "-V", "--version", action="version", version=f"usbipd-ext {__version__}", help="show the version"
    )
    add_socket_argument(parser, None)
    add_color_argument(parser)
    add_json_argument(parser)
    add_watch_argument(parser.add_argument_group("with --status"), interval)
    add_run_arguments(parser)
    return parser


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of --run, and --config, which --check-config takes too."""
    run = parser.add_argument_group("with --run")
    run.add_argument(
        "--listen",
        metavar="ADDR",
        action="append",
        help="numeric address to listen on, with or without a port; can be given several times (default: as "
        "configured, else 127.0.0.1:3240)",
    )
    run.add_argument(
        "--allow",
        metavar="CIDR",
        type=network,
        action="append",
        help="admit only clients with this address or from this network; can be given several times "
        "(default: as configured, else all)",
    )
    run.add_argument(
        "--simulate",
        metavar="NAME[:OPTION=VALUE]...[,NAME...]",
        help="share simulated devices instead of this machine's: mass-storage (options size and file), "
        "keyboard, serial, loopback, audio, camera; a name can be given several times",
    )
    run.add_argument(
        "--real-devices",
        action="store_true",
        help="offer this machine's devices along with the simulated ones",
    )
    run.add_argument(
        "--config",
        metavar="FILE",
        type=path,
        help="configuration file, see usbipd.toml(5); also with --check-config (default: for root, the usual "
        "file if it exists)",
    )
    run.add_argument(
        "--state",
        metavar="DIR",
        type=path,
        help="directory for bindings and history (default: the usual one; none if all devices are simulated)",
    )
    run.add_argument(
        "--log-level",
        metavar="LEVEL",
        help="debug, info, warning or error (default: as configured, else info)",
    )
    run.add_argument(
        "--log-to",
        metavar="WHERE",
        help="log destination: stderr, syslog, or the absolute path of a file, which SIGHUP reopens "
        "(default: as configured, else stderr)",
    )


def run(argv: Sequence[str], load_daemon: "Callable[[], RunDaemon]") -> int:
    """Parse and run one command; raises `UsbipdError`."""
    arguments = build_parser().parse_args(argv)
    action = next(each for each in (RUN, STATUS, HEALTH, CHECK_CONFIG) if _value(arguments, each))
    for option, actions in ACTIONS_OF_OPTION.items():
        if action not in actions and _value(arguments, option) not in (None, False):
            raise UsageError(
                f"{option} applies to {' or '.join(actions)}, not to {action}",
                code="usage",
                advice="see `usbipd-ext --help`",
            )
    if action == RUN:
        return run_extension(arguments, load_daemon)
    if action == CHECK_CONFIG:
        from usbipd.cli.check_config import check_config

        check_config(arguments.config, as_json=arguments.json)
        return 0
    return ask_extension(arguments)


def _value(arguments: argparse.Namespace, option: str) -> object:
    return getattr(arguments, option.removeprefix("--").replace("-", "_"))


def ask_extension(arguments: argparse.Namespace) -> int:
    """`usbipd-ext --status` and `usbipd-ext --health`."""
    from usbipd.cli.colour import paint_for
    from usbipd.cli.connection import ControlConnection

    paint = paint_for(arguments.color)
    with ControlConnection(arguments.socket) as extension:
        if arguments.health:
            from usbipd.cli.doctor import show_health

            return show_health(extension, paint, as_json=arguments.json, only_problems=False)
        from usbipd.cli.status import show_status

        extension.open()
        show_status(
            extension,
            as_json=arguments.json,
            interval=arguments.watch,
            paint=paint,
            with_processes=True,
        )
        return 0


def run_extension(arguments: argparse.Namespace, load_daemon: "Callable[[], RunDaemon]") -> int:
    """`usbipd-ext --run`: run the extension until a signal stops it."""
    # Imported here: other actions do not need them.
    from pathlib import Path

    from usbipd import paths
    from usbipd.control_socket import own_control_socket
    from usbipd.simulated.catalog import parse_simulate

    socket_path = Path(own_control_socket() if arguments.socket is None else arguments.socket)
    paths.RuntimeFiles(socket_path.absolute()).remove_stale_pid()  # also if the configuration is wrong
    with_real = arguments.simulate is None or arguments.real_devices
    return load_daemon()(
        configuration(arguments),
        [] if arguments.simulate is None else parse_simulate(arguments.simulate),
        with_real,
        socket_path,
        arguments.state or (paths.state_directory() if with_real else None),
    )


def configuration(arguments: argparse.Namespace) -> "ServerConfig":
    """The file of --config, or root's usual one, overridden by the command line.

    Raises `UsageError`.
    """
    from msgspec.structs import replace

    from usbipd.addresses import parse_listen
    from usbipd.cli.check_config import usual_file
    from usbipd.config import Networks, ServerConfig, load
    from usbipd.log import check_destination

    file = arguments.config or (usual_file() if os.geteuid() == 0 else None)
    config = ServerConfig() if file is None else load(file)
    if arguments.listen:
        config = replace(config, listen=tuple(str(parse_listen(text)) for text in arguments.listen))
    if arguments.allow:
        check_networks(arguments.allow, get_args(Networks)[1].max_length)
        config = replace(config, allow=tuple(arguments.allow))
    if arguments.log_level is not None:
        config = replace(config, log_level=arguments.log_level)
    if arguments.log_to is not None:
        check_destination(arguments.log_to)
        config = replace(config, log_to=arguments.log_to)
    return config


def main(argv: Sequence[str], load_daemon: "Callable[[], RunDaemon]") -> int:
    """Entry point; returns the exit code."""
    return run_to_exit_code("usbipd-ext", argv, lambda: run(argv, load_daemon))
