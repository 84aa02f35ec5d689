"""ARCHITECTURE.md matches the tree: its tables *Where things are* and *Where decisions are made*."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "ARCHITECTURE.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below `heading`, without its head."""
    table = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def paths(cell: str) -> Iterator[str]:
    """The paths in a cell; a file without a directory is beside the previous one."""
    directory = ""
    for name in re.findall(r"`([\w./*-]+(?:/|\.\w+))`", cell):
        if "/" in name:
            directory = name.rpartition("/")[0]
        yield name if "/" in name else f"{directory}/{name}"


def folders(below: Path) -> set[str]:
    """Those with a source file in them."""
    return {
        f"{path.relative_to(ROOT)}/"
        for path in below.iterdir()
        if path.is_dir() and any(file.suffix in {".py", ".md", ".c"} for file in path.iterdir())
    }


PLACES = {place for row in rows("Where things are") for place in paths(row[0])}
DECISIONS = {place for row in rows("Where decisions are made") for place in paths(row[1])}


def test_the_paths_in_the_tables_exist() -> None:
    assert len(PLACES) > 20
    assert len(DECISIONS) > 20
    assert [place for place in PLACES | DECISIONS if not (ROOT / place).exists()] == []


def test_each_part_of_the_package_has_its_place() -> None:
    modules = {f"usbipd/{path.name}" for path in (ROOT / "usbipd").glob("*.py")}
    assert modules - {"usbipd/__init__.py"} - PLACES == set()
    assert folders(ROOT / "usbipd") - PLACES == set()


def test_each_folder_of_tests_has_its_place() -> None:
    (row,) = (row for row in rows("Where things are") if row[0] == "`tests/`")
    named = {f"tests/{name}" for name in re.findall(r"`(\w+/)`", row[1])}
    assert folders(ROOT / "tests") == named - {"tests/usbipd/"}  # which unit/ mirrors
