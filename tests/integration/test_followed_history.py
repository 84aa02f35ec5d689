"""`history --follow` across a restart of the daemon, with the same history and without it."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.daemon import PATIENCE, USBIPD, Daemon, Lines


@contextmanager
def following(daemon: Daemon, *options: str) -> Iterator[tuple[Lines, Lines]]:
    """The lines on stdout and stderr of a command that follows, until Ctrl-C."""
    command = [*USBIPD, "history", "--follow", *options, "--socket", str(daemon.socket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        out, err = Lines(process.stdout), Lines(process.stderr)
        try:
            yield out, err
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 130
        finally:
            process.kill()
            out.close()
            err.close()


def entries(lines: Lines) -> list[dict[str, Any]]:
    return [json.loads(line)["entry"] for line in lines.lines()]


def test_each_entry_is_printed_once_across_a_restart(tmp_path: Path) -> None:
    directory, state = tmp_path / "run", ("--state", str(tmp_path / "state"))
    directory.mkdir()
    first = Daemon(directory, "serial", "", *state)
    try:
        with following(first, "--json") as (out, err):
            out.wait_for('"claimed"')
            first.stop()
            err.wait_for("lost the extension")
            since = out.position()
            second = Daemon(directory, "serial", "", *state)
            try:
                out.wait_for('"claimed"', since)
                err.wait_for("the extension is back")
                kept = second.document("history", "--limit", "100")["entries"]
                assert entries(out) == kept[::-1]
                assert {"started", "claimed", "released", "stopped"} <= {each["event"] for each in kept}
            finally:
                second.stop()
    finally:
        first.kill()


def test_a_daemon_without_a_history_reports_it(tmp_path: Path) -> None:
    first = Daemon(tmp_path, "serial")
    try:
        with following(first) as (out, err):
            out.wait_for("claimed")
            os.kill(first.pid, signal.SIGKILL)
            first.kill()
            err.wait_for("lost the extension")
            since = out.position()
            second = Daemon(tmp_path, "serial")
            try:
                err.wait_for("the history was replaced")
                out.wait_for("claimed", since)
            finally:
                second.stop()
    finally:
        first.kill()


@pytest.mark.parametrize("device", ["1d6b:01f3", "serial port"])
def test_only_the_requested_entries(tmp_path: Path, device: str) -> None:
    daemon = Daemon(tmp_path, "serial,keyboard")
    try:
        found = daemon.document("history", "--device", device, "--since", "10m")["entries"]
        assert [each["event"] for each in found] == ["claimed"]
        assert found[0]["product_id"] == 0x01F3
        assert daemon.document("history", "--device", "9-9")["entries"] == []
        assert daemon.usbipd("history", "--device", "9-9").stderr == "No entry matches.\n"
        assert len(daemon.document("history", "--since", "today")["entries"]) > 1
    finally:
        daemon.stop()
