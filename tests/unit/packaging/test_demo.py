"""`make demo` runs to its end."""

import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "demo.py"


@pytest.mark.slow
def test_the_demo_succeeds() -> None:
    done = subprocess.run([sys.executable, DEMO], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "ok: and read the same data back" in done.stdout
    assert done.stdout.rstrip().endswith("All steps succeeded.")
