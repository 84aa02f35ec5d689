"""Tables and sentences for people's eyes, at most as wide as the terminal.  Runs in the caller's process.

What is shown is fit for a terminal: it was cleaned where it came in (`usbipd/text.py`).
"""

import unicodedata
from collections.abc import Sequence
from typing import Final

import msgspec

from usbipd.text import ELLIPSIS

GAP: Final = "  "


class Column(msgspec.Struct, frozen=True):
    """A column; one with a `minimum` is shortened down to that many cells when the table is too wide."""

    title: str
    minimum: int | None = None
    right: bool = False


def display_width(text: str) -> int:
    """Terminal cells that `text` takes: two for wide East Asian characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def shorten(text: str, width: int) -> str:
    """`text`, or as much of its beginning as fits into `width` cells together with an ellipsis."""
    if display_width(text) <= width:
        return text
    return _beginning(text, width - 1).rstrip() + ELLIPSIS


def wrap(text: str, width: int, indent: str = "", first: str | None = None) -> str:
    """`text` in lines of at most `width` cells, each ended; a word that fits no line is broken.

    Lines begin with `indent`, the first one with `first` if that is given.
    """
    width = max(width, display_width(indent) + 2)  # so that each line has room for a character
    lines, line = [], indent if first is None else first
    blank = ""
    for word in text.split():
        if blank and display_width(line) + 1 + display_width(word) > width:
            lines.append(line)
            line, blank = indent, ""
        line += blank + word
        while display_width(line) > width:
            kept = _beginning(line, width)
            lines.append(kept)
            line = indent + line[len(kept) :]
        blank = " "
    return "".join(f"{each.rstrip()}\n" for each in (*lines, line))


def _beginning(text: str, width: int) -> str:
    """As much of `text` as fits into `width` cells."""
    kept = text[:width]
    while display_width(kept) > width:
        kept = kept[:-1]
    return kept


def format_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> str:
    """Title line and `rows`, each line ended; cells shrink, where their column allows it, to fit `width`."""
    widths = [
        max(display_width(text) for text in (column.title, *(row[index] for row in rows)))
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
    lines = [[column.title for column in columns], *rows]
    return "".join(_line(columns, line, widths) + "\n" for line in lines)


def _line(columns: Sequence[Column], cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = []
    for column, cell, width in zip(columns, cells, widths, strict=True):
        text = shorten(cell, width)
        padding = " " * (width - display_width(text))
        padded.append(padding + text if column.right else text + padding)
    return GAP.join(padded).rstrip()
