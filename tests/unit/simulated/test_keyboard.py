"""The keyboard, with a clock that moves only on command."""

import struct

import pytest

from usbipd.simulated.device import Handshake
from usbipd.simulated.keyboard import INTERRUPT_IN, REPORT_DESCRIPTOR, TEXT, Keyboard

NOTHING = memoryview(b"")
RELEASED = bytes(8)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keyboard(clock: Clock) -> Keyboard:
    return Keyboard({}, clock)


def setup(request_type: int, request: int, value: int = 0, index: int = 0, length: int = 0) -> bytes:
    return struct.pack("<BBHHH", request_type, request, value, index, length)


def poll(keyboard: Keyboard) -> bytes | Handshake:
    return keyboard.read(INTERRUPT_IN, 8)


def next_report(keyboard: Keyboard, clock: Clock) -> bytes:
    """Waits as the pump does: polls, and polls again at wake_at."""
    report = poll(keyboard)
    while report is Handshake.NAK:
        wake = keyboard.wake_at()
        assert wake is not None
        assert wake > clock.now
        clock.now = wake
        report = poll(keyboard)
    assert isinstance(report, bytes)
    return report


def test_types_its_text_repeatedly(keyboard: Keyboard, clock: Clock) -> None:
    typed = ""
    for _ in range(2 * len(TEXT)):
        down, up = next_report(keyboard, clock), next_report(keyboard, clock)
        assert down[:2] == bytes(2)
        assert down[3:] == bytes(5)
        assert up == RELEASED
        typed += "\n" if down[2] == 0x28 else chr(down[2] - 4 + ord("a"))
    assert typed == TEXT * 2


def test_eight_keys_a_second(keyboard: Keyboard, clock: Clock) -> None:
    begin = clock.now
    for _ in range(16):
        next_report(keyboard, clock)
    assert clock.now - begin == pytest.approx(1.0, abs=0.1)


def test_nothing_is_due_before_a_host_polls(keyboard: Keyboard, clock: Clock) -> None:
    assert keyboard.wake_at() is None
    clock.now += 60
    assert poll(keyboard) is Handshake.NAK


def test_a_host_that_polls_late_gets_no_burst(keyboard: Keyboard, clock: Clock) -> None:
    next_report(keyboard, clock)
    clock.now += 60
    assert poll(keyboard) == RELEASED
    assert poll(keyboard) is Handshake.NAK


def test_reset_restarts_the_text(keyboard: Keyboard, clock: Clock) -> None:
    first = next_report(keyboard, clock)
    next_report(keyboard, clock)
    keyboard.reset()
    assert keyboard.wake_at() is None
    assert next_report(keyboard, clock) == first


def test_idle_rate_repeats_the_report(keyboard: Keyboard, clock: Clock) -> None:
    assert keyboard.control_out(setup(0x21, 0x0A, 5 << 8), NOTHING) is None  # SET_IDLE 20 ms
    assert keyboard.control_in(setup(0xA1, 0x02, length=1), 1) == b"\x05"
    down = next_report(keyboard, clock)
    while down == RELEASED:
        down = next_report(keyboard, clock)
    before = clock.now
    assert next_report(keyboard, clock) == down
    assert clock.now - before == pytest.approx(0.020)


def test_an_idle_rate_applies_to_a_key_that_is_already_down(keyboard: Keyboard, clock: Clock) -> None:
    down = next_report(keyboard, clock)
    assert keyboard.control_out(setup(0x21, 0x0A, 5 << 8), NOTHING) is None  # SET_IDLE 20 ms
    before = clock.now
    assert next_report(keyboard, clock) == down
    assert clock.now - before == pytest.approx(0.020)
    assert keyboard.control_out(setup(0x21, 0x0A, 0), NOTHING) is None  # SET_IDLE: only changes
    assert next_report(keyboard, clock) == RELEASED


def test_without_idle_rate_only_changes_are_reported(keyboard: Keyboard, clock: Clock) -> None:
    down = next_report(keyboard, clock)
    assert next_report(keyboard, clock) != down


def test_get_report_returns_the_keys_that_are_down(keyboard: Keyboard, clock: Clock) -> None:
    down = next_report(keyboard, clock)
    assert keyboard.control_in(setup(0xA1, 0x01, 0x0100, length=8), 8) == down


def test_hid_descriptors(keyboard: Keyboard) -> None:
    report = keyboard.control_in(setup(0x81, 6, 0x2200, length=255), 255)
    assert report == REPORT_DESCRIPTOR
    hid = keyboard.control_in(setup(0x81, 6, 0x2100, length=9), 9)
    assert isinstance(hid, bytes)
    assert hid in keyboard.configurations[0]
    assert int.from_bytes(hid[7:9], "little") == len(REPORT_DESCRIPTOR)
    assert keyboard.control_in(setup(0x81, 6, 0x2200, length=10), 10) == REPORT_DESCRIPTOR[:10]


def test_report_descriptor_describes_eight_bytes_in_and_one_out() -> None:
    bits = {0x81: 0, 0x91: 0}
    size = count = at = 0
    while at < len(REPORT_DESCRIPTOR):
        prefix = REPORT_DESCRIPTOR[at]
        length = (0, 1, 2, 4)[prefix & 3]
        value = int.from_bytes(REPORT_DESCRIPTOR[at + 1 : at + 1 + length], "little")
        if prefix == 0x75:
            size = value
        elif prefix == 0x95:
            count = value
        elif prefix in bits:
            bits[prefix] += size * count
        at += 1 + length
    assert bits == {0x81: 64, 0x91: 8}


def test_leds_and_protocol_are_kept(keyboard: Keyboard) -> None:
    assert keyboard.control_out(setup(0x21, 0x09, 0x0200, length=1), memoryview(b"\x02")) is None
    assert keyboard.control_in(setup(0xA1, 0x01, 0x0200, length=1), 1) == b"\x02"
    assert keyboard.control_in(setup(0xA1, 0x03, length=1), 1) == b"\x01"  # report protocol after power-on
    assert keyboard.control_out(setup(0x21, 0x0B, 0), NOTHING) is None
    assert keyboard.control_in(setup(0xA1, 0x03, length=1), 1) == b"\x00"


@pytest.mark.parametrize(
    "packet",
    [
        setup(0x21, 0x09, 0x0200, length=0),  # SET_REPORT without a report
        setup(0x21, 0x09, 0x0300, length=1),  # a feature report
        setup(0x21, 0x0B, 2),  # an unknown protocol
        setup(0x21, 0x0A, 0x0501),  # SET_IDLE of report 1
        setup(0x21, 0x0A, 0x0500, index=1),  # of another interface
        setup(0x40, 0x0A, 0),
    ],
)
def test_other_requests_out_stall(keyboard: Keyboard, packet: bytes) -> None:
    assert keyboard.control_out(packet, memoryview(bytes(packet[6]))) is Handshake.STALL


@pytest.mark.parametrize(
    "packet", [setup(0x81, 6, 0x2300), setup(0xA1, 0x01, 0x0300), setup(0xA1, 0x02, index=1)]
)
def test_other_requests_in_stall(keyboard: Keyboard, packet: bytes) -> None:
    assert keyboard.control_in(packet, 64) is Handshake.STALL
