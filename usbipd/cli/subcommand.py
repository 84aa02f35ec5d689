"""What a command of `usbipd` declares: its arguments and what it does.  Runs in the caller's process."""

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # a command that only parses shall not load what asks the extension
    from usbipd.cli.connection import ControlConnection


class Subcommand(NamedTuple):
    """One command of `usbipd`: `run` is called with the parsed arguments and returns the exit code.

    The extension is connected before `run` if `requires_extension` says so of the arguments, and never else.
    What argparse cannot say of the arguments, `check` refuses before that, with a `UsageError`.  `usage` and
    `examples` (what it does, the command) are for its help page.
    """

    add_arguments: Callable[[argparse.ArgumentParser], None]
    requires_extension: Callable[[argparse.Namespace], bool]
    run: Callable[[argparse.Namespace, "ControlConnection"], int]
    usage: str
    examples: Sequence[tuple[str, str]]
    check: Callable[[argparse.Namespace], None] = lambda _arguments: None


def always(_arguments: argparse.Namespace) -> bool:
    """For commands that need the extension whatever their arguments are."""
    return True


def never(_arguments: argparse.Namespace) -> bool:
    """For commands that find out by themselves whether there is an extension."""
    return False
