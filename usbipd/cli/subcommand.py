"""What a command of `usbipd` declares: its arguments and what it does.  Runs in the caller's process."""

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # parsing alone must not load the IPC modules
    from usbipd.cli.connection import ControlConnection


class Subcommand(NamedTuple):
    """One command of `usbipd`: `run` is called with the parsed arguments and returns the exit code.

    The extension is connected before `run` only if `requires_extension` returns True.  Before that, `check`
    raises `UsageError` for combinations that argparse cannot check.  `usage` and `examples` (what it does,
    the command) are for the help page.
    """

    add_arguments: Callable[[argparse.ArgumentParser], None]
    requires_extension: Callable[[argparse.Namespace], bool]
    run: Callable[[argparse.Namespace, "ControlConnection"], int]
    usage: str
    examples: Sequence[tuple[str, str]]
    check: Callable[[argparse.Namespace], None] = lambda _arguments: None


def always(_arguments: argparse.Namespace) -> bool:
    """For commands that always need the extension."""
    return True


def never(_arguments: argparse.Namespace) -> bool:
    """For commands that do not need the extension, or connect to it themselves."""
    return False
