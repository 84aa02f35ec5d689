"""Features of the executable only: unpacked files, a launcher, a libusb.  Run by `make test-binary`."""

import fcntl
import hashlib
import json
import os
import pwd
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client import Client, ClosedError
from tests.integration.daemon import COMMAND, PATIENCE, USBIPD, Daemon, Lines, running, until
from tests.programs import EXECUTABLE
from usbipd._claim import libusb_runtime_version
from usbipd.frozen import MARK

UNPACKED_IN = Path("/var/tmp")

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def unpacked() -> set[Path]:
    """The existing directories of unpacked files."""
    return {path.parent for path in UNPACKED_IN.glob(f"_MEI*/{MARK}")}


def home(launcher: int) -> Path:
    """The directory of this launcher's unpacked files."""
    [path] = [path for path in unpacked() if path.name.startswith(f"_MEI{launcher:08x}")]
    return path


def mapped(pid: int) -> set[Path]:
    """The files that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {Path(line.split(maxsplit=5)[5]) for line in lines if "/" in line}


def run(*command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command to its end."""
    return subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def is_serving(daemon: Daemon) -> bool:
    try:
        return len(Client(daemon.host, daemon.port).devlist()) == daemon.devices
    except (OSError, ClosedError):  # no process listens or accepts
        return False


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Each test must remove the files that it creates; existing files belong to others."""
    before = unpacked()
    yield
    until(lambda: unpacked() <= before)


def test_files_are_private_and_removed_with_the_process(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    try:
        directory = home(daemon.process.pid)
        status = directory.stat()
        assert stat.S_IMODE(status.st_mode) == 0o700
        assert status.st_uid == os.geteuid()
        with pytest.raises(BlockingIOError):  # tells systemd-tmpfiles not to clean here
            lock(directory)
        daemon.stop()
        assert not directory.exists()
    finally:
        daemon.kill()


@on_linux
def test_all_processes_use_the_same_files_and_libusb(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    try:
        directory = home(daemon.process.pid)
        for process in daemon.status()["processes"]:
            files = mapped(process["pid"])
            assert any(file.is_relative_to(directory) and "libpython" in file.name for file in files)
            libusb = {file for file in files if "libusb" in file.name}
            assert libusb == (set() if process["role"] == "server" else {directory / "libusb-1.0.so.0"})
        daemon.stop()
    finally:
        daemon.kill()


@on_linux
def test_another_libusb_is_refused() -> None:
    [system] = [file for file in mapped(os.getpid()) if "libusb" in file.name]
    done = run(*COMMAND, "--run", "--simulate", "loopback", LD_PRELOAD=str(system))
    assert done.returncode == 1
    found = ".".join(map(str, libusb_runtime_version()))
    assert (
        f"usbipd-ext: this executable was built with libusb 1.0.30, but runs with libusb {found}"
        in done.stderr
    )
    assert "hint: unset LD_PRELOAD" in done.stderr


def test_the_usb_ids_of_the_bill_of_materials_is_unpacked(tmp_path: Path) -> None:
    assert EXECUTABLE is not None
    bill = json.loads(EXECUTABLE.with_name("usbipd.cdx.json").read_text())
    listed = [part["hashes"][0]["content"] for part in bill["components"] if part["name"] == "usb.ids"]
    daemon = Daemon(tmp_path, "serial")
    try:
        files = list(home(daemon.process.pid).rglob("usb.ids"))
        assert [str(file.relative_to(home(daemon.process.pid))) for file in files] == [
            "usbipd/usb.ids"
        ] * len(listed)
        assert [hashlib.sha256(file.read_bytes()).hexdigest() for file in files] == listed
        daemon.stop()
    finally:
        daemon.kill()


def test_the_daemon_stops_with_its_launcher(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "serial")
    pids = [process["pid"] for process in daemon.status()["processes"]]
    daemon.process.kill()
    daemon.process.wait(PATIENCE)
    daemon.log.wait_for("shutting down")
    daemon.log.close()  # once none of them can write, shortly before they exit
    until(lambda: not running(pids))
    assert not daemon.socket.exists(), "it shut down as on SIGTERM"
    assert run(*USBIPD, "--version").returncode == 0  # removes its files


def test_a_command_exits_with_its_launcher(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "serial")
    try:
        command = [*COMMAND, "--status", "--watch", "3600", "--socket", str(daemon.socket)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
            assert watch.stdout is not None
            output = Lines(watch.stdout)
            output.wait_for("extension")
            watch.kill()
            output.close()  # once no process can write
        daemon.stop()  # removes nothing; the next start does
    finally:
        daemon.kill()
    assert run(*USBIPD, "--version").returncode == 0


def test_files_of_a_killed_launcher_are_removed(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "serial")
    directory = home(daemon.process.pid)
    daemon.process.kill()  # before its child, which would remove them
    daemon.kill()
    daemon.log.close()
    assert directory.exists()
    other = UNPACKED_IN / f"{directory.name[:-6]}others"
    other.mkdir(0o700)  # of another PyInstaller program
    (other / "base_library.zip").touch()
    try:
        assert run(*USBIPD, "--version").returncode == 0
        assert not directory.exists()
        assert other.exists()
    finally:
        shutil.rmtree(other)


def left_by(launcher: int) -> list[Path]:
    """The directories of a launcher, with any contents."""
    return list(UNPACKED_IN.glob(f"_MEI{launcher:08x}??????"))


def check_next_start_removes_leftovers(launchers: list[int]) -> None:
    left = [path for launcher in launchers for path in left_by(launcher)]
    assert [path for path in left if not (path / "base_library.zip").exists()], "each had unpacked everything"
    assert run(*USBIPD, "--version").returncode == 0
    assert not [path for path in left if path.exists()]


def limit_files_to(size: int) -> None:
    """Makes the kernel kill this process with SIGXFSZ when it writes a file of more than `size` bytes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("size", [0, 1 << 12, 1 << 20])
