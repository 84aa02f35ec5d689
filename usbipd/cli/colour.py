"""The colours of states on a terminal.  Runs in the caller's process.

Only words of this program are coloured, so no untrusted text is inside a sequence.  Cells are padded first,
so no column moves.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Final

Paint = Callable[[str], str]
"""Returns a word as printed: unchanged or in colour."""

CHOICES: Final = ("auto", "always", "never")
"""The values of `--color`."""

SEQUENCE: Final = re.compile("(\x1b\\[[0-9;]*m)")
"""SGR, select graphic rendition: ECMA-48, 8.3.117."""

_BAD: Final = "1;31"  # bold red
_DOUBTFUL: Final = "33"  # yellow
_BUSY: Final = "36"  # cyan
_GOOD: Final = "32"  # green
_CODES: Final[Mapping[str, str]] = {
    "failed": _BAD,
    "warning": _DOUBTFUL,
    "unplugged": _DOUBTFUL,
    "attached": _BUSY,
    "shared": _GOOD,
    "ok": _GOOD,
}
"""The colours of device states, check states and events; other words have none."""


def plain(word: str) -> str:
    """The word itself."""
    return word


def vivid(word: str) -> str:
    """The word in its colour; unchanged if it has none."""
    code = _CODES.get(word)
    return word if code is None else f"\x1b[{code}m{word}\x1b[0m"


def paint_for(choice: str | None) -> Paint:
    """How words are printed on stdout under `--color CHOICE`; None means `auto`.

    `auto` colours on a terminal, unless NO_COLOR is set (https://no-color.org) or TERM is `dumb` or unset.
    """
    if choice in (None, "auto"):
        has_colour = (
            sys.stdout is not None  # the caller may have closed it
            and sys.stdout.isatty()
            and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM", "dumb") not in ("", "dumb")
        )
        choice = "always" if has_colour else "never"
    return vivid if choice == "always" else plain
