"""Simulated keyboard: a HID boot keyboard that types as long as a host polls it.  Runs in workers.

Source: Device Class Definition for HID 1.11 ("HID"); key codes: HID Usage Tables 1.12, page 07h.
"""

import struct
import time
from collections.abc import Callable, Mapping
from typing import Final

from usbipd.protocol.constants import (
    USB_CLASS_HID,
    USB_DT_HID,
    USB_DT_HID_REPORT,
    USB_ENDPOINT_XFER_INT,
    USB_REQ_GET_DESCRIPTOR,
    Speed,
)
from usbipd.simulated.descriptors import (
    configuration_descriptor,
    device_descriptor,
    endpoint_descriptor,
    interface_descriptor,
)
from usbipd.simulated.device import Handshake, SimulatedDevice

TEXT: Final = "usbipd\n"
KEY_TIME: Final = 0.125
"""Seconds from one key to the next; the key is down for half of it."""

INTERRUPT_IN: Final = 0x81

_SUBCLASS_BOOT: Final = 0x01  # HID 4.2
_PROTOCOL_KEYBOARD: Final = 0x01  # HID 4.3

_STANDARD_FROM_INTERFACE: Final = 0x81  # bmRequestType: HID 7.1
_CLASS_FROM_INTERFACE: Final = 0xA1  # HID 7.2
_CLASS_TO_INTERFACE: Final = 0x21

GET_REPORT: Final = 0x01  # HID 7.2
GET_IDLE: Final = 0x02
GET_PROTOCOL: Final = 0x03
SET_REPORT: Final = 0x09
SET_IDLE: Final = 0x0A
SET_PROTOCOL: Final = 0x0B

_INPUT_REPORT: Final = 0x0100  # wValue: type 1, report 0; HID 7.2.1
_OUTPUT_REPORT: Final = 0x0200
_BOOT_PROTOCOL: Final = 0
_REPORT_PROTOCOL: Final = 1
_IDLE_UNIT: Final = 0.004  # seconds: HID 7.2.4

_RELEASED: Final = bytes(8)
_KEY_ENTER: Final = 0x28
_KEY_A: Final = 0x04

# HID appendix B.1, the report of the boot protocol: eight modifiers, a reserved byte, five LEDs, six keys
REPORT_DESCRIPTOR: Final = bytes.fromhex(
    "05 01"  # Usage Page (Generic Desktop)
    "09 06"  # Usage (Keyboard)
    "a1 01"  # Collection (Application)
    "05 07"  # .  Usage Page (Keyboard)
    "19 e0 29 e7"  # .  Usage Minimum (Left Control), Maximum (Right GUI)
    "15 00 25 01"  # .  Logical Minimum (0), Maximum (1)
    "75 01 95 08"  # .  Report Size (1), Count (8)
    "81 02"  # .  Input (Data, Variable, Absolute): modifiers
    "95 01 75 08"  # .  Report Count (1), Size (8)
    "81 01"  # .  Input (Constant): reserved
    "95 05 75 01"  # .  Report Count (5), Size (1)
    "05 08"  # .  Usage Page (LEDs)
    "19 01 29 05"  # .  Usage Minimum (Num Lock), Maximum (Kana)
    "91 02"  # .  Output (Data, Variable, Absolute): LEDs
    "95 01 75 03"  # .  Report Count (1), Size (3)
    "91 01"  # .  Output (Constant): padding
    "95 06 75 08"  # .  Report Count (6), Size (8)
    "15 00 25 65"  # .  Logical Minimum (0), Maximum (101)
    "05 07"  # .  Usage Page (Keyboard)
    "19 00 29 65"  # .  Usage Minimum (0), Maximum (101)
    "81 00"  # .  Input (Data, Array): keys
    "c0"  # End Collection
)

_HID_DESCRIPTOR: Final = struct.pack(  # HID 6.2.1: HID 1.11, no country, one report descriptor
    "<BBHBBBH", 9, USB_DT_HID, 0x0111, 0, 1, USB_DT_HID_REPORT, len(REPORT_DESCRIPTOR)
)


