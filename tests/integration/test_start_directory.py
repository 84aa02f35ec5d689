"""The start directory of a daemon: paths are relative to it, and no process stays in it."""

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil

from tests.integration.daemon import COMMAND, PATIENCE, Daemon, Lines


def test_paths_are_relative_to_it_and_no_process_stays_in_it(tmp_path: Path) -> None:
    (tmp_path / "usbipd.toml").write_text('log_level = "debug"\n')
    arguments = ["--run", "--listen", "127.0.0.1:0", "--simulate", "mass-storage:size=1M:file=disk.img"]
    arguments += ["--socket", "run/control.sock", "--state", "state", "--config", "usbipd.toml"]
    process = subprocess.Popen(
        COMMAND + arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    output, log = Lines(process.stdout), Lines(process.stderr)
    try:
        output.wait_for(" listens on ")
        log.wait_for(" claimed ")
        assert (tmp_path / "run" / "control.sock").is_socket()
        asked = [*COMMAND, "--status", "--json", "--socket", str(tmp_path / "run" / "control.sock")]
        status = json.loads(subprocess.run(asked, stdout=subprocess.PIPE, check=True).stdout)["status"]
        directories = {each["role"]: psutil.Process(each["pid"]).cwd() for each in status["processes"]}
        root = "/" if os.geteuid() else str(tmp_path / "run" / "empty")
        assert directories == {"extension": "/", "server": root, "worker": root}, "root's have a chroot"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait(PATIENCE)
        output.close()
        log.close()
    assert (tmp_path / "state" / "usbipd.sqlite").is_file()
    assert (tmp_path / "disk.img").is_file()


def test_the_daemon_or_its_successor_removes_the_socket_directory(tmp_path: Path) -> None:
    made, given = tmp_path / "made", tmp_path / "given"
    killed = Daemon(tmp_path, "loopback", "", "--socket", str(made / "control.sock"))
    os.kill(killed.pid, signal.SIGKILL)
    killed.process.wait(PATIENCE)
    given.mkdir(mode=0o700)
    for directory in (made, given):
        following = Daemon(tmp_path, "loopback", "", "--socket", str(directory / "control.sock"))
        following.process.send_signal(signal.SIGINT)
        assert following.process.wait(PATIENCE) == 0
    assert not made.exists()
    assert given.exists(), "a user made it"
