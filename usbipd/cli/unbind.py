"""`usbipd unbind`: give devices back to this machine.  Runs in the caller's process."""

import argparse

from usbipd.cli.arguments import add_json_argument
from usbipd.cli.connection import ControlConnection
from usbipd.cli.device import binding_name
from usbipd.cli.documents import UnbindDocument, render
from usbipd.cli.hardware import add_hardware_arguments, check_hardware_arguments, hardware_of
from usbipd.cli.output import emit, say
from usbipd.cli.subcommand import Subcommand, always
from usbipd.ipc.control_messages import BindingInfo, ListResult, UnbindParameters, UnbindResult
from usbipd.ipc.messages import Command, Nothing
from usbipd.usb.identity import parse_busid


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--busid",
        metavar="BUSID",
        type=parse_busid,
        help="what is bound to this port; a client that uses it is cut off",
    )
    which.add_argument("--all", action="store_true", help="everything that is bound")
    add_hardware_arguments(parser, which, "what is bound by this hardware id")
    add_json_argument(parser)


def run(arguments: argparse.Namespace, extension: ControlConnection) -> int:
    parameters = UnbindParameters(busid=arguments.busid, hardware=hardware_of(arguments))
    result = extension.request(Command.UNBIND, parameters, UnbindResult)
    still = _still_bound(result, extension)
    if arguments.json:
        document = UnbindDocument(bindings=result.bindings, busids=result.busids, still_shared=sorted(still))
        emit(render(document))
    else:
        say(_format_result(result, still))
    return 0


def _still_bound(result: UnbindResult, extension: ControlConnection) -> dict[str, BindingInfo]:
    """The devices of the bindings that are gone that another binding still means, and that binding."""
    meant = {device for binding in result.bindings for device in binding.devices} - set(result.busids)
    if not meant:
        return {}
    left = extension.request(Command.LIST, Nothing(), ListResult).bindings
    return {device: binding for binding in left for device in binding.devices if device in meant}


def _format_result(result: UnbindResult, still: dict[str, BindingInfo]) -> str:
    lines = [f"no longer bound: {binding_name(binding)}" for binding in result.bindings]
    if result.busids:
        lines.append(f"no longer shared: {', '.join(result.busids)}")
    lines += [
        f"{device} is still shared: it is bound as {binding_name(binding)} too"
        for device, binding in sorted(still.items())
    ]
    return "\n".join(lines) or "Nothing was bound."


SUBCOMMAND = Subcommand(
    add_arguments=add_arguments,
    requires_extension=always,
    run=run,
    check=check_hardware_arguments,
)
