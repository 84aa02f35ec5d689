"""Persistence: bindings outlive the daemon, claims outlive any process, and both are reported."""

import contextlib
import json
import os
import random
import signal
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.client import Client, ClosedError, RefusedError
from tests.integration.conftest import ECHO_IN, ECHO_OUT, StartDaemon
from tests.integration.daemon import COMMAND, PATIENCE, Daemon, Lines, running
from usbipd.protocol.constants import ST_NODEV
from usbipd.simulated.catalog import NAMES

ROUNDS = int(os.environ.get("ROUNDS", "10"))
"""Rounds of killing processes; each takes about two seconds."""

LOOPBACK = "{:04x}:{:04x}".format(*struct.unpack("<HH", NAMES["loopback"].device_descriptor[8:12]))
"""The hardware id of the simulated device, for a binding that persists."""


def bound(daemon: Daemon) -> list[str]:
    """The stored bindings."""
    bindings = daemon.document("list")["bindings"]
    return [
        f"{each['vendor_id']:04x}:{each['product_id']:04x}"
        for each in bindings
        if each["created_by"] != "usbipd-ext"
    ]


def events(daemon: Daemon, *names: str) -> list[dict[str, Any]]:
    """These events of the history, the oldest first."""
    entries = daemon.document("history", "--limit", "1000")["entries"]
    return [entry for entry in reversed(entries) if entry["event"] in names]


# ---- bindings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_bindings_and_history_outlive_the_daemon(tmp_path: Path, number: signal.Signals) -> None:
    state = str(tmp_path / "state")
    daemon = Daemon(tmp_path, "loopback", "", "--state", state)
    try:
        daemon.document("bind", "--hardware-id", LOOPBACK)
        session = Client(daemon.host, daemon.port).import_device(daemon.busid("loopback"))
        daemon.wait_for_state("240-1", "attached")
        os.kill(daemon.pid, number)
        daemon.process.wait(PATIENCE)
        daemon = Daemon(tmp_path, "loopback", "", "--state", state)
        assert bound(daemon) == [LOOPBACK]
        assert len(events(daemon, "bound")) == 1
        assert len(events(daemon, "started")) == 2
        assert len(events(daemon, "stopped")) == (1 if number == signal.SIGTERM else 0)
        ends = events(daemon, "claimed", "attached", "detached", "released", "failed", "started")
        assert [(each["event"], each["busid"]) for each in ends] == [
            ("started", None),
            ("claimed", "240-1"),
            ("attached", "240-1"),
            ("detached", "240-1"),
            ("released" if number == signal.SIGTERM else "failed", "240-1"),
            *([] if number == signal.SIGTERM else [("failed", None)]),
            ("started", None),
            ("claimed", "240-1"),
        ]
        session.close()
        assert daemon.document("unbind", "--hardware-id", LOOPBACK)["busids"] == []
        assert bound(daemon) == []
    finally:
        daemon.kill()


def test_a_damaged_store_is_replaced_and_the_doctor_says_so(tmp_path: Path) -> None:
    state = tmp_path / "state"
    daemon = Daemon(tmp_path, "loopback", "", "--state", str(state))
    try:
        daemon.document("bind", "--hardware-id", LOOPBACK)
        daemon.kill()
        for file in state.glob("usbipd.sqlite*"):
            file.write_bytes(b"not a database " * 1000)
        daemon = Daemon(tmp_path, "loopback", "", "--state", str(state))
        assert bound(daemon) == [LOOPBACK]
        checks = json.loads(daemon.usbipd("doctor", "--json").stdout)["checks"]
        store = [check for check in checks if check["name"] == "store" and check["state"] != "ok"]
        assert "damaged" in " ".join(check["message"] for check in store)
        assert [file for file in state.iterdir() if "damaged" in file.name]
    finally:
        daemon.kill()


