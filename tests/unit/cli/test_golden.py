"""What commands print, compared with tests/golden/cli."""

import re

import pytest

from tests.unit.cli import golden
from tests.unit.cli.golden_lines import WIDTHS, WRONG, run
from tests.unit.cli.golden_tables import CASES, file_name
from usbipd.cli.suggestions import OTHER_COMMANDS, OTHER_OPTIONS
from usbipd.cli.table import display_width


@pytest.mark.parametrize("name", golden.TEXTS)
def test_printed_text_equals_the_golden_text(name: str) -> None:
    assert golden.TEXTS[name]() == golden.load(name), "if the change is intended, run `make golden`"


def test_golden_directory_has_no_other_file() -> None:
    assert {path.name for path in golden.DIRECTORY.iterdir()} == set(golden.TEXTS), "run `make golden`"


@pytest.mark.parametrize("width", WIDTHS)
def test_help_fits_the_terminal(width: int) -> None:
    lines = golden.load(f"help-{width}.txt").splitlines()
    assert [line for line in lines if len(line) > width] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: file_name(*case))
def test_table_fits_the_terminal(case: tuple[object, ...]) -> None:
    lines = golden.load(file_name(*case)).replace("\\e", "\x1b").splitlines()
    assert max(display_width(line) for line in lines) <= int(str(case[-2]))


@pytest.mark.parametrize("case", [case for case in CASES if case[-1] == "always"], ids=str)
def test_colour_moves_no_text(case: tuple[object, ...]) -> None:
    coloured = golden.load(file_name(*case))
    plain = golden.load(file_name(*case[:-1], "never"))
    assert coloured != plain
    assert re.sub(r"\\e\[[0-9;]*m", "", coloured) == plain


def test_status_of_15_devices_fits_80_by_24() -> None:
    daemon, table, *_ = golden.load("status-80.txt").split("\n\n")
    assert len(table.splitlines()) == 1 + 15
    lines = (daemon + "\n\n" + table).splitlines()
    assert len(lines) <= 24 - 3  # --watch adds a title and the line of the cursor
    states = [line.split()[1] for line in table.splitlines()[1:]]
    assert states == ["failed"] * 2 + ["attached"] * 2 + ["shared"] * 11


@pytest.mark.parametrize("line", WRONG)
def test_wrong_command_line_exits_2_with_a_hint(line: str) -> None:
    text = run(line)
    assert text.endswith("[2]\n")
    assert "\nhint: " in text or "usbipd bind 1-1" in text


@pytest.mark.parametrize("name", OTHER_COMMANDS)
def test_commands_of_other_programs_are_known(name: str) -> None:
    message, advice = OTHER_COMMANDS[name]
    assert run(f"usbipd {name}") == (
        f"$ usbipd {name}\nusbipd: unknown command {name!r}: {message}\nhint: {advice}\n[2]\n"
    )


@pytest.mark.parametrize(("prog", "option"), OTHER_OPTIONS)
def test_options_of_other_programs_are_known(prog: str, option: str) -> None:
    assert run(f"{prog} {option}").endswith(f"\nhint: {OTHER_OPTIONS[prog, option]}\n[2]\n")
