"""Tables: width, shrinking, and untrusted text."""

import pytest

from tests.unit.cli.reports import START, make_binding, make_counters, make_device, make_entry, make_status
from usbipd.cli.documents import RemoteDevice, RemoteInterface
from usbipd.cli.history_entries import format_history
from usbipd.cli.list import format_list, format_remote
from usbipd.cli.status import format_status
from usbipd.cli.table import Column, display_width, format_table, shorten, wrap
from usbipd.ipc.control_messages import DeviceState, Latency, ListResult, LoggedError, Rate

LONGEST_REAL_BUSID = "255-15.15.15.15.15.15"  # seven tiers, USB 2.0, 4.1.1


def test_columns_are_aligned_and_lines_have_no_trailing_blanks() -> None:
    columns = (Column("NAME"), Column("SIZE", right=True), Column("NOTE"))
    assert format_table(columns, [("a", "12", ""), ("long", "3", "x")], 80) == (
        "NAME  SIZE  NOTE\na       12\nlong     3  x\n"
    )


def test_only_columns_with_a_minimum_shrink_and_the_widest_first() -> None:
    columns = (Column("A"), Column("B", minimum=4), Column("C", minimum=4))
    table = format_table(columns, [("a" * 10, "b" * 20, "c" * 8)], 30)
    assert table.splitlines()[1] == "a" * 10 + "  " + "b" * 7 + "…  " + "c" * 8


def test_table_that_cannot_shrink_enough_keeps_the_minima() -> None:
    columns = (Column("A"), Column("B", minimum=4))
    assert format_table(columns, [("a" * 10, "bbbbbb")], 5).splitlines()[1] == "a" * 10 + "  bbb…"


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("ab cd", 4, "ab…"),  # no blank before the ellipsis
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日本…"),
        ("日本語", 4, "日…"),
        ("e\u0301e\u0301", 2, "e\u0301e\u0301"),
        ("e\u0301" * 9, 4, "e\u0301" * 3 + "…"),
        ("ที่" * 3, 3, "ที่" * 3),  # its marks have combining class 0
        ("ที่" * 3, 2, "ที่…"),
        ("❤\ufe0f", 1, "❤\ufe0f"),
        ("\u1100\u1161\u11a8" * 2, 4, "\u1100\u1161\u11a8" * 2),  # Hangul in letters
    ],
)
def test_shorten_counts_terminal_cells(text: str, width: int, expected: str) -> None:
    assert shorten(text, width) == expected
    assert display_width(shorten(text, width)) <= width


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", [""]),
        ("one two", ["one two"]),
        ("one two three four", ["one two", "  three", "  four"]),
        ("one  \n two", ["one two"]),
        ("two longer-than-that", ["two", "  longer", "  -than-", "  that"]),
        ("longest", ["longest"]),
        ("日本語日本", ["日本語日", "  本"]),
        ("日本 日本 日本", ["日本", "  日本", "  日本"]),
    ],
)
def test_wrap_counts_terminal_cells_and_breaks_at_blanks(text: str, lines: list[str]) -> None:
    assert wrap(text, 8, "  ", first="") == "".join(f"{line}\n" for line in lines)


def test_wrapped_lines_begin_alike_unless_the_first_is_special() -> None:
    assert wrap("a b", 4, " - ") == " - a\n - b\n"
    assert wrap("a bcdefghi", 8, "", first="x: ") == "x: a\nbcdefghi\n"


@pytest.mark.parametrize("width", [0, 1, 5])
def test_terminal_too_narrow(width: int) -> None:
    assert wrap("日本 a", width, "     ") == "     日\n     本\n     a\n"
    assert format_status(make_status([make_device()]), width, with_processes=True)


@pytest.mark.parametrize("busid", ["1-1", "3-1.4", LONGEST_REAL_BUSID])
@pytest.mark.parametrize("state", list(DeviceState))
@pytest.mark.parametrize("client", [None, "[2001:db8:1111:2222:3333:4444:5555:6666]:54321"])
@pytest.mark.parametrize(
    "product", ["Ultra", "Extremely Long Product Name That Is Too Long To Read " * 3, "記憶装置" * 20]
)
def test_every_table_fits_80_columns(
    busid: str, state: DeviceState, client: str | None, product: str
) -> None:
    device = make_device(
        busid,
        state=state,
        client=client,
        product=product,
        drivers=["usb-storage", "snd-usb-audio", "cdc_acm"],
        simulated=True,
        counters=make_counters(urbs=2**63, bytes_in=2**63, bytes_out=2**63, errors=2**63),
        rate=Rate(urbs=1e6, bytes_in=1e9, bytes_out=1e9),
        latency=Latency(p50_us=1 << 21, p99_us=1 << 23),
        claim_method="simulated",
        claim_time=START,
        error=f"{product} does not answer",
        advice=f"unplug {product}",
        next_try=START,
    )
    status = make_status(
        [device],
        listening=["[2001:db8:1111:2222:3333:4444:5555:6666]:3240"] * 3,
        last_errors=[LoggedError(time=START, message="a b c d " * 30)],
    )
    binding = make_binding(product=product, serial="S" * 126, busid=busid, allow=["192.0.2.0/24"] * 20)
    listed = ListResult(
        devices=[device],
        bindings=[binding, make_binding(devices=[busid], allow=["192.0.2.0/24"] * 20)],
    )
    entry = make_entry(
        1,
        busid=busid,
        product=product,
        client=client,
        reason="it was so " * 20,
        seconds=1e7,
        bytes_in=1 << 50,
    )
    for table in (
        format_list(listed, 80),
        format_status(status, 80, with_processes=True),
        format_history([entry], 80),
    ):
        assert max(display_width(line) for line in table.splitlines()) <= 80
        assert busid in table or state is DeviceState.NOT_SHARED


def test_the_remote_table_fits_80_columns() -> None:
    codes = [0x0E, 0x0E, 0x01, 0x01, 0x01, 0x03, 0xFE, 0x55, 0x08, 0x0A, 0xDC, 0xEF]
    device = RemoteDevice(
        busid="1" * 15 + "-" + "2" * 15,
        path="/sys/devices/x",
        vendor_id=0x0781,
        product_id=0x5581,
        device_version=0x0100,
        speed="super plus",
        device_class=0xEF,
        device_subclass=2,
        device_protocol=1,
        configuration=1,
        configurations=1,
        interfaces=[
            RemoteInterface(interface_class=c, interface_subclass=0, interface_protocol=0) for c in codes
        ],
    )
    table = format_remote([device], 80)
    assert max(display_width(line) for line in table.splitlines()) <= 80
    assert "video x2, audio x3, HID" in format_remote([device], 200)
    assert "class 55" in format_remote([device], 200)
