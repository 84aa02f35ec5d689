"""A stranger that repeats an action: log and history stay bounded, and nothing else is lost."""

from pathlib import Path

from tests.client import Client
from tests.integration.conftest import StartDaemon
from tests.integration.daemon import Daemon
from tests.unit.own_log import count
from usbipd.limiter import BURST

CYCLES = 300


def test_repeated_attachments(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("loopback,keyboard")
    busid = daemon.busid("loopback")
    client = Client(daemon.host, daemon.port)
    lines_before = len(daemon.log.lines())
    for _cycle in range(CYCLES):
        client.import_device(busid).close()
    with client.import_device(busid):  # the worker has reported the end of the previous one
        pass
    log = daemon.log.lines()[lines_before:]
    for text in (f"imported {busid}", f"{busid} attached by", f"{busid} detached"):
        found = [line for line in log if text in line]
        assert BURST <= len(found) <= 2 * BURST, f"{len(found)} lines of {text!r}"
    entries = daemon.document("history", "--limit", "1000")["entries"]
    assert "started" in {entry["event"] for entry in entries}
    for event in ("attached", "detached"):
        assert BURST // 3 <= sum(entry["event"] == event for entry in entries) <= BURST

    assert daemon.usbipd("doctor").returncode == 0, "nothing of the history is lost"


def test_a_flood_that_ends_is_counted_to_the_last(tmp_path: Path) -> None:
    """The lines left out are counted in the log when the processes exit."""
    daemon = Daemon(tmp_path, "loopback")
    try:
        busid = daemon.busid("loopback")
        client = Client(daemon.host, daemon.port)
        for _cycle in range(CYCLES):
            client.import_device(busid).close()
        daemon.stop()
    finally:
        daemon.kill()
    for text in (f"{busid} attached by", f" imported {busid}"):
        lines = [line for line in daemon.log.lines() if text in line]
        assert BURST < len(lines) <= 2 * BURST
        assert count(lines) == CYCLES
