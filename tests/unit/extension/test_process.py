"""Start and shutdown of the extension process."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAM = """
import asyncio, sys
from pathlib import Path
from usbipd.config import ServerConfig
from usbipd.extension import process

async def start(self, **how):
    print("starting", flush=True)
    await asyncio.Event().wait()

if "hang" in sys.argv:
    process.ServerSupervisor.start = start
config = ServerConfig(listen=("127.0.0.1:0",), log_level=sys.argv[2])
sys.exit(process.run(config, [], False, Path(sys.argv[1]), None))
"""


@contextmanager
def starting(tmp_path: Path, log_level: str) -> Iterator[subprocess.Popen[bytes]]:
    """An extension whose start never finishes."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "control.sock"), log_level, "hang"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"starting\n"
            yield process
        finally:
            process.kill()


def test_a_signal_ends_a_start_in_progress(tmp_path: Path) -> None:
    """For instance while it waits for an address."""
    with starting(tmp_path, "info") as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert not (tmp_path / "control.sock").exists()


def test_sigusr1_sets_level_debug_and_sigusr2_the_configured_one(tmp_path: Path) -> None:
    with starting(tmp_path, "error") as process:
        assert process.stderr is not None
        process.send_signal(signal.SIGUSR1)
        while b"log level debug" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGUSR2)
        process.send_signal(signal.SIGTERM)
        _output, log = process.communicate(timeout=10)
        assert process.returncode == 0
    assert b" INFO " not in log


def test_output_without_a_reader(tmp_path: Path) -> None:
    """This is no failure, neither when printing nor at exit."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "control.sock"), "error"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "PYTHONUNBUFFERED": ""}
        with subprocess.Popen(command, stdout=write_end, stderr=subprocess.PIPE, env=environment) as process:
            try:
                os.close(write_end)
                assert manager.recv(4096).startswith(b"READY=1")
                process.send_signal(signal.SIGTERM)
                _output, log = process.communicate(timeout=10)
            finally:
                process.kill()
    assert (process.returncode, log) == (0, b"")
