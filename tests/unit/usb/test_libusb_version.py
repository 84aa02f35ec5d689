"""Which libusb usbipd needs: Python has the number once, what runs before it is installed has its own."""

from pathlib import Path

import pytest

from usbipd.usb.libusb_version import MINIMUM, dotted

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("file", ["setup.py", "packaging/install-deps"])
def test_other_files_name_the_same(file: str) -> None:
    assert dotted(MINIMUM) in (ROOT / file).read_text()
