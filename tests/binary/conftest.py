"""Requires USBIPD_PROGRAM, which names the executable under test."""

import pytest

from tests.programs import EXECUTABLE

if EXECUTABLE is None:
    raise pytest.UsageError("USBIPD_PROGRAM must name the executable: run `make test-binary`")
