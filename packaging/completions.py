"""Writes completions for bash, zsh and fish: `completions.py DIRECTORY`.

Run by `make completions`: usbipd.bash, _usbipd and usbipd.fish, each for both usbipd and usbipd-ext.  shtab
generates them from the two parsers; this file adds the meaning of arguments that the parsers lack.  The
functions in packaging/completions/ get busids from the running daemon.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, get_args, get_type_hints

import shtab

from usbipd.cli import ext
from usbipd.cli import main as usbipd
from usbipd.config import ServerConfig
from usbipd.log import DESTINATIONS
from usbipd.simulated.catalog import NAMES

SOURCES: Final = Path(__file__).with_suffix("")

BUSIDS: Final = {
    "usbipd bind": "present",
    "usbipd unbind": "bound",
    "usbipd detach": "attached",
    "usbipd release": "present",
    "usbipd status": "present",
    "usbipd doctor": "present",
    "usbipd history": "present",
}
"""Which busids each command takes; busids.awk defines the words."""
PATHS: Final = {
    "--socket": shtab.FILE,
    "--config": shtab.FILE,
    "--report": shtab.FILE,
    "--state": shtab.DIRECTORY,
}
CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "--log-level": get_args(get_type_hints(ServerConfig)["log_level"]),
    "--log-to": DESTINATIONS,
    "--simulate": tuple(NAMES),
    "topic": tuple(usbipd.SUBCOMMANDS),
}


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: completions.py DIRECTORY", file=sys.stderr)
        return 2
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in (("usbipd.bash", bash()), ("_usbipd", zsh()), ("usbipd.fish", fish())):
        (directory / name).write_text(text, encoding="utf-8")
    return 0


def bash() -> str:
    ours, daemons = scripts("bash")
    return f"{busid_functions('bash', shlex.quote)}\n{ours}\n\n{daemons}\n"


def zsh() -> str:
    """One function, which compinit finds by its first line; $service is the command to complete."""
    ours, daemons = scripts("zsh")
    return (
        f"#compdef usbipd usbipd-ext\n\n{busid_functions('zsh', shlex.quote)}\n"
        f"case $service in\nusbipd-ext)\n{daemons};;\n*)\n{ours};;\nesac\n"
    )


def fish() -> str:
    ours, daemons = scripts("fish")
    return f"{busid_functions('fish', fish_quote)}\n{ours}\n{daemons}"


def scripts(shell: str) -> tuple[str, str]:
    """The scripts for `usbipd` and for `usbipd-ext`."""
    return script(shell, usbipd.build_parser()), script(shell, ext.build_parser())


def busid_functions(shell: str, quote: Callable[[str], str]) -> str:
    """The functions that ask the daemon."""
    text = (SOURCES / f"busids.{shell}").read_text(encoding="utf-8")
    program = (SOURCES / "busids.awk").read_text(encoding="utf-8")
    return text.replace("@BUSIDS_AWK@", quote(program))


def fish_quote(text: str) -> str:
    """`text` as one word of fish."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """shtab's output for the parser of a command."""
    for prog, action in actions_of(parser):
        for option in action.option_strings or [action.dest]:
            if option in ("devices", "--busid", "-b", "--device", "--try-claim"):
                wanted = BUSIDS[prog]
                action.complete = {
                    "bash": f"_usbipd_{wanted}_busids",
                    "zsh": f" _usbipd_busids {wanted}",  # after a space: with these arguments and no other
                    "fish": f"(_usbipd_busids {wanted})",
                }
            elif option in PATHS:
                action.complete = PATHS[option]
            elif option in CHOICES:
                action.choices = CHOICES[option]
        if shell == "zsh" and isinstance(action.metavar, str):
            action.metavar = action.metavar.replace(":", r"\:")  # shtab writes it between two colons
    text: str = shtab.complete(parser, shell)
    return text.replace('"(*)::', '"*:')  # zsh: shtab offers one of several devices only


def actions_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """All actions of a parser and of its commands, each with the words before it."""
    for action in parser._actions:
        yield parser.prog, action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from actions_of(command)


if __name__ == "__main__":
    sys.exit(main())
