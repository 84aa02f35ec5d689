"""`history --follow`: each entry once, across pages and restarts of the daemon, in lines and as documents."""

import json
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.programs import program
from tests.unit.cli.conftest import drain
from tests.unit.cli.reports import START, make_entry
from tests.unit.cli.test_history import FakeExtension
from tests.unit.cli.test_watch import Scripted, spawn
from usbipd.cli.colour import plain
from usbipd.cli.device_arguments import Selector
from usbipd.cli.history_tail import HistoryTail, Lines
from usbipd.cli.selection import Selection
from usbipd.ipc.control_messages import (
    HISTORY_PAGE,
    HistoryEntry,
    HistoryEvent,
    HistoryParameters,
    HistoryResult,
)
from usbipd.ipc.messages import Command, Nothing
from usbipd.privileges import peer_of

Extension = Callable[..., AbstractContextManager[None]]


def numbers(entries: Sequence[HistoryEntry]) -> list[int]:
    return [entry.id for entry in entries]


def add(extension: FakeExtension, *entries: HistoryEntry) -> None:
    extension.entries += entries


def test_first_the_newest_entries_then_each_new_one_once() -> None:
    extension = FakeExtension(50)
    tail = HistoryTail(extension, Selection(), 20)
    assert numbers(tail.new_entries(True)) == list(range(31, 51))
    assert tail.new_entries(False) == []
    add(extension, make_entry(51), make_entry(52))
    assert numbers(tail.new_entries(False)) == [51, 52]
    assert tail.new_entries(True) == []  # after a restart, too


@pytest.mark.parametrize("count", [HISTORY_PAGE - 1, HISTORY_PAGE, 3 * HISTORY_PAGE + 1])
def test_many_new_entries_come_all_whatever_the_limit_was(count: int) -> None:
    extension = FakeExtension(5)
    tail = HistoryTail(extension, Selection(), 2)
    assert numbers(tail.new_entries(True)) == [4, 5]
    add(extension, *(make_entry(number) for number in range(6, 6 + count)))
    assert numbers(tail.new_entries(False)) == list(range(6, 6 + count))


def test_a_history_that_is_empty_at_first() -> None:
    extension = FakeExtension(0)
    tail = HistoryTail(extension, Selection(), 1)
    assert tail.new_entries(True) == []
    add(extension, make_entry(1), make_entry(2))
    assert numbers(tail.new_entries(False)) == [1, 2]


def test_only_the_selected_entries() -> None:
    extension = FakeExtension(5)
    tail = HistoryTail(extension, Selection(START + 3, Selector("3-2", busid="3-2")), None)
    assert tail.new_entries(True) == []
    add(extension, make_entry(6), make_entry(7, busid="3-2"))
    assert numbers(tail.new_entries(False)) == [7]
    add(extension, make_entry(8))
    assert tail.new_entries(False) == []
    add(extension, make_entry(9, busid="3-2"))
    assert numbers(tail.new_entries(False)) == [9]


ANOTHER = (
    "the history was replaced: the daemon was restarted without a state directory, or with another one\n"
)


