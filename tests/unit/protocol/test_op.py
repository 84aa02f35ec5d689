"""The OP_* codec: golden vectors, round trips, bounds, hostile bytes."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import golden
from tests.golden.messages import DEVICE, DEVLIST_REPLIES, IMPORT_REPLIES, IMPORTED, OP_REQUESTS, UNCONFIGURED
from tests.unit.protocol.chunks import ONE_MESSAGE
from usbipd.errors import ProtocolError
from usbipd.protocol.constants import MAX_DEVICES, Speed
from usbipd.protocol.op import (
    DevlistReply,
    DevlistReplyReader,
    DevlistRequest,
    ImportReply,
    ImportReplyReader,
    ImportRequest,
    MalformedImport,
    RequestReader,
    UsbDevice,
    UsbInterface,
    encode_devlist_reply,
    encode_devlist_request,
    encode_import_reply,
    encode_import_request,
)

VECTORS: list[tuple[str, type[Any], Any]] = [
    *((name, RequestReader, message) for name, message in OP_REQUESTS.items()),
    *((name, DevlistReplyReader, message) for name, message in DEVLIST_REPLIES.items()),
    *((name, ImportReplyReader, message) for name, message in IMPORT_REPLIES.items()),
]

U8 = st.integers(0, 0xFF)
U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFFFFFF)
PRINTABLE = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
BUSIDS = st.text(PRINTABLE, min_size=1, max_size=31)
DEVICES = st.builds(
    UsbDevice,
    path=st.text(PRINTABLE, max_size=255),
    busid=BUSIDS,
    busnum=U16,
    devnum=U16,
    speed=st.sampled_from(Speed).map(int),
    idVendor=U16,
    idProduct=U16,
    bcdDevice=U16,
    bDeviceClass=U8,
    bDeviceSubClass=U8,
    bDeviceProtocol=U8,
    bConfigurationValue=U8,
    bNumConfigurations=U8,
    interfaces=st.lists(st.builds(UsbInterface, U8, U8, U8), max_size=255).map(tuple),
)


def device_with(**changes: Any) -> UsbDevice:
    """The device of the vectors, changed."""
    fields = {name: getattr(DEVICE, name) for name in UsbDevice.__slots__}
    return UsbDevice(**(fields | changes))


def test_every_vector_is_replayed() -> None:
    assert {name for name, _, _ in VECTORS} == set(golden.names("op_"))


@pytest.mark.rule("op-header")
@pytest.mark.rule("any-chunking")
@pytest.mark.parametrize("read", ONE_MESSAGE)
@pytest.mark.parametrize(("name", "reader", "message"), VECTORS)
def test_vector_decodes(name: str, reader: type[Any], message: object, read: Any) -> None:
    assert read(reader(), golden.load(name)) == message


def test_requests_encode_as_the_vectors() -> None:
    assert encode_devlist_request() == golden.load("op_req_devlist")
    assert encode_import_request("1-4.2") == golden.load("op_req_import")


@pytest.mark.rule("devlist-size")
@pytest.mark.rule("bug-devlist-padding")
def test_devlist_reply_encodes_as_the_vector() -> None:
    encoded = encode_devlist_reply([DEVICE, UNCONFIGURED])
    assert encoded == golden.load("op_rep_devlist")
    assert len(encoded) == 8 + 4 + (312 + 4 * 2) + 312
    assert encode_devlist_reply([]) == golden.load("op_rep_devlist_empty")


@pytest.mark.rule("import-body")
@pytest.mark.rule("bug-import-body")
def test_import_reply_has_a_body_only_with_status_ok() -> None:
    encoded = encode_import_reply(0, IMPORTED)
    assert encoded == golden.load("op_rep_import")
    assert len(encoded) == 8 + 312
    assert encode_import_reply(2, None) == golden.load("op_rep_import_busy")
    with pytest.raises(ValueError, match="status 2"):
        encode_import_reply(2, IMPORTED)
    with pytest.raises(ValueError, match="status 0"):
        encode_import_reply(0, None)


@pytest.mark.rule("import-no-interfaces")
def test_import_reply_counts_interfaces_but_does_not_carry_them() -> None:
    encoded = encode_import_reply(0, DEVICE)
    assert len(encoded) == 8 + 312
    assert encoded[-1] == len(DEVICE.interfaces)


@pytest.mark.rule("names-padded")
def test_names_are_padded_with_nul_and_keep_a_nul_at_the_end() -> None:
    encoded = encode_import_reply(0, device_with(path="p" * 300, busid="b" * 31))
    assert encoded[8:264] == b"p" * 255 + b"\0"
    assert encoded[264:296] == b"b" * 31 + b"\0"


@pytest.mark.parametrize(
    ("length", "sent"), [(254, 254), (255, 255), (256, 255)], ids=["below", "longest", "cut"]
)
def test_the_length_of_a_path(length: int, sent: int) -> None:
    encoded = encode_import_reply(0, device_with(path="p" * length))
    assert encoded[8:264] == (b"p" * sent).ljust(256, b"\0")


@pytest.mark.parametrize(("length", "fits"), [(0, False), (1, True), (31, True), (32, False)])
def test_the_length_of_a_busid(length: int, fits: bool) -> None:
    """Both when sending and when reading."""
    busid = "b" * length
    field = busid.encode().ljust(32, b"\0")
    request = RequestReader().feed(bytes.fromhex("0111 8003 00000000") + field)
    assert isinstance(request, ImportRequest if fits else MalformedImport)
    reply = bytearray(golden.load("op_rep_import"))
    reply[264:296] = field
    if fits:
        assert encode_import_request(busid)[8:] == field
        assert encode_import_reply(0, device_with(busid=busid))[264:296] == field
        imported = ImportReplyReader().feed(bytes(reply))
        assert imported is not None
        assert imported.device is not None
        assert imported.device.busid == busid
    else:
        with pytest.raises(ValueError, match="1 to 31 printable"):
            encode_import_request(busid)
        with pytest.raises(ValueError, match="1 to 31 printable"):
            encode_import_reply(0, device_with(busid=busid))
        with pytest.raises(ProtocolError, match="sent a device with busid"):
            ImportReplyReader().feed(bytes(reply))


@pytest.mark.parametrize(("byte", "fits"), [(0x20, False), (0x21, True), (0x7E, True), (0x7F, False)])
def test_the_bytes_of_a_busid(byte: int, fits: bool) -> None:
    """Printable ASCII without the space: both ends of the range."""
    busid = f"1-{byte:c}"
    request = RequestReader().feed(bytes.fromhex("0111 8003 00000000") + busid.encode().ljust(32, b"\0"))
    assert isinstance(request, ImportRequest if fits else MalformedImport)
    if fits:
        assert RequestReader().feed(encode_import_request(busid)) == ImportRequest(busid)
    else:
        with pytest.raises(ValueError, match="printable ASCII"):
            encode_import_request(busid)


@pytest.mark.parametrize(("number", "fits"), [(255, True), (256, False)])
def test_the_number_of_interfaces(number: int, fits: bool) -> None:
    device = device_with(interfaces=(UsbInterface(3, 1, 2),) * number)
    if fits:
        assert DevlistReplyReader().feed(encode_devlist_reply([device])) == DevlistReply(0, (device,))
    else:
        with pytest.raises(struct.error):
            encode_devlist_reply([device])


@given(status=st.sampled_from([1, 2, 3, 4, 5]))
@pytest.mark.rule("op-status")
def test_every_refusal_round_trips(status: int) -> None:
    assert ImportReplyReader().feed(encode_import_reply(status, None)) == ImportReply(status, None)


@given(devices=st.lists(DEVICES, max_size=4))
def test_devlist_round_trips(devices: list[UsbDevice]) -> None:
    assert DevlistReplyReader().feed(encode_devlist_reply(devices)) == DevlistReply(0, tuple(devices))


@given(device=DEVICES)
@pytest.mark.rule("busid-echoed")
def test_import_round_trips(device: UsbDevice) -> None:
    assert RequestReader().feed(encode_import_request(device.busid)) == ImportRequest(device.busid)
    reply = ImportReplyReader().feed(encode_import_reply(0, device))
    assert reply is not None
    assert reply.device is not None
    assert reply.device.busid == device.busid
    assert reply.device.devid == device.busnum << 16 | device.devnum


@pytest.mark.rule("bug-devid-collision")
@given(ports=st.lists(st.tuples(U16, U16), min_size=2, unique=True))
def test_devices_with_different_numbers_have_different_devids(ports: list[tuple[int, int]]) -> None:
    devids = {device_with(busnum=busnum, devnum=devnum).devid for busnum, devnum in ports}
    assert len(devids) == len(ports)


@pytest.mark.rule("speed-numbers")
def test_speeds_have_the_numbers_of_the_wire() -> None:
    assert {speed.label: int(speed) for speed in Speed} == {"low": 1, "full": 2, "high": 3, "super": 5}


@pytest.mark.rule("speed-super-plus")
def test_no_speed_exceeds_the_limit_of_old_kernels() -> None:
    assert max(Speed) == 5


@pytest.mark.rule("op-version")
@pytest.mark.parametrize("reader", [RequestReader, DevlistReplyReader, ImportReplyReader])
def test_unknown_version_is_refused(reader: type[Any]) -> None:
    with pytest.raises(ProtocolError, match=r"version 0x0106; it must be 0x0111"):
        reader().feed(bytes.fromhex("0106 8005 00000000"))


def test_unknown_code_is_refused() -> None:
    with pytest.raises(ProtocolError, match="unknown OP code 0x8004"):
        RequestReader().feed(bytes.fromhex("0111 8004 00000000"))


def test_a_reply_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(ProtocolError, match="not OP_REP_IMPORT"):
        ImportReplyReader().feed(golden.load("op_rep_devlist"))


def test_a_reader_that_has_failed_keeps_failing() -> None:
    reader = RequestReader()
    for _ in range(2):
        with pytest.raises(ProtocolError, match="version"):
            reader.feed(bytes(8))


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (b"1" * 32, "without NUL"),
        (bytes(32), "printable ASCII"),
        (b"1-\x1b[2J".ljust(32, b"\0"), "printable ASCII"),
        ("1-1ä".encode().ljust(32, b"\0"), "printable ASCII"),
        (b"1 1".ljust(32, b"\0"), "printable ASCII"),
    ],
)
def test_an_impossible_busid_is_a_separate_event(field: bytes, reason: str) -> None:
    event = RequestReader().feed(bytes.fromhex("0111 8003 00000000") + field)
    assert isinstance(event, MalformedImport)
    assert reason in event.reason


def test_bytes_after_the_nul_of_a_busid_are_ignored() -> None:
    request = bytes.fromhex("0111 8003 00000000") + b"1-1\0" + b"\xff" * 28
    assert RequestReader().feed(request) == ImportRequest("1-1")


@pytest.mark.parametrize("busid", ["", "1" * 32, "1-1\n", "ä"])
def test_an_impossible_busid_is_not_sent(busid: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        encode_import_request(busid)


@pytest.mark.rule("capped-lengths")
def test_the_number_of_devices_is_bounded() -> None:
    header = bytes.fromhex("0111 0005 00000000")
    for number in (MAX_DEVICES + 1, 0xFFFFFFFF):
        with pytest.raises(ProtocolError, match=f"{number} devices"):
            DevlistReplyReader().feed(header + number.to_bytes(4, "big"))
    assert DevlistReplyReader().feed(header + MAX_DEVICES.to_bytes(4, "big")) is None


def test_a_path_from_a_server_cannot_control_the_terminal() -> None:
    reply = bytearray(golden.load("op_rep_import"))
    reply[8:12] = b"\x1b[2J"
    parsed = ImportReplyReader().feed(bytes(reply))
    assert parsed is not None
    assert parsed.device is not None
    assert parsed.device.path.startswith(r"\x1b[2J")


@given(data=st.binary(max_size=700), cut=st.integers(0, 700))
@pytest.mark.parametrize(
    ("reader", "beginning"),
    [
        (RequestReader, b""),
        (RequestReader, bytes.fromhex("0111 8003 00000000")),
        (DevlistReplyReader, bytes.fromhex("0111 0005 00000000 00000002")),
        (ImportReplyReader, bytes.fromhex("0111 0003 00000000")),
    ],
)
def test_any_bytes_give_a_message_or_a_protocol_error(
    reader: type[Any], beginning: bytes, data: bytes, cut: int
) -> None:
    data = beginning + data
    results = []
    for chunks in ([data], [data[:cut], data[cut:]]):
        one = reader()
        try:
            results.append([message for chunk in chunks if (message := one.feed(chunk)) is not None])
        except ProtocolError as error:
            results.append([str(error)])
        assert one.wanted <= 312
    assert results[0] == results[1]


def test_devlist_request_is_not_an_import() -> None:
    assert RequestReader().feed(encode_devlist_request()) == DevlistRequest()
