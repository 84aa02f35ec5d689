"""Rewrites our commands in messages so that the user can copy them.  Used by every command and the extension.

Messages and advice name commands in their installed form: `usbipd list`.  On output each becomes one that
works here: with the path by which this program was started if the shell would not find it, and with the
control socket from the command line.
"""

import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

_COMMAND: Final = re.compile(r"`(sudo )?(usbipd-ext|usbipd)( [^`]*)?`")
_PROGRAMS: Final = ("usbipd", "usbipd-ext")
_WITHOUT_SOCKET: Final = ("--socket", "--help", "--version", "--check-config")


class Spelling:
    """The spelling of our commands for a directory and a search path."""

    def __init__(self, argv: Sequence[str]) -> None:
        """`argv` is the command that started this process."""
        self._programs = {name: _typed(name, argv[0]) for name in _PROGRAMS}
        self._socket = _socket_of(argv[1:])

    @classmethod
    def here(cls) -> Self:
        """For this process, until it changes its directory."""
        return cls(sys.argv)

    def spell(self, text: str) -> str:
        """`text` with each of our commands in backquotes as the user must type it."""
        return _COMMAND.sub(self._respell, text)

    def _respell(self, found: re.Match[str]) -> str:
        sudo, program, rest = found[1] or "", found[2], found[3] or ""
        if rest and self._socket is not None and not any(each in rest.split() for each in _WITHOUT_SOCKET):
            rest += f" --socket {shlex.quote(self._socket)}"
        return f"`{sudo}{self._programs[program]}{rest}`"


def _typed(program: str, own: str) -> str:
    """The command for `program`, which is beside `own`, the first word of our command line."""
    if Path(own).name not in _PROGRAMS or "/" not in own:
        return program
    try:
        here = Path.cwd()
        path = Path(own).absolute().with_name(program)
        if not path.exists() or _is_found(program, path):
            return program
    except OSError:  # such as a directory that was removed
        return program
    if here == Path("/") or not path.is_relative_to(here):
        return shlex.quote(str(path))
    below = str(path.relative_to(here))
    return shlex.quote(below if "/" in below else f"./{below}")


def _is_found(program: str, path: Path) -> bool:
    """Whether the shell starts the program at `path` by its name alone.  Raises `OSError`."""
    found = shutil.which(program)
    return found is not None and path.samefile(found)


def _socket_of(arguments: Sequence[str]) -> str | None:
    """The last value of --socket."""
    socket = None
    for number, argument in enumerate(arguments):
        if argument.startswith("--socket="):
            socket = argument.removeprefix("--socket=")
        elif argument == "--socket" and number + 1 < len(arguments):
            socket = arguments[number + 1]
    return socket
