"""The parser, the options that commands share, and the types of arguments.  Runs in the caller's process."""

import argparse
import re
from typing import TYPE_CHECKING, Any, NoReturn

from usbipd.cli.terminal import terminal_width
from usbipd.errors import UsageError
from usbipd.protocol.constants import USBIP_PORT

if TYPE_CHECKING:  # a command that only parses shall not load what asks the extension
    from pathlib import Path


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UsageError` where argparse would print its usage and exit."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, formatter_class=_formatter)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, code="usage", advice=f"see `{self.prog} --help`")


def _formatter(prog: str) -> argparse.HelpFormatter:
    """argparse's own, which it makes for each argument; unless told the width, that one imports shutil."""
    return argparse.HelpFormatter(prog, width=terminal_width() - 2)


def add_socket_argument(parser: argparse.ArgumentParser, default: str | None) -> None:
    """`--socket PATH`, the same on every command."""
    parser.add_argument(
        "--socket",
        metavar="PATH",
        type=socket_path,
        default=default,
        help="control socket of the extension, if it is not the usual one",
    )


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON for programs (see docs/json.md)")


def add_watch_argument(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """`--watch [SECONDS]`."""
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        const=1.0,
        type=interval,
        help="show it again whenever something changes, and every SECONDS (default: %(const)g), until Ctrl-C",
    )


def path(text: str) -> "Path":
    """Argument type: a file or a directory."""
    from pathlib import Path  # here: it takes longer to import than most commands take to parse

    return Path(socket_path(text))


def socket_path(text: str) -> str:
    """Argument type: the path of a socket, as text."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return text


def network(text: str) -> str:
    """Argument type: an address or a network, as the extension takes it."""
    from usbipd.addresses import parse_network  # here: no other argument needs it

    parse_network(text)
    return text


def check_networks(networks: list[str], most: int) -> None:
    """Raises `UsageError` if these are more than `most`."""
    if len(networks) > most:
        raise UsageError(
            f"--allow comes {len(networks)} times: {most} are possible",
            code="usage",
            advice="write neighbouring addresses as one network, such as 192.168.1.0/24",
        )


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
    value = _number(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0, at most 3600")
    return value


def interval(text: str) -> float:
    """Argument type: how often to ask the extension; not so often that the asking is what one sees."""
    value = _number(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 3600")
    return value


def count(text: str) -> int:
    """Argument type: how many of something."""
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
