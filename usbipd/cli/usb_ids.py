"""Names of vendors and products from usb.ids, the public list of USB ids.  Runs in the caller's process.

The file is the system's; a release packs a copy for systems that have none or an older one.  Its header
describes the format: an id in hexadecimal, two spaces, a name; a vendor's products follow, after a tab.

    0781  SanDisk Corp.
    <TAB>5581  Ultra

Only the requested lines are decoded, which takes a millisecond instead of ten.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from typing import Final

from usbipd.text import readable

SYSTEM: Final = (
    "/usr/share/misc/usb.ids",  # Debian, Ubuntu, Gentoo
    "/usr/share/hwdata/usb.ids",  # Fedora, Arch, Alpine, openSUSE
    "/usr/share/usb.ids",  # Slackware, older openSUSE
)
PACKED: Final = os.path.join(os.path.dirname(os.path.dirname(__file__)), "usb.ids")
"""The copy in a wheel and in the one executable; packaging/usb_ids.py says which one.  A clone has none."""

LARGEST_FILE: Final = 8 << 20
"""Bytes; the file has 0.7 MB (2026).  A larger one is not read."""
LONGEST_NAME: Final = 200
"""Characters; the longest name has 153 (2026)."""

SEARCHES: Final = 16
"""For vendors, each through the whole file; then an index of them costs less."""

_VENDOR: Final = re.compile(rb"\n([0-9a-f]{4})  ")
_END_OF_VENDOR: Final = re.compile(rb"\n[^\t#\r\n]")


class UsbIds:
    """The names in the files at `places`: each is read when needed, and searched once per device."""

    def __init__(self, places: Iterable[str] = (*SYSTEM, PACKED)) -> None:
        self._unread = list(places)
        self._files: list[Names] = []
        self._found: dict[tuple[int, int], tuple[str | None, str | None]] = {}

    def names(self, vendor_id: int, product_id: int) -> tuple[str | None, str | None]:
        """The names of vendor and product, from the first file that has the product; None: unknown."""
        ids = (vendor_id, product_id)
        if ids not in self._found:
            self._found[ids] = self._search(*ids)
        return self._found[ids]

    def _search(self, vendor_id: int, product_id: int) -> tuple[str | None, str | None]:
        vendor = None
        for file in self._read():
            found, product = file.look_up(vendor_id, product_id)
            vendor = vendor or found
            if product is not None:
                return found, product
        return vendor, None

    def _read(self) -> Iterator["Names"]:
        yield from self._files
        while self._unread:
            content = read(self._unread.pop(0))
            if content is not None:
                self._files.append(Names(content))
                yield self._files[-1]


class Names:
    """The names in `read` bytes, which may be malformed."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._searches = 0
        self._vendors: dict[bytes, int] | None = None
        """Where the line of each vendor begins; None until it pays to look at all lines."""

    def look_up(self, vendor_id: int, product_id: int) -> tuple[str | None, str | None]:
        """The names of vendor and product; None: unknown."""
        start = self._find(b"%04x" % vendor_id)
        if start < 0:
            return None, None
        end = _END_OF_VENDOR.search(self._content, start + 1)
        block = self._content[start:] if end is None else self._content[start : end.start()]
        product = block.find(b"\n\t%04x  " % product_id)
        return _name(block, 7), None if product < 0 else _name(block, product + 8)

    def _find(self, vendor: bytes) -> int:
        """Where the line end before the vendor is; -1: nowhere."""
        if self._vendors is None and self._searches < SEARCHES:
            self._searches += 1
            return self._content.find(b"\n%s  " % vendor)
        if self._vendors is None:  # another machine may name thousands
            self._vendors = {}
            for found in _VENDOR.finditer(self._content):
                self._vendors.setdefault(found[1], found.start())
        return self._vendors.get(vendor, -1)


def _name(block: bytes, start: int) -> str | None:
    line = block[start : start + 4 * LONGEST_NAME].partition(b"\n")[0]
    return readable(line.strip(), LONGEST_NAME) or None


def read(path: str) -> bytes | None:
    """The content of a usb.ids file, after a line end; None: unreadable, not a file, or too large."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            content = file.read(LARGEST_FILE + 1)
    except OSError:
        return None
    return b"\n" + content if len(content) <= LARGEST_FILE else None


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # else a named pipe waits for a writer
