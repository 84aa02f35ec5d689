"""Checks that the daemon and `doctor` share."""

from types import SimpleNamespace

import pytest

from usbipd.findings import check_libusb
from usbipd.ipc.control_messages import CheckState


@pytest.mark.parametrize(
    ("version", "state"),
    [((1, 0, 25), CheckState.FAILED), ((1, 0, 26), CheckState.OK), ((1, 1, 0), CheckState.OK)],
)
def test_libusb(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], state: CheckState) -> None:
    major, minor, micro = version
    found = SimpleNamespace(major=major, minor=minor, micro=micro, rc=b"")
    monkeypatch.setattr("usb1.getVersion", lambda: found)
    check = check_libusb("Restart it.")
    assert check.state is state
    assert f"{major}.{minor}.{micro}" in check.message
    assert ("needs 1.0.26" in check.message) == (state is not CheckState.OK)
    assert check.steps[1:] == (() if state is CheckState.OK else ("Restart it.",))


def test_no_libusb(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise OSError("libusb-1.0.so.0: cannot open shared object file")

    monkeypatch.setattr("usb1.getVersion", load)
    check = check_libusb("Restart it.")
    assert check.state is CheckState.FAILED
    assert "libusb-1.0.so.0" in check.message
    assert check.steps[-1] == "Restart it."
