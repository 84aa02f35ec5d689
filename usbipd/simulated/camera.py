"""Simulated camera: an isochronous source of moving stripes.  Runs in workers.

Sources: Video Devices 1.1 ("UVC") and its payload format Uncompressed ("UVC-U"); Interface Association
Descriptors (USB ECN).
"""

import struct
from collections.abc import Mapping
from typing import Final

from usbipd.protocol.constants import (
    USB_CLASS_MISC,
    USB_CLASS_VIDEO,
    USB_DT_CS_INTERFACE,
    USB_DT_INTERFACE_ASSOCIATION,
    USB_ENDPOINT_XFER_ISOC,
    Speed,
)
from usbipd.simulated.descriptors import (
    configuration_descriptor,
    device_descriptor,
    endpoint_descriptor,
    interface_descriptor,
)
from usbipd.simulated.device import Handshake, SimulatedDevice

WIDTH: Final = 160
HEIGHT: Final = 120
FRAME_SIZE: Final = WIDTH * HEIGHT * 2  # YUYV: two bytes a pixel
FRAME_PACKETS: Final = 100  # of 1 ms: ten frames a second
PACKET_SIZE: Final = 1023  # USB 2.0, 5.6.3: the most at full speed

ISOCHRONOUS_IN: Final = 0x81
_ASYNCHRONOUS: Final = 0x04  # USB 2.0, table 9-13: the camera's own clock

_CONTROL: Final = 0  # bInterfaceNumber
_STREAMING: Final = 1
_SUBCLASS_CONTROL: Final = 0x01  # UVC, table A-2
_SUBCLASS_STREAMING: Final = 0x02
_SUBCLASS_COLLECTION: Final = 0x03
_COMMON_CLASS: Final = 0x02  # Interface Association Descriptors, table 1-1: with USB_CLASS_MISC

_VC_HEADER: Final = 0x01  # UVC, table A-5
_VC_INPUT_TERMINAL: Final = 0x02
_VC_OUTPUT_TERMINAL: Final = 0x03
_VS_INPUT_HEADER: Final = 0x01  # UVC, table A-6
_VS_FORMAT_UNCOMPRESSED: Final = 0x04
_VS_FRAME_UNCOMPRESSED: Final = 0x05
_VS_COLORFORMAT: Final = 0x0D
_ITT_CAMERA: Final = 0x0201  # UVC, table B-2
_TT_STREAMING: Final = 0x0101  # UVC, table B-1
_YUY2: Final = bytes.fromhex("59555932 0000 1000 8000 00aa00389b71")  # UVC-U, table 2-1
_BT709_BT709_SMPTE170M: Final = bytes((1, 1, 4))  # UVC, table 3-18

_CAMERA_ID: Final = 1
_STREAM_ID: Final = 2
_CLOCK: Final = 6_000_000  # Hz; no time stamp counts with it
_INTERVAL: Final = FRAME_PACKETS * 10_000  # units of 100 ns
_BITS_PER_SECOND: Final = FRAME_SIZE * 8 * 10_000_000 // _INTERVAL

_SET_CUR: Final = 0x01  # UVC, table A-8
_GET_CUR: Final = 0x81
_GET_MIN: Final = 0x82
_GET_MAX: Final = 0x83
_GET_LEN: Final = 0x85
_GET_INFO: Final = 0x86
_GET_DEF: Final = 0x87
_PROBE: Final = 0x01  # UVC, table A-15: the selector is the upper byte of wValue
_COMMIT: Final = 0x02
_TO_INTERFACE: Final = 0x21  # bmRequestType: UVC, 4.1
_FROM_INTERFACE: Final = 0xA1
_GETS_AND_SETS: Final = 0x03  # UVC, table 4-3

_NEGOTIATED: Final = struct.pack(  # UVC, table 4-75: there is one format with one frame, so nothing to choose
    "<HBBI5HIIIBBBB",
    *(0, 1, 1, _INTERVAL),
    *(0, 0, 0, 0, 0),
    *(FRAME_SIZE, PACKET_SIZE, _CLOCK),
    *(0x03, 1, 1, 1),  # bmFramingInfo: frame ID and end of frame are marked
)
_NEGOTIATED_1_0: Final = 26  # bytes of it in UVC 1.0

_HEADER_SIZE: Final = 2  # UVC, 2.4.3.3: without time stamps
_FRAME_ID: Final = 0x01  # toggles with each frame
_END_OF_FRAME: Final = 0x02
_END_OF_HEADER: Final = 0x80