def _key_code(character: str) -> int:
    return _KEY_ENTER if character == "\n" else _KEY_A + ord(character) - ord("a")


class Keyboard(SimulatedDevice):
    """Types TEXT repeatedly, with one report for each key down and one for each key up."""

    name = "keyboard"
    product = "Simulated keyboard"
    speed = Speed.FULL
    device_descriptor = device_descriptor(0x01F2, bcdUSB=0x0110, bMaxPacketSize0=8)
    configurations = (
        configuration_descriptor(
            interface_descriptor(0, 1, USB_CLASS_HID, _SUBCLASS_BOOT, _PROTOCOL_KEYBOARD),
            _HID_DESCRIPTOR,
            endpoint_descriptor(INTERRUPT_IN, USB_ENDPOINT_XFER_INT, 8, 10),
            remote_wakeup=True,  # as in real keyboards; hidden from clients
        ),
    )

    def __init__(self, options: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is the time base of `wake_at`, in seconds."""
        super().__init__(options)
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        self._typed = 0  # half strokes: even if a key down is next, odd if a key up is
        self._next_stroke: float | None = None  # None: not polled yet
        self._next_repeat: float | None = None  # None: only changes are reported
        self._report = _RELEASED
        self._leds = 0
        self._idle = 0
        self._protocol = _REPORT_PROTOCOL

    def read(self, endpoint: int, length: int) -> bytes | Handshake:
        now = self._clock()
        if self._next_stroke is None:
            self._next_stroke = now + KEY_TIME  # time to look for the user who attached the keyboard
        if now >= self._next_stroke:
            down = self._typed % 2 == 0
            code = _key_code(TEXT[self._typed // 2 % len(TEXT)])
            self._report = bytes((0, 0, code, 0, 0, 0, 0, 0)) if down else _RELEASED
            self._typed += 1
            self._next_stroke = now + KEY_TIME / 2
        elif self._next_repeat is None or now < self._next_repeat:
            return Handshake.NAK
        self._schedule_repeat(now)
        return self._report

    def _schedule_repeat(self, now: float) -> None:
        self._next_repeat = now + self._idle * _IDLE_UNIT if self._idle else None

    def wake_at(self) -> float | None:
        return min((t for t in (self._next_stroke, self._next_repeat) if t is not None), default=None)

    def control_in(self, setup: bytes, length: int) -> bytes | Handshake:
        request_type, request, value, interface, _ = struct.unpack("<BBHHH", setup)
        answers: dict[tuple[int, int, int], bytes] = {
            (_STANDARD_FROM_INTERFACE, USB_REQ_GET_DESCRIPTOR, USB_DT_HID << 8): _HID_DESCRIPTOR,
            (_STANDARD_FROM_INTERFACE, USB_REQ_GET_DESCRIPTOR, USB_DT_HID_REPORT << 8): REPORT_DESCRIPTOR,
            (_CLASS_FROM_INTERFACE, GET_REPORT, _INPUT_REPORT): self._report,
            (_CLASS_FROM_INTERFACE, GET_REPORT, _OUTPUT_REPORT): bytes((self._leds,)),
            (_CLASS_FROM_INTERFACE, GET_IDLE, 0): bytes((self._idle,)),
            (_CLASS_FROM_INTERFACE, GET_PROTOCOL, 0): bytes((self._protocol,)),
        }
        answer = answers.get((request_type, request, value))
        return Handshake.STALL if answer is None or interface != 0 else answer[:length]

    def control_out(self, setup: bytes, data: memoryview) -> Handshake | None:
        request_type, request, value, interface, length = struct.unpack("<BBHHH", setup)
        if request_type != _CLASS_TO_INTERFACE or interface != 0:
            return Handshake.STALL
        if request == SET_REPORT and value == _OUTPUT_REPORT and length == 1:
            self._leds = data[0]
        elif request == SET_IDLE and value & 0xFF == 0:
            self._idle = value >> 8
            self._schedule_repeat(self._clock())
        elif request == SET_PROTOCOL and value in (_BOOT_PROTOCOL, _REPORT_PROTOCOL):
            self._protocol = value  # both protocols have the same reports
        else:
            return Handshake.STALL
        return None
