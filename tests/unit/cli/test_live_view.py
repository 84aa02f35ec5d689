"""`status --watch` on a terminal: keys, resizing, and the mode of the terminal afterwards."""

import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.programs import EXECUTABLE, program
from tests.unit.cli.conftest import drain
from tests.unit.cli.reports import make_device, make_status
from tests.unit.cli.screen import PATIENCE, TerminalJob
from tests.unit.cli.test_watch import Scripted, one_status
from usbipd.errors import UsbipdError
from usbipd.ipc.messages import Command, Nothing

Extension = Callable[..., AbstractContextManager[None]]

pytestmark = pytest.mark.skipif(EXECUTABLE is not None, reason="the job is the Python that is looked at here")

DEVICES = 30


def many_devices(connection: socket.socket) -> None:
    """A status of many lines, then silence."""
    extension = Scripted(connection)
    extension.answer(Command.WATCH, Nothing())
    extension.answer(
        Command.STATUS,
        make_status([make_device(f"1-{number}", product=f"number {number}") for number in range(DEVICES)]),
    )
    drain(connection)


def watch(socket_path: Path, **size: int) -> TerminalJob:
    return TerminalJob(
        [*program("usbipd"), "status", "--watch", "3600", "--socket", str(socket_path)],
        **size,  # type: ignore[arg-type]
    )


def numbers(lines: list[str]) -> list[int]:
    """The numbers of the devices on the screen."""
    return [int(line.split("number ")[1].split()[0]) for line in lines if "number " in line]


def starts_with(number: int) -> Callable[[list[str]], bool]:
    return lambda lines: numbers(lines)[:1] == [number]


def test_the_keys_scroll_and_q_ends(extension: Extension, socket_path: Path) -> None:
    with extension(talk=many_devices), watch(socket_path, rows=14) as job:
        lines = job.shows(lambda lines: "scroll; q quits" in lines[0] and numbers(lines) != [])
        assert "1-11 of 35" in lines[0]
        assert numbers(lines) == list(range(6))  # below the daemon and the titles
        assert "\x1b[32mshared\x1b[0m" in job.written
        assert not job.is_cooked()
        for keys, first in [
            (b"\x1b[B" * 5, 0),
            (b"j", 1),
            (b"\x1b[A", 0),
            (b"\x1b[B", 1),
            (b"\x1b[6~", 12),
            (b"k", 11),
            (b"\x1b[5~", 0),
            (b"\x1b[F", 19),
            (b"\x1b[H\x1b[6~", 6),
        ]:
            job.type(keys)
            job.shows(starts_with(first))
        job.type(b"\x1b[F")
        lines = job.shows(starts_with(19))
        assert numbers(lines) == list(range(19, DEVICES))
        assert "25-35 of 35" in lines[0]
        job.type(b"\x1b[B\x1b[6~k")
        job.shows(starts_with(18))  # it stopped at the end
        job.type(b"q")
        assert job.has_ended() == 0
        assert job.is_cooked()
        assert numbers(job.screen.lines)[0] == 18  # the last screen stays


def test_short_status_does_not_scroll(extension: Extension, socket_path: Path) -> None:
    with extension(talk=many_devices), watch(socket_path, rows=50) as job:
        lines = job.shows(lambda lines: len(numbers(lines)) == DEVICES)
        assert lines[0].endswith("   q quits")
        job.type(b"\x1b[6~jq")
        assert job.has_ended() == 0
        assert numbers(job.screen.lines)[0] == 0


def test_another_size(extension: Extension, socket_path: Path) -> None:
    with extension(talk=many_devices), watch(socket_path, rows=14) as job:
        job.shows(starts_with(0))
        job.type(b"\x1b[F")
        job.shows(starts_with(19))
        job.resize(24, 120)
        lines = job.shows(lambda lines: len(numbers(lines)) == 21)
        assert numbers(lines)[-1] == DEVICES - 1  # the end stays the end
        assert "15-35 of 35" in lines[0]
        job.type(b"\x1b[H")
        lines = job.shows(lambda lines: any("VID:PID" in line for line in lines))  # it fits now
        job.resize(5, 40)
        job.shows(lambda lines: lines[0].startswith("q quits   1-2 of "))
        job.resize(5, 12)
        job.shows(lambda lines: lines[0].startswith("q quits") and len(lines[0]) <= 12)
        job.type(b"q")
        assert job.has_ended() == 0