_TERMINALS: Final = struct.pack(  # UVC, tables 3-6 and 3-5: no controls
    "<BBBBHBBHHHB3s BBBBHBBB",
    *(18, USB_DT_CS_INTERFACE, _VC_INPUT_TERMINAL, _CAMERA_ID, _ITT_CAMERA, 0, 0, 0, 0, 0, 3, bytes(3)),
    *(9, USB_DT_CS_INTERFACE, _VC_OUTPUT_TERMINAL, _STREAM_ID, _TT_STREAMING, 0, _CAMERA_ID, 0),
)
_CONTROL_HEADER: Final = struct.pack(  # UVC, table 3-3: one streaming interface belongs to it
    "<BBBHHIBB",
    *(13, USB_DT_CS_INTERFACE, _VC_HEADER, 0x0110, 13 + len(_TERMINALS), _CLOCK, 1, _STREAMING),
)
_FORMAT: Final = struct.pack(  # UVC-U, tables 3-1 and 3-2; UVC, table 3-18
    "<BBBBB16sBBBBBB BBBBBHHIIIIBI BBB3s",
    *(27, USB_DT_CS_INTERFACE, _VS_FORMAT_UNCOMPRESSED, 1, 1, _YUY2, 16, 1, 0, 0, 0, 0),
    *(30, USB_DT_CS_INTERFACE, _VS_FRAME_UNCOMPRESSED, 1, 0, WIDTH, HEIGHT),
    *(_BITS_PER_SECOND, _BITS_PER_SECOND, FRAME_SIZE, _INTERVAL, 1, _INTERVAL),
    *(6, USB_DT_CS_INTERFACE, _VS_COLORFORMAT, _BT709_BT709_SMPTE170M),
)
_STREAM_HEADER: Final = struct.pack(  # UVC, table 3-14: one format without controls
    "<BBBBHBBBBBBBB",
    *(14, USB_DT_CS_INTERFACE, _VS_INPUT_HEADER, 1, 14 + len(_FORMAT), ISOCHRONOUS_IN),
    *(0, _STREAM_ID, 0, 0, 0, 1, 0),
)
_ASSOCIATION: Final = bytes(  # Interface Association Descriptors, table 9-Z
    (8, USB_DT_INTERFACE_ASSOCIATION, _CONTROL, 2, USB_CLASS_VIDEO, _SUBCLASS_COLLECTION, 0, 0)
)

_STRIPES: Final = b"".join(  # one row, plus the distance that it moves
    bytes((x & 0xFF, 0x60 if x & 0x20 else 0xA0, (x + 1) & 0xFF, 0xA0 if x & 0x40 else 0x60))
    for x in range(0, WIDTH + 256, 2)
)


def frame(number: int) -> bytes:
    """The picture: stripes that move two pixels a frame; the first four bytes are its number."""
    begin = 4 * (number % 128)
    row = _STRIPES[begin : begin + 2 * WIDTH]
    return struct.pack("<I", number & 0xFFFFFFFF) + row[4:] + row * (HEIGHT - 1)


class Camera(SimulatedDevice):
    """A camera that sends `frame(0)`, `frame(1)` … in each stream."""

    name = "camera"
    product = "Simulated camera"
    speed = Speed.FULL
    device_descriptor = device_descriptor(
        0x01F6, bcdUSB=0x0200, bDeviceClass=USB_CLASS_MISC, bDeviceSubClass=_COMMON_CLASS, bDeviceProtocol=1
    )
    configurations = (
        configuration_descriptor(
            _ASSOCIATION,
            interface_descriptor(_CONTROL, 0, USB_CLASS_VIDEO, _SUBCLASS_CONTROL),
            _CONTROL_HEADER,
            _TERMINALS,
            interface_descriptor(_STREAMING, 0, USB_CLASS_VIDEO, _SUBCLASS_STREAMING),
            _STREAM_HEADER,
            _FORMAT,
            interface_descriptor(_STREAMING, 1, USB_CLASS_VIDEO, _SUBCLASS_STREAMING, bAlternateSetting=1),
            endpoint_descriptor(ISOCHRONOUS_IN, USB_ENDPOINT_XFER_ISOC | _ASYNCHRONOUS, PACKET_SIZE, 1),
        ),
    )

    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__(options)
        self._number = 0
        self._packet = 0  # of this frame
        self._rest = memoryview(b"")  # of this frame
        self.reset()

    def reset(self) -> None:
        self._number = 0
        self._begin_frame()

    def control_in(self, setup: bytes, length: int) -> bytes | Handshake:
        request_type, request, value, index, _ = struct.unpack("<BBHHH", setup)
        if (request_type, index) != (_FROM_INTERFACE, _STREAMING) or value >> 8 not in (_PROBE, _COMMIT):
            return Handshake.STALL
        if request in (_GET_CUR, _GET_MIN, _GET_MAX, _GET_DEF):
            return _NEGOTIATED[:length]
        if request == _GET_LEN:
            return struct.pack("<H", len(_NEGOTIATED))[:length]
        if request == _GET_INFO:
            return bytes((_GETS_AND_SETS,))
        return Handshake.STALL

    def control_out(self, setup: bytes, data: memoryview) -> Handshake | None:
        """Accepts any proposal: the host reads the only possible settings with GET_CUR."""
        request_type, request, value, index, length = struct.unpack("<BBHHH", setup)
        if (request_type, request, index) != (_TO_INTERFACE, _SET_CUR, _STREAMING):
            return Handshake.STALL
        if value >> 8 not in (_PROBE, _COMMIT) or length not in (_NEGOTIATED_1_0, len(_NEGOTIATED)):
            return Handshake.STALL
        if value >> 8 == _COMMIT:  # a stream begins
            self.reset()
        return None

    def iso_read(self, endpoint: int, length: int) -> bytes:
        """A header and a part of the picture; empty between the end of a picture and the next one."""
        if self._packet == FRAME_PACKETS:
            self._number += 1
            self._begin_frame()
        self._packet += 1
        if not self._rest:
            return b""
        part = self._rest[: PACKET_SIZE - _HEADER_SIZE]
        self._rest = self._rest[len(part) :]
        flags = _END_OF_HEADER | (self._number & _FRAME_ID) | (0 if self._rest else _END_OF_FRAME)
        return b"".join((bytes((_HEADER_SIZE, flags)), part))

    def _begin_frame(self) -> None:
        self._rest = memoryview(frame(self._number))
        self._packet = 0
