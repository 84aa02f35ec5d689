"""A daemon that logs to a file, and the rotation of that file."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.client import Client
from tests.integration.conftest import StartDaemon
from tests.integration.daemon import COMMAND, PATIENCE, Daemon


def wait_for(path: Path, text: str) -> str:
    """The content of the file once it contains `text`."""
    deadline = time.monotonic() + PATIENCE
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline, f"no {text!r} in {path}"
    return path.read_text()


def test_all_processes_switch_to_the_new_log(start_daemon: StartDaemon, tmp_path: Path) -> None:
    path, old = tmp_path / "usbipd.log", tmp_path / "usbipd.log.0"
    daemon = start_daemon("loopback", "", "--log-to", str(path), "--log-level", "debug")
    pids = {process["role"]: process["pid"] for process in daemon.status()["processes"]}
    assert (daemon.directory / "control.pid").read_text() == f"{pids['extension']}\n"
    for role, pid in pids.items():
        assert f"{role}[{pid}]" in wait_for(path, f" {role}["), "each of them logs there"
    path.rename(old)
    daemon.process.send_signal(signal.SIGHUP)
    wait_for(path, f"extension[{pids['extension']}]: the log was reopened: {path}")

    with socket.create_connection((daemon.host, daemon.port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1")
        with contextlib.suppress(ConnectionError):
            assert stranger.recv(1) == b""
    wait_for(path, f"server[{pids['server']}]")
    assert daemon.usbipd("detach", "--busid", daemon.busid("loopback")).returncode == 1, "nobody is attached"
    with Client(daemon.host, daemon.port).import_device(daemon.busid("loopback")):
        wait_for(path, f"worker[{pids['worker']}]")
    assert "the log was reopened" not in old.read_text()
    assert daemon.log.lines() == [], "nothing of it is on stderr"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="which file a descriptor is can be seen in /proc only")
def test_no_process_keeps_the_old_file(start_daemon: StartDaemon, tmp_path: Path) -> None:
    path = tmp_path / "usbipd.log"
    daemon = start_daemon("loopback", f'log_to = "{path}"\n')
    pids = {process["role"]: process["pid"] for process in daemon.status()["processes"]}
    path.rename(tmp_path / "old")
    daemon.process.send_signal(signal.SIGHUP)
    wait_for(path, f"the log was reopened: {path}")
    with Client(daemon.host, daemon.port).import_device(daemon.busid("loopback")) as session:
        session.control_in(0x80, 6, 0x0100, length=18)  # the worker has handled LOG_FILE
    for role, pid in pids.items():
        files: dict[int, str] = {}
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the connection of a command that has just exited
                files[int(each.name)] = os.readlink(each)  # noqa: PTH115 - a text, also where it is no path
        assert str(tmp_path / "old") not in files.values(), role
        assert files[2] == str(path), role
        assert role == "extension" or files[1] == str(path), role


def fail_to_start(socket: Path, config: Path) -> None:
    """A start with a bad configuration."""
    config.write_text("listen = 1\n")
    done = subprocess.run(
        [*COMMAND, "--run", "--socket", str(socket), "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert str(config) in done.stderr


def test_a_start_that_fails_removes_the_pid_file_of_a_killed_daemon(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """The pid may belong to another process by now, to which newsyslog would send SIGHUP."""
    log, wrong = tmp_path / "usbipd.log", tmp_path / "wrong.toml"
    daemon = start_daemon("loopback", "", "--log-to", str(log))
    pid_file = daemon.directory / "control.pid"
    fail_to_start(daemon.socket, wrong)
    assert pid_file.read_text() == f"{daemon.pid}\n", "one that runs keeps it"
    killed = Daemon(tmp_path, "loopback", "", "--log-to", str(log))
    killed.kill()
    assert (tmp_path / "control.pid").read_text() == f"{killed.pid}\n"
    fail_to_start(killed.socket, wrong)
    assert not (tmp_path / "control.pid").exists()


def test_a_daemon_without_a_log_file_removes_the_pid_file_of_a_killed_one(tmp_path: Path) -> None:
    killed = Daemon(tmp_path, "loopback", "", "--log-to", str(tmp_path / "usbipd.log"))
    killed.kill()
    (tmp_path / "usbipd.log").unlink()
    assert (tmp_path / "control.pid").exists()
    daemon = Daemon(tmp_path, "loopback")
    try:
        assert not (tmp_path / "control.pid").exists()
        daemon.stop()
    finally:
        daemon.kill()


def test_an_unusable_log_file_fails_the_start(start_daemon: StartDaemon, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=f"cannot log to {tmp_path}/none/log: No such file or directory"):
        start_daemon("loopback", f'log_to = "{tmp_path}/none/log"\n')
