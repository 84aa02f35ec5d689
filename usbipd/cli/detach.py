"""`usbipd detach`: disconnect clients.  Runs in the caller's process."""

import argparse

from usbipd.cli.arguments import add_json_argument
from usbipd.cli.connection import ControlConnection
from usbipd.cli.device_arguments import (
    Selector,
    add_device_arguments,
    check_device_arguments,
    selectors_of,
)
from usbipd.cli.device_lookup import find_busid, is_interactive, no_device_named
from usbipd.cli.documents import DetachDocument, render
from usbipd.cli.output import emit, run_each, say
from usbipd.cli.subcommand import Subcommand, always
from usbipd.ipc.control_messages import DetachParameters, DetachResult, DeviceInfo, DeviceState
from usbipd.ipc.messages import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_arguments(
        parser,
        "busid, VID:PID, VID:PID:SERIAL or part of the name (default on a terminal: choose from a list)",
        "the device in this port; it stays shared, so the client can attach it again",
    )
    add_json_argument(parser)


def check(arguments: argparse.Namespace) -> None:
    check_device_arguments(arguments)
    if not selectors_of(arguments) and not is_interactive(as_json=arguments.json):
        raise no_device_named("detach")


def run(arguments: argparse.Namespace, extension: ControlConnection) -> int:
    asked: list[str] = []

    def detach(selector: Selector | None) -> None:
        busid = find_busid("detach", selector, extension, _is_attached, as_json=arguments.json)
        if busid in asked:  # two names of one device
            return
        asked.append(busid)
        client = extension.request(Command.DETACH, DetachParameters(busid=busid), DetachResult).client
        if arguments.json:
            emit(render(DetachDocument(busid=busid, client=client)))
        else:
            say(f"{busid}: disconnected {client}; the device is still shared")

    return run_each("usbipd", selectors_of(arguments) or [None], detach, as_json=arguments.json)


def _is_attached(device: DeviceInfo) -> bool:
    return device.state is DeviceState.ATTACHED


SUBCOMMAND = Subcommand(
    add_arguments=add_arguments,
    requires_extension=always,
    run=run,
    usage="[OPTIONS] DEVICE...",
    examples=(
        ("disconnect the client of the device in port 1-1", "sudo usbipd detach 1-1"),
        ("the same, by part of its name", "sudo usbipd detach ultra"),
    ),
    check=check,
)
