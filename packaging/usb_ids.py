"""The usb.ids in the executable and in wheels, for systems that have none.

Run by `make usb-ids`, which fetches that of a release into build/.  usbipd.spec and setup.py take it from
there; without it, the executable gets that of the build system.
"""

import hashlib
import re
import sys
import urllib.request
from pathlib import Path
from typing import Final

from usbipd.cli.usb_ids import LARGEST_FILE, SYSTEM, read

COMMIT: Final = "5e867ca4d3c3a41986391970475a4a66bee0995d"
URL: Final = f"https://raw.githubusercontent.com/usbids/usbids/{COMMIT}/usb.ids"
"""A copy of http://www.linux-usb.org/usb.ids, which has no earlier versions."""
SHA256: Final = "291f4550277560fcb44f432bc67b62a93ecb0e4218460f5503aa87d521632f0c"

FETCHED: Final = Path(__file__).resolve().parents[1] / "build/usb.ids"
TERMS: Final = "GPL-2.0-or-later OR BSD-3-Clause"
TIMEOUT: Final = 60.0
"""Seconds without an answer after which a download has failed."""


class FetchError(Exception):
    """The file cannot be fetched, or has the wrong hash; the message says which."""


def fetch() -> None:
    """Downloads the file of a release to FETCHED, unless it exists.  Raises `FetchError`."""
    if FETCHED.exists() and hashlib.sha256(FETCHED.read_bytes()).hexdigest() == SHA256:
        return
    try:
        with urllib.request.urlopen(URL, timeout=TIMEOUT) as answer:
            content = answer.read(LARGEST_FILE + 1)
    except OSError as error:
        raise FetchError(f"{URL} cannot be fetched: {error}") from None
    if (digest := hashlib.sha256(content).hexdigest()) != SHA256:
        raise FetchError(f"{URL} has the SHA-256 {digest}, not {SHA256}")
    FETCHED.parent.mkdir(parents=True, exist_ok=True)
    part = FETCHED.with_suffix(".part")
    part.write_bytes(content)
    part.rename(FETCHED)


def find() -> Path | None:
    """The file for the executable: the fetched one, else the system's; None: neither exists."""
    return next((path for path in (FETCHED, *map(Path, SYSTEM)) if read(str(path)) is not None), None)


def version(path: Path) -> str | None:
    """The version in its head, such as `2026.06.10`; None: none."""
    found = re.search(rb"^# Version: ([0-9.]+)\r?$", path.read_bytes(), re.MULTILINE)
    return None if found is None else found[1].decode()


if __name__ == "__main__":
    try:
        fetch()
    except FetchError as error:
        sys.exit(f"usb_ids: {error}")
