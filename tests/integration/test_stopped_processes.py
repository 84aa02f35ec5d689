"""Suspended server and workers (SIGSTOP): the kernel still acknowledges for them, but the daemon notices."""

import json
import os
import signal
from typing import Any

import pytest

from tests.client import Client, ClosedError
from tests.integration.conftest import StartDaemon
from tests.integration.daemon import Daemon, until
from tests.programs import EXECUTABLE


def check(daemon: Daemon, name: str) -> dict[str, Any]:
    """The doctor's check of this process."""
    checks = json.loads(daemon.usbipd("doctor", "--json").stdout)["checks"]
    [found] = [each for each in checks if each["name"] == name]
    return dict(found)


def server_pid(daemon: Daemon) -> int:
    [pid] = [process["pid"] for process in daemon.status()["processes"] if process["role"] == "server"]
    return int(pid)


@pytest.fixture
def daemon(start_daemon: StartDaemon) -> Daemon:
    return start_daemon("loopback,keyboard")


@pytest.mark.skipif(EXECUTABLE is not None, reason="the pid is that of a launcher, which is not what answers")
@pytest.mark.parametrize("role", ["server", "worker"])
def test_the_doctor_names_a_suspended_process(daemon: Daemon, role: str) -> None:
    """The check depends on an answer, and passes again once one arrives."""
    busid = daemon.busid("keyboard")
    name, pid, label = "network", server_pid(daemon), "server[{}]"
    if role == "worker":
        name, pid, label = "workers", daemon.worker_pid(busid), f"worker[{{}}] {busid}"
    assert check(daemon, name)["state"] == "ok"
    os.kill(pid, signal.SIGSTOP)
    found = check(daemon, name)
    assert found["state"] == "failed"
    assert found["message"].startswith(f"{label.format(pid)} is suspended")
    assert f"kill -CONT {pid}" in found["steps"][0]
    assert f"{label.format(pid)} has not answered for" in daemon.usbipd("status").stdout
    [silent] = [each for each in daemon.status()["processes"] if each["silent_for"] is not None]
    assert silent["pid"] == pid
    os.kill(pid, signal.SIGCONT)
    until(lambda: check(daemon, name)["state"] == "ok")
    assert all(each["silent_for"] is None for each in daemon.status()["processes"])


def test_detach_replaces_a_suspended_worker(daemon: Daemon) -> None:
    busid = daemon.busid("loopback")
    before = daemon.worker_pid(busid)
    with Client(daemon.host, daemon.port).import_device(busid) as session:
        client = daemon.device(busid)["client"]
        os.kill(before, signal.SIGSTOP)
        assert daemon.document("detach", "--busid", busid) == {"format": 1, "busid": busid, "client": client}
        with pytest.raises(ClosedError):
            session.bulk_in(0x81, 512)
    assert daemon.wait_for_state(busid, "shared")["worker_pid"] != before
    [ended] = [entry for entry in daemon.document("history")["entries"] if entry["event"] == "detached"]
    assert (ended["busid"], ended["client"]) == (busid, client)
    assert "did not end its client's session within 2 s" in ended["reason"]
    with Client(daemon.host, daemon.port).import_device(busid):
        assert daemon.device(busid)["state"] == "attached"


def test_a_suspended_worker_does_not_block_unbind_and_shutdown(
    start_daemon: StartDaemon,
) -> None:
    """The shutdown of the daemon shows that no second one is left."""
    daemon = start_daemon("loopback,keyboard,serial")
    loopback = daemon.busid("loopback")
    for name in ("loopback", "keyboard"):
        os.kill(daemon.worker_pid(daemon.busid(name)), signal.SIGSTOP)
    assert daemon.document("unbind", "--busid", loopback)["busids"] == [loopback]
    daemon.devices -= 1
