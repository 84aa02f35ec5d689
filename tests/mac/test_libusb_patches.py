"""Each patch of packaging/libusb: stock libusb shows the fault, libusb with the patches does not."""

import signal
import subprocess
import sys
from ast import literal_eval
from pathlib import Path
from typing import Any, Final

import pytest
from libusb_source import MARKER

from tests.mac.build import build
from tests.mac.mac import OwnMac

ROOT: Final = Path(__file__).parents[2]
VARIANTS: Final = ("stock", "ours")
TIMEOUT: Final = 120.0
"""Seconds; a case ends much sooner, or reports a hang itself."""

Process = subprocess.CompletedProcess[str]


def run(case: str, variant: str, kernel: OwnMac, **more: str) -> Process:
    """Runs a case of patch_cases.py.  Freed memory is overwritten: mallopt(3), M_PERTURB."""
    return subprocess.run(
        [sys.executable, "-m", "tests.mac.patch_cases", case],
        env={**kernel.environment(build(variant)), "MALLOC_PERTURB_": "165", **more},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def seen(case: str, variant: str, kernel: OwnMac, **more: str) -> str:
    done = run(case, variant, kernel, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_exit_while_devices_come_and_go(variant: str, kernel: OwnMac) -> None:
    found = seen("exit_while_devices_come_and_go", variant, kernel)
    if variant == "stock" and found == "ends":
        pytest.skip("the two threads did not collide this time")
    assert found == {"stock": "hangs", "ours": "ends"}[variant]


@pytest.mark.parametrize("variant", VARIANTS)
def test_bytes_of_aborted_transfers(variant: str, kernel: OwnMac) -> None:
    count = {"stock": 0, "ours": 1024}[variant]
    found = literal_eval(seen("bytes_of_aborted_transfers", variant, kernel))
    assert found == [("cancelled", count), ("cancelled", count), ("stall", count)]


def test_a_kernel_that_does_not_report_bytes(kernel: OwnMac) -> None:
    kernel.switch(abort_reports_bytes=False)
    found = literal_eval(seen("bytes_of_aborted_transfers", "ours", kernel))
    assert found == [("cancelled", 0), ("cancelled", 0), ("stall", 1024)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_context_without_discovery(variant: str, kernel: OwnMac) -> None:
    found: dict[str, Any] = literal_eval(seen("a_context_without_discovery", variant, kernel))
    expected = {
        "stock": {"option": -12, "opened": 1, "listed": 1},  # LIBUSB_ERROR_NOT_SUPPORTED
        "ours": {"option": 0, "opened": 0, "listed": 0},
    }
    assert found == {**expected[variant], "reset": 0, "notified that its own has left": True}


@pytest.mark.parametrize(("case", "expected"), [("reset", "0"), ("give_back", "[]")])
def test_reset(case: str, expected: str, kernel: OwnMac) -> None:
    done = run(case, "stock", kernel, SOFTWARE_MAC_STRICT="1")
    assert done.returncode == -signal.SIGABRT
    assert "an interface of a device was released during a call of it" in done.stderr
    with OwnMac() as mac:
        assert seen(case, "ours", mac, SOFTWARE_MAC_STRICT="1") == expected


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_list_while_devices_leave(variant: str, kernel: OwnMac) -> None:
    done = run("list_while_devices_leave", variant, kernel)
    if variant == "stock":
        assert -done.returncode in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
    else:
        assert (done.returncode, done.stdout) == (0, "lists\n"), done.stderr


@pytest.mark.parametrize("variant", VARIANTS)
def test_services_of_silent_devices(variant: str, kernel: OwnMac) -> None:
    assert int(seen("services_of_silent_devices", variant, kernel)) == {"stock": 1, "ours": 0}[variant]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_reset_of_a_device_that_stays_silent(variant: str, kernel: OwnMac) -> None:
    expected = {
        "stock": -7,
        "ours": -5,
    }  # after 10 s LIBUSB_ERROR_TIMEOUT, or immediately LIBUSB_ERROR_NOT_FOUND
    assert int(seen("reset_of_a_device_that_stays_silent", variant, kernel)) == expected[variant]


@pytest.mark.parametrize("variant", VARIANTS)
def test_memory_of_isochronous_transfers(variant: str, kernel: OwnMac) -> None:
    """struct IOUSBIsocFrame, one for each packet, has 8 bytes."""
    growth = int(seen("memory_of_isochronous_transfers", variant, kernel))
    assert growth >= 8 if variant == "stock" else growth < 8


@pytest.mark.parametrize("variant", VARIANTS)
def test_version(variant: str, kernel: OwnMac) -> None:
    assert seen("version", variant, kernel) == {"stock": "", "ours": MARKER}[variant]
