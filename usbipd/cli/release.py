"""`usbipd release`: reattach this machine's drivers to devices.  Runs in the caller's process."""

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
from usbipd.cli.documents import ReleaseDocument, render
from usbipd.cli.output import emit, run_each, say
from usbipd.cli.subcommand import Subcommand, always
from usbipd.ipc.control_messages import DeviceInfo, DeviceState, ReleaseParameters, ReleaseResult
from usbipd.ipc.messages import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_arguments(
        parser,
        "busid, VID:PID, VID:PID:SERIAL or part of the name; a shared device is released by unbind "
        "(default on a terminal: choose from a list)",
        "the device in this port",
    )
    add_json_argument(parser)


def check(arguments: argparse.Namespace) -> None:
    check_device_arguments(arguments)
    if not selectors_of(arguments) and not is_interactive(as_json=arguments.json):
        raise no_device_named("release")


def run(arguments: argparse.Namespace, extension: ControlConnection) -> int:
    asked: list[str] = []

    def release(selector: Selector | None) -> None:
        busid = find_busid("release", selector, extension, _is_ours, as_json=arguments.json)
        if busid in asked:  # two names of one device
            return
        asked.append(busid)
        parameters = ReleaseParameters(busid=busid)
        drivers = extension.request(Command.RELEASE_DEVICE, parameters, ReleaseResult).drivers
        if arguments.json:
            emit(render(ReleaseDocument(busid=busid, drivers=drivers)))
        elif drivers:
            say(f"{busid}: released to {', '.join(drivers)}")
        else:
            say(f"{busid}: released; no driver has claimed it")

    return run_each("usbipd", selectors_of(arguments) or [None], release, as_json=arguments.json)


def _is_ours(device: DeviceInfo) -> bool:
    return device.state is DeviceState.NOT_SHARED and not device.simulated


SUBCOMMAND = Subcommand(
    add_arguments=add_arguments,
    requires_extension=always,
    run=run,
    usage="[OPTIONS] DEVICE...",
    examples=(
        (
            "reattach the drivers of a device, as `usbipd doctor` advises",
            "sudo usbipd release 1-1",
        ),
    ),
    check=check,
)
