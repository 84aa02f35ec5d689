"""A device that returns what it receives, used by a program of the client.  Runs in the guest.

It may be real (function_fs.py) or simulated (`--simulate loopback`): both behave alike, except for the
endpoint addresses and that the real one has no isochronous endpoints.
"""

import itertools
import random
from collections.abc import Sequence
from typing import Final

from tests.e2e.guest.scenario import StepError, check
from tests.e2e.guest.streams import check_same
from tests.e2e.guest.usb import UsbDevice
from tests.e2e.guest.usbfs import BULK, IN, INTERRUPT, ZERO_PACKET, Urb, UsbFile
from usbipd.protocol.constants import (
    USB_DT_DEVICE_SIZE,
    USB_ENDPOINT_XFER_BULK,
    USB_ENDPOINT_XFER_INT,
    USB_ENDPOINT_XFER_ISOC,
)
from usbipd.simulated.loopback import READ, WRITE
from usbipd.usb.descriptors import Endpoint, parse_configuration

VENDOR_OUT, VENDOR_IN = 0x40, 0xC0  # bmRequestType: vendor, device; USB 2.0, table 9-2
_LONGEST: Final = (1 << 20) + 1024
"""Room for more than a message of 1 MiB, so that its end must be detected."""


class LoopDevice:
    """The attached device, open, its interfaces claimed."""

    def __init__(self, device: UsbDevice, *, is_real: bool) -> None:
        self.is_real = is_real
        raw = device.descriptors
        endpoints = parse_configuration(raw[USB_DT_DEVICE_SIZE:]).endpoints
        self.device = device
        self.bcd_usb = int.from_bytes(raw[2:4], "little")
        self.bulk_out, self.bulk_in = _pair(endpoints, USB_ENDPOINT_XFER_BULK)
        self.interrupt_out, self.interrupt_in = _pair(endpoints, USB_ENDPOINT_XFER_INT)
        self.isochronous = [each for each in endpoints if each.bmAttributes & 3 == USB_ENDPOINT_XFER_ISOC]
        self.max_packet = self.bulk_out.wMaxPacketSize
        interfaces = {each.bInterfaceNumber for each in endpoints}
        self.file = UsbFile(device, sorted(interfaces))
        self.file.open()

    def close(self) -> None:
        """Close it; pending URBs end."""
        self.file.close()

    # ---- control -------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> Urb:
        """A vendor request that stores `data`."""
        return self.file.control(VENDOR_OUT, WRITE, data=data)

    def read(self, length: int) -> Urb:
        """A vendor request that returns the stored data, up to `length` bytes."""
        return self.file.control(VENDOR_IN, READ, length=length)

    # ---- messages ------------------------------------------------------------------------------------------

    def bulk_write(self, data: bytes, flags: int = ZERO_PACKET) -> Urb:
        """An OUT that is one message, by its flags."""
        return Urb(BULK, self.bulk_out.bEndpointAddress, data, flags=flags)

    def bulk_read(self, length: int = _LONGEST, flags: int = 0) -> Urb:
        """An IN with room for more than a message."""
        return Urb(BULK, self.bulk_in.bEndpointAddress, length=length, flags=flags)

    def interrupt_write(self, data: bytes) -> Urb:
        """An OUT of one packet."""
        return Urb(INTERRUPT, self.interrupt_out.bEndpointAddress, data)

    def interrupt_read(self) -> Urb:
        """An IN of one packet."""
        return Urb(INTERRUPT, self.interrupt_in.bEndpointAddress, length=self.interrupt_in.wMaxPacketSize)

    def loop(self, messages: Sequence[bytes], depth: int, *, room: int = _LONGEST) -> None:
        """Send bulk messages and receive them, `depth` URBs in flight in each direction.

        Raises `StepError` unless each comes back whole, as one message, in order.
        """
        self._exchange(
            [self.bulk_write(message) for message in messages],
            [self.bulk_read(room) for _ in messages],
            messages,
            depth,
        )

    def loop_interrupts(self, messages: Sequence[bytes], depth: int) -> None:
        """The same with interrupt transfers, each message one packet."""
        self._exchange(
            [self.interrupt_write(message) for message in messages],
            [self.interrupt_read() for _ in messages],
            messages,
            depth,
        )

    def _exchange(self, writes: list[Urb], reads: list[Urb], messages: Sequence[bytes], depth: int) -> None:
        waiting = [iter(writes), iter(reads)]
        order: tuple[list[Urb], list[Urb]] = [], []
        for urbs in waiting:
            self.file.submit(*itertools.islice(urbs, depth))
        for _ in range(len(writes) + len(reads)):
            urb = self.file.reap()
            check(urb.status == 0, f"a URB of endpoint {urb.endpoint:#04x} ended with {urb.status}")
            which = 1 if urb.endpoint & IN else 0
            order[which].append(urb)
            if (following := next(waiting[which], None)) is not None:
                self.file.submit(following)
        check(order[0] == writes, "OUT URBs ended out of order")
        check(order[1] == reads, "IN URBs ended out of order")
        for sent, write, read in zip(messages, writes, reads, strict=True):
            check(
                write.actual_length == len(sent), f"{write.actual_length} of {len(sent)} bytes were accepted"
            )
            check_same(read.data, sent)

    def check_works(self) -> None:
        """One message of each kind goes through."""
        check(self.write(b"still").status == 0, "the device does not accept a control transfer")
        check_same(self.read(64).data, b"still")
        self.loop([b"there"], 1, room=4096)
        self.loop_interrupts([b"too"], 1)


def some_bytes(length: int, seed: object = 0) -> bytes:
    """Reproducible random bytes."""
    return random.Random(f"{length} {seed}").randbytes(length)


def _pair(endpoints: Sequence[Endpoint], kind: int) -> tuple[Endpoint, Endpoint]:
    """The last OUT and the last IN of a type: earlier ones are a source and a sink."""
    found = [each for each in endpoints if each.bmAttributes & 3 == kind]
    ins = [each for each in found if each.bEndpointAddress & IN]
    outs = [each for each in found if not each.bEndpointAddress & IN]
    if not ins or not outs:
        raise StepError(f"the device has no endpoints of type {kind}")
    return outs[-1], ins[-1]
