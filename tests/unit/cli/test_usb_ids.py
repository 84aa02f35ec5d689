"""Names from usb.ids: a list with odd lines, invalid files, and the list of the system."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbipd.cli.usb_ids import LARGEST_FILE, LONGEST_NAME, SEARCHES, SYSTEM, Names, UsbIds, read

LIST = b"""#
# List of USB ids\r
0001  First vendor
\t0001  First product
\t\t00  Interface of it
\t\t0002  Not a product

# A comment, and an empty line, within a vendor
\t0003  Third product
0002  Vendor with CRLF\r
\t0001  Product with CRLF\r
\r
\t0004  After an empty line\r
0003 One space
\t0001  Of a line that is no vendor
000a  Caf\xc3\xa9 \xb4 \x1b[31m\x00\xe2\x80\xae
\t00ff \x20 spaces around \t
\t00fe
\t00fd  \x20
ABCD  Upper case
beef \x20
\t0001  Of a vendor without a name
C 00  (Defined at Interface level)
\t01  Subclass
L 0009  English
\t0001  Of a language
0001  First vendor again
\t0002  Of its second mention
ffff  Last vendor
\tffff  Last product, without a line end"""


@pytest.fixture
def ids(tmp_path: Path) -> UsbIds:
    path = tmp_path / "usb.ids"
    path.write_bytes(LIST)
    return UsbIds([str(path)])


@pytest.mark.parametrize(
    ("vendor_id", "product_id", "names"),
    [
        (0x0001, 0x0001, ("First vendor", "First product")),
        (0x0001, 0x0003, ("First vendor", "Third product")),
        (0x0001, 0x0002, ("First vendor", None)),
        (0x0001, 0x0004, ("First vendor", None)),
        (0x0002, 0x0001, ("Vendor with CRLF", "Product with CRLF")),
        (0x0002, 0x0004, ("Vendor with CRLF", "After an empty line")),
        (0x0003, 0x0001, (None, None)),
        (0x000A, 0x00FF, ("Café \\xb4 \\x1b[31m\\x00\\u202e", "spaces around")),
        (0x000A, 0x00FE, ("Café \\xb4 \\x1b[31m\\x00\\u202e", None)),
        (0x000A, 0x00FD, ("Café \\xb4 \\x1b[31m\\x00\\u202e", None)),
        (0xABCD, 0x0001, (None, None)),
        (0xBEEF, 0x0001, (None, "Of a vendor without a name")),
        (0xBEEF, 0x0002, (None, None)),
        (0x0009, 0x0001, (None, None)),
        (0x0000, 0x0000, (None, None)),
        (0xFFFF, 0xFFFF, ("Last vendor", "Last product, without a line end")),
    ],
)
def test_names(ids: UsbIds, vendor_id: int, product_id: int, names: tuple[str | None, str | None]) -> None:
    assert ids.names(vendor_id, product_id) == names
    assert ids.names(vendor_id, product_id) == names, "asked again"


def test_the_first_line_of_a_file_may_be_a_vendor(tmp_path: Path) -> None:
    (tmp_path / "usb.ids").write_bytes(b"1234  Vendor\n\t5678  Product\n")
    assert UsbIds([str(tmp_path / "usb.ids")]).names(0x1234, 0x5678) == ("Vendor", "Product")


def test_first_file_with_the_product_is_used(tmp_path: Path) -> None:
    for name, content in [
        ("old", b"0001  Old\n\t0001  Old 1\n0003  Old three\n"),
        ("new", b"0001  New\n\t0001  New 1\n\t0002  New 2\n0002  New two\n0003  New three\n"),
    ]:
        (tmp_path / name).write_bytes(content)
    ids = UsbIds([str(tmp_path / name) for name in ("missing", "old", "new")])
    assert ids.names(0x0001, 0x0001) == ("Old", "Old 1")
    assert ids.names(0x0001, 0x0002) == ("New", "New 2")
    assert ids.names(0x0002, 0x0001) == ("New two", None)
    assert ids.names(0x0003, 0x0001) == ("Old three", None)
    assert ids.names(0x0004, 0x0001) == (None, None)


def test_file_is_read_once_when_needed(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"0001  Vendor\n\t0001  Product\n")
    ids = UsbIds([str(first), str(second)])
    assert ids.names(0x0001, 0x0001) == ("Vendor", "Product")
    first.unlink()
    second.write_bytes(b"0002  Of the second file\n")
    assert ids.names(0x0002, 0x0001) == ("Of the second file", None)
    second.unlink()
    assert ids.names(0x0001, 0x0001) == ("Vendor", "Product")
    assert ids.names(0x0001, 0x0002) == ("Vendor", None)
    assert ids.names(0x0002, 0x0001) == ("Of the second file", None)
    assert ids.names(0x0002, 0x0002) == ("Of the second file", None)


def test_no_file_means_no_names(tmp_path: Path) -> None:
    assert UsbIds([]).names(0x0001, 0x0001) == (None, None)
    assert UsbIds([str(tmp_path / "missing")]).names(0x0001, 0x0001) == (None, None)


def test_anything_but_a_file_is_skipped(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for name, target in [("to-pipe", "pipe"), ("to-itself", "to-itself"), ("to-device", "/dev/zero")]:
        (tmp_path / name).symlink_to(target)
    (tmp_path / "good").write_bytes(b"0001  Vendor\n")
    bad = ["pipe", "to-pipe", "directory", "to-itself", "to-device", "good/below"]
    before = len(list(Path("/dev/fd").iterdir()))
    assert [read(str(tmp_path / name)) for name in bad] == [None] * len(bad)
    assert len(list(Path("/dev/fd").iterdir())) == before, "all are closed"
    ids = UsbIds([*(str(tmp_path / name) for name in bad), str(tmp_path / "good")])
    assert ids.names(0x0001, 0x0001) == ("Vendor", None)


def test_too_large_file_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "usb.ids"
    path.write_bytes(b"0001  Vendor\n")
    os.truncate(path, LARGEST_FILE)
    assert UsbIds([str(path)]).names(0x0001, 0x0001) == ("Vendor", None)
    os.truncate(path, LARGEST_FILE + 1)
    assert read(str(path)) is None
    os.truncate(path, 1 << 40)
    assert UsbIds([str(path)]).names(0x0001, 0x0001) == (None, None)


def test_a_name_without_end_is_cut() -> None:
    names = Names(b"\n0001  " + b"v" * 5000 + b"\n\t0001  " + b"\xff" * 5000)
    vendor, product = names.look_up(0x0001, 0x0001)
    assert vendor == "v" * (LONGEST_NAME - 1) + "…"
    assert product is not None
    assert len(product) == LONGEST_NAME


class Counted(bytes):
    """Counts the searches through all of it."""

    searches = 0

    def find(self, *arguments: object) -> int:
        self.searches += 1
        return super().find(*arguments)  # type: ignore[arg-type]


def indexed(content: bytes) -> Names:
    """The names after so many searches that there is an index."""
    names = Names(content)
    for _ in range(SEARCHES + 1):
        names.look_up(0xFFFF, 0)
    return names


def test_thousands_of_unknown_vendors_do_not_search_the_file_each_time() -> None:
    content = Counted(b"\n" + LIST)
    names = Names(content)
    assert {names.look_up(vendor, 0) for vendor in range(0x1000, 0x2000)} == {(None, None)}
    assert content.searches <= SEARCHES
    assert names.look_up(0x0001, 0x0003) == ("First vendor", "Third product")


LINES = st.lists(
    st.sampled_from([b"", b"#", b"\t", b"\t\t", b"0001", b"000a", b"\t0001", b"\t000a", b"C 0", b"\r", b"  "])
    | st.binary(max_size=8),
    max_size=12,
).map(b"".join)


@given(
    st.lists(LINES, max_size=12).map(b"\n".join), st.sampled_from([0x0001, 0x000A]), st.integers(0, 0xFFFF)
)
def test_any_bytes_give_printable_names_or_none(content: bytes, vendor_id: int, product_id: int) -> None:
    found = Names(b"\n" + content).look_up(vendor_id, product_id)
    for name in found:
        assert name is None or (name.isprintable() and 0 < len(name) <= LONGEST_NAME)
    assert indexed(b"\n" + content).look_up(vendor_id, product_id) == found


def parse(content: bytes) -> dict[tuple[bytes, bytes], tuple[bytes, bytes | None]]:
    """All vendors and products, line by line, in the format of the file's header."""
    found: dict[tuple[bytes, bytes], tuple[bytes, bytes | None]] = {}
    vendor = name = None
    for line in content.splitlines():
        number, _, text = line.strip(b"\t").partition(b"  ")
        depth = len(line) - len(line.lstrip(b"\t"))
        if depth == 0 and line and not line.startswith(b"#"):
            vendor, name = (number, text) if re.fullmatch(rb"[0-9a-f]{4}", number) else (None, None)
        if len(number) != 4 or vendor is None or name is None:
            continue
        if depth == 0:
            found[vendor, b""] = (name, None)
        elif depth == 1:
            found[vendor, number] = (name, text)
    return found


def test_the_list_of_the_system() -> None:
    """Each name is the one that a reader of all lines finds."""
    content = next((content for path in SYSTEM if (content := read(path)) is not None), None)
    if content is None:
        pytest.skip("no usb.ids on this system: `make test-deps` installs it")
    expected, names = parse(content), Names(content)
    assert len(expected) > 20_000
    for (vendor, product), (name, text) in list(expected.items())[::50]:
        number = int(product, 16) if product else 0x10000  # which no product has
        assert names.look_up(int(vendor, 16), number) == (
            name.strip().decode(),
            None if text is None else text.strip().decode(),
        )
