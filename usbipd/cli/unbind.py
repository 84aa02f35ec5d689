"""`usbipd unbind`: return devices to this machine.  Runs in the caller's process."""

import argparse

from usbipd.cli.arguments import add_json_argument
from usbipd.cli.connection import ControlConnection
from usbipd.cli.device import binding_name
from usbipd.cli.device_arguments import (
    Selector,
    add_device_arguments,
    check_device_arguments,
    selectors_of,
)
from usbipd.cli.device_lookup import is_interactive, no_device_named, pick_binding
from usbipd.cli.documents import UnbindDocument, render
from usbipd.cli.output import emit, run_each, say
from usbipd.cli.subcommand import Subcommand, always
from usbipd.ipc.control_messages import BindingInfo, ListResult, UnbindParameters, UnbindResult
from usbipd.ipc.messages import Command, Nothing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_arguments(
        parser,
        "busid, VID:PID, VID:PID:SERIAL or part of the name of a bound device (default on a terminal: "
        "choose from a list)",
        "the binding of this port; a client that uses the device is disconnected",
        "the binding of this hardware id",
    )
    parser.add_argument("-a", "--all", action="store_true", help="all bindings")
    add_json_argument(parser)


def check(arguments: argparse.Namespace) -> None:
    check_device_arguments(arguments)
    if not arguments.all and not selectors_of(arguments) and not is_interactive(as_json=arguments.json):
        raise no_device_named("unbind")


def run(arguments: argparse.Namespace, extension: ControlConnection) -> int:
    asked: list[UnbindParameters] = []

    def unbind(selector: Selector | None) -> None:
        parameters = _parameters(arguments, selector, extension)
        if parameters in asked:  # two names of one device
            return
        asked.append(parameters)
        result = extension.request(Command.UNBIND, parameters, UnbindResult)
        still = _still_bound(result, extension)
        if arguments.json:
            document = UnbindDocument(
                bindings=result.bindings, busids=result.busids, still_shared=sorted(still)
            )
            emit(render(document))
        else:
            say(_format_result(result, still))

    return run_each("usbipd", selectors_of(arguments) or [None], unbind, as_json=arguments.json)


def _parameters(
    arguments: argparse.Namespace, selector: Selector | None, extension: ControlConnection
) -> UnbindParameters:
    if arguments.all:
        return UnbindParameters()
    if selector is not None and selector.busid is not None:
        return UnbindParameters(busid=selector.busid)
    if selector is not None and arguments.hardware_id is not None:
        return UnbindParameters(hardware=selector.hardware)
    result = extension.request(Command.LIST, Nothing(), ListResult)
    return pick_binding(selector, result, as_json=arguments.json)


def _still_bound(result: UnbindResult, extension: ControlConnection) -> dict[str, BindingInfo]:
    """The devices of the removed bindings that another binding still shares, and that binding."""
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
        f"{device} is still shared: it is also bound as {binding_name(binding)}"
        for device, binding in sorted(still.items())
    ]
    return "\n".join(lines) or "Nothing was bound."


SUBCOMMAND = Subcommand(
    add_arguments=add_arguments,
    requires_extension=always,
    run=run,
    usage="[OPTIONS] DEVICE...",
    examples=(
        ("stop sharing the device in port 1-1", "sudo usbipd unbind 1-1"),
        ("remove the binding of a hardware id", "sudo usbipd unbind 0781:5581"),
        ("stop sharing a device, by part of its name", "sudo usbipd unbind ultra"),
        ("stop sharing everything", "sudo usbipd unbind --all"),
    ),
    check=check,
)