@pytest.mark.parametrize("count", [2, 5, 9], ids=["shorter", "as long", "longer"])
def test_a_daemon_that_comes_back_with_another_history(
    count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    extension = FakeExtension(5)
    tail = HistoryTail(extension, Selection(), 20)
    tail.new_entries(True)
    extension.entries = [make_entry(number, time=START + 1000 + number) for number in range(1, count + 1)]
    assert numbers(tail.new_entries(True)) == list(range(1, count + 1))
    assert capsys.readouterr().err == ANOTHER


def test_a_history_that_has_forgotten_what_was_seen_last(capsys: pytest.CaptureFixture[str]) -> None:
    extension = FakeExtension(5)
    tail = HistoryTail(extension, Selection(), 20)
    tail.new_entries(True)
    extension.entries = [make_entry(3), make_entry(8), make_entry(9)]
    assert numbers(tail.new_entries(True)) == [8, 9]
    assert capsys.readouterr().err == ""


def test_lines_stay_in_their_columns(
    utc: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    lines = Lines(plain)
    lines.print([make_entry(1)])
    lines.print([make_entry(2, HistoryEvent.UNPLUGGED, client="192.0.2.7:1", product="A longer name")])
    lines.print([])
    lines.print([make_entry(3, product="The longest name of all the names of devices", client="::1")])
    title, *shown = capsys.readouterr().out.splitlines()
    assert title.split() == ["TIME", "EVENT", "BUSID", "DEVICE", "CLIENT"]  # once
    for column in ("EVENT", "BUSID", "DEVICE"):
        assert all(line[title.index(column) - 1] == " " != line[title.index(column)] for line in shown)
    assert shown[1].index("192.0.2.7:1") == title.index("CLIENT")


# ---- whole commands ----------------------------------------------------------------------------------------

FOLLOW = [*program("usbipd"), "history", "--follow"]


class ScriptedHistory(Scripted):
    """Answers what `--follow` asks from a list of entries."""

    def answer_history(self, entries: Sequence[HistoryEntry], requests: int) -> None:
        for _ in range(requests):
            request = self.expect(Command.HISTORY)
            assert isinstance(request.parameters, HistoryParameters)
            before = request.parameters.before
            found = [entry for entry in entries[::-1] if before is None or entry.id < before]
            self.respond(request, HistoryResult(entries=found[: request.parameters.limit]))


ENTRIES = [make_entry(number) for number in (1, 2, 3)]


def first_run(connection: socket.socket) -> None:
    """Two entries, then the daemon is gone."""
    extension = ScriptedHistory(connection)
    extension.answer(Command.WATCH, Nothing())
    extension.answer_history(ENTRIES[:2], 3)  # the newest one, the page, and nothing before it


def second_run(connection: socket.socket) -> None:
    """A third one; Ctrl-C when it has been printed, which is before the next question."""
    extension = ScriptedHistory(connection)
    extension.answer(Command.WATCH, Nothing())
    extension.answer_history(ENTRIES, 4)  # the newest, the last one seen, the page, and nothing before it
    extension.change()
    extension.expect(Command.HISTORY)
    os.kill(peer_of(connection).pid, signal.SIGINT)
    drain(connection)


def test_json_is_one_document_for_each_entry_across_a_restart(
    extension: Extension, socket_path: Path
) -> None:
    with extension(talks=[first_run, second_run]):
        command = spawn([*FOLLOW, "--json"], socket_path)
        out, err = command.communicate(timeout=30)
    assert command.returncode == 130
    documents = [json.loads(line) for line in out.splitlines()]
    assert [document["format"] for document in documents] == [1, 1, 1]
    assert [document["entry"]["id"] for document in documents] == [1, 2, 3]
    assert err.splitlines() == [
        "lost the extension: it has closed the connection; trying again",
        "the extension is back",
    ]


def test_lines_across_a_restart(extension: Extension, socket_path: Path) -> None:
    with extension(talks=[first_run, second_run]):
        command = spawn(FOLLOW, socket_path)
        out, _err = command.communicate(timeout=30)
    assert command.returncode == 130
    assert [line.split()[0] for line in out.splitlines()] == ["TIME", *["2023-11-14"] * 3]


def test_a_reader_that_leaves_ends_it_at_once(extension: Extension, socket_path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        first_run(connection)
        drain(connection)

    with extension(talk=talk):
        command = spawn(FOLLOW, socket_path)
        assert command.stdout is not None
        command.stdout.readline()
        command.stdout.close()
        assert command.wait(timeout=30) == 141


def test_without_an_extension_there_is_nothing_to_follow(socket_path: Path) -> None:
    command = spawn(FOLLOW, socket_path)
    out, err = command.communicate(timeout=30)
    assert (command.returncode, out) == (3, "")
    assert "not running" in err
