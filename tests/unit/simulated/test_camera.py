"""The camera: its stream, the negotiation, and the descriptors that announce them."""

import struct
from collections.abc import Iterator

import pytest

from usbipd.simulated.camera import (
    FRAME_PACKETS,
    FRAME_SIZE,
    HEIGHT,
    ISOCHRONOUS_IN,
    PACKET_SIZE,
    WIDTH,
    Camera,
    frame,
)
from usbipd.simulated.device import Handshake
from usbipd.usb.descriptors import parse_configuration

GET_PROBE, GET_COMMIT = bytes.fromhex("a1 81 0001 0100 2200"), bytes.fromhex("a1 81 0002 0100 2200")
SET_PROBE, SET_COMMIT = bytes.fromhex("21 01 0001 0100 2200"), bytes.fromhex("21 01 0002 0100 2200")


@pytest.fixture
def camera() -> Camera:
    return Camera({})


def frames(camera: Camera, packets: int) -> Iterator[bytes]:
    """The complete frames in that many packets, assembled as a host does."""
    picture, frame_id = b"", None
    for _ in range(packets):
        packet = camera.iso_read(ISOCHRONOUS_IN, PACKET_SIZE)
        if not packet:
            continue
        assert packet[0] == 2
        assert packet[1] & 0x80  # the header ends
        assert not packet[1] & 0x7C  # neither time stamps nor an error
        assert frame_id in (None, packet[1] & 1)  # it changes only between frames
        frame_id = packet[1] & 1
        picture += packet[2:]
        if packet[1] & 2:
            yield picture
            picture, frame_id = b"", not frame_id


def descriptors(raw: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(raw):
        found.append(raw[at : at + raw[at]])
        at += raw[at]
    return found


def test_frames_come_in_order_ten_times_a_second(camera: Camera) -> None:
    assert FRAME_PACKETS == 100  # of a millisecond each
    assert list(frames(camera, 1000)) == [frame(number) for number in range(10)]


def test_a_frame_is_a_moving_picture_with_its_number() -> None:
    assert len(frame(0)) == FRAME_SIZE == WIDTH * HEIGHT * 2
    assert len({frame(number)[4:] for number in range(128)}) == 128
    assert [struct.unpack("<I", frame(number)[:4])[0] for number in (0, 300, 1 << 32)] == [0, 300, 0]
    rows = {frame(7)[begin : begin + 2 * WIDTH] for begin in range(2 * WIDTH, FRAME_SIZE, 2 * WIDTH)}
    assert len(rows) == 1  # vertical stripes


def test_packets_fit_their_endpoint(camera: Camera) -> None:
    sizes = [len(camera.iso_read(ISOCHRONOUS_IN, PACKET_SIZE)) for _ in range(FRAME_PACKETS)]
    assert max(sizes) == PACKET_SIZE
    assert sizes[-1] == 0  # until the next frame begins


def test_each_stream_starts_at_frame_0(camera: Camera) -> None:
    first = list(frames(camera, 150))
    assert camera.control_out(SET_COMMIT, memoryview(bytes(34))) is None
    assert list(frames(camera, 150)) == first


@pytest.mark.parametrize("request_", [0x81, 0x82, 0x83, 0x87])
def test_only_one_format_can_be_negotiated(camera: Camera, request_: int) -> None:
    wish = memoryview(bytes.fromhex("0100 0202 ffffffff") + bytes(26))
    assert camera.control_out(SET_PROBE, wish) is None
    agreed = camera.control_in(GET_PROBE[:1] + bytes((request_,)) + GET_PROBE[2:], 34)
    assert isinstance(agreed, bytes)
    assert len(agreed) == 34
    assert agreed[2:4] == bytes((1, 1))  # bFormatIndex, bFrameIndex
    assert struct.unpack_from("<I", agreed, 4) == (1_000_000,)  # 100 ns each: a tenth of a second
    assert struct.unpack_from("<II", agreed, 18) == (FRAME_SIZE, PACKET_SIZE)
    assert camera.control_in(GET_COMMIT, 26) == agreed[:26]  # the length that a host of UVC 1.0 requests


def test_length_and_abilities_of_the_control(camera: Camera) -> None:
    assert camera.control_in(bytes.fromhex("a1 85 0001 0100 0200"), 2) == b"\x22\x00"
    assert camera.control_in(bytes.fromhex("a1 86 0001 0100 0100"), 1) == b"\x03"


@pytest.mark.parametrize(
    ("setup", "length"),
    [
        ("21 01 0001 0000 2200", 34),  # of the control interface
        ("21 01 0003 0100 2200", 34),  # a still picture
        ("21 01 0001 0100 0400", 4),
        ("21 02 0001 0100 2200", 34),
        ("41 01 0001 0100 2200", 34),
    ],
)
def test_unknown_requests_stall(camera: Camera, setup: str, length: int) -> None:
    assert camera.control_out(bytes.fromhex(setup), memoryview(bytes(length))) is Handshake.STALL


@pytest.mark.parametrize(
    "setup", ["a1 81 0001 0000 2200", "a1 81 0003 0100 2200", "a1 84 0001 0100 2200", "c1 81 0001 0100 2200"]
)
def test_requests_without_an_answer_stall(camera: Camera, setup: str) -> None:
    assert camera.control_in(bytes.fromhex(setup), 34) is Handshake.STALL


def test_only_the_second_setting_uses_bandwidth(camera: Camera) -> None:
    (endpoint,) = parse_configuration(camera.configurations[0]).endpoints
    assert (endpoint.bInterfaceNumber, endpoint.bAlternateSetting) == (1, 1)
    assert endpoint.wMaxPacketSize == PACKET_SIZE
    assert endpoint.bmAttributes & 3 == 1


def test_the_video_function_is_consistent(camera: Camera) -> None:
    all_of_it = descriptors(camera.configurations[0])
    association = all_of_it[1]
    assert association[:5] == bytes((8, 0x0B, 0, 2, 0x0E))  # interfaces 0 and 1
    header, sensor, stream_terminal, input_header, kind, size, color = (
        each for each in all_of_it if each[1] == 0x24
    )
    assert int.from_bytes(header[5:7], "little") == len(header + sensor + stream_terminal)
    assert header[11:] == bytes((1, 1))  # one streaming interface, number 1
    assert len(sensor) == 15 + sensor[14]
    assert stream_terminal[7] == sensor[3]  # bSourceID
    assert int.from_bytes(input_header[4:6], "little") == len(input_header + kind + size + color)
    assert input_header[6] == ISOCHRONOUS_IN
    assert input_header[8] == stream_terminal[3]  # bTerminalLink
    assert kind[5:9] == b"YUY2"
    assert struct.unpack_from("<HH", size, 5) == (WIDTH, HEIGHT)
    assert struct.unpack_from("<III", size, 9) == (3_072_000, 3_072_000, FRAME_SIZE)
    assert struct.unpack_from("<IBI", size, 21) == (1_000_000, 1, 1_000_000)
