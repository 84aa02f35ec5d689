"""The processes of the single executable, with fake directories of unpacked files and real processes."""

import fcntl
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from usbipd import frozen
from usbipd.errors import UsbipdError

Unpack = Callable[[int], Path]

LAUNCHER = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]]).wait()"

CHILD = """
import os, signal, sys
from usbipd.frozen import end_with

signal.signal(signal.SIGTERM, lambda *_: print("ended", flush=True))
parent = os.getppid()
descriptors = set(os.listdir("/dev/fd"))
print("up", flush=True)
{before}
end_with(parent)
print(set(os.listdir("/dev/fd")) == descriptors, flush=True)
"""


@pytest.fixture
def unpack(tmp_path: Path) -> Unpack:
    """Creates a directory as a launcher with that pid would."""

    def make(launcher: int) -> Path:
        path = tmp_path / f"_MEI{launcher:08x}aB3_xZ"
        path.mkdir(0o700)
        (path / "usbipd").mkdir()
        (path / "usbipd" / "_pump.so").touch()
        (path / frozen.MARK).write_text("1.0.30\n")
        return path

    return make


@pytest.fixture
def home(unpack: Unpack, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of this process, as if it were frozen."""
    path = unpack(os.getppid())
    monkeypatch.setattr(sys, "_MEIPASS", str(path), raising=False)
    return path


def ended_pid() -> int:
    """The pid of a process that has exited."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return process.pid


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """As a process that uses these files."""
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    try:
        yield
    finally:
        os.close(descriptor)


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


# ---- left-over directories ---------------------------------------------------------------------------------


def test_the_directory_of_a_dead_launcher_is_stale(unpack: Unpack, tmp_path: Path) -> None:
    path = unpack(ended_pid())
    assert frozen.stale(str(tmp_path)) == [str(path)]


@pytest.mark.parametrize("unpacked", [[], [frozen.MARK]])
def test_an_incomplete_directory_is_stale(unpack: Unpack, tmp_path: Path, unpacked: list[str]) -> None:
    path = unpack(ended_pid())
    shutil.rmtree(path / "usbipd")
    for name in {frozen.MARK} - set(unpacked):
        (path / name).unlink()
    assert frozen.stale(str(tmp_path)) == [str(path)]


def test_a_directory_in_use_is_not_stale(unpack: Unpack, tmp_path: Path) -> None:
    path = unpack(ended_pid())
    with locked(path):
        assert frozen.stale(str(tmp_path)) == []
    assert frozen.stale(str(tmp_path)) == [str(path)]


def test_a_directory_that_is_being_unpacked_is_not_stale(unpack: Unpack, tmp_path: Path) -> None:
    """It has no lock yet.  Later, the pid belongs to another process."""
    path = unpack(os.getpid())
    assert frozen.stale(str(tmp_path)) == []
    age(path, 3600)
    assert frozen.stale(str(tmp_path)) == [str(path)]


@pytest.mark.parametrize("change", ["name", "mode", "content", "link"])
def test_directories_of_other_programs_are_left_alone(unpack: Unpack, tmp_path: Path, change: str) -> None:
    path = unpack(ended_pid())
    match change:
        case "name":
            path.rename(tmp_path / "_MEI123456")  # the name with older PyInstallers
        case "mode":
            path.chmod(0o755)
        case "content":
            (path / frozen.MARK).rename(path / "other")
        case "link":
            path.rename(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
    assert frozen.stale(str(tmp_path)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_directories_of_another_user_are_left_alone(unpack: Unpack, tmp_path: Path) -> None:
    os.chown(unpack(ended_pid()), 1, 1)
    assert frozen.stale(str(tmp_path)) == []


def test_nothing_is_stale_in_a_missing_directory(tmp_path: Path) -> None:
    assert frozen.stale(str(tmp_path / "none")) == []


# ---- files for children ------------------------------------------------------------------------------------


def test_the_name_of_the_directory_has_the_pid_of_the_launcher(home: Path) -> None:
    assert frozen.launcher() == os.getppid()


def test_children_get_the_files_of_this_process(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_PYI_ARCHIVE_FILE", "/usr/bin/usbipd")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/home/somebody")
    found = frozen.Unpacked().environment()
    assert found["_PYI_ARCHIVE_FILE"] == "/usr/bin/usbipd"
    assert found.get("LD_LIBRARY_PATH") == (None if sys.platform == "darwin" else str(home))


def test_children_unpack_their_own_files_if_one_is_missing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_PYI_ARCHIVE_FILE", "/usr/bin/usbipd")
    unpacked = frozen.Unpacked()
    (home / "usbipd" / "_pump.so").unlink()
    assert unpacked.environment() == {"PYINSTALLER_RESET_ENVIRONMENT": "1"}


BEGINS = """
import fcntl, os, sys
from usbipd import frozen
frozen._thread.start_new_thread = lambda function, arguments: print("thread:", function.__name__)
sys._MEIPASS = os.path.join(sys.argv.pop(), f"_MEI{os.getppid():08x}aB3_xZ")
os.mkdir(sys._MEIPASS)
frozen.begin()
descriptor = os.open(sys._MEIPASS, os.O_RDONLY)
try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("locked")
"""


@pytest.mark.parametrize(
    ("role", "said"),
    [("--run", "thread: end_with\nlocked\n"), ("@server", "locked\n"), ("@worker", "locked\n")],
)
def test_a_process_with_its_own_files(tmp_path: Path, role: str, said: str) -> None:
    """In a server or worker, the thread would start before the confinement."""
    command = [sys.executable, "-c", BEGINS, role, str(tmp_path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == said


# ---- libusb ------------------------------------------------------------------------------------------------


def test_the_packed_libusb(home: Path) -> None:
    frozen.check_libusb("1.0.30")


def test_a_libusb_without_our_patches(home: Path) -> None:
    (home / frozen.MARK).write_text("1.0.30-usbipd2\n")
    frozen.check_libusb("1.0.30-usbipd2")
    with pytest.raises(
        UsbipdError, match=r"built with libusb 1\.0\.30-usbipd2, but runs with libusb 1\.0\.30$"
    ):
        frozen.check_libusb("1.0.30")


def test_another_libusb(home: Path) -> None:
    with pytest.raises(
        UsbipdError, match=r"built with libusb 1\.0\.30, but runs with libusb 1\.0\.26"
    ) as raised:
        frozen.check_libusb("1.0.26")
    assert raised.value.code == "wrong-libusb"


# ---- the end of the launcher -------------------------------------------------------------------------------


@contextmanager
def family(before: str) -> Iterator["subprocess.Popen[str]"]:
    """A launcher; its child runs `before` and waits for the launcher to end; the pipes are the child's."""
    command = [sys.executable, "-c", LAUNCHER, CHILD.format(before=before)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as launcher:
        yield launcher


def said(launcher: "subprocess.Popen[str]") -> str:
    assert launcher.stdout is not None
    return launcher.stdout.readline().strip()


def test_a_launcher_that_is_killed() -> None:
    with family("") as launcher:
        assert said(launcher) == "up"
        launcher.send_signal(signal.SIGKILL)
        assert said(launcher) == "ended"
        assert said(launcher) == "True", "no descriptor stays open"


@pytest.mark.parametrize("reaped", [False, True])
def test_a_launcher_that_was_killed_before(reaped: bool) -> None:
    with family("sys.stdin.readline()") as launcher:
        assert said(launcher) == "up"
        launcher.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, launcher.pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
        assert launcher.stdin is not None
        launcher.stdin.write("go on\n")
        launcher.stdin.flush()
        assert said(launcher) == "ended"
        assert said(launcher) == "True"


class Kqueue:
    """kqueue of the BSDs, on a socket: readable once the test ends the process."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.gone = False
        self._ours, self.process = socket.socketpair()

    def control(self, events: list[tuple[object, ...]] | None, count: int, timeout: float | None = 0) -> None:
        if self.gone:
            raise ProcessLookupError
        if events is not None:
            assert count == 0
            self.asked += events
        else:
            assert (count, timeout) == (1, None)
            select.select([self._ours], [], [])

    def close(self) -> None:
        self._ours.close()


@pytest.fixture
def kqueue(monkeypatch: pytest.MonkeyPatch) -> Kqueue:
    queue = Kqueue()
    names = {name: name for name in ("KQ_FILTER_PROC", "KQ_EV_ADD", "KQ_NOTE_EXIT")}
    fake = SimpleNamespace(kqueue=lambda: queue, kevent=lambda *fields: fields, **names)
    monkeypatch.setattr(frozen, "_BSD", fake)
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    return queue


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The signals sent to this process."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *call: sent.append(call))
    return sent


def test_kqueue(kqueue: Kqueue, ended: list[tuple[int, int]]) -> None:
    kqueue.process.close()
    frozen.end_with(os.getppid())
    assert kqueue.asked == [(os.getppid(), "KQ_FILTER_PROC", "KQ_EV_ADD", "KQ_NOTE_EXIT")]
    assert ended == [(os.getpid(), signal.SIGTERM)]


def test_kqueue_of_a_process_that_is_gone(kqueue: Kqueue, ended: list[tuple[int, int]]) -> None:
    kqueue.gone = True
    frozen.end_with(os.getppid())
    assert ended == [(os.getpid(), signal.SIGTERM)]


def test_descriptors_of_closed_streams_are_not_used(tmp_path: Path) -> None:
    program = (
        "import os; from usbipd import frozen; frozen._lock('/');"
        "found = [number for number in range(3) if os.path.exists(f'/dev/fd/{number}')];"
        f"open({str(tmp_path / 'found')!r}, 'w').write(repr(found))"
    )
    closed = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(program)} <&- >&- 2>&-"
    subprocess.run(["/bin/sh", "-c", closed], check=True)
    assert (tmp_path / "found").read_text() == "[]"


def test_a_system_that_cannot_watch_processes(
    monkeypatch: pytest.MonkeyPatch, ended: list[tuple[int, int]]
) -> None:
    def refuse(_pid: int) -> int:
        raise OSError(38, "ENOSYS")

    monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    frozen.end_with(os.getppid())
    assert ended == []
