"""The strings of devices: anything, or nothing."""

from pathlib import Path

import pytest

from usbipd.usb.device_strings import DeviceStrings, strings_in_sysfs


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
def test_strings_from_sysfs(tmp_path: Path, raw: bytes, serial: str | None) -> None:
    (tmp_path / "serial").write_bytes(raw)
    (tmp_path / "product").write_bytes(b"Stick\n")
    assert strings_in_sysfs(tmp_path) == DeviceStrings(None, "Stick", serial)
