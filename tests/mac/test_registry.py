"""The extension's view of the IORegistry: cases in a process of a software Mac."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def libusb(stock_libusb: Path) -> Path:
    """One variant is enough: libusb is not called."""
    return stock_libusb


@pytest.mark.parametrize("cases", ["iokit_cases.py", "ownership_cases.py", "disks_cases.py"])
def test_the_registry(cases: str, in_process: Callable[..., None]) -> None:
    in_process(cases)
