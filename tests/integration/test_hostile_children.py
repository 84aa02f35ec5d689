"""Compromised server and workers in a real daemon: their texts reach users clean, their attacks end them, and
the daemon keeps running."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.client import Client, ClosedError
from tests.integration.daemon import COMMAND, PATIENCE, until
from tests.integration.hostile_child import HostileDaemon
from tests.programs import EXECUTABLE

pytestmark = pytest.mark.skipif(EXECUTABLE is not None, reason="its children are the executable itself")

Start = Callable[[str, str], HostileDaemon]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[HostileDaemon] = []

    def start(how: str, simulate: str) -> HostileDaemon:
        started.append(HostileDaemon(tmp_path, how, simulate))
        return started[-1]

    yield start
    for daemon in started:
        daemon.kill()


def check_shown(answer: "subprocess.CompletedProcess[str]") -> None:
    """It shows the hostile text, all of it escaped."""
    shown = answer.stdout + answer.stderr
    assert r"\x1b]0;owned" in shown
    assert all(line.isprintable() and not line.startswith("forged") for line in shown.split("\n"))
    assert len(shown) < 20_000


def test_hostile_text_cannot_control_a_terminal(start: Start) -> None:
    daemon = start("lies", "loopback,keyboard")
    loopback, keyboard = daemon.busid("loopback"), daemon.busid("keyboard")
    with Client(daemon.host, daemon.port).import_device(loopback):
        check_shown(daemon.usbipd("list"))  # the name of the client
        check_shown(daemon.usbipd("detach", "--busid", loopback))
    os.kill(daemon.worker_pid(keyboard), signal.SIGKILL)
    daemon.wait_for_state(keyboard, "failed")
    until(lambda: "owned" in (daemon.device(keyboard)["error"] or ""))
    for words in (("list",), ("status",), ("history",), ("doctor",)):
        check_shown(daemon.usbipd(*words))
        in_json = daemon.usbipd(*words, "--json")
        check_shown(
            subprocess.CompletedProcess(words, 0, in_json.stdout.replace(r"\\", "\\"), in_json.stderr)
        )
        json.loads(in_json.stdout)
    health = [*COMMAND, "--health", "--socket", str(daemon.socket)]
    check_shown(subprocess.run(health, capture_output=True, text=True, timeout=PATIENCE, check=False))
    assert all(line.isprintable() for line in daemon.log.lines())


def test_a_worker_that_spins_is_replaced_by_detach(start: Start) -> None:
    daemon = start("spins", "loopback,keyboard")
    busid = daemon.busid("loopback")
    before = daemon.worker_pid(busid)
    with Client(daemon.host, daemon.port).import_device(busid) as session:
        answer = daemon.usbipd("detach", "--busid", busid)
        assert answer.returncode == 0, answer.stderr
        assert ": disconnected " in answer.stderr
        with pytest.raises(ClosedError):
            session.bulk_in(0x81, 512)
    assert daemon.wait_for_state(busid, "shared")["worker_pid"] != before
    [ended] = [entry for entry in daemon.document("history")["entries"] if entry["event"] == "detached"]
    assert ended["busid"] == busid
    assert ended["reason"].startswith("by ")
    assert "did not end its client's session within 2 s" in ended["reason"]


def test_a_flooding_worker_is_replaced_at_its_first_surplus_event(start: Start) -> None:
    daemon = start("floods", "loopback,keyboard")
    busid = daemon.busid("loopback")
    before = daemon.worker_pid(busid)
    with Client(daemon.host, daemon.port).import_device(busid):
        assert daemon.log.wait_for("channel closed: unexpected restored (free for a client)")
    until(lambda: daemon.worker_pid(busid) != before)
    entries = daemon.document("history")["entries"]
    assert [entry["busid"] for entry in entries if entry["event"] == "detached"] == [busid]
    assert len(entries) < 20


def test_a_worker_that_shrinks_its_counters_does_no_harm(start: Start) -> None:
    daemon = start("shrinks", "loopback,keyboard")
    busid = daemon.busid("loopback")
    with Client(daemon.host, daemon.port).import_device(busid) as session:
        assert session.connection.recv(4) == b"done"
        shown = daemon.device(busid)
    assert (shown["state"], shown["counters"]["urbs"]) == ("attached", 0)
    assert daemon.process.poll() is None
