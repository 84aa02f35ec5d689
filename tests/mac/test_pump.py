"""The pump over libusb's darwin backend: pump_cases.py, in processes of a software Mac."""

from collections.abc import Callable


def test_pump(in_process: Callable[..., None]) -> None:
    in_process("pump_cases.py")