def test_two_daemons_do_not_share_a_store(start_daemon: StartDaemon, tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    daemon = start_daemon("loopback", "", "--state", state)
    where = ["--socket", str(tmp_path / "other" / "control.sock"), "--listen", "127.0.0.1:0"]
    done = subprocess.run(
        [*COMMAND, "--run", "--simulate", "loopback", "--state", state, *where],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert state in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "other").exists()
    assert len(Client(daemon.host, daemon.port).devlist()) == 1


def test_a_simulated_device_can_be_unbound_and_bound_again(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("serial,loopback")
    client, busid = Client(daemon.host, daemon.port), daemon.busid("serial")
    assert daemon.document("unbind", "--busid", busid)["busids"] == [busid]
    with pytest.raises(RefusedError) as refused:
        client.import_device(busid)
    assert refused.value.status == ST_NODEV
    daemon.document("bind", "--busid", busid, "--allow", "192.0.2.1")
    assert busid not in [device.busid for device in client.devlist()]
    daemon.document("bind", "--busid", busid)
    client.import_device(busid).close()


# ---- reports -----------------------------------------------------------------------------------------------


def test_detach_ends_a_session_and_the_history_has_it(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("serial,serial")
    client = Client(daemon.host, daemon.port)
    busid, other = daemon.busid("serial"), daemon.busid("serial", 1)
    with client.import_device(busid) as session, client.import_device(other) as bystander:
        assert session.bulk_out(ECHO_OUT, b"12345") == 5
        waiting = session.submit(ECHO_IN, length=512)
        session.wait(waiting)
        assert daemon.document("detach", "--busid", busid)["client"].startswith("127.0.0.1:")
        with pytest.raises(ClosedError):
            session.bulk_in(ECHO_IN, 512)
        daemon.wait_for_state(busid, "shared")
        [ended] = events(daemon, "detached")
        assert (ended["busid"], ended["bytes_in"], ended["bytes_out"]) == (busid, 5, 5)
        assert daemon.usbipd("detach", "--busid", busid).returncode == 1
        assert bystander.bulk_out(ECHO_OUT, b"undisturbed") == 11
    client.import_device(busid).close()


def test_the_doctor_of_a_healthy_daemon(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("loopback")
    done = daemon.usbipd("doctor", "--json")
    checks = json.loads(done.stdout)["checks"]
    assert [check for check in checks if check["state"] == "failed"] == []
    assert done.returncode == 0


def test_the_doctor_where_no_daemon_runs(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "loopback")
    daemon.stop()
    done = daemon.usbipd("doctor")
    assert done.returncode == 1
    assert "1. " in done.stdout, "the first step to fix it"


def test_watching_a_daemon_that_exits(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "loopback")
    command = [*COMMAND, "--status", "--watch", "--json", "--socket", str(daemon.socket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert watch.stderr is not None
        output, talk = Lines(watch.stdout), Lines(watch.stderr)
        try:
            output.wait_for(f'"pid":{daemon.pid}')
            daemon.kill()
            talk.wait_for("lost the extension")
            daemon = Daemon(tmp_path, "loopback")
            output.wait_for(f'"pid":{daemon.pid}')
            since = output.position()
            with Client(daemon.host, daemon.port).import_device(daemon.busid("loopback")):
                output.wait_for('"state":"attached"', since)
            watch.send_signal(signal.SIGINT)
            assert watch.wait(PATIENCE) == 128 + signal.SIGINT
        finally:
            watch.kill()
    daemon.stop()


def test_the_log_level_follows_signals(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("loopback")
    client, busid = Client(daemon.host, daemon.port), daemon.busid("loopback")

    def debug_lines() -> int:
        client.import_device(busid).close()
        daemon.wait_for_state(busid, "shared")
        return sum(" DEBUG worker[" in line for line in daemon.log.lines())

    before = debug_lines()
    daemon.process.send_signal(signal.SIGUSR1)
    daemon.log.wait_for("log level debug")
    after = debug_lines()
    assert after > before
    daemon.process.send_signal(signal.SIGUSR2)
    daemon.log.wait_for("log level info")
    quiet = debug_lines()
    assert debug_lines() == quiet


# ---- endurance ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_thousand_sessions_leak_nothing(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("serial")
    client, busid = Client(daemon.host, daemon.port), daemon.busid("serial")

    def session() -> None:
        with client.import_device(busid) as attached:
            assert attached.bulk_out(ECHO_OUT, b"abc") == 3
            assert attached.bulk_in(ECHO_IN, 512) == b"abc"
            attached.submit(ECHO_IN, length=512)  # in flight at the end

    def memory() -> dict[int, int]:
        daemon.wait_for_state(busid, "shared")
        return {process["pid"]: process["memory"] for process in daemon.status()["processes"]}

    def descriptors() -> dict[int, int]:
        return {pid: psutil.Process(pid).num_fds() for pid in before}

    for _warm in range(100):
        session()
    before = memory()
    held = descriptors()  # perhaps with the connection of the last command
    for _turn in range(1000):
        session()
    after = memory()
    deadline = time.monotonic() + PATIENCE
    while any(number > held[pid] for pid, number in descriptors().items()):
        assert time.monotonic() < deadline, f"descriptors, before and after: {held}, {descriptors()}"
    grown = {pid: after[pid] - before[pid] for pid in before}
    assert max(grown.values()) < 1 << 20, "bytes that 1,000 sessions have left behind"


def wait_for_successors(daemon: Daemon, killed: set[int]) -> None:
    """Wait until the extension has noticed the deaths and clients see all devices again."""
    deadline = time.monotonic() + PATIENCE
    while True:
        alive = {process["pid"] for process in daemon.status()["processes"]}
        with contextlib.suppress(OSError):  # no server yet
            if killed.isdisjoint(alive) and len(Client(daemon.host, daemon.port).devlist()) == daemon.devices:
                return
        assert time.monotonic() < deadline, f"{killed} have no successors: {alive}"


def check_history(daemon: Daemon) -> None:
    """Each start is followed by an end before the next start."""
    begun: dict[str, list[str]] = {}
    for entry in events(daemon, "claimed", "attached", "detached", "released", "failed"):
        if entry["busid"] is None:
            continue
        stack, event = begun.setdefault(entry["busid"], []), entry["event"]
        if event in ("claimed", "attached"):
            assert stack == (["claimed"] if event == "attached" else []), (entry, stack)
            stack.append(event)
        else:
            assert stack, entry
            assert stack.pop() == ("attached" if event == "detached" else "claimed"), entry
    assert len(begun) == daemon.devices


@pytest.mark.slow
def test_processes_killed_at_random(tmp_path: Path) -> None:
    """Any process, at any moment, under traffic: all devices are shared again, no process is left over."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    choice = random.Random(seed)
    state = str(tmp_path / "state")

    def start() -> Daemon:
        return Daemon(tmp_path, "serial,loopback,mass-storage", "", "--state", state)

    daemon = start()
    seen: set[int] = set()
    try:
        daemon.document("bind", "--hardware-id", LOOPBACK)
        for _round in range(ROUNDS):
            processes = daemon.status()["processes"]
            seen |= {process["pid"] for process in processes}
            with Client(daemon.host, daemon.port).import_device(daemon.busid("serial")) as session:
                session.bulk_out(ECHO_OUT, b"traffic")
                session.submit(ECHO_IN, length=512)
                victims = choice.sample(processes, choice.choice([1, 1, 1, 2, len(processes)]))
                for victim in victims:
                    os.kill(victim["pid"], signal.SIGKILL)
            if any(victim["role"] == "extension" for victim in victims):
                daemon.kill()
                daemon = start()
            wait_for_successors(daemon, {victim["pid"] for victim in victims})
            for device in daemon.status()["devices"]:
                daemon.wait_for_state(device["busid"], "shared")
            assert bound(daemon) == [LOOPBACK]
        check_history(daemon)
        alive = {process["pid"] for process in daemon.status()["processes"]}
        assert running(sorted(seen - alive)) == []
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.process.wait(PATIENCE) == 0
        assert running(sorted(seen | alive)) == []
    finally:
        daemon.kill()
