"""Golden texts of command lines: help pages, answers, choices at a terminal, and errors."""

import contextlib
import io
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final
from unittest import mock

from tests.unit.cli.reports import make_binding, make_device, make_status
from usbipd.__main__ import load_daemon
from usbipd.cli import connection, ext
from usbipd.cli import main as usbipd
from usbipd.cli.main import SUBCOMMANDS
from usbipd.cli.usb_ids import UsbIds
from usbipd.errors import UsbipdError
from usbipd.host_addresses import HostAddress
from usbipd.ipc.control_messages import (
    BindParameters,
    BindResult,
    DetachParameters,
    DetachResult,
    DeviceInfo,
    DeviceState,
    ListResult,
    ReleaseParameters,
    ReleaseResult,
    UnbindParameters,
    UnbindResult,
)
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command

WIDTHS = (80, 120)

DISK = make_device("1-1", drivers=[])
OTHER_DISK = make_device("1-2", state=DeviceState.NOT_SHARED, serial="AA00BB11")
MOUSE = make_device(
    "3-2.4",
    vendor_id=0x46D,
    product_id=0xC077,
    manufacturer="Logitech",
    product="USB Optical Mouse",
    serial=None,
    state=DeviceState.NOT_SHARED,
    drivers=["usbhid"],
)
CAMERA = make_device(
    "3-3",
    vendor_id=0x46D,
    product_id=0x825,
    manufacturer=None,
    product="C270",
    serial=None,
    state=DeviceState.ATTACHED,
    client="192.0.2.7:51234",
)
DEVICES = [DISK, OTHER_DISK, MOUSE, CAMERA]
BINDINGS = [
    make_binding(busid="1-1", serial="4C530001", devices=["1-1"]),
    make_binding(vendor_id=0x46D, product_id=0x825, product="C270", devices=["3-3"]),
]


class FakeConnection(connection.ControlConnection):
    """An extension with a bound disk, another disk, a mouse, and a camera that a client uses."""

    def open(self) -> None:
        """Nothing to connect to."""

    def request(
        self, command: Command, parameters: Message, result: type, *, timeout: object = None
    ) -> object:  # type: ignore[override]
        answer = _answer(command, parameters)
        if isinstance(answer, UsbipdError):
            raise answer
        assert isinstance(answer, result)
        return answer


def _answer(command: Command, parameters: Message) -> Message | UsbipdError:
    match parameters:
        case BindParameters(busid=None, hardware=hardware, allow=allow) if hardware is not None:
            ids = {"vendor_id": hardware.vendor_id, "product_id": hardware.product_id}
            found = [each for each in DEVICES if each.product_id == hardware.product_id]
            binding = make_binding(**ids, serial=hardware.serial, product=None, allow=allow)
            return BindResult(binding=binding, devices=found)
        case BindParameters(busid=busid, allow=allow):
            device = _device(busid)
            if device is None:
                return UsbipdError(
                    f"device {busid!r} does not exist", advice="`usbipd list` shows all devices"
                )
            return BindResult(binding=make_binding(busid=busid, allow=allow), devices=[device])
        case UnbindParameters(busid="1-1"):
            return UnbindResult(bindings=BINDINGS[:1], busids=["1-1"])
        case UnbindParameters(busid=None, hardware=hardware) if hardware is not None:
            return UnbindResult(bindings=BINDINGS[1:], busids=["3-3"])
        case UnbindParameters(busid=None):
            return UnbindResult(bindings=BINDINGS, busids=["1-1", "3-3"])
        case UnbindParameters(busid=busid):
            return UsbipdError(f"{busid} is not shared", advice="`usbipd list` shows the shared devices")
        case DetachParameters(busid="3-3"):
            return DetachResult(client="192.0.2.7:51234")
        case DetachParameters(busid=busid):
            return UsbipdError(f"no client uses {busid}", advice="`usbipd status` shows who uses what")
        case ReleaseParameters(busid="1-2"):
            return ReleaseResult(drivers=[])
        case ReleaseParameters():
            return ReleaseResult(drivers=["usbhid"])
    if command is Command.LIST:
        return ListResult(devices=DEVICES, bindings=BINDINGS)
    return make_status(DEVICES, listening=["0.0.0.0:3240"])


def _device(busid: str | None) -> DeviceInfo | None:
    return next((each for each in DEVICES if each.busid == busid), None)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(line: str, *, width: int = 80, typed: str | None = None) -> str:
    """The command line, what it prints on both streams, and its exit code; `typed`: at a terminal."""
    name, *arguments = shlex.split(line)
    screen, keyboard = (io.StringIO(), io.StringIO()) if typed is None else (_Terminal(), _Terminal(typed))
    variables = {"COLUMNS": str(width), "LINES": "24", "SUDO_USER": "alice"}
    with (
        mock.patch.object(connection, "ControlConnection", FakeConnection),
        mock.patch("usbipd.host_addresses.host_addresses", host_addresses),
        mock.patch("usbipd.cli.device.USB_IDS", UsbIds([])),  # not what this machine has installed
        mock.patch.dict(os.environ, variables),
        mock.patch.object(sys, "argv", ["usbipd"]),
        mock.patch.object(sys, "stdin", keyboard),
        contextlib.redirect_stdout(screen),
        contextlib.redirect_stderr(screen),
    ):
        code = usbipd.main(arguments) if name == "usbipd" else ext.main(arguments, load_daemon)
    return f"$ {line}\n{screen.getvalue()}[{code}]\n"


