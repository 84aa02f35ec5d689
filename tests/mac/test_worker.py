"""The worker's parts on libusb's darwin backend: cases in a process of a software Mac."""

from collections.abc import Callable

import pytest


@pytest.mark.parametrize("cases", ["library_cases.py", "claim_cases.py", "transfer_cases.py"])
def test_over_the_darwin_backend(cases: str, in_process: Callable[..., None]) -> None:
    in_process(cases)
