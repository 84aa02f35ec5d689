"""The pump's seeds and crashers, without a fuzzer: old faults stay fixed.

Invariants: those of simulated_pump.py and libusb_pump.py.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import simulated_pump
from tests.fuzz.targets import inputs
from tests.unit.worker.fake_libusb import environment_with_fake

CASES = Path(__file__).with_name("libusb_input_cases.py")
SIMULATED = dict(inputs("simulated"))


@pytest.mark.parametrize("as_on_macos", [False, True])
@pytest.mark.parametrize("name", SIMULATED)
def test_simulated(name: str, as_on_macos: bool) -> None:
    simulated_pump.run(SIMULATED[name], as_on_macos=as_on_macos)


@given(st.binary(max_size=300), st.booleans())
def test_simulated_with_any_input(data: bytes, as_on_macos: bool) -> None:
    simulated_pump.run(data, as_on_macos=as_on_macos)


@pytest.mark.skipif(
    sys.platform == "darwin", reason="a library is found by its path there, not by its soname"
)
def test_libusb(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", CASES],
        env=environment_with_fake(tmp_path),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
