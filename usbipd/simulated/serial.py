"""Simulated serial port: a CDC-ACM modem that echoes.  Runs in workers.

Sources: CDC 1.2 and PSTN 1.2 (subclass ACM).  Like a loopback plug, it returns written data, and DTR as DSR
and DCD.
"""

import struct
from collections.abc import Mapping
from typing import Final

from usbipd.protocol.constants import (
    USB_CLASS_CDC_DATA,
    USB_CLASS_COMM,
    USB_DT_CS_INTERFACE,
    USB_ENDPOINT_XFER_BULK,
    USB_ENDPOINT_XFER_INT,
    Speed,
)
from usbipd.simulated.descriptors import (
    configuration_descriptor,
    device_descriptor,
    endpoint_descriptor,
    interface_descriptor,
)
from usbipd.simulated.device import Handshake, SimulatedDevice

BULK_IN: Final = 0x81
BULK_OUT: Final = 0x01
NOTIFICATION_IN: Final = 0x82

ECHO_SIZE: Final = 64 << 10
"""Bytes that wait to be read back; beyond it, writes get NAK."""

_COMMUNICATION: Final = 0  # bInterfaceNumber
_DATA: Final = 1

_SUBCLASS_ACM: Final = 0x02  # CDC 1.2, table 4
_PROTOCOL_V250: Final = 0x01  # CDC 1.2, table 5: AT commands
_HEADER: Final = 0x00  # CDC 1.2, table 13: functional descriptors
_CALL_MANAGEMENT: Final = 0x01
_ACM: Final = 0x02
_UNION: Final = 0x06

SET_LINE_CODING: Final = 0x20  # PSTN 1.2, table 13
GET_LINE_CODING: Final = 0x21
SET_CONTROL_LINE_STATE: Final = 0x22
_TO_INTERFACE: Final = 0x21  # bmRequestType: PSTN 1.2, 6.3
_FROM_INTERFACE: Final = 0xA1
_LINE_CODING: Final = struct.Struct("<IBBB")  # PSTN 1.2, table 17: rate, stop bits, parity, data bits
_DTR: Final = 0x01  # PSTN 1.2, table 18

_SERIAL_STATE: Final = 0x20  # PSTN 1.2, table 30
_NOTIFICATION: Final = struct.Struct("<BBHHHH")  # PSTN 1.2, table 31: a setup packet and UART state bits
_DCD_AND_DSR: Final = 0x03


class Serial(SimulatedDevice):
    """Returns on bulk-in what it receives on bulk-out."""

    name = "serial"
    product = "Simulated serial port"
    speed = Speed.HIGH
    device_descriptor = device_descriptor(0x01F3, bcdUSB=0x0200, bDeviceClass=USB_CLASS_COMM)
    configurations = (
        configuration_descriptor(
            interface_descriptor(_COMMUNICATION, 1, USB_CLASS_COMM, _SUBCLASS_ACM, _PROTOCOL_V250),
            struct.pack("<BBBH", 5, USB_DT_CS_INTERFACE, _HEADER, 0x0120),
            bytes((5, USB_DT_CS_INTERFACE, _CALL_MANAGEMENT, 0, _DATA)),
            bytes((4, USB_DT_CS_INTERFACE, _ACM, 0x02)),  # line coding, control line state, serial state
            bytes((5, USB_DT_CS_INTERFACE, _UNION, _COMMUNICATION, _DATA)),
            endpoint_descriptor(NOTIFICATION_IN, USB_ENDPOINT_XFER_INT, 16, 8),
            interface_descriptor(_DATA, 2, USB_CLASS_CDC_DATA),
            endpoint_descriptor(BULK_IN, USB_ENDPOINT_XFER_BULK, 512, 0),
            endpoint_descriptor(BULK_OUT, USB_ENDPOINT_XFER_BULK, 512, 0),
        ),
    )

    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__(options)
        self.reset()

    def reset(self) -> None:
        self._echo = bytearray()
        self._line_coding = _LINE_CODING.pack(115200, 0, 0, 8)
        self._serial_state = 0
        self._reported_state = 0

    def control_in(self, setup: bytes, length: int) -> bytes | Handshake:
        request_type, request, value, interface, _ = struct.unpack("<BBHHH", setup)
        if (request_type, request, value, interface) == (_FROM_INTERFACE, GET_LINE_CODING, 0, _COMMUNICATION):
            return self._line_coding[:length]
        return Handshake.STALL

    def control_out(self, setup: bytes, data: memoryview) -> Handshake | None:
        request_type, request, value, interface, length = struct.unpack("<BBHHH", setup)
        if (request_type, interface) != (_TO_INTERFACE, _COMMUNICATION):
            return Handshake.STALL
        if request == SET_LINE_CODING and length == _LINE_CODING.size:
            self._line_coding = bytes(data)
        elif request == SET_CONTROL_LINE_STATE and length == 0:
            self._serial_state = _DCD_AND_DSR if value & _DTR else 0
        else:
            return Handshake.STALL
        return None

    def read(self, endpoint: int, length: int) -> bytes | bytearray | Handshake:
        if endpoint == NOTIFICATION_IN:
            return self._notify()
        if not self._echo:
            return Handshake.NAK
        data = self._echo[:length]
        del self._echo[:length]
        return data

    def write(self, endpoint: int, data: memoryview) -> int | Handshake:
        room = ECHO_SIZE - len(self._echo)
        if data and not room:
            return Handshake.NAK
        self._echo += data[:room]
        return min(room, len(data))

    def _notify(self) -> bytes | Handshake:
        if self._reported_state == self._serial_state:
            return Handshake.NAK
        self._reported_state = self._serial_state
        return _NOTIFICATION.pack(_FROM_INTERFACE, _SERIAL_STATE, 0, _COMMUNICATION, 2, self._serial_state)
