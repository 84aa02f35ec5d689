"""What a verb of `usbipd` declares, and the arguments that verbs share.  Runs in the caller's process."""

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from usbipd.cli.connection import ControlConnection
from usbipd.errors import UsageError
from usbipd.protocol.constants import BUSID_SIZE, USBIP_PORT

BUSID_FORM: Final = re.compile(r"[0-9]+-[0-9]+(\.[0-9]+)*")


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: `run` is called with the parsed arguments and returns the exit code.

    The extension is connected before `run` if `requires_extension` says so of the arguments, and never else.
    """

    name: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    requires_extension: Callable[[argparse.Namespace], bool]
    run: Callable[[argparse.Namespace, ControlConnection], int]


def always(_arguments: argparse.Namespace) -> bool:
    """For verbs that need the extension whatever their arguments are."""
    return True


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UsageError` where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, code="usage", advice=f"`{self.prog} --help` shows what may be said")


def add_socket_argument(parser: argparse.ArgumentParser, default: str | None) -> None:
    """`--socket PATH`, the same on every command."""
    parser.add_argument(
        "--socket",
        metavar="PATH",
        type=Path,
        default=default,
        help="control socket of the extension, if it is not the usual one",
    )


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON for programs (see docs/json.md)")


def busid(text: str) -> str:
    """Argument type: a busid such as `1-1` or `3-2.4`."""
    if not text.isascii() or BUSID_FORM.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a busid: it is BUS-PORT[.PORT...] in digits, such as 1-1 or 3-2.4"
        )
    if len(text) >= BUSID_SIZE:
        raise argparse.ArgumentTypeError(f"{text!r} is longer than the {BUSID_SIZE - 1} bytes of a busid")
    return text


def host_and_port(text: str) -> tuple[str, int]:
    """Argument type: `HOST`, `HOST:PORT`, an IPv6 address, or one in brackets with `:PORT`."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise argparse.ArgumentTypeError(f"{text!r} is not [IPv6 ADDRESS] or [IPv6 ADDRESS]:PORT")
        port = rest[1:] if rest else None
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:  # none: a name or an IPv4 address; several: an IPv6 address without a port
        host, port = text, None
    if not host:
        raise argparse.ArgumentTypeError(f"{text!r} names no host")
    if port is None:
        return host, USBIP_PORT
    if not (re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= 65535):
        raise argparse.ArgumentTypeError(f"{port!r} in {text!r} is not a port: that is 1 to 65535")
    return host, int(port)


def seconds(text: str) -> float:
    """Argument type: a time span that a person is ready to wait."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0, at most 3600")
    return value
