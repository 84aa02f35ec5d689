"""`usbipd unbind`: give a device back to this machine.  Runs in the caller's process."""

import argparse

from usbipd.cli.connection import ControlConnection
from usbipd.cli.documents import UnbindDocument, render
from usbipd.cli.outcome import emit, say
from usbipd.cli.verb import Verb, add_json_argument, always, busid
from usbipd.ipc.messages import Command, UnbindParameters, UnbindResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--busid",
        metavar="BUSID",
        type=busid,
        help="the device to give back; a client that uses it is cut off",
    )
    which.add_argument("--all", action="store_true", help="give every device back")
    add_json_argument(parser)


def run(arguments: argparse.Namespace, extension: ControlConnection) -> int:
    busids = extension.request(Command.UNBIND, UnbindParameters(busid=arguments.busid), UnbindResult).busids
    if arguments.json:
        emit(render(UnbindDocument(busids=busids)))
    elif busids:
        say(f"no longer shared: {', '.join(busids)}")
    else:
        say("No device was shared.")
    return 0


VERB = Verb(
    name="unbind",
    summary="stop sharing a device and give it back to this machine",
    add_arguments=add_arguments,
    requires_extension=always,
    run=run,
)