def test_a_launcher_killed_while_writing_a_file(size: int) -> None:
    with subprocess.Popen([*USBIPD, "--version"], preexec_fn=lambda: limit_files_to(size)) as launcher:
        assert launcher.wait(PATIENCE) == -signal.SIGXFSZ
    check_next_start_removes_leftovers([launcher.pid])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_launcher_killed_while_unpacking(number: signal.Signals) -> None:
    """At any point: from an empty directory to a nearly complete one."""
    launchers = []
    for files in range(12):
        with subprocess.Popen([*USBIPD, "--version"], stdout=subprocess.DEVNULL) as launcher:
            launchers.append(launcher.pid)
            while launcher.poll() is None and not (
                (found := left_by(launcher.pid)) and len(list(found[0].rglob("*"))) >= files
            ):
                pass  # it takes milliseconds
            launcher.send_signal(number)
    check_next_start_removes_leftovers(launchers)


def test_a_cleaner_that_removes_the_files_stops_no_process(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "serial")
    try:
        busid = daemon.busid("serial")
        directory = home(daemon.process.pid)
        for path in directory.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for _which in ("those with the files of the daemon", "the launchers of those with their own"):
            children = {p["pid"] for p in daemon.status()["processes"] if p["role"] != "extension"}
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            until(
                lambda c=children: is_serving(daemon) and daemon.device(busid)["worker_pid"] not in {*c, None}
            )
        with Client(daemon.host, daemon.port).import_device(busid) as session:
            assert session.bulk_out(0x01, b"still here") == 10
            assert session.bulk_in(0x81, 512) == b"still here"
        daemon.stop()
        assert not [line for line in daemon.log.lines() if "Traceback" in line or "Exception" in line]
    finally:
        daemon.kill()
    # Stopping the daemon kills its server and that server's launcher: the next start cleans up.
    assert run(*USBIPD, "--version").returncode == 0


def test_a_host_name_with_non_ascii_letters() -> None:
    """The second label is empty, so no resolver is queried."""
    done = run(*USBIPD, "list", "--remote", "bücher..invalid")
    assert done.returncode == 1
    assert "cannot find the host bücher..invalid: that is no host name" in done.stderr


@as_root
def test_an_ordinary_user_runs_the_same_file() -> None:
    account = pwd.getpwnam("nobody")
    assert EXECUTABLE is not None
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        copy = shutil.copy(EXECUTABLE, directory)
        done = subprocess.run(
            [copy, "list", "--socket", f"{directory}/none.sock"],
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            cwd="/",
            env={"TMPDIR": directory},  # where it may not write
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 3, done.stderr
    assert "the extension is not running" in done.stderr


def lock(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)
