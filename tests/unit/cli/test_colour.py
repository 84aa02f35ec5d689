"""Colour: when it is used, and that untrusted text never has one."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.programs import program
from tests.unit.cli.reports import make_device
from tests.unit.cli.screen import TerminalJob
from tests.unit.cli.test_commands import Run, answer, run, spawn
from usbipd.cli.colour import SEQUENCE, paint_for, plain, vivid
from usbipd.cli.table import Column, display_width, format_table, shorten
from usbipd.ipc.control_messages import CheckState, DeviceState, HistoryEvent, ListResult

Extension = Callable[..., AbstractContextManager[None]]

assert run is not None, "a fixture of the tests below"


@pytest.mark.parametrize(
    ("choice", "is_terminal", "variables", "is_vivid"),
    [
        (None, True, {"TERM": "xterm"}, True),
        ("auto", True, {"TERM": "xterm"}, True),
        ("auto", True, {"TERM": "xterm", "NO_COLOR": ""}, True),  # https://no-color.org: when not empty
        ("auto", True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        ("auto", True, {"TERM": "dumb"}, False),
        ("auto", True, {"TERM": ""}, False),
        ("auto", True, {}, False),
        ("auto", False, {"TERM": "xterm"}, False),
        ("always", False, {"TERM": "dumb", "NO_COLOR": "1"}, True),
        ("never", True, {"TERM": "xterm"}, False),
    ],
)
def test_colour_by_option_terminal_and_environment(
    choice: str | None,
    is_terminal: bool,
    variables: dict[str, str],
    is_vivid: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    assert paint_for(choice) is (vivid if is_vivid else plain)


def test_no_colour_without_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert paint_for("auto") is plain


@pytest.mark.parametrize("word", [*DeviceState, *CheckState, *HistoryEvent, "anything"])
def test_a_colour_ends_with_its_word(word: str) -> None:
    painted = vivid(str(word))
    assert SEQUENCE.sub("", painted) == word
    assert painted == word or painted.endswith(f"{word}\x1b[0m")
    assert display_width(painted) == len(word)


def test_states_that_need_attention_are_coloured() -> None:
    for word in ("failed", "warning", "attached", "unplugged"):
        assert vivid(word) != word


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("\x1b[32mabcd\x1b[0m ef", 4, "\x1b[32mabc\x1b[0m…"),
        ("ab \x1b[32mcd\x1b[0m", 4, "ab \x1b[32m\x1b[0m…"),
        ("\x1b[32m日本\x1b[0m語", 4, "\x1b[32m日\x1b[0m…"),
        ("\x1b[32mab\x1b[0m", 2, "\x1b[32mab\x1b[0m"),
    ],
)
def test_cut_text_keeps_the_end_of_its_colours(text: str, width: int, expected: str) -> None:
    assert SEQUENCE.sub("", shorten(text, width)) == SEQUENCE.sub("", expected)
    assert SEQUENCE.findall(shorten(text, width)) == SEQUENCE.findall(text)
    assert display_width(shorten(text, width)) <= width


def test_only_states_are_coloured() -> None:
    columns = (Column("NAME"), Column("STATE", state=True), Column("NOTE"))
    table = format_table(columns, [("failed", "failed", "failed"), ("a", "gone", "b")], 80, vivid)
    assert table == ("NAME    STATE   NOTE\nfailed  \x1b[1;31mfailed\x1b[0m  failed\na       gone    b\n")


def test_device_named_like_a_state_has_no_colour(run: Run, extension: Extension, socket_path: Path) -> None:
    device = make_device(manufacturer=None, product="failed", drivers=["attached"])
    with extension(lambda _request: ListResult(devices=[device], bindings=[])):
        done = run("usbipd", "list", "--color", "always", "--socket", str(socket_path))
    assert SEQUENCE.findall(done.stdout) == ["\x1b[32m", "\x1b[0m"]


@pytest.mark.parametrize(
    "words",
    [("list",), ("status",), ("history",), ("doctor",)],
    ids=" ".join,
)
def test_json_has_no_colour(
    words: tuple[str, ...], run: Run, extension: Extension, socket_path: Path
) -> None:
    with extension(answer):
        done = run("usbipd", *words, "--json", "--color", "always", "--socket", str(socket_path))
    assert done.stdout.startswith("{")
    assert "\\u001b" not in done.stdout
    assert "\x1b" not in done.stdout


def test_colour_on_a_terminal_but_not_in_a_pipe(extension: Extension, socket_path: Path) -> None:
    command = [*program("usbipd"), "list", "--socket", str(socket_path)]
    with extension(answer):
        assert "\x1b" not in spawn(command, TERM="xterm").stdout
    for variables, is_vivid in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
        with extension(answer), TerminalJob(command, **variables) as job:
            assert job.has_ended() == 0
            job.shows(lambda lines: any("3-1" in line for line in lines))
            assert ("\x1b[32mshared\x1b[0m" in job.written) is is_vivid
