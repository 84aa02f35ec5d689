"""`make demo` shows to people what is so."""

import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "demo.py"


@pytest.mark.slow
def test_the_demonstration_goes_well_to_its_end() -> None:
    done = subprocess.run([sys.executable, DEMO], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "ok: and gave the same back" in done.stdout
    assert done.stdout.rstrip().endswith("All of it works.")
