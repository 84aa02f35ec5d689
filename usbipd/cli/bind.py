"""`usbipd bind`: share a device, now and whenever it is plugged in.  Runs in the caller's process."""

import argparse
from typing import Final, get_args

from usbipd.cli.arguments import add_json_argument, check_networks, network
from usbipd.cli.connection import ControlConnection
from usbipd.cli.device import binding_name, device_name
from usbipd.cli.documents import BindDocument, render
from usbipd.cli.hardware import add_hardware_arguments, check_hardware_arguments, hardware_of
from usbipd.cli.output import emit, say
from usbipd.cli.subcommand import Subcommand, always
from usbipd.ipc.control_messages import BindParameters, BindResult, Networks
from usbipd.ipc.messages import Command
from usbipd.usb.identity import parse_busid

MOST_NETWORKS: Final[int] = get_args(Networks)[1].max_length
CLAIM_TIMEOUT: Final = 90.0
"""Seconds; the extension gives a worker 60 for its claim, and what it then says is worth waiting for."""
UNMOUNT_TIMEOUT: Final = 600.0
"""Seconds; unmounting writes all that the file system has not written yet, to a device that may be slow."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--busid",
        metavar="BUSID",
        type=parse_busid,
        help="the device to share, as `usbipd list` shows it; this host cannot use it in this port until "
        "`usbipd unbind`",
    )
    add_hardware_arguments(
        parser, which, "every device of this kind, in whatever port it is or will be plugged into"
    )
    parser.add_argument(
        "--allow",
        metavar="CIDR",
        type=network,
        action="append",
        default=[],
        help="only for clients with this address or from this network, such as 192.168.1.0/24; may come "
        "several times (default: every client that the server lets in)",
    )
    parser.add_argument("--force", action="store_true", help="unmount the device's file systems first")
    add_json_argument(parser)


def check(arguments: argparse.Namespace) -> None:
    check_hardware_arguments(arguments)
    check_networks(arguments.allow, MOST_NETWORKS)


def run(arguments: argparse.Namespace, extension: ControlConnection) -> int:
    parameters = BindParameters(
        busid=arguments.busid,
        hardware=hardware_of(arguments),
        allow=arguments.allow,
        force=arguments.force,
    )
    timeout = UNMOUNT_TIMEOUT if arguments.force else CLAIM_TIMEOUT
    result = extension.request(Command.BIND, parameters, BindResult, timeout=timeout)
    if arguments.json:
        emit(render(BindDocument(binding=result.binding, devices=result.devices)))
    else:
        say(_format_result(result))
    return 0


def _format_result(result: BindResult) -> str:
    with_whom = _with_whom(result)
    lines = [f"{device.busid} is shared{with_whom}: {device_name(device)}" for device in result.devices]
    if not lines:
        lines.append(f"{binding_name(result.binding)} will be shared{with_whom} when it is plugged in.")
    return "\n".join(lines)


def _with_whom(result: BindResult) -> str:
    allow = result.binding.allow
    return f" with {', '.join(allow)} only" if allow else ""


SUBCOMMAND = Subcommand(
    add_arguments=add_arguments,
    requires_extension=always,
    run=run,
    check=check,
)
