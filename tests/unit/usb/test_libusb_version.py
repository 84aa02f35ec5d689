"""The libusb that usbipd needs: Python has the number; files that run before installation repeat it."""

from pathlib import Path

import pytest

from usbipd import _claim
from usbipd.errors import ClaimError
from usbipd.usb.libusb_version import MINIMUM, dotted

ROOT = Path(__file__).parents[3]


def test_a_claim_needs_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _claim.MINIMUM == MINIMUM
    monkeypatch.setattr(_claim, "MINIMUM", (9, 0, 1))
    with pytest.raises(ClaimError, match=r"is too old: usbipd needs 9\.0\.1 or newer"):
        _claim.Claim(1, 1)


@pytest.mark.parametrize("file", ["setup.py", "packaging/install-deps"])
def test_what_builds_usbipd_names_the_same(file: str) -> None:
    assert dotted(MINIMUM) in (ROOT / file).read_text()
