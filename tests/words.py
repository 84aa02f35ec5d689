"""Prints words that read as translated, each with its place and a replacement.  Run by `make lint`.

tests/words.toml has the list and the limit.  All lines count: code, comments, tests and docs.
"""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
LIST: Final = Path(__file__).with_suffix(".toml")
PLACES: Final = (
    *("usbipd", "cython", "tests", "packaging", "man", "docs", ".ci", ".github"),
    *("*.md", "Makefile", "pyproject.toml", "setup.py"),
)
LEFT_OUT: Final = ("tests/words.toml", "tests/unit/test_words.py", "packaging/locked.txt")
"""Files that quote these words, and generated files."""
TEXT: Final = re.compile(
    r"\.(py|pyi|pyx|pxd|pxi|c|h|md|toml|txt|yml|sh|bash|zsh|fish|awk|spec|service|conf|include|[1-8])$|(^|/)[^.]*$"
)
"""Names of text files."""
EDGE: Final = r"[\w'\"`-]"
"""Characters that must not adjoin a listed word: a word in quotes is a name."""


class Rules(NamedTuple):
    """The list: a pattern for each word with its replacement, and the limit of hits in 1,000 lines."""

    words: Mapping[re.Pattern[str], str]
    limit: float


class Hit(NamedTuple):
    """An occurrence in the tree."""

    place: str
    word: str
    better: str


def load() -> Rules:
    document = tomllib.loads(LIST.read_text(encoding="utf-8"))
    words = {
        re.compile(f"(?<!{EDGE})(?:{word})(?!{EDGE})", re.IGNORECASE): better
        for word, better in document["words"].items()
    }
    return Rules(words, float(document["limit"]))


def tree() -> list[Path]:
    """The text files of this tree that git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PLACES]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.split("\0") if TEXT.search(name) and name not in LEFT_OUT]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def hits(lines: Iterable[str], words: Mapping[re.Pattern[str], str], name: str) -> Iterator[Hit]:
    """The listed words in `lines` of the file `name`."""
    for number, line in enumerate(lines, 1):
        for pattern, better in words.items():
            for found in pattern.finditer(line):
                yield Hit(f"{name}:{number}", found[0], better)


def main() -> int:
    rules = load()
    found: list[Hit] = []
    count = 0
    for path in tree():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        count += len(lines)
        found += hits(lines, rules.words, str(path.relative_to(ROOT)))
    for hit in found:
        print(f"{hit.place}: {hit.word!r}: better {hit.better}")
    rate = 1000 * len(found) / max(1, count)
    print(f"words: {len(found)} hits in {count} lines: {rate:.2f} in 1,000; at most {rules.limit:g}")
    return 1 if rate > rules.limit else 0


if __name__ == "__main__":
    sys.exit(main())
