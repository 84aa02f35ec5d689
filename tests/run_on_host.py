"""Runs a daemon on this host as an administrator would.  Exits with 0 only if all checks pass.

    sudo .venv/bin/python tests/run_on_host.py build/host [--try-real-devices]

Starts `usbipd-ext --run` with simulated devices on 127.0.0.1 and ::1; control socket and state are in the
usual places unless `--directory` is given.  Checks the users of the processes, resets connections
before the server accepts them, uses a device over each family, and stops the daemon.  Even if a check fails,
the given directory contains status.json, report.json (`usbipd doctor --report`) and daemon.log.
.github/workflows/macos.yml runs it on Macs, tests/integration/test_run_on_host.py everywhere.

`--try-real-devices` briefly takes each real device of this host from its drivers, as `--try-claim` does.
"""

import argparse
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.client import Client
from tests.demo import (
    PROGRAMS,
    STOP_TIMEOUT,
    WrongError,
    check,
    command,
    is_running,
    send_through,
    step,
    wait_until_up,
)
from usbipd.addresses import parse_listen
from usbipd.errors import UsbipdError
from usbipd.privileges import DEFAULT_USER, user_name
from usbipd.simulated.loopback import Loopback

RESETS: Final = 100
"""Per address family; fewer than macOS's backlog of 128 connections (kern.ipc.somaxconn)."""
RESET_AT_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds
SIMULATE: Final = "loopback,mass-storage,keyboard,audio"


class HostDaemon:
    """The running daemon; `at` are the options that select it."""

    def __init__(self, at: Sequence[str], reports: Path) -> None:
        self.at = at
        self.reports = reports
        status = self.status()
        self.pids = {process["pid"]: process for process in status["processes"]}
        self.listening = [parse_listen(text) for text in status["listening"]]

    def status(self) -> dict[str, Any]:
        text = command("usbipd", "status", "--json", *self.at, shown=False)
        (self.reports / "status.json").write_text(text)
        status: dict[str, Any] = json.loads(text)["status"]
        return status

    def pid_of_server(self) -> int:
        [pid] = [process["pid"] for process in self.status()["processes"] if process["role"] == "server"]
        return int(pid)


def check_users(daemon: HostDaemon) -> None:
    step("Check the users of its processes")
    command("usbipd-ext", "--status", *daemon.at)
    for process in daemon.pids.values():
        what = f"{process['role']} {process['busid'] or ''}".rstrip()
        if os.geteuid() != 0 or process["role"] == "extension":
            expected = process["user"] == user_name(os.geteuid())
        elif process["role"] == "server":
            expected = process["user"] in (DEFAULT_USER, "nobody")
        else:
            expected = process["user"] != "root"
        check(expected, f"{what} runs as {process['user']}")


def reset_before_accept(daemon: HostDaemon) -> None:
    """On macOS accept() returns no address for such a connection (IPv6); the listener must survive that."""
    server = daemon.pid_of_server()
    for address in daemon.listening:
        step(f"Open {RESETS} connections to {address} and reset them before they are accepted")
        os.kill(server, signal.SIGSTOP)
        try:
            for _number in range(RESETS):
                with socket.create_connection(address, STOP_TIMEOUT) as connection:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        finally:
            os.kill(server, signal.SIGCONT)
        check(bool(Client(*address).devlist()), "the next client gets its answer")
    check(daemon.pid_of_server() == server, "from the same server")


def use_devices(daemon: HostDaemon) -> None:
    for address in daemon.listening:
        step(f"Use a device over {address}")
        client = Client(*address)
        product = int.from_bytes(Loopback.device_descriptor[10:12], "little")
        [busid] = [device.busid for device in client.devlist() if device.idProduct == product]
        with client.import_device(busid) as session:
            send_through(session)
            attached = [device for device in daemon.status()["devices"] if device["state"] == "attached"]
            check([device["busid"] for device in attached] == [busid], f"{busid} is attached")


def write_report(daemon: HostDaemon, *, try_real_devices: bool) -> None:
    step("Write the report of doctor")
    path = daemon.reports / "report.json"
    path.unlink(missing_ok=True)
    trials: list[str] = []
    if try_real_devices:
        devices = json.loads(command("usbipd", "list", "--json", *daemon.at, shown=False))["devices"]
        real = [each for each in devices if not each["simulated"] and each["state"] == "not shared"]
        trials = [word for device in real for word in ("--try-claim", device["busid"])]
    command("usbipd", "doctor", "--report", str(path), *trials, *daemon.at)
    report = json.loads(path.read_text())
    for assumption in report["assumptions"]:
        print(f"    {assumption['question']}")
        for line in assumption["evidence"] or ["(nothing)"]:
            print(f"        {line}")
    for found in report["checks"]:
        print(f"    {found['name']}: {found['state']}: {found['message']}")
    check(len(report["trials"]) == len(trials) // 2, f"{len(report['trials'])} real devices were tried")


@contextmanager
def started(arguments: Sequence[str], log: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """A daemon, which is killed at the end if it still runs; `log` is its log file."""
    print(f"$ usbipd-ext {' '.join(arguments)}", flush=True)
    with log.open("wb") as file:
        process = subprocess.Popen([PROGRAMS / "usbipd-ext", *arguments], stdout=subprocess.PIPE, stderr=file)
    try:
        yield process
    finally:
        with suppress(subprocess.TimeoutExpired):
            process.terminate()
            process.wait(STOP_TIMEOUT)
        process.kill()
        process.wait()


def stop(process: "subprocess.Popen[bytes]", daemon: HostDaemon) -> None:
    step("Stop")
    pids = {each["pid"] for each in daemon.status()["processes"]}
    process.send_signal(signal.SIGINT)
    check(process.wait(STOP_TIMEOUT) == 0, "the daemon exited with code 0")
    deadline = time.monotonic() + STOP_TIMEOUT
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)  # children of a dead parent disappear once init reaps them
    check(not any(map(is_running, pids)), f"all {len(pids)} processes have exited")
    log = (daemon.reports / "daemon.log").read_text()
    check("Traceback" not in log, "its log has no unhandled error")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a daemon on this host and check it.")
    parser.add_argument("reports", type=Path, help="directory for status.json, report.json and daemon.log")
    parser.add_argument("--port", type=int, default=3240)
    parser.add_argument("--directory", type=Path, help="directory for control socket and state")
    parser.add_argument(
        "--try-real-devices", action="store_true", help="take each real device from its drivers"
    )
    given = parser.parse_args()
    given.reports.mkdir(parents=True, exist_ok=True)
    arguments = ["--run", "--simulate", SIMULATE, "--real-devices", "--log-level", "debug"]
    for host in ("127.0.0.1", "[::1]"):
        arguments += ["--listen", f"{host}:{given.port}"]
    at: list[str] = []
    if given.directory is not None:
        given.directory.mkdir(exist_ok=True)
        at = ["--socket", str(given.directory / "run" / "control.sock")]
        arguments += ["--state", str(given.directory / "state"), *at]
    log = given.reports / "daemon.log"
    step("Start the daemon on both families")
    try:
        with started(arguments, log) as process:
            wait_until_up(process)
            daemon = HostDaemon(at, given.reports)
            check_users(daemon)
            reset_before_accept(daemon)
            use_devices(daemon)
            write_report(daemon, try_real_devices=given.try_real_devices)
            stop(process, daemon)
    except (WrongError, OSError, UsbipdError, subprocess.TimeoutExpired) as error:
        print(f"\nFAILED: {error}\n{log.read_text()}", file=sys.stderr)
        return 1
    print("\nAll steps succeeded.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
