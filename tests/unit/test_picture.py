"""`make picture` draws the output of the programs as a self-contained image."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CHECKED_IN = ROOT / "docs/terminal.svg"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of a running daemon."""
    file = tmp_path_factory.mktemp("picture") / "terminal.svg"
    done = subprocess.run(
        [sys.executable, "-m", "tests.picture", file],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return file


def cells(file: Path) -> list[str]:
    """The texts in the picture."""
    return [
        element.text or "" for element in ElementTree.parse(file).iter("{http://www.w3.org/2000/svg}text")
    ]


def test_it_shows_what_the_programs_print(drawn: Path) -> None:
    shown = cells(drawn)
    assert {"$ usbipd list", "$ usbipd status", "BUSID", "240-1", "attached"} <= set(shown)
    assert any(re.fullmatch(r"127\.0\.0\.1:\d+", cell) for cell in shown), "the client"


def test_the_one_in_the_readme_shows_the_same_devices(drawn: Path) -> None:
    def commands_and_busids(file: Path) -> list[str]:
        return [cell for cell in cells(file) if re.match(r"\$ |\d+-\d+$", cell)]

    assert commands_and_busids(CHECKED_IN) == commands_and_busids(drawn), "run `make picture`"


@pytest.mark.parametrize("which", ["drawn", "checked in"])
def test_it_is_self_contained(drawn: Path, which: str) -> None:
    file = drawn if which == "drawn" else CHECKED_IN
    tree = ElementTree.parse(file).getroot()
    assert tree.get("role") == "img"
    assert "usbipd list" in (tree.findtext("{http://www.w3.org/2000/svg}title") or "")
    text = file.read_text()
    assert not re.search(r"href|url\(|@import|<script|<image", text), "it loads nothing"
    assert "prefers-color-scheme: dark" in text


def test_the_readme_says_what_it_shows() -> None:
    [alternative] = re.findall(r"!\[([^\]]+)\]\(docs/terminal\.svg\)", (ROOT / "README.md").read_text())
    assert "usbipd list" in alternative
