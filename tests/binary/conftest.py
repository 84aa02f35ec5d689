"""These tests are about a file, which has to be named."""

import pytest

from tests.programs import EXECUTABLE

if EXECUTABLE is None:
    raise pytest.UsageError("USBIPD_PROGRAM names no executable: run `make test-binary`")
