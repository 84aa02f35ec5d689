"""The log of refused clients: the first at once, the others counted, and no timer when nobody comes."""

import logging
from collections.abc import Callable, Iterator

import pytest

from usbipd.server.refusals import INTERVAL, Refusals


class Clock:
    """An event loop's `call_later`, for which time passes when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        assert delay == INTERVAL
        self.waiting.append(callback)

    def pass_interval(self) -> None:
        [callback] = self.waiting
        self.waiting.clear()
        callback()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def refusals(clock: Clock, caplog: pytest.LogCaptureFixture) -> Iterator[Refusals]:
    with caplog.at_level(logging.INFO):
        yield Refusals(clock.call_later)


def test_the_first_is_named_at_once(
    refusals: Refusals, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    assert not clock.waiting
    refusals.add("192.0.2.1:5000")
    assert caplog.messages == ["192.0.2.1:5000 refused: its address is not allowed"]
    assert [record.levelno for record in caplog.records] == [logging.INFO]


def test_a_flood_is_a_line_in_each_interval(
    refusals: Refusals, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    refusals.add("192.0.2.1:5000")
    for port in range(1000):
        refusals.add(f"192.0.2.2:{port}")
    clock.pass_interval()
    for port in range(10):
        refusals.add(f"192.0.2.3:{port}")
    clock.pass_interval()
    assert caplog.messages[1:] == [
        "1000 more refused within 60 s: their addresses are not allowed; the last was 192.0.2.2:999",
        "10 more refused within 60 s: their addresses are not allowed; the last was 192.0.2.3:9",
    ]


def test_nothing_waits_when_nobody_comes(
    refusals: Refusals, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    refusals.add("192.0.2.1:5000")
    clock.pass_interval()
    assert not clock.waiting
    assert len(caplog.messages) == 1
    refusals.add("192.0.2.1:5001")
    assert caplog.messages[1:] == ["192.0.2.1:5001 refused: its address is not allowed"]
    clock.pass_interval()
    assert not clock.waiting
