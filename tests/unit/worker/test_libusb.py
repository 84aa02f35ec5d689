"""Real devices without one: the cases of libusb_cases.py, in a process whose libusb is fake_libusb.c."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(
    sys.platform == "darwin", reason="a library is found by its path there, not by its soname"
)
def test_claim_and_pump_on_a_fake_libusb(tmp_path: Path) -> None:
    flags = subprocess.run(
        ["pkg-config", "--cflags", "libusb-1.0"], check=True, capture_output=True, text=True
    ).stdout
    library = tmp_path / "libusb-1.0.so.0"
    options = ["-shared", "-fPIC", f"-Wl,-soname,{library.name}", *shlex.split(flags)]
    subprocess.run(["cc", *options, "-o", library, HERE / "fake_libusb.c"], check=True)
    cases = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "libusb_cases.py"],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert cases.returncode == 0, cases.stdout + cases.stderr
