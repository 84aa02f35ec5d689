"""The pump on libusb's darwin backend: cases in processes of a software Mac."""

from collections.abc import Callable

import pytest


@pytest.mark.parametrize("cases", ["pump_cases.py", "pump_races_cases.py"])
def test_pump(cases: str, in_process: Callable[..., None]) -> None:
    in_process(cases)
