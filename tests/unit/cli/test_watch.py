"""`--watch`: when it asks, how it survives the extension's restart, and what it writes to which output."""

import contextlib
import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.programs import program
from tests.unit.cli.conftest import drain
from tests.unit.cli.reports import make_device, make_status
from tests.unit.cli.test_connection import hello
from usbipd.cli.connection import ControlConnection
from usbipd.cli.feed import FIRST_PAUSE
from usbipd.cli.keys import Key
from usbipd.cli.live_view import LiveView, frame
from usbipd.cli.terminal_keys import Woken
from usbipd.cli.watch import Blocks, view_for, watch
from usbipd.errors import ExtensionUnreachableError, UsbipdError
from usbipd.ipc.blocking_channel import BlockingChannel, wait_readable
from usbipd.ipc.control_messages import PEOPLE, StatusResult
from usbipd.ipc.conversation import Request
from usbipd.ipc.message import Message
from usbipd.ipc.messages import IPC_VERSION, Command, EventName, Nothing
from usbipd.privileges import peer_of

Extension = Callable[..., AbstractContextManager[None]]
Talk = Callable[[socket.socket], None]

NEVER = 3600.0
"""An interval that no test waits for."""


class Scripted:
    """The extension's side of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._channel = BlockingChannel(connection, "scripted extension", PEOPLE)
        self._number = 0

    def expect(self, command: Command) -> Request:
        request = self._channel.receive(10)
        assert isinstance(request, Request)
        assert request.command is command
        return request

    def respond(self, request: Request, answer: Message | UsbipdError) -> None:
        self._channel.respond(request, answer)

    def answer(self, command: Command, answer: Message | UsbipdError) -> None:
        self.respond(self.expect(command), answer)

    def answer_status(self, *, error_count: int = 0) -> None:
        self.answer(Command.STATUS, make_status([make_device()], error_count=error_count))

    def change(self) -> None:
        self._channel.push(EventName.CHANGED, Nothing())


def one_status(connection: socket.socket) -> None:
    """Answers once, and closes."""
    extension = Scripted(connection)
    extension.answer(Command.WATCH, Nothing())
    extension.answer_status()


class RecordingView:
    """Ends the watching after so many statuses, as Ctrl-C does."""

    def __init__(self, last: int, pause: Callable[[float], None]) -> None:
        self._last = last
        self._pause = pause
        self.seen: list[StatusResult] = []
        self.told: list[str] = []
        self.closed = False

    def show(self, status: StatusResult) -> None:
        self.seen.append(status)
        if len(self.seen) == self._last:
            raise KeyboardInterrupt

    def tell(self, notice: str) -> None:
        self.told.append(notice)

    def wait(self, readable: int | None, seconds: float) -> bool:
        if readable is not None:
            return wait_readable(readable, seconds)
        self._pause(seconds)
        return False

    def close(self) -> None:
        self.closed = True


def no_pause(_seconds: float) -> None:
    raise AssertionError("the extension was never away")


def run_watch(
    path: Path, statuses: int, *, interval: float = NEVER, pause: Callable[[float], None] = no_pause
) -> RecordingView:
    view = RecordingView(statuses, pause)
    with ControlConnection(str(path), timeout=10) as extension:
        extension.open()
        with pytest.raises(KeyboardInterrupt):
            watch(extension, view, interval)
    assert view.closed
    return view


def test_a_change_is_shown_at_once(extension: Extension, socket_path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        extension = Scripted(connection)
        extension.answer(Command.WATCH, Nothing())
        extension.answer_status()
        for number in (1, 2):
            extension.change()
            extension.answer_status(error_count=number)
        drain(connection)

    with extension(talk=talk):
        view = run_watch(socket_path, 3)
    assert [status.error_count for status in view.seen] == [0, 1, 2]


def test_it_is_asked_once_in_an_interval_whatever_happens(extension: Extension, socket_path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        extension = Scripted(connection)
        extension.answer(Command.WATCH, Nothing())
        for number in range(3):
            extension.answer_status(error_count=number)
        drain(connection)

    with extension(talk=talk):
        assert len(run_watch(socket_path, 3, interval=0.01).seen) == 3


LOST = "lost the extension: it has closed the connection; trying again"
BACK = "the extension is back"


def test_an_extension_that_comes_back_at_once(extension: Extension, socket_path: Path) -> None:
    pauses: list[float] = []
    with extension(talks=[one_status, one_status, one_status]):
        view = run_watch(socket_path, 3, pause=pauses.append)
    assert view.told == [LOST, BACK, LOST, BACK]
    assert pauses == [FIRST_PAUSE, FIRST_PAUSE]  # each time from the beginning


def test_an_extension_that_is_away_for_a_while(extension: Extension, socket_path: Path) -> None:
    pauses: list[float] = []
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(extension(talk=one_status))

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            first.close()
            if len(pauses) == 6:
                second.enter_context(extension(talk=one_status))

        view = run_watch(socket_path, 2, pause=pause)
    assert view.told == [LOST, BACK]  # not once for each attempt
    assert pauses == [0.25, 0.5, 1.0, 2.0, 2.0, 2.0]


def test_an_extension_that_dies_before_it_answers(extension: Extension, socket_path: Path) -> None:
    def dying(connection: socket.socket) -> None:
        extension = Scripted(connection)
        extension.answer(Command.WATCH, Nothing())
        extension.expect(Command.STATUS)

    pauses: list[float] = []
    with extension(talks=[one_status, dying, dying, one_status]):
        view = run_watch(socket_path, 2, pause=pauses.append)
    assert view.told == [LOST, BACK]
    assert pauses == [0.25, 0.5, 1.0]


def test_an_extension_that_cannot_answer_for_a_while(extension: Extension, socket_path: Path) -> None:
    def failing(connection: socket.socket) -> None:
        extension = Scripted(connection)
        extension.answer(Command.WATCH, Nothing())
        extension.answer_status()
        extension.change()
        extension.answer(Command.STATUS, UsbipdError("libusb fails", code="libusb"))
        drain(connection)

    with extension(talks=[failing, one_status]):
        view = run_watch(socket_path, 2, pause=lambda _seconds: None)
    assert view.told == ["the daemon could not report its status: libusb fails; trying again", BACK]


def test_what_the_first_request_fails_with_is_an_error(extension: Extension, socket_path: Path) -> None:
    def refusing(connection: socket.socket) -> None:
        Scripted(connection).answer(Command.WATCH, UsbipdError("no", code="not-permitted"))
        drain(connection)

    view = RecordingView(1, no_pause)
    with extension(talk=refusing), ControlConnection(str(socket_path), timeout=10) as control:
        control.open()
        with pytest.raises(UsbipdError, match="no"):
            watch(control, view, NEVER)
    assert (view.seen, view.told, view.closed) == ([], [], True)


def test_another_version_that_comes_back_ends_it(extension: Extension, socket_path: Path) -> None:
    def newer(connection: socket.socket) -> None:
        connection.sendall(hello(IPC_VERSION + 1))
        drain(connection)

    with extension(talks=[one_status, newer]), ControlConnection(str(socket_path), timeout=10) as control:
        control.open()
        with pytest.raises(ExtensionUnreachableError) as caught:
            watch(control, RecordingView(2, lambda _seconds: None), NEVER)
    assert caught.value.code == "version"


# ---- what goes to the terminal ---------------------------------------------------------------------------


def test_a_frame_overwrites_what_was_there() -> None:
    assert frame(["one", "two"], 80, 24) == "\x1b[Hone\x1b[K\ntwo\x1b[K\n\x1b[J"


def test_a_line_of_full_width_is_not_cleared_behind() -> None:
    assert frame(["abcd", "abc", "日本"], 4, 24) == "\x1b[Habcd\nabc\x1b[K\n日本\n\x1b[J"


def test_a_line_that_is_too_long_does_not_take_two() -> None:
    assert frame(["abcde"], 4, 24) == "\x1b[Habc…\n\x1b[J"


@pytest.mark.parametrize("height", [1, 2, 5])
def test_a_frame_never_scrolls(height: int) -> None:
    text = frame([str(number) for number in range(9)], 80, height)
    assert text.count("\n") == max(height - 1, 1)


def test_a_coloured_line_is_cut_without_its_colour_running_on() -> None:
    assert frame(["\x1b[32mabcde\x1b[0m"], 4, 24) == "\x1b[H\x1b[32mabc\x1b[0m…\n\x1b[J"
    assert frame(["\x1b[32mabc\x1b[0m"], 4, 24) == "\x1b[H\x1b[32mabc\x1b[0m\x1b[K\n\x1b[J"


def test_the_live_view_says_what_it_has_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    view = LiveView(lambda status, width: f"{status.version} {width}\n")
    view.show(make_status([]))
    first = capsys.readouterr().out
    view.tell("lost it")
    second = capsys.readouterr().out
    assert first.startswith("\n" * 23 + "\x1b[H")
    assert second.startswith("\x1b[H")
    assert "0.1.0 80\x1b[K\n" in first
    assert "0.1.0 80\x1b[K\n" in second  # what was known last stays
    assert "lost it" in second
    view.close()
    assert capsys.readouterr().out == "\n"


def test_a_live_view_that_showed_nothing_leaves_the_terminal_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    LiveView(lambda _status, _width: "").close()
    assert capsys.readouterr().out == ""


def test_any_number_of_keys_costs_one_drawing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And neither a request nor a second formatting of the status."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    formatted = []

    def text(_status: StatusResult, width: int) -> str:
        formatted.append(width)
        return "".join(f"line {number}\n" for number in range(1000))

    view = LiveView(text)
    view.show(make_status([]))
    capsys.readouterr()
    woken = Woken(keys=(Key.DOWN,) * 500 + (Key.UP,) * 100)
    monkeypatch.setattr(view._keys, "wait", lambda _readable, _seconds: woken)
    assert not view.wait(None, 0.0)
    out = capsys.readouterr().out
    assert out.count("\x1b[H") == 1
    assert "line 399\x1b" not in out
    assert "line 400\x1b" in out
    assert formatted == [80]
    view.close()


def test_a_live_view_leaves_the_signals_as_they_were() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH)
    before = [signal.getsignal(number) for number in numbers]
    view = LiveView(lambda _status, _width: "")
    assert [signal.getsignal(number) for number in numbers] != before
    view.close()
    assert [signal.getsignal(number) for number in numbers] == before


# ---- whole commands --------------------------------------------------------------------------------------

STATUS = [*program("usbipd"), "status", "--watch", "3600"]
EXT_STATUS = [*program("usbipd-ext"), "--status", "--watch", "3600"]


def spawn(command: Sequence[str], path: Path, stdout: Any = subprocess.PIPE) -> "subprocess.Popen[str]":
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm", "TZ": "UTC0"}
    return subprocess.Popen(
        [*command, "--socket", str(path)], stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment
    )


def shown_then_interrupted(connection: socket.socket) -> None:
    """A status, a change, and a Ctrl-C while the next one is awaited."""
    extension = Scripted(connection)
    extension.answer(Command.WATCH, Nothing())
    extension.answer_status()
    extension.change()
    extension.expect(Command.STATUS)
    os.kill(peer_of(connection).pid, signal.SIGINT)
    drain(connection)


def test_json_is_a_document_a_line(extension: Extension, socket_path: Path) -> None:
    with extension(talks=[one_status, shown_then_interrupted]):
        command = spawn([*STATUS, "--json"], socket_path)
        out, err = command.communicate(timeout=30)
    assert command.returncode == 130
    lines = out.splitlines()
    assert [json.loads(line)["status"]["pid"] for line in lines] == [4711, 4711]
    assert err.splitlines() == [LOST, BACK]


def test_what_is_no_terminal_gets_one_block_after_the_other(extension: Extension, socket_path: Path) -> None:
    with extension(talks=[one_status, shown_then_interrupted]):
        command = spawn(STATUS, socket_path)
        out, err = command.communicate(timeout=30)
    assert command.returncode == 130
    assert "\x1b" not in out
    blocks = out.split("usbipd 0.1.0, pid 4711")
    assert len(blocks) == 3
    assert blocks[1].splitlines()[-2] == ""  # between the table and the time of the next block
    assert [line.split(" ", 2)[2] for line in err.splitlines()] == [LOST, BACK]


def test_a_device_that_is_not_there_is_watched_and_named(extension: Extension, socket_path: Path) -> None:
    with extension(talk=shown_then_interrupted):
        out, _err = spawn([*STATUS, "9-9"], socket_path).communicate(timeout=30)
    assert out.endswith("\n\nNo device matches '9-9'.\n\n")


@pytest.mark.parametrize("command", [STATUS, EXT_STATUS], ids=["usbipd", "usbipd-ext"])
def test_a_terminal_is_drawn_over(extension: Extension, socket_path: Path, command: list[str]) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    shown = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # EIO: nobody has the terminal any more
            while data := os.read(master, 4096):
                shown.extend(data)

    reader = threading.Thread(target=read)
    with extension(talks=[one_status, shown_then_interrupted]):
        process = spawn(command, socket_path, slave)
        os.close(slave)
        reader.start()
        _out, err = process.communicate(timeout=30)
    reader.join()
    os.close(master)
    text = shown.decode()
    assert (process.returncode, err) == (130, "")
    assert text.count("\x1b[H") == 4  # the status, that it is lost, that it is back, the status
    assert text.endswith("\x1b[J\r\n")
    last = text.rpartition("\x1b[H")[2]
    assert BACK in last
    assert "usbipd 0.1.0, pid 4711" in last
    assert ("PROCESS" in last) == (command is EXT_STATUS)


def test_a_terminal_that_obeys_nothing_gets_blocks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    view = view_for(lambda _status, _width: "", as_json=False)
    view.close()
    assert isinstance(view, LiveView)
    for name in ("dumb", ""):
        monkeypatch.setenv("TERM", name)
        assert isinstance(view_for(lambda _status, _width: "", as_json=False), Blocks)
    monkeypatch.delenv("TERM")
    assert isinstance(view_for(lambda _status, _width: "", as_json=False), Blocks)


def test_nobody_reads_any_more(extension: Extension, socket_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with extension(talk=drain):
        command = spawn([*STATUS, "--json"], socket_path, writing)
        _out, err = command.communicate(timeout=30)
    os.close(writing)
    assert (command.returncode, err) == (141, "")


def test_a_reader_that_leaves_ends_it_at_once(extension: Extension, socket_path: Path) -> None:
    """Not when there is something to write next, which may take hours."""

    def talk(connection: socket.socket) -> None:
        one_status(connection)
        drain(connection)

    with extension(talk=talk):
        command = spawn([*STATUS, "--json"], socket_path)
        assert command.stdout is not None
        assert command.stdout.readline().startswith('{"format":1')
        command.stdout.close()
        assert command.wait(timeout=30) == 141


def test_without_an_extension_there_is_nothing_to_watch(socket_path: Path) -> None:
    command = spawn(STATUS, socket_path)
    out, err = command.communicate(timeout=30)
    assert (command.returncode, out) == (3, "")
    assert "not running" in err
