"""What `list` shows to people."""

import json

import msgspec
import pytest

from tests.golden.messages import DEVICE
from tests.unit.cli.reports import make_binding, make_device
from usbipd.cli import list as list_command
from usbipd.cli.documents import RemoteDevice, RemoteInterface
from usbipd.cli.list import format_list, format_remote
from usbipd.ipc.control_messages import DeviceState, LeftOutInfo, ListResult


def test_devices_with_state_and_user() -> None:
    devices = [
        make_device("1-1", state=DeviceState.NOT_SHARED),
        make_device("3-1", state=DeviceState.ATTACHED, client="192.0.2.7:51234", drivers=[], simulated=True),
        make_device("3-2", manufacturer="Acme", product="Acme Disk", drivers=[]),
        make_device("3-3", manufacturer=" ", product=None, drivers=[]),
        make_device("3-4", vendor_id=0x0951, product_id=0x1666, manufacturer=None, product="", drivers=[]),
    ]
    assert format_list(ListResult(devices=devices, bindings=[]), 100) == (
        "BUSID  VID:PID    STATE       DEVICE                                   USED BY\n"
        "1-1    0781:5581  not shared  SanDisk Ultra                            usb-storage\n"
        "3-1    0781:5581  attached    SanDisk Ultra (simulated)                192.0.2.7:51234\n"
        "3-2    0781:5581  shared      Acme Disk\n"
        "3-3    0781:5581  shared      0781:5581\n"
        "3-4    0951:1666  shared      Kingston Technology DataTraveler 100 G3\n"
    )


def test_a_failed_device_says_why_and_what_to_try() -> None:
    device = make_device("3-1", state=DeviceState.FAILED, drivers=[], error="it is busy", advice="close it")
    assert format_list(ListResult(devices=[device], bindings=[]), 80).splitlines()[2:] == [
        "3-1: it is busy",
        "  hint: close it",
    ]


def test_bindings_whose_device_is_not_there() -> None:
    bindings = [
        make_binding(devices=["3-1"]),
        make_binding(),
        make_binding(busid="3-4", serial="4C53", product="Maus"),
        make_binding(vendor_id=0x1D6B, product_id=0x0104, product=None, allow=["::1", "192.0.2.7"]),
        make_binding(vendor_id=0x0951, product_id=0x1666, product=None),
    ]
    text = format_list(ListResult(devices=[make_device()], bindings=bindings), 80)
    assert text.partition("\n\n")[2] == (
        "Bound, not plugged in:\n"
        "VID:PID    PORT  SERIAL NUMBER  NAME                 ALLOWED\n"
        "0781:5581  any   any            Ultra                all\n"
        "0781:5581  3-4   4C53           Maus                 all\n"
        "1d6b:0104  any   any                                 ::1, 192.0.2.7\n"
        "0951:1666  any   any            DataTraveler 100 G3  all\n"
    )


def make_remote_device(busid: str, *classes: int, **changes: object) -> RemoteDevice:
    """A device of the vendor's class that another machine shares, or what `changes` makes of it."""
    fields: dict[str, object] = {
        "busid": busid,
        "path": "/sys/devices/x",
        "vendor_id": 0x0951,
        "product_id": 0x1666,
        "device_version": 0x0100,
        "speed": "high",
        "device_class": 0xFF,
        "device_subclass": 0,
        "device_protocol": 0,
        "configuration": 1,
        "configurations": 1,
        "interfaces": [
            RemoteInterface(interface_class=c, interface_subclass=0, interface_protocol=0) for c in classes
        ],
    }
    return RemoteDevice(**(fields | changes))  # type: ignore[arg-type]


def test_devices_of_another_machine() -> None:
    devices = [
        make_remote_device("1-1", 8),
        make_remote_device("1-2", 3, 3, product_id=1, speed="low"),
        make_remote_device("1-3", vendor_id=0xFFF0, configuration=0),
    ]
    assert format_remote(devices, 80) == (
        "BUSID  VID:PID    SPEED  DEVICE                                   INTERFACES\n"
        "1-1    0951:1666  high   Kingston Technology DataTraveler 100 G3  mass storage\n"
        "1-2    0951:0001  low    Kingston Technology                      HID x2\n"
        "1-3    fff0:1666  high   fff0:1666                                vendor\n"
    )


def test_another_device_at_the_port_of_a_binding() -> None:
    bindings = [
        make_binding(busid="3-1", serial="ABC"),
        make_binding(busid="3-2", product_id=0x5567),
        make_binding(busid="3-3", serial="ABC"),
        make_binding(busid="3-3", serial="XYZ", devices=["3-3"]),
        make_binding(serial="ABC"),
    ]
    devices = [
        make_device("3-1", serial="XYZ", state=DeviceState.NOT_SHARED),
        make_device("3-2", serial=None, state=DeviceState.NOT_SHARED),
        make_device("3-3", serial="XYZ"),  # which is bound, too
    ]
    text = format_list(ListResult(devices=devices, bindings=bindings), 100)
    assert text.splitlines()[-4:] == [
        "3-1: bound: 0781:5581 serial number ABC; plugged in: 0781:5581 serial number XYZ",
        "  hint: to share it instead, `usbipd unbind 3-1`, then `usbipd bind 3-1`",
        "3-2: bound: 0781:5567; plugged in: 0781:5581",
        "  hint: to share it instead, `usbipd unbind 3-2`, then `usbipd bind 3-2`",
    ]


def test_devices_that_cannot_be_shared_are_named() -> None:
    left_out = [
        LeftOutInfo(
            busid="1-2", reason="usbfs cannot claim it", code="unusable-descriptors", advice="try another"
        ),
        LeftOutInfo(busid="3-1", reason="it is imported", code="imported", advice=None),
    ]
    text = format_list(ListResult(devices=[make_device()], bindings=[make_binding()], left_out=left_out), 80)
    assert text.split("\n\n")[2] == (
        "Plugged in, cannot be shared:\n"
        "1-2: usbfs cannot claim it\n"
        "  hint: try another\n"
        "3-1: it is imported\n"
    )


def test_bindings_without_any_device() -> None:
    text = format_list(ListResult(devices=[], bindings=[make_binding()]), 80)
    assert text.startswith("Bound, not plugged in:\nVID:PID")


def test_who_may_use_a_device_that_is_not_for_all() -> None:
    devices = [make_device("3-1"), make_device("3-2"), make_device("3-3")]
    bindings = [
        make_binding(devices=["3-1", "3-2"], allow=["192.0.2.0/24", "::1"]),
        make_binding(devices=["3-1"], allow=["::1", "198.51.100.7"]),
        make_binding(devices=["3-2"]),  # without a list: for all
    ]
    text = format_list(ListResult(devices=devices, bindings=bindings), 80)
    assert text.splitlines()[4:] == ["3-1: only for 192.0.2.0/24, ::1, 198.51.100.7"]


@pytest.mark.parametrize(
    ("speed", "word"),
    [(1, "low"), (2, "full"), (3, "high"), (4, "wireless"), (5, "super"), (6, "super plus"), (7, "unknown")],
)
def test_speeds_of_other_servers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], speed: int, word: str
) -> None:
    """enum usb_device_speed of include/uapi/linux/usb/ch9.h, of which a Linux server sends all."""
    device = msgspec.structs.replace(DEVICE, speed=speed)
    monkeypatch.setattr(list_command, "fetch_devlist", lambda _host, _port, _timeout: (device,))
    list_command.list_remote("192.0.2.1", 3240, timeout=1.0, as_json=True)
    assert json.loads(capsys.readouterr().out)["devices"][0]["speed"] == word
