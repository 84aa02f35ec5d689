"""`tests/run_on_host.py`, which the macOS workflow runs as root with the usual paths."""

import json
import subprocess
import sys
from pathlib import Path

RUN_ON_HOST = Path(__file__).resolve().parents[1] / "run_on_host.py"


def test_a_daemon_on_both_families(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    arguments = [str(reports), "--port", "0", "--directory", str(tmp_path / "daemon")]
    done = subprocess.run(
        [sys.executable, RUN_ON_HOST, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ok: the next client gets its answer") == 2
    assert done.stdout.count("ok: and read the same data back") == 2
    assert done.stdout.rstrip().endswith("All steps succeeded.")
    report = json.loads((reports / "report.json").read_text())
    assert {device["device"]["busid"] for device in report["devices"]} >= {"240-1", "240-2", "240-3", "240-4"}
    assert json.loads((reports / "status.json").read_text())["status"]["listening"]
