"""Numbers and times as text."""

import time

import pytest

from tests.unit.cli.reports import START
from usbipd.cli.units import (
    format_bytes,
    format_clock,
    format_duration,
    format_time,
    short_bytes,
    short_count,
    short_latency,
    short_moment,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (100 * 1024, "100 KiB"),
        (1000 * 1024, "1.0 MiB"),
        (32 << 20, "32.0 MiB"),
        (5 << 40, "5.0 TiB"),
        (9999 << 40, "9999 TiB"),
    ],
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text
    assert len(text) <= 8


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0B"),
        (0.4, "0B"),
        (999, "999B"),
        (1000, "1.0KiB"),
        (1024, "1.0KiB"),
        (9.94 * 1024, "9.9KiB"),
        (10 << 10, "10KiB"),
        (32 << 20, "32MiB"),
        (999 << 20, "999MiB"),
        (1000 << 20, "1.0GiB"),
        (1 << 63, "8.0EiB"),
    ],
)
def test_short_bytes(count: float, text: str) -> None:
    assert short_bytes(count) == text
    assert len(text) <= 6


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (99_999, "99999"),
        (100_000, "100K"),
        (999_499, "999K"),
        (999_500, "1.00M"),
        (1_234_567, "1.23M"),
        (99_950_000, "100M"),
        (2**64 - 1, "18.4E"),
    ],
)
def test_short_count(count: int, text: str) -> None:
    assert short_count(count) == text
    assert len(text) <= 5


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [
        (1, "1us"),
        (512, "512us"),
        (999, "999us"),
        (1024, "1.0ms"),
        (9999, "10ms"),
        (131_072, "131ms"),
        (1 << 20, "1.0s"),
        (1 << 23, "8.4s"),
        (1 << 24, "17s"),
    ],
)
def test_short_latency(microseconds: int, text: str) -> None:
    assert short_latency(microseconds) == text
    assert len(text) <= 5


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (0.4, "0 s"),
        (59.9, "59 s"),
        (60, "1 min 0 s"),
        (7384, "2 h 3 min"),
        (86400, "1 d 0 h"),
        (1e6, "11 d 13 h"),
    ],
)
def test_format_duration(span: float, text: str) -> None:
    assert format_duration(span) == text


def test_moments_are_local(monkeypatch: pytest.MonkeyPatch, utc: None) -> None:
    assert format_time(START) == "2023-11-14 22:13:20"
    monkeypatch.setenv("TZ", "EAST-2")
    time.tzset()
    assert format_time(START) == "2023-11-15 00:13:20"


def test_a_moment_of_another_day_is_a_date(monkeypatch: pytest.MonkeyPatch, utc: None) -> None:
    assert format_clock(START) == "2023-11-14"
    now = time.localtime(START + 3600)  # before midnight
    monkeypatch.setattr(time, "localtime", lambda *moment: time.gmtime(*moment) if moment else now)
    assert format_clock(START) == "22:13:20"
    now = time.localtime(START + 2 * 3600)  # the next day
    assert format_clock(START) == "2023-11-14"


@pytest.mark.parametrize(
    ("days", "text"),
    [
        (0.05, "22:13"),
        (2, "Nov 14"),
        (299, "Nov 14"),
        (301, "2023-11-14"),
        (-2, "Nov 14"),
        (-301, "2023-11-14"),
    ],
)
def test_short_moment(monkeypatch: pytest.MonkeyPatch, utc: None, days: float, text: str) -> None:
    now = time.gmtime(START + days * 86400)
    monkeypatch.setattr(time, "localtime", lambda *moment: time.gmtime(*moment) if moment else now)
    assert short_moment(START) == text
