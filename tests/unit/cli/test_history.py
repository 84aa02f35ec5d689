"""The history: which pages are requested, and the text."""

import pytest

from tests.unit.cli.reports import START, make_entry
from usbipd.cli.connection import ControlConnection
from usbipd.cli.device_arguments import Selector
from usbipd.cli.history_entries import fetch_history, format_history
from usbipd.cli.selection import Selection
from usbipd.ipc.control_messages import (
    HISTORY_PAGE,
    HistoryEntry,
    HistoryEvent,
    HistoryParameters,
    HistoryResult,
)
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command


class FakeExtension(ControlConnection):
    """An extension with `count` entries, which returns at most `page` at once."""

    def __init__(self, count: int, page: int = HISTORY_PAGE) -> None:
        self.entries = [make_entry(number) for number in range(1, count + 1)]
        self._page = page
        self.asked: list[HistoryParameters] = []

    def request(self, command: Command, parameters: Message, result: object, **_options: object) -> object:  # type: ignore[override]
        assert command is Command.HISTORY
        assert isinstance(parameters, HistoryParameters)
        self.asked.append(parameters)
        before = parameters.before
        older = [entry for entry in self.entries if before is None or entry.id < before]
        return HistoryResult(entries=older[::-1][: min(parameters.limit, self._page)])


def numbers(entries: list[HistoryEntry]) -> list[int]:
    return [entry.id for entry in entries]


def test_few_entries_take_one_page() -> None:
    extension = FakeExtension(50)
    assert numbers(fetch_history(extension, 20)) == list(range(50, 30, -1))
    assert extension.asked == [HistoryParameters(limit=20)]


@pytest.mark.parametrize("page", [HISTORY_PAGE, 30])
def test_many_entries_come_page_by_page(page: int) -> None:
    extension = FakeExtension(500, page)
    assert numbers(fetch_history(extension, 250)) == list(range(500, 250, -1))
    assert all(asked.limit <= HISTORY_PAGE for asked in extension.asked)


def test_since_stops_at_an_older_page() -> None:
    extension = FakeExtension(1000)
    found = fetch_history(extension, None, Selection(since=START + 751))
    assert numbers(found) == list(range(1000, 750, -1))
    assert len(extension.asked) == 4  # the last one has no such entry


def test_since_tolerates_a_clock_that_was_set_back() -> None:
    extension = FakeExtension(300)
    extension.entries[-50:] = [make_entry(number, time=START - 9999) for number in range(251, 301)]
    assert numbers(fetch_history(extension, None, Selection(since=START + 201))) == list(range(250, 200, -1))


def test_device_is_searched_in_all_pages() -> None:
    extension = FakeExtension(1000)
    extension.entries[3] = make_entry(4, busid="1-1")
    extension.entries[900] = make_entry(901, busid="1-1")
    selection = Selection(device=Selector("1-1", busid="1-1"))
    assert numbers(fetch_history(extension, 20, selection)) == [901, 4]
    extension.asked.clear()
    assert numbers(fetch_history(extension, 1, selection)) == [901]
    assert len(extension.asked) == 1


@pytest.mark.parametrize("count", [0, 7, HISTORY_PAGE, 150])
def test_fewer_entries_than_the_limit(count: int) -> None:
    assert numbers(fetch_history(FakeExtension(count), 1000)) == list(range(count, 0, -1))


def test_text(utc: None) -> None:
    entries = [
        make_entry(
            1, HistoryEvent.STARTED, busid=None, vendor_id=None, product_id=None, product=None, reason="0.1.0"
        ),
        make_entry(2, HistoryEvent.ATTACHED, client="192.0.2.7:51234"),
        make_entry(
            299,
            HistoryEvent.DETACHED,
            client="192.0.2.7:51234",
            seconds=297.4,
            bytes_in=1 << 30,
            bytes_out=817,
            reason="the client closed",
        ),
        make_entry(300, HistoryEvent.RELEASED, seconds=400.0, product=None),
    ]
    assert format_history(entries, 80) == (
        "TIME                 EVENT     BUSID  DEVICE           CLIENT\n"
        "2023-11-14 22:13:21  started\n"
        "    0.1.0\n"
        "2023-11-14 22:13:22  attached  3-1    0781:5581 Ultra  192.0.2.7:51234\n"
        "2023-11-14 22:18:19  detached  3-1    0781:5581 Ultra  192.0.2.7:51234\n"
        "    after 4 min 57 s, 1.0 GiB in, 817 B out: the client closed\n"
        "2023-11-14 22:18:20  released  3-1    0781:5581\n"
        "    after 6 min 40 s\n"
    )


def test_device_without_a_name_uses_usb_ids() -> None:
    listed = make_entry(1, vendor_id=0x0951, product_id=0x1666, product=None)
    assert "  0951:1666 Kingston Technology DataTraveler 100 G3\n" in format_history([listed], 100)


def test_merged_entry(utc: None) -> None:
    many = make_entry(9, HistoryEvent.DETACHED, client="192.0.2.7:5", seconds=60.0, count=9980, reason="left")
    assert format_history([many], 80).splitlines()[-1] == (
        "    9980 times, the last one shown, 1 min 0 s in all: left"
    )
