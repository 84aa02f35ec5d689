"""`--since` and `--device`: what is understood, what is not, and which entries fit."""

import argparse
import time

import pytest

from tests.unit.cli.reports import START, make_entry
from usbipd.cli.selection import Selection, device, moment
from usbipd.errors import UsageError


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch, utc: None) -> float:
    """Some hours after the start: 2023-11-15 08:13:20 UTC."""
    monkeypatch.setattr(time, "time", lambda: START + 10 * 3600)
    return START + 10 * 3600


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("0s", 0.0),
        ("90s", 90.0),
        ("10m", 600.0),
        ("2h", 7200.0),
        ("3d", 3 * 86400.0),
        ("1w", 7 * 86400.0),
        ("2023-11-15", 8 * 3600 + 800.0),
        ("2023-11-14 22:13:20", 36000.0),
        ("2023-11-14T22:13:20", 36000.0),
        ("2023-11-14T22:13:20Z", 36000.0),
        ("2023-11-14T23:13:20+01:00", 36000.0),
    ],
)
def test_moments(now: float, text: str, ago: float) -> None:
    assert moment(text) == now - ago


def test_more_than_all_time_is_all_time(now: float) -> None:
    assert moment("999999999w") == 0.0


def test_today_is_the_day_of_this_time_zone(monkeypatch: pytest.MonkeyPatch, utc: None) -> None:
    begin = moment("today")
    assert time.localtime(begin)[:6] == (*time.localtime()[:3], 0, 0, 0)
    monkeypatch.setenv("TZ", "EAST-9")
    time.tzset()
    assert time.localtime(moment("today"))[3:6] == (0, 0, 0)


@pytest.mark.parametrize(
    "text",
    ["", "10", "m", "-1h", "1.5h", "10 m", "1y", "yesterday", "2023-13-01", "9999-99-99", "0000-01-01"],
)
def test_what_is_no_time(now: float, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a time: write 10m, 2h, 3d, today"):
        moment(text)


@pytest.mark.parametrize("text", ["2023-11-16", "9999-12-31"])
def test_the_future(now: float, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is in the future"):
        moment(text)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("3-1", True),
        ("3-10", False),
        ("3-1.1", False),
        ("0781:5581", True),
        ("0781:5567", False),
        ("ultra", True),
        ("LTR", True),
        ("SanDisk", False),
        ("straße", False),
    ],
)
def test_devices(text: str, fits: bool) -> None:
    assert Selection(device=device(text)).fits(make_entry(1)) is fits


def test_names_are_compared_in_any_case() -> None:
    assert Selection(device=device("STRASSE")).fits(make_entry(1, product="Straße 7"))


def test_a_name_may_be_that_of_usb_ids() -> None:
    listed = make_entry(1, vendor_id=0x0951, product_id=0x1666, product=None)
    assert Selection(device=device("traveler")).fits(listed)
    assert not Selection(device=device("ultra")).fits(listed)


def test_an_entry_of_the_daemon_is_about_no_device() -> None:
    entry = make_entry(1, busid=None, vendor_id=None, product_id=None, product=None)
    assert Selection().fits(entry)
    assert not any(Selection(device=device(text)).fits(entry) for text in ("3-1", "0781:5581", "ultra"))


@pytest.mark.parametrize("text", ["", "  "])
def test_no_device(text: str) -> None:
    with pytest.raises(UsageError, match="the name of a device is empty"):
        device(text)


def test_the_history_knows_no_serial_number() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="the history has no serial numbers: write VID:PID"):
        device("0781:5581:4C530001")


def test_the_first_moment_is_within() -> None:
    selection = Selection(since=START + 5)
    assert [selection.fits(make_entry(number)) for number in (4, 5, 6)] == [False, True, True]
