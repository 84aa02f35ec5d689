"""Ctrl-C while the devices are being claimed."""

import signal
import subprocess
from pathlib import Path

import pytest

from tests.integration.daemon import COMMAND, PATIENCE, SIMULATE, Lines


@pytest.mark.parametrize("started", [1, 4])
def test_it_exits_without_a_warning(tmp_path: Path, started: int) -> None:
    arguments = ["--run", "--listen", "127.0.0.1:0", "--simulate", SIMULATE, "--log-level", "debug"]
    arguments += ["--socket", str(tmp_path / "run" / "control.sock")]
    process = subprocess.Popen(COMMAND + arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    output, log = Lines(process.stdout), Lines(process.stderr)
    try:
        log.wait_for(f" 240-{started} started")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait(PATIENCE)
        output.close()
        log.close()
    said = [line for line in log.lines() if " WARNING " in line or " ERROR " in line]
    assert all("no user " in line for line in said), said
