"""`usbipd bind`: share devices, now and whenever they are plugged in.  Runs in the caller's process."""

import argparse
import os
from collections.abc import Sequence
from typing import Final, get_args

from usbipd.cli.arguments import add_json_argument, check_networks, network
from usbipd.cli.connection import ControlConnection
from usbipd.cli.device import binding_name, device_name
from usbipd.cli.device_arguments import (
    Selector,
    add_device_arguments,
    check_device_arguments,
    selectors_of,
)
from usbipd.cli.device_lookup import find_busid, is_interactive, no_device_named
from usbipd.cli.documents import BindDocument, render
from usbipd.cli.output import emit, run_each, say
from usbipd.cli.subcommand import Subcommand, always
from usbipd.errors import UsbipdError
from usbipd.ipc.control_messages import (
    BindParameters,
    BindResult,
    DeviceInfo,
    DeviceState,
    Networks,
    StatusResult,
)
from usbipd.ipc.messages import Command, Nothing

MOST_NETWORKS: Final[int] = get_args(Networks)[1].max_length
CLAIM_TIMEOUT: Final = 90.0
"""Seconds; a worker has 60 for its claim, and the extension reports how that ended."""
UNMOUNT_TIMEOUT: Final = 600.0
"""Seconds; unmounting flushes the file system to a device that may be slow."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_arguments(
        parser,
        "busid, VID:PID, VID:PID:SERIAL or part of the name, as `usbipd list` shows it; a busid or name "
        "binds the device in its port, VID:PID every such device in any port (default on a terminal: choose "
        "from a list)",
        "the device in this port; this machine cannot use it there until `usbipd unbind`",
        "every device of this kind, in any port, now or later",
    )
    parser.add_argument(
        "--allow",
        metavar="CIDR",
        type=network,
        action="append",
        default=[],
        help="only for clients with this address or from this network, such as 192.168.1.0/24; can be given "
        "several times (default: every client that the server admits)",
    )
    parser.add_argument("-f", "--force", action="store_true", help="unmount the device's file systems first")
    add_json_argument(parser)


def check(arguments: argparse.Namespace) -> None:
    check_device_arguments(arguments)
    check_networks(arguments.allow, MOST_NETWORKS)
    if not selectors_of(arguments) and not is_interactive(as_json=arguments.json):
        raise no_device_named("bind")


def run(arguments: argparse.Namespace, extension: ControlConnection) -> int:
    asked: list[BindParameters] = []
    results: list[BindResult] = []

    def bind(selector: Selector | None) -> None:
        parameters = _parameters(arguments, selector, extension)
        if parameters in asked:  # two names of one device
            return
        asked.append(parameters)
        timeout = UNMOUNT_TIMEOUT if arguments.force else CLAIM_TIMEOUT
        result = extension.request(Command.BIND, parameters, BindResult, timeout=timeout)
        results.append(result)
        if arguments.json:
            emit(render(BindDocument(binding=result.binding, devices=result.devices)))
        else:
            say(_format_result(result))

    code = run_each("usbipd", selectors_of(arguments) or [None], bind, as_json=arguments.json)
    if any(result.devices for result in results) and is_interactive(as_json=arguments.json):
        _print_client_commands(extension, results)
    return code


def _parameters(
    arguments: argparse.Namespace, selector: Selector | None, extension: ControlConnection
) -> BindParameters:
    hardware = None if selector is None else selector.hardware
    if hardware is None:
        busid = find_busid(
            "bind", selector, extension, _is_free if selector is None else None, as_json=arguments.json
        )
    else:
        busid = None
    return BindParameters(busid=busid, hardware=hardware, allow=arguments.allow, force=arguments.force)


def _print_client_commands(extension: ControlConnection, results: Sequence[BindResult]) -> None:
    """Print the commands that attach the devices of `results`; nothing if the daemon does not answer."""
    from usbipd.client_commands import client_commands  # here: scripts do not need it
    from usbipd.host_addresses import host_addresses

    try:
        listening = extension.request(Command.STATUS, Nothing(), StatusResult).listening
    except UsbipdError:
        return
    addresses = host_addresses()
    user = os.environ.get("SUDO_USER") or os.environ.get("USER") or "root"
    for allow, busids in _by_allow(results).items():
        for line in client_commands(busids, listening, allow, addresses, user):
            say(line)


def _by_allow(results: Sequence[BindResult]) -> dict[tuple[str, ...], list[str]]:
    """The bound devices, by the networks that may use them."""
    busids: dict[tuple[str, ...], list[str]] = {}
    for result in results:
        busids.setdefault(tuple(result.binding.allow), []).extend(each.busid for each in result.devices)
    return busids


def _is_free(device: DeviceInfo) -> bool:
    return device.state is DeviceState.NOT_SHARED


def _format_result(result: BindResult) -> str:
    restriction = _restriction(result)
    lines = [f"{device.busid} is shared{restriction}: {device_name(device)}" for device in result.devices]
    if not lines:
        lines.append(f"{binding_name(result.binding)} will be shared{restriction} when it is plugged in.")
    return "\n".join(lines)


def _restriction(result: BindResult) -> str:
    allow = result.binding.allow
    return f" with {', '.join(allow)} only" if allow else ""


SUBCOMMAND = Subcommand(
    add_arguments=add_arguments,
    requires_extension=always,
    run=run,
    usage="[OPTIONS] DEVICE...",
    examples=(
        ("share the device in port 1-1", "sudo usbipd bind 1-1"),
        ("share two devices, one by part of its name", 'sudo usbipd bind 3-2.4 "sandisk ultra"'),
        (
            "share every device of a kind, with one network only",
            "sudo usbipd bind 0781:5581 --allow 192.168.1.0/24",
        ),
        ("share a mounted disk", "sudo usbipd bind 3-1 --force"),
    ),
    check=check,
)
