"""Real devices without one: cases in a process whose libusb is fake_libusb.c."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.worker.fake_libusb import HERE, environment_with_fake

CASES = ["libusb_cases.py", "libusb_races.py", "libusb_macos_cases.py", "libusb_macos_races.py"]


@pytest.mark.skipif(
    sys.platform == "darwin", reason="a library is found by its path there, not by its soname"
)
@pytest.mark.parametrize("cases", CASES)
def test_claim_and_pump_on_a_fake_libusb(cases: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    profile = pytestconfig.getoption("--hypothesis-profile")
    options = [] if profile is None else [f"--hypothesis-profile={profile}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, HERE / cases],
        env=environment_with_fake(tmp_path),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
