"""The texts that commands print, in tests/golden/cli: `make golden` writes, test_golden.py compares them.

A change of these files changes what users read: review the difference before you commit it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tests.unit.cli import golden_lines, golden_tables

DIRECTORY: Final = Path(__file__).parents[2] / "golden/cli"
TEXTS: Final[Mapping[str, Callable[[], str]]] = {**golden_lines.TEXTS, **golden_tables.TEXTS}
"""Each file and the function that returns its text."""


def load(name: str) -> str:
    """The text of this file."""
    return (DIRECTORY / name).read_text(encoding="utf-8")


def write() -> None:
    """Write all files; remove those that no text belongs to."""
    for path in DIRECTORY.iterdir():
        if path.name not in TEXTS:
            path.unlink()
    for name, text in TEXTS.items():
        (DIRECTORY / name).write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    write()
