"""packaging/foreground.py under make: Ctrl-C ends the command, and make exits with 0.  The command also ends
with its terminal and with make."""

import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest

PATIENCE = 20.0
FOREGROUND = Path(__file__).parents[3] / "packaging" / "foreground.py"


@pytest.fixture(autouse=True)
def no_outer_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `make test` the make of a test would be a recursive one, and print its directory."""
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        monkeypatch.delenv(name, raising=False)


COMMAND = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.{signal}])
print("up", flush=True)
signal.sigwait([signal.{signal}])
sys.exit({code})
"""


def script(directory: Path, name: str, code: int) -> list[str]:
    path = directory / "command.py"
    path.write_text(COMMAND.format(signal=name, code=code))
    return [sys.executable, str(FOREGROUND), sys.executable, str(path)]


def read_until(descriptor: int, end: bytes | None) -> bytes:
    """The output on a terminal up to `end`, or until no process has the terminal open."""
    text = b""
    while end is None or end not in text:
        try:
            data = os.read(descriptor, 4096)
        except OSError:  # Linux reports EIO instead of end of file
            data = b""
        if not data:
            assert end is None, text
            break
        text += data
    return text


@pytest.mark.parametrize("keys", [b"\x03", b"\x1a\x03"], ids=["Ctrl-C", "Ctrl-Z, Ctrl-C"])
@pytest.mark.parametrize(("code", "status"), [(0, 0), (3, 2)])
def test_ctrl_c_on_a_terminal(tmp_path: Path, keys: bytes, code: int, status: int) -> None:
    recipe = " ".join(script(tmp_path, "SIGINT", code))
    (tmp_path / "Makefile").write_text(f"run:\n\t@exec {recipe}\n")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execvp("make", ["make", "run"])
    try:
        read_until(terminal, b"up")
        os.write(terminal, keys)
        said = read_until(terminal, None)
    finally:
        os.close(terminal)
        _pid, ended = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(ended) == status
    assert (b"***" in said) == (status != 0)


def test_make_regains_the_terminal(tmp_path: Path) -> None:
    """A later line of the recipe may read from it."""
    command = f"{sys.executable} {FOREGROUND} true"
    look = "import os; print('ours' if os.tcgetpgrp(0) == os.getpgrp() else 'lost')"
    (tmp_path / "Makefile").write_text(f'run:\n\t@{command}\n\t@{sys.executable} -c "{look}"\n')
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execvp("make", ["make", "run"])
    try:
        assert read_until(terminal, None).split() == [b"ours"]
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_are_forwarded_to_the_command(tmp_path: Path, name: str) -> None:
    with subprocess.Popen(
        script(tmp_path, name, 7), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(getattr(signal, name))
        assert process.wait(10) == 7


def test_a_command_killed_by_a_signal(tmp_path: Path) -> None:
    command = [sys.executable, str(FOREGROUND), "/bin/sh", "-c", "kill -TERM $$"]
    assert subprocess.run(command, check=False).returncode == 128 + signal.SIGTERM


WATCHED = """
import os, signal
signals = [signal.SIGTERM, signal.SIGHUP]
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
with open("said", "w") as said:
    print(os.getpid(), file=said, flush=True)
    print(signal.Signals(signal.sigwait(signals)).name, file=said)
"""


def ends(said: TextIO, command: int) -> bool:
    """Whether the command exits; if not, it is killed."""
    if not select.select([said], [], [], PATIENCE)[0]:
        os.kill(command, signal.SIGKILL)
        return False
    return said.readline() in ("SIGTERM\n", "SIGHUP\n")


@pytest.fixture
def makefile(tmp_path: Path) -> Path:
    """A Makefile whose command writes its pid and the signal that ends it into the FIFO `said`."""
    (tmp_path / "command.py").write_text(WATCHED)
    os.mkfifo(tmp_path / "said")
    path = tmp_path / "Makefile"
    path.write_text(f"run:\n\t@exec {sys.executable} {FOREGROUND} {sys.executable} command.py $(STDIN)\n")
    return path


@pytest.mark.parametrize("stdin", ["", "</dev/null"], ids=["terminal", "null"])
def test_the_command_ends_with_its_terminal(makefile: Path, stdin: str) -> None:
    """make is the session leader, as in a terminal opened for it."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(makefile.parent)
        os.execvp("make", ["make", "run", f"STDIN={stdin}"])
    with makefile.with_name("said").open() as said:
        command = int(said.readline())
        os.close(terminal)
        has_ended = ends(said, command)
    os.waitpid(pid, 0)
    assert has_ended


def test_the_command_ends_with_make(makefile: Path) -> None:
    with (
        subprocess.Popen(["make", "run"], cwd=makefile.parent, stdin=subprocess.DEVNULL) as make,
        makefile.with_name("said").open() as said,
    ):
        command = int(said.readline())
        make.kill()
        assert ends(said, command)
