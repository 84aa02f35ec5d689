"""What commands print is what the golden texts say, at two widths, without and with colour."""

import re

import pytest

from tests.unit.cli import texts
from usbipd.cli.table import display_width


def test_there_is_a_text_of_each_case_and_no_other() -> None:
    assert {path.name for path in texts.DIRECTORY.iterdir()} == {
        texts.file_name(*case) for case in texts.CASES
    }, f"run {texts.COMMAND}"


@pytest.mark.parametrize("case", texts.CASES, ids=lambda case: texts.file_name(*case))
def test_a_command_prints_its_golden_text(case: tuple[object, ...]) -> None:
    golden = (texts.DIRECTORY / texts.file_name(*case)).read_text(encoding="utf-8")
    assert texts.printed(*case) == golden, f"if that is meant, run {texts.COMMAND}"


@pytest.mark.parametrize("case", texts.CASES, ids=lambda case: texts.file_name(*case))
def test_a_golden_text_fits_its_width(case: tuple[object, ...]) -> None:
    golden = (texts.DIRECTORY / texts.file_name(*case)).read_text(encoding="utf-8")
    lines = golden.replace("\\e", "\x1b").splitlines()
    assert max(display_width(line) for line in lines) <= int(str(case[-2]))


@pytest.mark.parametrize("case", [case for case in texts.CASES if case[-1] == "always"], ids=str)
def test_colour_moves_nothing(case: tuple[object, ...]) -> None:
    with_colour = (texts.DIRECTORY / texts.file_name(*case)).read_text(encoding="utf-8")
    without = (texts.DIRECTORY / texts.file_name(*case[:-1], "never")).read_text(encoding="utf-8")
    assert with_colour != without
    assert re.sub(r"\\e\[[0-9;]*m", "", with_colour) == without


def test_fifteen_devices_are_one_table_of_80_times_24() -> None:
    text = (texts.DIRECTORY / "status-80.txt").read_text(encoding="utf-8")
    daemon, table, *_ = text.split("\n\n")
    assert len(table.splitlines()) == 1 + 15
    assert (
        len((daemon + "\n\n" + table).splitlines()) <= 24 - 3
    )  # under the title of --watch, over the cursor
    states = [line.split()[1] for line in table.splitlines()[1:]]
    assert states == ["failed"] * 2 + ["attached"] * 2 + ["shared"] * 11
