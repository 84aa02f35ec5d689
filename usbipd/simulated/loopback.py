"""Simulated test device: a source, a sink, and loopbacks of every transfer type.  Runs in workers.

The pump moves the data of all bulk and interrupt endpoints itself, so that its own speed can be measured.
"""

from collections import deque
from collections.abc import Mapping
from typing import Final

from usbipd.errors import UsageError
from usbipd.protocol.constants import (
    USB_CLASS_VENDOR_SPEC,
    USB_ENDPOINT_XFER_BULK,
    USB_ENDPOINT_XFER_INT,
    USB_ENDPOINT_XFER_ISOC,
    Speed,
)
from usbipd.simulated.descriptors import (
    companion_descriptor,
    configuration_descriptor,
    device_descriptor,
    endpoint_descriptor,
    interface_descriptor,
    super_speed_bos,
)
from usbipd.simulated.device import Behaviour, Handshake, SimulatedDevice

SOURCE_IN: Final = 0x81
SINK_OUT: Final = 0x01
LOOPBACK_IN: Final = 0x82
LOOPBACK_OUT: Final = 0x02
INTERRUPT_IN: Final = 0x83
INTERRUPT_OUT: Final = 0x03
ISOCHRONOUS_IN: Final = 0x84
ISOCHRONOUS_OUT: Final = 0x04

WRITE: Final = 0x5B  # bRequest of Linux's f_sourcesink.c: keeps the data,
READ: Final = 0x5C  # and returns it
_VENDOR_OUT: Final = frozenset({0x40, 0x41})  # bmRequestType: to the device or an interface
_VENDOR_IN: Final = frozenset({0xC0, 0xC1})

_SPEEDS: Final = {"full": Speed.FULL, "high": Speed.HIGH, "super": Speed.SUPER}
_BCD_USB: Final = {Speed.FULL: 0x0110, Speed.HIGH: 0x0200, Speed.SUPER: 0x0300}
_MAX_PACKET: Final = {Speed.FULL: 64, Speed.HIGH: 512, Speed.SUPER: 1024}
_MAX_ISOCHRONOUS: Final = {Speed.FULL: 256, Speed.HIGH: 1024, Speed.SUPER: 1024}
_MAX_KEPT: Final = 4096
"""Isochronous packets in flight: beyond it the oldest are lost, as on a bus that is not read."""


class Loopback(SimulatedDevice):
    """Interface 0 sends a pattern and takes anything, 1 returns what is written, 2 does so by interrupts.

    Interface 3 has isochronous endpoints in its alternate setting 1; each packet returns as one packet.
    Configuration 2 has interface 0 only.
    """

    name = "loopback"
    option_names = SimulatedDevice.option_names | {"speed"}
    product = "Simulated loopback"
    speed = Speed.HIGH
    device_descriptor = device_descriptor(0x01F4, bcdUSB=0x0200, bDeviceClass=USB_CLASS_VENDOR_SPEC)
    behaviours = {  # noqa: RUF012
        SOURCE_IN: Behaviour.SOURCE,
        SINK_OUT: Behaviour.SINK,
        LOOPBACK_IN: Behaviour.LOOPBACK,
        LOOPBACK_OUT: Behaviour.LOOPBACK,
        INTERRUPT_IN: Behaviour.LOOPBACK,
        INTERRUPT_OUT: Behaviour.LOOPBACK,
    }

    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__(options)
        self.speed = self.speed_with(options)
        is_super = self.speed is Speed.SUPER
        self.device_descriptor = device_descriptor(
            0x01F4,
            bcdUSB=_BCD_USB[self.speed],
            bDeviceClass=USB_CLASS_VENDOR_SPEC,
            bMaxPacketSize0=9 if is_super else 64,  # SuperSpeed: an exponent of two (USB 3.2, 9.6.1)
            bNumConfigurations=2,
        )
        self.bos_descriptor = super_speed_bos() if is_super else b""
        self.configurations = _configurations(self.speed)
        self.reset()

    @classmethod
    def speed_with(cls, options: Mapping[str, str]) -> Speed:
        return _SPEEDS[options["speed"]] if "speed" in options else cls.speed

    @classmethod
    def check_options(cls, options: Mapping[str, str]) -> dict[str, str]:
        speed = options.get("speed")
        if speed is not None and speed not in _SPEEDS:
            raise UsageError(f"--simulate: loopback: speed {speed!r} is not one of {', '.join(_SPEEDS)}")
        return super().check_options(options)

    def reset(self) -> None:
        self._written = b""
        self._packets: deque[bytes] = deque(maxlen=_MAX_KEPT)

    def control_out(self, setup: bytes, data: memoryview) -> Handshake | None:
        if setup[0] not in _VENDOR_OUT or setup[1] != WRITE:
            return Handshake.STALL
        self._written = bytes(data)
        return None

    def control_in(self, setup: bytes, length: int) -> bytes | Handshake:
        if setup[0] not in _VENDOR_IN or setup[1] != READ:
            return Handshake.STALL
        return self._written[:length]

    def iso_write(self, endpoint: int, data: memoryview) -> None:
        self._packets.append(bytes(data))

    def iso_read(self, endpoint: int, length: int) -> bytes:
        return self._packets.popleft() if self._packets else b""


def _configurations(speed: Speed) -> tuple[bytes, ...]:
    def pair(number: int, kind: int, size: int, bInterval: int) -> bytes:
        """Endpoint `number` IN and OUT."""
        companion = b""
        if speed is Speed.SUPER:
            companion = companion_descriptor(0 if kind == USB_ENDPOINT_XFER_BULK else size)
        addresses = (0x80 | number, number)
        return b"".join(endpoint_descriptor(each, kind, size, bInterval) + companion for each in addresses)

    size, isochronous = _MAX_PACKET[speed], _MAX_ISOCHRONOUS[speed]
    source_sink = (
        interface_descriptor(0, 2, USB_CLASS_VENDOR_SPEC),
        pair(1, USB_ENDPOINT_XFER_BULK, size, 0),
    )
    all_interfaces = (
        *source_sink,
        interface_descriptor(1, 2, USB_CLASS_VENDOR_SPEC),
        pair(2, USB_ENDPOINT_XFER_BULK, size, 0),
        interface_descriptor(2, 2, USB_CLASS_VENDOR_SPEC),
        pair(3, USB_ENDPOINT_XFER_INT, size, 1),
        interface_descriptor(3, 0, USB_CLASS_VENDOR_SPEC),
        interface_descriptor(3, 2, USB_CLASS_VENDOR_SPEC, bAlternateSetting=1),
        pair(4, USB_ENDPOINT_XFER_ISOC, isochronous, 1),
    )
    return (
        configuration_descriptor(*all_interfaces),
        configuration_descriptor(*source_sink, bConfigurationValue=2),
    )
