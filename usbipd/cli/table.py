"""Tables and paragraphs that fit the terminal.  Runs in the caller's process.

Untrusted text is cleaned where it enters (`usbipd/text.py`): all escape sequences are our colours.
"""

import unicodedata
from collections.abc import Sequence
from typing import Final, Self

import msgspec

from usbipd.cli.colour import SEQUENCE, Paint, plain
from usbipd.text import ELLIPSIS

GAP: Final = "  "
COMFORT: Final = 24
FIRST_COMFORT: Final = 12
"""Cells that a column with a `minimum` keeps, if it needs them, before columns with a `rank` are shown;
`FIRST_COMFORT` applies to rank 1."""


class Column(msgspec.Struct, frozen=True):
    """A column; one with a `minimum` shrinks to that many cells if the table is too wide.

    One with a `rank` is shown only if there is room for it and all lower ranks, from 1 on.  The cells of a
    `state` column are coloured.
    """

    title: str
    minimum: int | None = None
    right: bool = False
    rank: int = 0
    state: bool = False


def display_width(text: str) -> int:
    """Terminal cells of `text`: two for wide East Asian characters, none for combining ones and colours."""
    if "\x1b" in text:
        text = SEQUENCE.sub("", text)
    if text.isascii():
        return len(text)
    return sum(map(_char_width, text))


def _char_width(char: str) -> int:
    """As wcwidth(3) of glibc has it: a vowel or final of Hangul in letters joins the letter before it."""
    if unicodedata.category(char) in ("Mn", "Me") or "\u1160" <= char <= "\u11ff":
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def shorten(text: str, width: int) -> str:
    """`text`, cut to `width` cells with an ellipsis if it is longer."""
    if display_width(text) <= width:
        return text
    return _beginning(text, width - 1).rstrip() + ELLIPSIS


def wrap(text: str, width: int, indent: str = "", first: str | None = None) -> str:
    """`text` in lines of at most `width` cells, each with a line end; longer words are broken.

    Lines begin with `indent`, the first one with `first` if given.
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
    """As much of `text` as fits into `width` cells, with all its colours."""
    if "\x1b" in text:
        parts, left = SEQUENCE.split(text), width
        for index in range(0, len(parts), 2):  # at odd indexes: the sequences
            whole, parts[index] = parts[index], _beginning(parts[index], left)
            left = left - display_width(whole) if parts[index] == whole else 0
        return "".join(parts)
    left = width
    for index, char in enumerate(text):
        left -= _char_width(char)
        if left < 0:
            return text[:index]
    return text


class Layout(msgspec.Struct, frozen=True):
    """The columns of a table that are shown, and their widths in cells."""

    columns: tuple[Column, ...]
    shown: tuple[int, ...]
    """Indexes of the shown columns."""
    widths: tuple[int, ...]
    """Of all columns."""

    @classmethod
    def of(
        cls,
        columns: Sequence[Column],
        rows: Sequence[Sequence[str]],
        width: int,
        widths: Sequence[int] | None = None,
    ) -> Self:
        """The layout that fits these rows into `width`; `widths`: those of a layout to continue."""
        least = [0] * len(columns) if widths is None else widths
        needed = [
            max(
                least[index], *(display_width(text) for text in (column.title, *(row[index] for row in rows)))
            )
            for index, column in enumerate(columns)
        ]
        shown = _shown(columns, needed, width)
        _shrink(columns, needed, shown, width)
        return cls(tuple(columns), tuple(shown), tuple(needed))

    def title(self) -> str:
        """The titles of the columns, with a line end."""
        return self.line([column.title for column in self.columns])

    def line(self, cells: Sequence[str], paint: Paint = plain) -> str:
        """One row, with a line end; long cells are shortened."""
        padded = []
        for index in self.shown:
            column, width = self.columns[index], self.widths[index]
            text = shorten(cells[index], width)
            padding = " " * (width - display_width(text))
            if column.state:
                text = paint(text)
            padded.append(padding + text if column.right else text + padding)
        return GAP.join(padded).rstrip() + "\n"


def format_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int, paint: Paint = plain
) -> str:
    """Title line and `rows`, each with a line end; columns with a `minimum` shrink to fit `width`."""
    layout = Layout.of(columns, rows, width)
    return layout.title() + "".join(layout.line(row, paint) for row in rows)


def _shown(columns: Sequence[Column], widths: Sequence[int], width: int) -> list[int]:
    """Indexes of the columns that fit."""
    shown = [index for index, column in enumerate(columns) if column.rank == 0]
    for rank in sorted({column.rank for column in columns} - {0}):
        comfort = FIRST_COMFORT if rank == 1 else COMFORT
        more = [index for index, column in enumerate(columns) if index in shown or column.rank == rank]
        wanted = [
            widths[index]
            if (least := columns[index].minimum) is None
            else min(widths[index], max(least, comfort))
            for index in more
        ]
        if sum(wanted) + len(GAP) * (len(more) - 1) > width:
            break
        shown = more
    return shown


def _shrink(columns: Sequence[Column], widths: list[int], shown: Sequence[int], width: int) -> None:
    """Shrink the widest columns that have a `minimum`, cell by cell, until all fit."""
    excess = sum(widths[index] + len(GAP) for index in shown) - len(GAP) - width
    while excess > 0:
        spare = {
            index: widths[index]
            for index in shown
            if (minimum := columns[index].minimum) is not None and widths[index] > minimum
        }
        if not spare:
            break
        widths[max(spare, key=lambda index: spare[index])] -= 1
        excess -= 1
