"""`usbipd detach`: end a client's session.  Runs in the caller's process."""

import argparse

from usbipd.cli.arguments import add_json_argument
from usbipd.cli.connection import ControlConnection
from usbipd.cli.documents import DetachDocument, render
from usbipd.cli.output import emit, say
from usbipd.cli.subcommand import Subcommand, always
from usbipd.ipc.control_messages import DetachParameters, DetachResult
from usbipd.ipc.messages import Command
from usbipd.usb.identity import parse_busid


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--busid",
        metavar="BUSID",
        type=parse_busid,
        required=True,
        help="the device whose client is cut off; it stays shared, so that client may come back",
    )
    add_json_argument(parser)


def run(arguments: argparse.Namespace, extension: ControlConnection) -> int:
    client = extension.request(Command.DETACH, DetachParameters(busid=arguments.busid), DetachResult).client
    if arguments.json:
        emit(render(DetachDocument(busid=arguments.busid, client=client)))
    else:
        say(f"{arguments.busid}: {client} was cut off; the device is still shared")
    return 0


SUBCOMMAND = Subcommand(
    add_arguments=add_arguments,
    requires_extension=always,
    run=run,
)
