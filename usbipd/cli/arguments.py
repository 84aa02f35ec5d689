"""The parser, the options that commands share, and the types of arguments.  Runs in the caller's process."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from usbipd.cli.colour import CHOICES
from usbipd.errors import UsageError
from usbipd.protocol.constants import USBIP_PORT

if TYPE_CHECKING:  # parsing alone must not load the IPC modules
    from pathlib import Path


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UsageError` where argparse would print its usage and exit."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, formatter_class=_Formatter, allow_abbrev=False)
        self._positionals.title = "arguments"
        self.color = False  # Python 3.14 colours help; it is the same with all

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, but an unknown argument is an error here, in the name of this command."""
        self._given = list(sys.argv[1:] if args is None else args)
        try:
            parsed, extras = super().parse_known_args(args, namespace)
        except UsageError as error:  # of a value
            error.advice = error.advice or self._see_help()
            raise
        unknown = next((each for each in extras if each.startswith("-") and each != "-"), None)
        if unknown is not None:
            raise self._unknown_option(unknown)
        several = next((action for action in self._actions if action.nargs == "*"), None)
        if extras and several is None:
            raise self._unexpected(extras[0])
        if several is not None:  # argparse takes them in one place only: before or after the options
            setattr(
                parsed,
                several.dest,
                [*getattr(parsed, several.dest), *(self._get_value(several, each) for each in extras)],
            )
        return parsed, []

    def error(self, message: str) -> NoReturn:
        if message.endswith("required"):  # argparse reports this before unknown arguments
            self._check_given()
        raise UsageError(self._plain(message), code="usage", advice=self._see_help())

    def _see_help(self) -> str:
        return f"see `{self.prog} --help`"

    def _check_given(self) -> None:
        """Raises `UsageError` for an unknown option, or a word in place of an option."""
        for word in self._given:
            if word.startswith("-") and word.partition("=")[0] not in self._option_string_actions:
                raise self._unknown_option(word)
        if self._given and not self._given[0].startswith("-"):
            raise self._unexpected(self._given[0])

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            from usbipd.cli.suggestions import unknown_command  # here: rarely needed

            for word in self._given[: self._given.index(value) + 1]:  # the value of an unknown option, maybe
                if word.startswith("-") and word.partition("=")[0] not in self._option_string_actions:
                    raise self._unknown_option(word)
            raise unknown_command(value, action.choices)
        super()._check_value(action, value)

    def _unknown_option(self, option: str) -> UsageError:
        from usbipd.cli.suggestions import unknown_option  # here as above

        elsewhere = {
            name
            for action in self._actions
            if isinstance(action, argparse._SubParsersAction)
            for command in action.choices.values()
            for name in command._option_string_actions
        }
        return unknown_option(self.prog, option, self._option_string_actions, elsewhere)

    def _unexpected(self, argument: str) -> UsageError:
        from usbipd.cli.suggestions import unexpected_argument  # here as above

        return unexpected_argument(self.prog, argument, self._option_string_actions)

    def _plain(self, message: str) -> str:
        """argparse's `message`, in terms of what the user typed."""
        if needed := re.fullmatch("one of the arguments (.*) is required", message):
            *most, last = [name for name in needed[1].split() if not name.startswith("-V")]
            return f"one of {', '.join(most)} or {last} is required"
        found = re.fullmatch("argument ([^:]*/)?([^:/]+): (.*)", message, re.DOTALL)
        if found is None:
            return message
        name, problem = found[2], found[3]
        action = self._option_string_actions.get(name)
        if problem.startswith("expected") and action is not None:
            return f"{name} needs a value: {action.metavar}"
        if problem.startswith("ignored explicit argument"):
            return f"{name} takes no value"
        other = re.fullmatch("not allowed with argument ([^/]*/)?(.+)", problem)
        return f"{name}: {problem}" if other is None else f"{other[2]} and {name} cannot be combined"


class _Formatter(argparse.HelpFormatter):
    """argparse's formatter; keeps line breaks, and is the same in all versions of Python."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return text
        return super()._fill_text(text, width, indent)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"  # as in Python 3.13


def example_text(title: str, examples: Sequence[tuple[str, str]]) -> str:
    """The end of a help page: what each example does and its command."""
    return "\n".join([f"{title}:", *(f"  {what}:\n      {command}" for what, command in examples)])


def add_socket_argument(parser: argparse.ArgumentParser, default: str | None) -> None:
    """`--socket PATH`, the same on every command."""
    parser.add_argument(
        "--socket",
        metavar="PATH",
        type=socket_path,
        default=default,
        help="control socket of the daemon, if it is not the usual one",
    )


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON for programs (see docs/json.md)")


def add_color_argument(parser: argparse.ArgumentParser) -> None:
    """`--color WHEN`."""
    parser.add_argument(
        "--color",
        metavar="WHEN",
        choices=CHOICES,
        help="colour states: auto (on a terminal, unless NO_COLOR is set), always or never (default: auto)",
    )


def add_watch_argument(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, value: Callable[[str], float]
) -> None:
    """`--watch [SECONDS]`; `value` is the argument type."""
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        const=1.0,
        type=value,
        help="refresh at each change and every SECONDS (default: %(const)g); "
        "on a terminal, arrows, PgUp, PgDn, Home, End, j and k scroll, and q quits",
    )


def path(text: str) -> "Path":
    """Argument type: a file or a directory."""
    from pathlib import Path  # here: it is slow to import

    return Path(socket_path(text))


def socket_path(text: str) -> str:
    """Argument type: the path of a socket, as text."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return text


def network(text: str) -> str:
    """Argument type: an address or a network."""
    from usbipd.addresses import parse_network  # here: no other argument needs it

    parse_network(text)
    return text


def check_networks(networks: list[str], most: int) -> None:
    """Raises `UsageError` if there are more than `most`."""
    if len(networks) > most:
        raise UsageError(
            f"--allow is given {len(networks)} times: the limit is {most}",
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
        raise argparse.ArgumentTypeError(f"{port!r} in {text!r} is not a port (1 to 65535)")
    return host, int(port)


def seconds(text: str) -> float:
    """Argument type: a timeout."""
    value = _number(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0, at most 3600")
    return value


def interval(text: str) -> float:
    """Argument type: seconds between requests, not so few that the requests show up in the status."""
    value = _number(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 3600")
    return value


def count(text: str) -> int:
    """Argument type: a number of items."""
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
