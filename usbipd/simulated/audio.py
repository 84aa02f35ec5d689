"""Simulated microphone: an isochronous source of one tone.  Runs in workers.

Sources: Audio Devices 1.0 ("UAC1"), Audio Data Formats 1.0 and Terminal Types 1.0.
"""

import math
import struct
from collections.abc import Mapping
from typing import Final

from usbipd.protocol.constants import (
    USB_CLASS_AUDIO,
    USB_DT_CS_ENDPOINT,
    USB_DT_CS_INTERFACE,
    USB_ENDPOINT_XFER_ISOC,
    Speed,
)
from usbipd.simulated.descriptors import (
    configuration_descriptor,
    device_descriptor,
    endpoint_descriptor,
    interface_descriptor,
)
from usbipd.simulated.device import SimulatedDevice

RATE: Final = 48_000  # samples a second
CHANNELS: Final = 2
TONE: Final = 440  # Hz
_AMPLITUDE: Final = 0x4000  # half of full scale
_SAMPLE_SIZE: Final = 2  # bytes: 16 bits, signed, little-endian
PACKET_SIZE: Final = RATE // 1000 * CHANNELS * _SAMPLE_SIZE  # 192 bytes, in a frame of 1 ms

ISOCHRONOUS_IN: Final = 0x81
_SYNCHRONOUS: Final = 0x0C  # USB 2.0, table 9-13: the rate follows the frames of the bus

_CONTROL: Final = 0  # bInterfaceNumber
_STREAMING: Final = 1
_SUBCLASS_CONTROL: Final = 0x01  # UAC1, table A-2
_SUBCLASS_STREAMING: Final = 0x02

_HEADER: Final = 0x01  # UAC1, table A-5
_INPUT_TERMINAL: Final = 0x02
_OUTPUT_TERMINAL: Final = 0x03
_AS_GENERAL: Final = 0x01  # UAC1, table A-6
_FORMAT_TYPE: Final = 0x02
_EP_GENERAL: Final = 0x01  # UAC1, table A-8
_MICROPHONE: Final = 0x0201  # Terminal Types 1.0, table 2-2
_USB_STREAMING: Final = 0x0101  # Terminal Types 1.0, table 2-1
_FORMAT_TYPE_I: Final = 0x01  # Audio Data Formats 1.0, table A-4
_PCM: Final = 0x0001  # Audio Data Formats 1.0, table A-1
_LEFT_AND_RIGHT: Final = 0x0003  # UAC1, 3.7.2.3

_MICROPHONE_ID: Final = 1
_STREAM_ID: Final = 2

_TERMINALS: Final = struct.pack(  # UAC1, tables 4-3 and 4-4
    "<BBBBHBBHBB BBBBHBBB",
    *(12, USB_DT_CS_INTERFACE, _INPUT_TERMINAL, _MICROPHONE_ID, _MICROPHONE, 0),
    *(CHANNELS, _LEFT_AND_RIGHT, 0, 0),
    *(9, USB_DT_CS_INTERFACE, _OUTPUT_TERMINAL, _STREAM_ID, _USB_STREAMING, 0, _MICROPHONE_ID, 0),
)
_CONTROL_HEADER: Final = struct.pack(  # UAC1, table 4-2: one streaming interface belongs to it
    "<BBBHHBB", 9, USB_DT_CS_INTERFACE, _HEADER, 0x0100, 9 + len(_TERMINALS), 1, _STREAMING
)
_STREAM: Final = struct.pack(  # UAC1, table 4-19
    "<BBBBBH", 7, USB_DT_CS_INTERFACE, _AS_GENERAL, _STREAM_ID, 1, _PCM
)
_FORMAT: Final = struct.pack(  # Audio Data Formats 1.0, table 2-1: one rate, no control for it
    "<BBBBBBBB3s",
    *(11, USB_DT_CS_INTERFACE, _FORMAT_TYPE, _FORMAT_TYPE_I, CHANNELS, _SAMPLE_SIZE, 8 * _SAMPLE_SIZE, 1),
    RATE.to_bytes(3, "little"),
)
_STREAM_ENDPOINT: Final = struct.pack(  # UAC1, table 4-21: no controls
    "<BBBBBH", 7, USB_DT_CS_ENDPOINT, _EP_GENERAL, 0, 0, 0
)


def _tone() -> bytes:
    """The shortest run of whole packets that holds whole periods of TONE on all channels."""
    samples = math.lcm(RATE // math.gcd(RATE, TONE), RATE // 1000)
    wave = (round(_AMPLITUDE * math.sin(2 * math.pi * TONE * i / RATE)) for i in range(samples))
    return b"".join(struct.pack("<h", level) * CHANNELS for level in wave)


class Audio(SimulatedDevice):
    """A microphone that records TONE, in stereo."""

    name = "audio"
    product = "Simulated microphone"
    speed = Speed.FULL
    device_descriptor = device_descriptor(0x01F5, bcdUSB=0x0110)
    configurations = (
        configuration_descriptor(
            interface_descriptor(_CONTROL, 0, USB_CLASS_AUDIO, _SUBCLASS_CONTROL),
            _CONTROL_HEADER,
            _TERMINALS,
            interface_descriptor(_STREAMING, 0, USB_CLASS_AUDIO, _SUBCLASS_STREAMING),
            interface_descriptor(_STREAMING, 1, USB_CLASS_AUDIO, _SUBCLASS_STREAMING, bAlternateSetting=1),
            _STREAM,
            _FORMAT,
            endpoint_descriptor(  # UAC1, table 4-20: bRefresh and bSynchAddress follow
                ISOCHRONOUS_IN, USB_ENDPOINT_XFER_ISOC | _SYNCHRONOUS, PACKET_SIZE, 1, extra=bytes(2)
            ),
            _STREAM_ENDPOINT,
        ),
    )

    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__(options)
        self._tone = memoryview(_tone())
        self.reset()

    def reset(self) -> None:
        self._position = 0

    def iso_read(self, endpoint: int, length: int) -> memoryview:
        packet = self._tone[self._position : self._position + PACKET_SIZE]
        self._position = (self._position + PACKET_SIZE) % len(self._tone)
        return packet
