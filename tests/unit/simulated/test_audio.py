"""The microphone: its stream and the descriptors that announce it."""

import math
import struct
from itertools import pairwise

import pytest

from usbipd.simulated.audio import ISOCHRONOUS_IN, PACKET_SIZE, Audio
from usbipd.usb.descriptors import parse_configuration


@pytest.fixture
def audio() -> Audio:
    return Audio({})


def stream(audio: Audio, packets: int) -> list[int]:
    data = b"".join(audio.iso_read(ISOCHRONOUS_IN, PACKET_SIZE) for _ in range(packets))
    frames = list(struct.iter_unpack("<hh", data))
    assert all(left == right for left, right in frames)
    return [left for left, _ in frames]


def test_each_packet_is_a_millisecond(audio: Audio) -> None:
    assert {len(audio.iso_read(ISOCHRONOUS_IN, PACKET_SIZE)) for _ in range(100)} == {192}


def test_440_hertz_without_a_click(audio: Audio) -> None:
    wave = stream(audio, 1000)  # one second
    rising = sum(before < 0 <= now for before, now in pairwise(wave))
    assert rising in (439, 440)
    steepest = 0x4000 * 2 * math.pi * 440 / 48000
    assert max(abs(now - before) for before, now in pairwise(wave)) <= steepest + 1
    assert max(wave) == 0x4000


def test_reset_restarts_the_tone(audio: Audio) -> None:
    first = stream(audio, 3)
    audio.reset()
    assert stream(audio, 3) == first


def test_only_the_second_setting_uses_bandwidth(audio: Audio) -> None:
    (endpoint,) = parse_configuration(audio.configurations[0]).endpoints
    assert (endpoint.bInterfaceNumber, endpoint.bAlternateSetting) == (1, 1)
    assert endpoint.wMaxPacketSize == PACKET_SIZE
    assert endpoint.bmAttributes & 3 == 1


def class_specific(raw: bytes, interface: int) -> list[bytes]:
    """The class-specific descriptors of an interface, all settings."""
    found, at, current = [], 9, -1
    while at < len(raw):
        descriptor = raw[at : at + raw[at]]
        if descriptor[1] == 4:
            current = descriptor[2]
        elif descriptor[1] == 0x24 and current == interface:
            found.append(descriptor)
        at += raw[at]
    return found


def test_the_audio_function_is_consistent(audio: Audio) -> None:
    header, microphone, stream_terminal = class_specific(audio.configurations[0], 0)
    assert int.from_bytes(header[5:7], "little") == len(header + microphone + stream_terminal)
    assert header[7:] == bytes((1, 1))  # one streaming interface, number 1
    assert len(microphone) == 12
    assert len(stream_terminal) == 9
    assert stream_terminal[7] == microphone[3]  # bSourceID
    general, format_type = class_specific(audio.configurations[0], 1)
    assert general[3] == stream_terminal[3]  # bTerminalLink
    assert format_type[4:8] == bytes((2, 2, 16, 1))  # channels, bytes, bits, rates
    assert int.from_bytes(format_type[8:11], "little") == 48000
