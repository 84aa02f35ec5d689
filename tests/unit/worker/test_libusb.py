"""Real devices without hardware: cases in a process whose libusb is fake_libusb.c."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import heap
from tests.unit.worker.fake_libusb import HERE, environment_with_fake, environment_without_memory

CASES = [
    "libusb_cases.py",
    "libusb_claim_cases.py",
    "libusb_request_cases.py",
    pytest.param("libusb_races.py", marks=pytest.mark.slow),
]


@pytest.mark.skipif(
    sys.platform == "darwin", reason="a library is found by its path there, not by its soname"
)
@pytest.mark.parametrize("cases", CASES)
def test_claim_and_pump_on_a_fake_libusb(cases: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    run(cases, environment_with_fake(tmp_path), pytestconfig)


@pytest.mark.slow
@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the allocator that fails stands before glibc's"
)
@pytest.mark.skipif(heap.allocated() is not None, reason="the sanitizers have an allocator of their own")
def test_a_pump_without_memory(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    run("memory_cases.py", environment_without_memory(tmp_path), pytestconfig)


def run(cases: str, environment: dict[str, str], pytestconfig: pytest.Config) -> None:
    profile = pytestconfig.getoption("--hypothesis-profile")
    options = [] if profile is None else [f"--hypothesis-profile={profile}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, HERE / cases],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
