"""The argument of --simulate: its meaning and its errors."""

from pathlib import Path

import pytest

from usbipd.errors import UsageError
from usbipd.simulated.catalog import MAX_SIMULATED, NAMES, create, parse_simulate


def test_all_six_devices() -> None:
    specs = parse_simulate("mass-storage,keyboard,serial,loopback,audio,camera")
    assert [spec.name for spec in specs] == list(NAMES)
    for spec in specs:
        create(spec.name, spec.options).close()


def test_devices_of_one_kind_differ_by_serial_number() -> None:
    serials = [create(s.name, s.options).strings[2] for s in parse_simulate("keyboard,keyboard,audio")]
    assert len(set(serials)) == 3


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (spec,) = parse_simulate("mass-storage:size=1M:file=disk.img:serial=0123456789AB")
    assert spec.options == {"size": "1M", "file": str(tmp_path / "disk.img"), "serial": "0123456789AB"}
    assert not (tmp_path / "disk.img").exists()


def test_the_greatest_number_of_devices() -> None:
    assert len(parse_simulate(",".join(["keyboard"] * MAX_SIMULATED))) == MAX_SIMULATED == 64


def test_spaces_after_commas_do_not_matter() -> None:
    assert [spec.name for spec in parse_simulate("keyboard, audio")] == ["keyboard", "audio"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown device ''; known are mass-storage, keyboard"),
        ("keyboard,", "unknown device ''"),
        ("mouse", "unknown device 'mouse'"),
        ("keyboard:size=1M", "keyboard has no option 'size'; it has serial"),
        ("mass-storage:size", "'size' is not OPTION=VALUE"),
        ("mass-storage:file=", "'file=' is not OPTION=VALUE"),
        ("mass-storage:size=1M:size=2M", "option 'size' is repeated"),
        ("mass-storage:size=0", "size '0' is not a number of bytes"),
        ("mass-storage:size=64X", "size '64X' is not a number of bytes"),
        ("mass-storage:size=-512", "size '-512' is not a number of bytes"),
        ("mass-storage:size=1000", "not a multiple of 512"),
        ("mass-storage:size=1025T", "above 1024T"),
        ("keyboard:serial=abc", "serial 'abc' is not 12 to 64"),
        ("mass-storage:file=/x/a,mass-storage:file=/x/a", "2 mass-storage devices have the same file /x/a"),
        ("keyboard:serial=0123456789AB,keyboard:serial=0123456789AB", "have the same serial"),
        (",".join(["keyboard"] * 65), "65 devices, but at most 64"),
    ],
)
def test_bad_arguments_are_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_simulate(text)


def test_create_checks_its_arguments() -> None:
    with pytest.raises(UsageError, match="no option 'colour'"):
        create("serial", {"colour": "red"})
