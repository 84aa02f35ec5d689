"""Which libusb usbipd needs."""

from pathlib import Path

import pytest

from usbipd import _claim
from usbipd.usb.libusb_version import MINIMUM, dotted

ROOT = Path(__file__).parents[3]


def test_a_worker_needs_the_same_as_the_checks_say() -> None:
    assert _claim.MINIMUM_LIBUSB == MINIMUM


@pytest.mark.parametrize("file", ["setup.py", "packaging/install-deps", "usbipd/usb/claim_errors.py"])
def test_other_files_name_the_same(file: str) -> None:
    assert dotted(MINIMUM) in (ROOT / file).read_text()