def test_q_ends_it_while_the_daemon_does_not_answer(extension: Extension, socket_path: Path) -> None:
    is_asked = threading.Event()

    def talk(connection: socket.socket) -> None:
        extension = Scripted(connection)
        extension.answer(Command.WATCH, Nothing())
        extension.answer_status()
        extension.change()
        extension.expect(Command.STATUS)
        is_asked.set()
        drain(connection)

    with extension(talk=talk), watch(socket_path) as job:
        job.shows(lambda lines: "q quits" in lines[0])
        assert is_asked.wait(PATIENCE)
        job.type(b"q")
        assert job.has_ended() == 0


def test_q_ends_it_while_the_daemon_is_away(extension: Extension, socket_path: Path) -> None:
    with extension(talk=one_status):
        job = watch(socket_path)
        job.shows(lambda lines: any("trying again" in line for line in lines))
    with job:
        job.type(b"q")
        assert job.has_ended() == 0
        assert job.is_cooked()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_that_ends_it(extension: Extension, socket_path: Path, number: signal.Signals) -> None:
    with extension(talk=many_devices), watch(socket_path) as job:
        job.shows(starts_with(0))
        os.kill(job.pid, number)
        assert job.has_ended() == -number
        assert job.is_cooked()


def test_ctrl_c_ends_it(extension: Extension, socket_path: Path) -> None:
    with extension(talk=many_devices), watch(socket_path) as job:
        job.shows(starts_with(0))
        job.type(b"\x03")
        assert job.has_ended() == 130
        assert job.is_cooked()


def test_an_error_that_ends_it(extension: Extension, socket_path: Path) -> None:
    def refuse(connection: socket.socket) -> None:
        Scripted(connection).answer(Command.WATCH, UsbipdError("no", code="not-permitted"))
        drain(connection)

    with extension(talk=refuse), watch(socket_path) as job:
        assert job.has_ended() == 1
        assert job.is_cooked()
        job.shows(lambda lines: "usbipd: no" in lines)


def test_ctrl_z_restores_the_terminal_and_fg_resumes(extension: Extension, socket_path: Path) -> None:
    with extension(talk=many_devices), watch(socket_path, rows=14) as job:
        job.shows(starts_with(0))
        for _ in range(2):
            job.type(b"\x1a")
            assert job.has_stopped() == signal.SIGTSTP
            assert job.is_cooked()
            job.screen.write("what the shell prints\r\n" * 20)
            job.order("fg")
            lines = job.shows(lambda lines: starts_with(0)(lines) and "q quits" in lines[0])
            assert "what the shell prints" not in lines
            job.type(b"\x1b[6~")
            job.shows(starts_with(6))
            job.type(b"\x1b[H")
            job.shows(starts_with(0))
        job.type(b"q")
        assert job.has_ended() == 0
        assert job.is_cooked()


def test_sigstop(extension: Extension, socket_path: Path) -> None:
    with extension(talk=many_devices), watch(socket_path, rows=14) as job:
        job.shows(starts_with(0))
        os.kill(job.pid, signal.SIGSTOP)
        assert job.has_stopped() == signal.SIGSTOP
        job.cook()
        job.order("fg")
        job.type(b"\x1b[F")
        job.shows(starts_with(19))
        job.type(b"q")
        assert job.has_ended() == 0
        assert job.is_cooked()


def test_in_the_background_it_neither_draws_nor_reads(extension: Extension, socket_path: Path) -> None:
    """The kernel would stop it, or it would draw over the output of the shell."""
    is_stopped, is_shown = threading.Event(), threading.Event()

    def talk(connection: socket.socket) -> None:
        extension = Scripted(connection)
        extension.answer(Command.WATCH, Nothing())
        extension.answer_status()
        assert is_stopped.wait(PATIENCE)
        for number in (1, 2):  # the second is requested after the first was shown or skipped
            extension.change()
            extension.answer_status(error_count=number)
        is_shown.set()
        drain(connection)

    with extension(talk=talk), watch(socket_path) as job:
        job.shows(lambda lines: "q quits" in lines[0])
        job.type(b"\x1a")
        assert job.has_stopped() == signal.SIGTSTP
        job.screen.write("\x1b[H\x1b[J")
        job.order("bg")
        is_stopped.set()
        assert is_shown.wait(PATIENCE)
        job.type(b"q")
        os.kill(job.pid, signal.SIGTERM)
        assert job.has_ended() == -signal.SIGTERM
        assert not any("usbipd" in line for line in job.screen.lines)
        assert job.is_cooked()
