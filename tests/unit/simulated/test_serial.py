"""The serial port: echo, line coding, modem lines, back pressure."""

import struct

import pytest

from usbipd.simulated.device import Handshake
from usbipd.simulated.serial import BULK_IN, BULK_OUT, ECHO_SIZE, NOTIFICATION_IN, Serial

NOTHING = memoryview(b"")


@pytest.fixture
def serial() -> Serial:
    return Serial({})


def setup(request_type: int, request: int, value: int = 0, index: int = 0, length: int = 0) -> bytes:
    return struct.pack("<BBHHH", request_type, request, value, index, length)


def test_echo(serial: Serial) -> None:
    assert serial.read(BULK_IN, 64) is Handshake.NAK
    assert serial.write(BULK_OUT, memoryview(b"hello ")) == 6
    assert serial.write(BULK_OUT, memoryview(b"world")) == 5
    assert serial.read(BULK_IN, 8) == b"hello wo"
    assert serial.read(BULK_IN, 64) == b"rld"
    assert serial.read(BULK_IN, 64) is Handshake.NAK


def test_echoed_data_outlives_its_buffer(serial: Serial) -> None:
    buffer = bytearray(b"first")
    serial.write(BULK_OUT, memoryview(buffer))
    buffer[:] = b"later"
    assert serial.read(BULK_IN, 64) == b"first"


def test_a_full_buffer_returns_nak_and_loses_nothing(serial: Serial) -> None:
    data = bytes(i % 251 for i in range(ECHO_SIZE + 100))
    assert serial.write(BULK_OUT, memoryview(data)) == ECHO_SIZE
    assert serial.write(BULK_OUT, memoryview(data[ECHO_SIZE:])) is Handshake.NAK
    got = bytearray(serial.read(BULK_IN, 60))  # type: ignore[arg-type]
    assert serial.write(BULK_OUT, memoryview(data[ECHO_SIZE:])) == 60
    while (more := serial.read(BULK_IN, 4096)) is not Handshake.NAK:
        assert not isinstance(more, Handshake)
        got += more
    assert got == data[: ECHO_SIZE + 60]


def test_an_empty_write_is_accepted_even_when_full(serial: Serial) -> None:
    serial.write(BULK_OUT, memoryview(bytes(ECHO_SIZE)))
    assert serial.write(BULK_OUT, NOTHING) == 0


def test_line_coding_is_kept(serial: Serial) -> None:
    get = setup(0xA1, 0x21, length=7)
    assert serial.control_in(get, 7) == struct.pack("<IBBB", 115200, 0, 0, 8)
    coding = struct.pack("<IBBB", 9600, 2, 1, 7)
    assert serial.control_out(setup(0x21, 0x20, length=7), memoryview(coding)) is None
    assert serial.control_in(get, 7) == coding
    serial.reset()
    assert serial.control_in(get, 7) != coding


def test_dtr_returns_as_dcd_and_dsr(serial: Serial) -> None:
    assert serial.read(NOTIFICATION_IN, 16) is Handshake.NAK
    assert serial.control_out(setup(0x21, 0x22, 0x0003), NOTHING) is None
    up = bytes.fromhex("a1 20 00 00 00 00 02 00 03 00")
    assert serial.read(NOTIFICATION_IN, 16) == up
    assert serial.read(NOTIFICATION_IN, 16) is Handshake.NAK
    serial.control_out(setup(0x21, 0x22, 0x0000), NOTHING)
    assert serial.read(NOTIFICATION_IN, 16) == up[:8] + b"\0\0"


def test_a_line_that_changed_back_is_not_reported(serial: Serial) -> None:
    serial.control_out(setup(0x21, 0x22, 1), NOTHING)
    serial.control_out(setup(0x21, 0x22, 0), NOTHING)
    assert serial.read(NOTIFICATION_IN, 16) is Handshake.NAK


def test_reset_forgets_the_echo_and_the_lines(serial: Serial) -> None:
    serial.write(BULK_OUT, memoryview(b"secret of the last client"))
    serial.control_out(setup(0x21, 0x22, 1), NOTHING)
    serial.reset()
    assert serial.read(BULK_IN, 64) is Handshake.NAK
    assert serial.read(NOTIFICATION_IN, 16) is Handshake.NAK


@pytest.mark.parametrize(
    "packet",
    [
        setup(0x21, 0x20, length=6),  # SET_LINE_CODING of the wrong size
        setup(0x21, 0x20, index=1, length=7),  # to the data interface
        setup(0x21, 0x23, 100),  # SEND_BREAK is not among the capabilities
        setup(0xA1, 0x20, length=7),
    ],
)
def test_other_requests_out_stall(serial: Serial, packet: bytes) -> None:
    assert serial.control_out(packet, memoryview(bytes(packet[6]))) is Handshake.STALL


def test_other_requests_in_stall(serial: Serial) -> None:
    assert serial.control_in(setup(0xA1, 0x21, index=1, length=7), 7) is Handshake.STALL
