"""A real device that returns what it receives, over bulk, interrupt and control transfers.

FunctionFS delegates a gadget's function to a program: this one, in threads.  Runs in the guest.
Source: include/uapi/linux/usb/functionfs.h, drivers/usb/gadget/function/f_fs.c.
"""

import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.e2e.guest.gadget import Function
from tests.e2e.guest.system import run
from usbipd.protocol.constants import (
    USB_CLASS_VENDOR_SPEC,
    USB_ENDPOINT_XFER_BULK,
    USB_ENDPOINT_XFER_INT,
    Speed,
)
from usbipd.simulated.descriptors import companion_descriptor, endpoint_descriptor, interface_descriptor
from usbipd.simulated.loopback import READ, WRITE

CHUNK: Final = 1 << 16
"""Bytes of a bulk message to read at a time: whole packets at every speed."""

_DESCRIPTORS_MAGIC, _STRINGS_MAGIC = 3, 2
_SPEEDS: Final = (Speed.FULL, Speed.HIGH, Speed.SUPER)
_HAS_SPEEDS: Final = 0b111
_ALL_CONTROL_RECIPIENTS: Final = 64
_EVENT: Final = struct.Struct("<BBHHHB3x")
_SETUP: Final = 4
MAX_PACKET: Final = {Speed.FULL: 64, Speed.HIGH: 512, Speed.SUPER: 1024}
_VENDOR: Final = 0x40
_IN: Final = 0x80


class LoopFunction:
    """The function `ffs.NAME`: start it after adding it to the gadget and before plugging the gadget in."""

    def __init__(self, name: str, speed: Speed) -> None:
        """`speed` is the gadget's speed."""
        self._max_packet = MAX_PACKET[speed]
        self.function = Function("ffs", instance=name)
        self._name = name
        self._directory = Path("/run/functionfs") / name
        self._written = b""
        self._ended = False

    def start(self) -> None:
        """Write the descriptors, and serve the endpoints until `stop`."""
        self._directory.mkdir(parents=True, exist_ok=True)
        run("mount", "-t", "functionfs", self._name, self._directory)
        self._ep0 = os.open(self._directory / "ep0", os.O_RDWR)
        os.write(self._ep0, _descriptors())
        os.write(self._ep0, struct.pack("<IIII", _STRINGS_MAGIC, 16, 0, 0))
        self._begin(self._answer_requests)
        self._begin(lambda: self._give_back("ep1", "ep2", CHUNK))
        self._begin(lambda: self._give_back("ep3", "ep4", self._max_packet))

    def stop(self) -> None:
        """Call after removing the gadget: that ends all waits for its endpoints."""
        self._ended = True
        os.close(self._ep0)
        run("umount", "--lazy", self._directory)

    def _begin(self, action: Callable[[], None]) -> None:
        threading.Thread(target=action, daemon=True).start()

    def _answer_requests(self) -> None:
        while not self._ended:
            try:
                *setup, event = _EVENT.unpack(os.read(self._ep0, _EVENT.size))
                if event == _SETUP:
                    self._answer(*setup)
            except OSError:  # the host has cancelled the request, or the device was reset meanwhile
                continue

    def _answer(self, kind: int, request: int, _value: int, _index: int, length: int) -> None:
        if kind & _IN:
            if kind & 0x60 == _VENDOR and request == READ:
                os.write(self._ep0, self._written[:length])
            else:
                os.read(self._ep0, 0)  # the wrong direction: a stall
        elif kind & 0x60 == _VENDOR and request == WRITE:
            self._written = os.read(self._ep0, length)
        else:
            os.write(self._ep0, b"")

    def _give_back(self, out: str, back: str, chunk: int) -> None:
        """Chunk by chunk; a message that ended with a short or empty packet is returned with one."""
        buffer = bytearray(chunk)
        ends = [os.open(self._directory / name, os.O_RDWR) for name in (out, back)]
        while not self._ended:
            try:
                count = os.readv(ends[0], [buffer])
                os.write(ends[1], memoryview(buffer)[:count])
                if 0 < count < chunk and count % self._max_packet == 0:
                    os.write(ends[1], b"")
            except OSError:  # the configuration has changed, or the device was reset
                continue
        for end in ends:
            os.close(end)


def _descriptors() -> bytes:
    each = [_interfaces(speed) for speed in _SPEEDS]
    body = struct.pack("<III", *(len(descriptors) for descriptors in each)) + b"".join(
        descriptor for descriptors in each for descriptor in descriptors
    )
    flags = _HAS_SPEEDS | _ALL_CONTROL_RECIPIENTS
    return struct.pack("<III", _DESCRIPTORS_MAGIC, 12 + len(body), flags) + body


def _interfaces(speed: Speed) -> list[bytes]:
    """Bulk OUT and IN, interrupt OUT and IN; the kernel assigns the addresses."""
    size, found = MAX_PACKET[speed], []
    for number, kind in enumerate((USB_ENDPOINT_XFER_BULK, USB_ENDPOINT_XFER_INT)):
        is_bulk = kind == USB_ENDPOINT_XFER_BULK
        found.append(interface_descriptor(number, 2, USB_CLASS_VENDOR_SPEC))
        for address in (2 * number + 1, _IN | 2 * number + 2):
            found.append(endpoint_descriptor(address, kind, size, 0 if is_bulk else 1))
            if speed is Speed.SUPER:
                found.append(companion_descriptor(0 if is_bulk else size))
    return found