def host_addresses() -> list[HostAddress]:
    """Of the machine on which the commands run."""
    from ipaddress import ip_interface

    return [
        HostAddress(ip_interface("127.0.0.1/8"), "lo"),
        HostAddress(ip_interface("192.0.2.5/24"), "eth0"),
        HostAddress(ip_interface("10.8.0.2/16"), "wg0"),
    ]


HELP = ("usbipd help", *(f"usbipd help {name}" for name in SUBCOMMANDS), "usbipd-ext --help")

SESSION = (
    "usbipd bind 1-2",
    "usbipd bind mouse",
    "usbipd bind -f 1-2 MOUSE 9-9",
    "usbipd bind 046d:0825 --allow 192.0.2.0/24",
    "usbipd bind 1234:5678",
    "usbipd bind ultra",
    "usbipd bind keyboard",
    "usbipd bind",
    "usbipd bind mouse keyboard --json",
    "usbipd unbind 1-1",
    "usbipd unbind 046d:0825",
    "usbipd unbind c270 ultra 1-2",
    "usbipd unbind --all",
    "usbipd detach 3-3",
    "usbipd detach logitech",
    "usbipd detach c270 1-1",
    "usbipd release mouse 1-2",
    "usbipd status keyboard",
    "usbipd status keyboard --json",
    "usbipd release -b 1-2",
)
"""What commands answer; without a terminal."""

AT_A_TERMINAL = (
    ("usbipd bind", "2\n"),
    ("usbipd bind", "\n"),
    ("usbipd bind ultra", "1\n"),
    ("usbipd bind 1-2 mouse", ""),
    ("usbipd bind 046d:0825 --allow 10.8.0.0/16", ""),
    ("usbipd unbind", "3\n"),
    ("usbipd detach", "1\n"),
    ("usbipd release", "1\n"),
)
"""The same with a person who types that."""

WRONG = (
    "usbipd",
    "usbipd --socket /tmp/x",
    "usbipd frob",
    "usbipd lst",
    "usbipd Bind 1-1",
    "usbipd atach 1-1",
    "usbipd attach -r 192.168.1.5 -b 1-1",
    "usbipd attach --wsl --busid 1-1",
    "usbipd wsl list",
    "usbipd share 1-1",
    "usbipd unshare 1-1",
    "usbipd port",
    "usbipd ps",
    "usbipd ls",
    "usbipd state",
    "usbipd policy add --effect Allow",
    "usbipd server",
    "usbipd license",
    "usbipd version",
    "usbipd logs",
    "usbipd 1-1",
    "usbipd 0781:5581",
    "usbipd -D",
    "usbipd --run",
    "usbipd --status",
    "usbipd --json list",
    "usbipd --json",
    "usbipd --jsno",
    "usbipd --color always list",
    "usbipd -b 1-1 bind",
    "usbipd -v",
    "usbipd help frob",
    "usbipd help attach",
    "usbipd bind",
    "usbipd unbind",
    "usbipd detach",
    "usbipd release",
    "usbipd bind 1-1 --forse",
    "usbipd bind 1-1 --colour red",
    "usbipd bind -b",
    "usbipd bind -b ultra",
    "usbipd bind 1-1.",
    "usbipd bind 781:5581",
    "usbipd bind 0781:5581:",
    "usbipd bind ''",
    "usbipd bind 1-1 -b 3-1",
    "usbipd bind -b 1-1 -i 0781:5581",
    "usbipd bind 1-1 --serial 4C53",
    "usbipd bind 1-1 --allow localhost",
    "usbipd bind 1-1 --allow 192.0.2.1/24",
    "usbipd bind 1-1 --force=yes",
    "usbipd unbind -a 1-1",
    "usbipd unbind --guid 1",
    "usbipd detach -p 0",
    "usbipd detach --all",
    "usbipd list -l",
    "usbipd list -p",
    "usbipd list foo",
    "usbipd list -r host:0",
    "usbipd list -r",
    "usbipd list --remot host",
    "usbipd history -n 5",
    "usbipd history --limit all",
    "usbipd status --watch 0",
    "usbipd status --watch 1-1",
    "usbipd status --watch 'ultra fit'",
    "usbipd doctor --try-claim 1-1",
    "usbipd-ext",
    "usbipd-ext run",
    "usbipd-ext --runn",
    "usbipd-ext list",
    "usbipd-ext --run --status",
    "usbipd-ext --listen 0.0.0.0",
    "usbipd-ext --status --listen 0.0.0.0",
)
"""Command lines that are wrong, each with the answer that a person needs."""


def _all(lines: Iterable[str], **options: int) -> str:
    return "\n".join(run(line, **options) for line in lines)


def _typed() -> str:
    return "\n".join(run(line, typed=typed) for line, typed in AT_A_TERMINAL)


TEXTS: Final[Mapping[str, Callable[[], str]]] = {
    **{f"help-{width}.txt": partial(_all, HELP, width=width) for width in WIDTHS},
    "answers.txt": partial(_all, SESSION),
    "at-a-terminal.txt": _typed,
    "wrong.txt": partial(_all, WRONG),
}
"""Each file and the function that returns its text."""
