"""Claims through libusb's darwin backend: capture_cases.py, in processes of a software Mac."""

from collections.abc import Callable


def test_claim(in_process: Callable[..., None]) -> None:
    in_process("capture_cases.py")
