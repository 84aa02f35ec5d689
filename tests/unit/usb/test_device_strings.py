"""What devices say of themselves: anything, or nothing, or only once."""

from collections.abc import Callable
from pathlib import Path

import pytest
import usb1

from usbipd.usb.device_strings import AskedStrings, DeviceStrings, strings_in_sysfs


@pytest.mark.parametrize(
    ("raw", "serial"),
    [
        (b"4C530001\n", "4C530001"),
        (b"  4C 53 \n", "4C 53"),
        (b"\n", None),
        (b"   \n", None),
        (b"\xc2\xa0\n", None),
        (b"\0\0\n", None),
        (b"12\0\0\n", "12"),
        (b"a\x1b[2J\tb\n", "a\\x1b[2J\\tb"),
        (b"\xffa\n", "\N{REPLACEMENT CHARACTER}a"),
        ("Gerät\n".encode(), "Gerät"),
    ],
)
def test_what_sysfs_says(tmp_path: Path, raw: bytes, serial: str | None) -> None:
    (tmp_path / "serial").write_bytes(raw)
    (tmp_path / "product").write_bytes(b"Stick\n")
    assert strings_in_sysfs(tmp_path) == DeviceStrings(None, "Stick", serial)


class FakeDevice:
    """As much of `usb1.USBDevice` as is asked for its strings."""

    def __init__(self, *, serial: str | None = "S1", devnum: int = 7, product_id: int = 2) -> None:
        self.asked = 0
        self.is_open_elsewhere = False
        self.getVendorID = lambda: 1
        self.getProductID = lambda: product_id
        self.getbcdDevice = lambda: 0x100
        self.getDeviceAddress = lambda: devnum
        self.getManufacturerDescriptor = lambda: 0
        self.getProductDescriptor = lambda: 2
        self.getSerialNumberDescriptor = lambda: 0 if serial is None else 3
        self.getManufacturer = self._say("never asked for")
        self.getProduct = self._say("Stick ")
        self.getSerialNumber = self._say(serial)

    def _say(self, text: str | None) -> Callable[[], str | None]:
        def say() -> str | None:
            self.asked += 1
            if self.is_open_elsewhere:
                raise usb1.USBErrorAccess
            return text

        return say


@pytest.fixture
def strings() -> AskedStrings:
    return AskedStrings()


@pytest.mark.parametrize(
    ("says", "serial"), [("S1\0\0", "S1"), ("  ", None), ("", None), (None, None), ("a\nb", "a\\nb")]
)
def test_what_a_device_says(strings: AskedStrings, says: str | None, serial: str | None) -> None:
    assert strings.ask("1-2", FakeDevice(serial=says)) == DeviceStrings(None, "Stick", serial)


def test_a_device_is_asked_once(strings: AskedStrings) -> None:
    device = FakeDevice()
    assert strings.ask("1-2", device) == strings.ask("1-2", device)
    assert device.asked == 2


def test_one_that_does_not_answer_has_no_strings_and_is_asked_again(strings: AskedStrings) -> None:
    device = FakeDevice()
    device.is_open_elsewhere = True
    assert strings.ask("1-2", device) == DeviceStrings()
    device.is_open_elsewhere = False
    assert strings.ask("1-2", device).serial == "S1"


def test_one_that_was_captured_is_what_it_was(strings: AskedStrings) -> None:
    strings.ask("1-2", FakeDevice())
    captured = FakeDevice(devnum=8)  # capturing enumerates it anew
    captured.is_open_elsewhere = True
    assert strings.ask("1-2", captured).serial == "S1"
    strings.keep({"1-2"})
    assert strings.ask("1-2", captured).serial == "S1"


def test_another_one_at_the_same_port(strings: AskedStrings) -> None:
    strings.ask("1-2", FakeDevice())
    assert strings.ask("1-2", FakeDevice(serial="S2", devnum=8)).serial == "S2"
    other = FakeDevice(serial="S3", devnum=8, product_id=3)
    other.is_open_elsewhere = True
    assert strings.ask("1-2", other) == DeviceStrings()


def test_one_that_was_gone_is_a_new_one(strings: AskedStrings) -> None:
    strings.ask("1-2", FakeDevice())
    strings.keep({"1-3"})
    replugged = FakeDevice()
    replugged.is_open_elsewhere = True
    assert strings.ask("1-2", replugged) == DeviceStrings()
