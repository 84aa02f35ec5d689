"""Tables and numbers for people's eyes, at most as wide as the terminal.  Runs in the caller's process.

Cells may hold what a USB device says of itself, so nothing here trusts them: control characters, which could
drive the terminal, become U+FFFD.
"""

import shutil
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

ELLIPSIS: Final = "…"
GAP: Final = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """A column; one with a `minimum` is shortened down to that many cells when the table is too wide."""

    title: str
    minimum: int | None = None
    right: bool = False


def terminal_width() -> int:
    """Cells in a line of the terminal; 80 where stdout is none."""
    return shutil.get_terminal_size(fallback=(80, 24)).columns


def printable(text: str) -> str:
    """`text` on one line, with nothing in it that a terminal would obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def display_width(text: str) -> int:
    """Terminal cells that `text` takes: two for wide East Asian characters, none for combining ones."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def shorten(text: str, width: int) -> str:
    """`text`, or as much of its beginning as fits into `width` cells together with an ellipsis."""
    if display_width(text) <= width:
        return text
    kept = text[:width]
    while kept and display_width(kept) + 1 > width:
        kept = kept[:-1]
    return kept.rstrip() + ELLIPSIS


def format_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> str:
    """Title line and `rows`, each line ended; cells shrink, where their column allows it, to fit `width`."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [
        max(display_width(text) for text in (column.title, *(row[index] for row in cells)))
        for index, column in enumerate(columns)
    ]
    excess = sum(widths) + len(GAP) * (len(columns) - 1) - width
    while excess > 0:
        spare = {
            index: widths[index]
            for index, column in enumerate(columns)
            if column.minimum is not None and widths[index] > column.minimum
        }
        if not spare:
            break
        widths[max(spare, key=lambda index: spare[index])] -= 1
        excess -= 1
    lines = [[column.title for column in columns], *cells]
    return "".join(_line(columns, line, widths) + "\n" for line in lines)


def _line(columns: Sequence[Column], cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = []
    for column, cell, width in zip(columns, cells, widths, strict=True):
        text = shorten(cell, width)
        padding = " " * (width - display_width(text))
        padded.append(padding + text if column.right else text + padding)
    return GAP.join(padded).rstrip()


def format_bytes(count: int) -> str:
    """A number of bytes in at most eight characters: `817 B`, `32.0 MiB`."""
    if count < 1024:
        return f"{count} B"
    value, units = count / 1024, ["TiB", "GiB", "MiB", "KiB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1024
        units.pop()
    return f"{value:.1f} {units[-1]}" if value < 99.95 else f"{value:.0f} {units[-1]}"


def format_duration(seconds: float) -> str:
    """A time span by its two largest units: `2 d 3 h`, `4 min 7 s`, `12 s`."""
    left = int(seconds)
    parts: list[str] = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if left >= size or parts:
            parts.append(f"{left // size} {unit}")
            left %= size
    parts.append(f"{left} s")
    return " ".join(parts[:2])
