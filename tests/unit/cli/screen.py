"""A terminal for commands: a pty, the content of its screen, and the job control of a shell."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from typing import Final, Self

PATIENCE: Final = 20.0
"""Seconds after which a wait fails."""

_TOKEN: Final = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+|\x1b")

_JOB: Final = """
import os, signal, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
def foreground(group):
    os.tcsetpgrp(0, group)
pid = os.fork()
if pid == 0:
    os.setpgid(0, 0)
    foreground(os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
with open(3, "w", buffering=1) as report, open(4) as orders:
    print("pid", pid, file=report)
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        foreground(os.getpgrp())
        if not os.WIFSTOPPED(status):
            print("ended", os.waitstatus_to_exitcode(status), file=report)
            break
        print("stopped", os.WSTOPSIG(status), file=report)
        if orders.readline() == "fg\\n":
            foreground(pid)
        os.killpg(pid, signal.SIGCONT)
"""
"""A shell that runs one job in the foreground and reports its state; `fg` resumes it there."""


class Screen:
    """The screen of a terminal of this size; understands text, CUP home, EL, ED and SGR."""

    def __init__(self, rows: int, columns: int) -> None:
        self.size = rows, columns
        self.lines = [""] * rows
        self._row = self._column = 0

    def write(self, text: str) -> None:
        for token in _TOKEN.finditer(text):
            rows, columns = self.size
            match token[0], token[2]:
                case "\r", _:
                    self._column = 0
                case "\n", _:
                    if self._row == rows - 1:
                        self.lines = [*self.lines[1:], ""]
                    else:
                        self._row += 1
                case _, "H":
                    self._row = self._column = 0
                case _, "K":
                    self.lines[self._row] = self.lines[self._row][: self._column]
                case _, "J":
                    below = self.lines[self._row][: self._column]
                    self.lines = [*self.lines[: self._row], below, *[""] * (rows - self._row - 1)]
                case _, "m":
                    pass
                case text, None:
                    line = self.lines[self._row].ljust(self._column)
                    line = line[: self._column] + text + line[self._column + len(text) :]
                    assert len(line) <= columns, f"a line that the terminal would break: {line!r}"
                    self.lines[self._row], self._column = line, self._column + len(text)
                case unknown, _:
                    raise AssertionError(f"an escape sequence that nothing here prints: {unknown!r}")

    def resize(self, rows: int, columns: int) -> None:
        """Resize like a terminal that keeps its upper lines and wraps none."""
        self.size = rows, columns
        self.lines = [line[:columns] for line in (*self.lines, *[""] * rows)][:rows]
        self._row = min(self._row, rows - 1)


class TerminalJob:
    """A command as the foreground job of a shell on a terminal."""

    def __init__(self, command: Sequence[str], rows: int = 24, columns: int = 80, **variables: str) -> None:
        self.screen = Screen(rows, columns)
        self.written = ""
        """Everything written to the terminal."""
        self._master, self._slave = pty.openpty()
        self._resize(rows, columns)
        self.mode = termios.tcgetattr(self._slave)
        """The original mode of the terminal."""
        report, report_end = os.pipe()
        orders_end, self._orders = os.pipe()
        environment = {"PATH": os.environ["PATH"], "TERM": "xterm", "TZ": "UTC0"} | variables
        setup = (
            "import fcntl, os, signal, sys, termios\n"
            "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
            # A job of a script without job control, as `make test &` is, ignores both.
            "for number in (signal.SIGINT, signal.SIGQUIT): signal.signal(number, signal.SIG_DFL)\n"
            f"os.dup2({report_end}, 103); os.dup2({orders_end}, 104); os.dup2(103, 3); os.dup2(104, 4)\n"
        )
        self._shell = subprocess.Popen(
            [sys.executable, "-c", setup + _JOB, sys.executable, *command[1:]],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env=environment,
            start_new_session=True,
            pass_fds=(report_end, orders_end),
        )
        os.close(report_end)
        os.close(orders_end)
        self._report = os.fdopen(report)
        self.pid = int(self._told("pid"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in (self.pid, self._shell.pid):
            with contextlib.suppress(ProcessLookupError):
                if self._shell.poll() is None:
                    os.kill(pid, signal.SIGKILL)
        self._shell.wait()
        self._report.close()
        for descriptor in (self._orders, self._master, self._slave):
            os.close(descriptor)

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def resize(self, rows: int, columns: int) -> None:
        self.screen.resize(rows, columns)
        self._resize(rows, columns)

    def shows(self, condition: Callable[[list[str]], bool]) -> list[str]:
        """The lines of the screen as soon as the condition holds."""
        until = time.monotonic() + PATIENCE
        while not condition(self.screen.lines):
            assert time.monotonic() < until, "\n".join(self.screen.lines)
            self._read(0.1)
        return self.screen.lines

    def is_cooked(self) -> bool:
        """Whether the terminal has its original mode."""
        return termios.tcgetattr(self._slave) == self.mode

    def cook(self) -> None:
        """Restore the original mode of the terminal, as a shell does when its job stops."""
        termios.tcsetattr(self._slave, termios.TCSANOW, self.mode)

    def has_stopped(self) -> int:
        """Wait until the job is stopped; the signal."""
        return int(self._told("stopped"))

    def has_ended(self) -> int:
        """Wait until the job ends; its exit code, negative: the signal that ended it."""
        return int(self._told("ended"))

    def order(self, word: str) -> None:
        """`fg`: continue in the foreground; anything else: in the background."""
        os.write(self._orders, f"{word}\n".encode())

    def _told(self, what: str) -> str:
        until = time.monotonic() + PATIENCE
        while not select.select([self._report], [], [], 0.05)[0]:
            assert time.monotonic() < until, (what, self.screen.lines)
            self._read(0.0)
        word, _, value = self._report.readline().strip().partition(" ")
        assert word == what, (word, value, self.screen.lines)
        return value

    def _read(self, seconds: float) -> None:
        while select.select([self._master], [], [], seconds)[0]:
            text = os.read(self._master, 65536).decode()
            self.written += text
            self.screen.write(text)
            seconds = 0.0

    def _resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
