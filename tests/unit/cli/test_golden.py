"""What commands print, compared with tests/golden/cli/."""

from collections.abc import Callable

import pytest

from tests.unit.cli.golden import DIRECTORY, WIDTHS, WRONG, run, texts
from usbipd.cli.suggestions import OTHER_COMMANDS, OTHER_OPTIONS


@pytest.mark.parametrize(("name", "make"), list(texts()), ids=[name for name, _make in texts()])
def test_what_people_read(name: str, make: Callable[[], str]) -> None:
    """After a change that is meant: `python -m tests.unit.cli.golden`, and look at the difference."""
    assert make() == (DIRECTORY / name).read_text(encoding="utf-8")


def test_there_is_no_other_file() -> None:
    assert {path.name for path in DIRECTORY.iterdir()} == {name for name, _make in texts()}


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_of_help_is_wider_than_the_terminal(width: int) -> None:
    lines = (DIRECTORY / f"help-{width}.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > width] == []


@pytest.mark.parametrize("line", WRONG)
def test_what_is_wrong_ends_with_2_and_a_hint(line: str) -> None:
    text = run(line)
    assert text.endswith("[2]\n")
    assert "\nhint: " in text or "usbipd bind 1-1" in text


@pytest.mark.parametrize("name", OTHER_COMMANDS)
def test_commands_of_others_are_known(name: str) -> None:
    message, advice = OTHER_COMMANDS[name]
    assert run(f"usbipd {name}") == (
        f"$ usbipd {name}\nusbipd: there is no command {name!r}: {message}\nhint: {advice}\n[2]\n"
    )


@pytest.mark.parametrize(("prog", "option"), OTHER_OPTIONS)
def test_options_of_others_are_known(prog: str, option: str) -> None:
    assert run(f"{prog} {option}").endswith(f"\nhint: {OTHER_OPTIONS[prog, option]}\n[2]\n")
