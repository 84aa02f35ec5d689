"""`usbipd bind`: share a device.  Runs in the caller's process."""

import argparse

from usbipd.cli.connection import ControlConnection
from usbipd.cli.device import device_name
from usbipd.cli.documents import BindDocument, render
from usbipd.cli.outcome import emit, say
from usbipd.cli.table import printable
from usbipd.cli.verb import Verb, add_json_argument, always, busid
from usbipd.ipc.messages import BindParameters, BindResult, Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--busid",
        metavar="BUSID",
        type=busid,
        required=True,
        help="the device to share, as `usbipd list` shows it; this host cannot use it until `usbipd unbind`",
    )
    add_json_argument(parser)


def run(arguments: argparse.Namespace, extension: ControlConnection) -> int:
    device = extension.request(Command.BIND, BindParameters(busid=arguments.busid), BindResult).device
    if arguments.json:
        emit(render(BindDocument(device=device)))
    else:
        say(f"{device.busid} is shared: {printable(device_name(device))}")
    return 0


VERB = Verb(
    name="bind",
    summary="share a device with USB/IP clients",
    add_arguments=add_arguments,
    requires_extension=always,
    run=run,
)
