"""`usbipd release`: reattach this machine's drivers to a device.  Runs in the caller's process."""

import argparse

from usbipd.cli.arguments import add_json_argument
from usbipd.cli.connection import ControlConnection
from usbipd.cli.documents import ReleaseDocument, render
from usbipd.cli.output import emit, say
from usbipd.cli.subcommand import Subcommand, always
from usbipd.ipc.control_messages import ReleaseParameters, ReleaseResult
from usbipd.ipc.messages import Command
from usbipd.usb.identity import parse_busid


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "busid",
        metavar="BUSID",
        type=parse_busid,
        help="the device; a shared one is released by unbind",
    )
    add_json_argument(parser)


def run(arguments: argparse.Namespace, extension: ControlConnection) -> int:
    parameters = ReleaseParameters(busid=arguments.busid)
    drivers = extension.request(Command.RELEASE_DEVICE, parameters, ReleaseResult).drivers
    if arguments.json:
        emit(render(ReleaseDocument(busid=arguments.busid, drivers=drivers)))
    elif drivers:
        say(f"{arguments.busid}: released to {', '.join(drivers)}")
    else:
        say(f"{arguments.busid}: released; no driver of this machine has claimed it")
    return 0


SUBCOMMAND = Subcommand(
    add_arguments=add_arguments,
    requires_extension=always,
    run=run,
)
