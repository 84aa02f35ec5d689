"""Sleep and wake of a Mac: cases in a process of a software Mac."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def libusb(stock_libusb: Path) -> Path:
    """One variant is enough: libusb is not called."""
    return stock_libusb


def test_power(in_process: Callable[..., None]) -> None:
    in_process("power_cases.py")
