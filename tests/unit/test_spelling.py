"""Our commands in messages, in the form that the user can type."""

import os
from pathlib import Path

import pytest

from usbipd.spelling import Spelling

TEXT = "see `usbipd list`, then start it: `sudo usbipd-ext --run`"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with both programs, as `make build` creates it, outside the search path."""
    directory = tmp_path / ".venv" / "bin"
    directory.mkdir(parents=True)
    for name in ("usbipd", "usbipd-ext"):
        (directory / name).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    return directory


def spell(text: str, *argv: str) -> str:
    return Spelling(argv).spell(text)


def test_a_program_in_the_search_path_is_called_by_its_name(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join(["/none", str(programs)]))
    for own in (str(programs / "usbipd"), ".venv/bin/usbipd", "usbipd"):
        assert spell(TEXT, own, "list") == TEXT


def test_a_program_outside_the_search_path_is_called_by_its_path(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = "see `.venv/bin/usbipd list`, then start it: `sudo .venv/bin/usbipd-ext --run`"
    assert spell(TEXT, ".venv/bin/usbipd", "list") == short
    assert spell(TEXT, str(programs / "usbipd-ext"), "--run") == short
    monkeypatch.chdir(programs)
    assert spell("`usbipd list`", "./usbipd") == "`./usbipd list`"
    monkeypatch.chdir("/")
    assert spell("`usbipd list`", str(programs / "usbipd")) == f"`{programs}/usbipd list`"


def test_another_program_of_that_name_is_not_used(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = programs.parent / "other"
    other.mkdir()
    (other / "usbipd").touch(0o755)
    monkeypatch.setenv("PATH", str(other))
    assert spell("`usbipd list`", ".venv/bin/usbipd") == "`.venv/bin/usbipd list`"


def test_a_path_with_a_space_is_quoted(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spaced = programs.parent.parent / "my tools"
    programs.rename(spaced)
    monkeypatch.chdir("/")
    assert spell("`usbipd list`", str(spaced / "usbipd")) == f"`'{spaced}/usbipd' list`"


def test_in_a_directory_that_was_removed(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = programs / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert spell(TEXT, str(programs / "usbipd")) == TEXT


@pytest.mark.parametrize("own", ["python", "/usr/lib/usbipd/__main__.py", "-c", ""])
def test_otherwise_the_usual_names_are_used(programs: Path, own: str) -> None:
    assert spell(TEXT, own) == TEXT


@pytest.mark.parametrize("option", [["--socket", "/tmp/my x.sock"], ["--socket=/tmp/my x.sock"]])
def test_the_control_socket_is_kept(programs: Path, option: list[str]) -> None:
    socket = "--socket '/tmp/my x.sock'"
    for text, spelled in (
        ("`usbipd list`", f"`usbipd list {socket}`"),
        ("so: `sudo usbipd-ext --run`.", f"so: `sudo usbipd-ext --run {socket}`."),
        ("`usbipd doctor --socket PATH`", "`usbipd doctor --socket PATH`"),
        ("`usbipd bind --help`", "`usbipd bind --help`"),
        ("`usbipd` and `usbipd-ext`", "`usbipd` and `usbipd-ext`"),
        ("`usbip list` and usbipd list", "`usbip list` and usbipd list"),
    ):
        assert spell(text, "usbipd", "status", *option) == spelled
