"""Tables: their width, what shrinks, and what a device cannot do to the terminal."""

import pytest

from tests.unit.cli.reports import make_counters, make_device, make_status
from usbipd.cli.documents import RemoteDevice, RemoteInterface
from usbipd.cli.list import format_local, format_remote
from usbipd.cli.status import format_status
from usbipd.cli.table import Column, display_width, format_bytes, format_duration, format_table, shorten
from usbipd.ipc.messages import DeviceState

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


def test_a_table_that_cannot_shrink_enough_keeps_the_minima() -> None:
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
    ],
)
def test_shorten_counts_terminal_cells(text: str, width: int, expected: str) -> None:
    assert shorten(text, width) == expected
    assert display_width(shorten(text, width)) <= width


@pytest.mark.parametrize("name", ["\x1b[2J", "a\nb", "a\tb", "\x9b31m", "\u202eabc", "\x00"])
def test_a_product_name_cannot_drive_the_terminal(name: str) -> None:
    lines = format_local([make_device(product=name, manufacturer=None)], 80)
    assert len(lines.splitlines()) == 2
    assert all(char.isprintable() for line in lines.split("\n") for char in line)
    assert "\N{REPLACEMENT CHARACTER}" in lines


@pytest.mark.parametrize("busid", ["1-1", "3-1.4", LONGEST_REAL_BUSID])
@pytest.mark.parametrize("state", list(DeviceState))
@pytest.mark.parametrize("client", [None, "[2001:db8:1111:2222:3333:4444:5555:6666]:54321"])
@pytest.mark.parametrize(
    "product", ["Ultra", "Extremely Long Product Name That Nobody Can Read " * 3, "記憶装置" * 20]
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
        counters=make_counters(bytes_in=2**50, bytes_out=2**40 - 1, errors=10**5),
    )
    status = make_status([device])
    for table in (format_local([device], 80), format_status(status, 80, with_processes=True)):
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


def test_list_shows_state_and_user() -> None:
    table = format_local(
        [
            make_device("1-1", state=DeviceState.NOT_SHARED),
            make_device(
                "3-1", state=DeviceState.ATTACHED, client="192.0.2.7:51234", drivers=[], simulated=True
            ),
            make_device("3-2", manufacturer="Acme", product="Acme Disk", drivers=[]),
            make_device("3-3", manufacturer=" ", product=None, drivers=[]),
        ],
        80,
    )
    assert table == (
        "BUSID  VID:PID    STATE       DEVICE                     USED BY\n"
        "1-1    0781:5581  not shared  SanDisk Ultra              usb-storage\n"
        "3-1    0781:5581  attached    SanDisk Ultra (simulated)  192.0.2.7:51234\n"
        "3-2    0781:5581  shared      Acme Disk\n"
        "3-3    0781:5581  shared      (unnamed)\n"
    )


def test_status_in_full() -> None:
    devices = [
        make_device("1-1", state=DeviceState.NOT_SHARED),
        make_device(
            "3-1", state=DeviceState.ATTACHED, client="192.0.2.7:51234", drivers=[], counters=make_counters()
        ),
        make_device("3-2", state=DeviceState.FAILED, product="Mouse", error="usbhid does\nnot let go"),
    ]
    assert format_status(make_status(devices), 80, with_processes=True) == (
        "usbipd 0.1.0: pid 4711, user root, up 2 h 3 min, memory 24.0 MiB, errors 0\n"
        "listening on: 127.0.0.1:3240, [::1]:3240\n"
        "\n"
        "BUSID  STATE     DEVICE  CLIENT                 IN    OUT  ERRORS\n"
        "3-1    attached  Ultra   192.0.2.7:51234  32.0 MiB  817 B       3\n"
        "3-2    failed    Mouse\n"
        "3-2: usbhid does\N{REPLACEMENT CHARACTER}not let go\n"
        "\n"
        "PROCESS     PID  USER    BUSID\n"
        "extension  4711  root\n"
        "server     4712  usbipd\n"
        "worker     4713  usbipd  3-1\n"
    )


def test_status_without_devices() -> None:
    text = format_status(make_status([make_device(state=DeviceState.NOT_SHARED)]), 80, with_processes=False)
    assert text.endswith("\n\nNo device is shared.\n")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (100 * 1024, "100 KiB"),
        (1000 * 1024, "1.0 MiB"),
        (32 << 20, "32.0 MiB"),
        (5 << 40, "5.0 TiB"),
        (9999 << 40, "9999 TiB"),
    ],
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text
    assert len(text) <= 8


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (0.4, "0 s"),
        (59.9, "59 s"),
        (60, "1 min 0 s"),
        (7384, "2 h 3 min"),
        (86400, "1 d 0 h"),
        (1e6, "11 d 13 h"),
    ],
)
def test_format_duration(span: float, text: str) -> None:
    assert format_duration(span) == text
