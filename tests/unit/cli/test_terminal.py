"""The size of the terminal: that which shutil finds, too."""

import fcntl
import os
import struct
import subprocess
import sys
import termios

import pytest

PROGRAM = "from usbipd.cli.terminal import terminal_size; print(*terminal_size(), file=sys.stderr)"
REFERENCE = "import shutil; print(*shutil.get_terminal_size((80, 24)), file=sys.stderr)"


def size_seen(program: str, stdout: int, variables: dict[str, str]) -> str:
    """What a process with that output prints."""
    command = [sys.executable, "-c", f"import sys; {program}"]
    environment = {"PATH": os.environ["PATH"]} | variables
    done = subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, check=True
    )
    return done.stderr.strip()


@pytest.mark.parametrize(
    ("variables", "size"),
    [
        ({}, "100 30"),
        ({"COLUMNS": "70"}, "70 30"),
        ({"LINES": "20"}, "100 20"),
        ({"COLUMNS": "70", "LINES": "20"}, "70 20"),
        ({"COLUMNS": "0", "LINES": "-1"}, "100 30"),
        ({"COLUMNS": "wide", "LINES": ""}, "100 30"),
    ],
)
def test_the_terminal_unless_the_environment_says_otherwise(variables: dict[str, str], size: str) -> None:
    controller, terminal = os.openpty()
    try:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        assert size_seen(PROGRAM, terminal, variables) == size
        assert size_seen(REFERENCE, terminal, variables) == size
    finally:
        os.close(terminal)
        os.close(controller)


def test_a_terminal_that_does_not_know_its_size() -> None:
    controller, terminal = os.openpty()
    try:
        assert size_seen(PROGRAM, terminal, {}) == size_seen(REFERENCE, terminal, {}) == "80 24"
    finally:
        os.close(terminal)
        os.close(controller)


@pytest.mark.parametrize(("variables", "size"), [({}, "80 24"), ({"COLUMNS": "70"}, "70 24")])
def test_no_terminal(variables: dict[str, str], size: str) -> None:
    assert size_seen(PROGRAM, subprocess.DEVNULL, variables) == size
