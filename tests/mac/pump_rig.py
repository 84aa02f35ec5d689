"""A rig that waits for completions on other threads, for test_claim.py and test_pump.py.  Runs in processes
of a software Mac.
"""

import ctypes
import functools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from tests.mac.kernel.switches import Switches
from tests.mac.mac import Device
from tests.mac.rig import PATIENCE, MacRig, end, mac, take
from tests.urb import Command, Reply, RetSubmit, Submit, encode
from usbipd import _pump
from usbipd._claim import Claim

OUT, IN, INTERRUPT_OUT, INTERRUPT_IN, ISO_OUT, ISO_IN, OUT_1, IN_1 = 1, 0x81, 2, 0x82, 3, 0x83, 4, 0x84
"""Endpoints of the scripted device (kernel/packets.py); the last two are those of interface 1."""
PACKET = 512
NOBODY_UID = 65534
SET_CONFIGURATION, SET_CONFIGURATION_2 = "00 09 0100 0000 0000", "00 09 0200 0000 0000"
ISO_ON, ISO_OFF = "01 0b 0100 0000 0000", "01 0b 0000 0000 0000"
PORT_RESET = "23 03 0400 0100 0000"
CLEAR_HALT = "02 01 0000 8100 0000"
GET_STATUS = "80 00 0000 0000 0200"


def counts_aborted_bytes() -> bool:
    """Whether this libusb passes on the kernel's byte counts of aborted transfers: ours does."""
    libusb = ctypes.CDLL("libusb-1.0.so.0")
    libusb.libusb_get_version.restype = ctypes.POINTER(_Version)
    return bool(libusb.libusb_get_version().contents.rc.startswith(b"-usbipd"))


class _Version(ctypes.Structure):
    """struct libusb_version"""

    _fields_ = (
        *((name, ctypes.c_uint16) for name in ("major", "minor", "micro", "nano")),
        ("rc", ctypes.c_char_p),
        ("describe", ctypes.c_char_p),
    )


@contextmanager
def not_root() -> Iterator[None]:
    """This process calls the kernel as a user other than root."""
    os.seteuid(NOBODY_UID)
    try:
        yield
    finally:
        os.seteuid(0)


def fresh_switches(**values: Any) -> None:
    """Reset all switches except these."""
    mac().switch(**{**asdict(Switches()), **values})


@functools.cache
def shared() -> tuple[Device, Claim]:
    """A device and its claim for all tests of a process: as in a worker, which serves clients in sequence
    with one libusb context.
    """
    device = mac().plug()
    return device, take(device)


class PumpRig(MacRig):
    """The pump of a device of the Mac, by default the `shared` one.

    Transfers complete on threads of libusb, so a reply may take some turns: `exchange` does not wait,
    `replies_to` does.
    """

    def __init__(self, usb: Device | None = None) -> None:
        self.usb, claim = (usb, None) if usb is not None else shared()
        self.is_shared = usb is None
        if self.is_shared:
            self.usb.forget()
        super().__init__(self.usb, claim=claim)

    def replies_to(self, *commands: Command, count: int | None = None) -> list[Reply]:
        """Sends all in one write and waits for `count` replies, by default one each."""
        found = self.exchange(*commands)
        wanted = len(commands) if count is None else count
        end = time.monotonic() + PATIENCE
        while len(found) < wanted:
            assert time.monotonic() < end, f"{len(found)} replies instead of {wanted}: {found}"
            self.turn()
            found += self.received()
        assert len(found) == wanted, found
        return found

    def exchange_until_it_ends(self, *commands: Command) -> int:
        """Sends all; returns why the pump ended the session.  Earlier replies can still be received."""
        wake = self.send(b"".join(encode(command) for command in commands))
        end = time.monotonic() + PATIENCE
        while wake == _pump.CHANNEL:
            assert time.monotonic() < end, "the session has not ended"
            wake = self.turn()
        return wake

    def more(self, count: int = 1) -> list[Reply]:
        """The next replies."""
        return self.replies_to(count=count)

    def submitted(self, *urbs: Submit) -> None:
        """Sends URBs, none of which ends, and waits until the kernel has them."""
        assert self.exchange(*urbs) == []
        for address in {address_of(urb) for urb in urbs}:
            mine = sum(address_of(urb) == address for urb in urbs)
            self.usb.until_waiting(address, mine)

    def until_waiting(self, address: int, count: int) -> None:
        """Runs the pump, without a reply, until the kernel has so many URBs of an endpoint."""
        end = time.monotonic() + PATIENCE
        while self.usb.waiting.get(address, 0) != count:
            assert time.monotonic() < end, f"{self.usb.waiting} wait"
            assert self.exchange() == []

    def quiet(self) -> None:
        """Waits for all earlier completions: they precede that of this control request."""
        reply = self.control(GET_STATUS)
        assert reply.status == 0

    def close(self) -> None:
        """As in a worker: resets the device for the next client, and releases it unless it is `shared`."""
        assert self.finish()
        if not (self.pump.gone or self.pump.unclaimed):
            assert self.pump.restore() == 0
        if not self.is_shared:
            claim = self.claim
            super().close()
            end(claim)
            return
        assert self.claim.complete, "the next test needs it"
        del self.pump, self.transfers
        self._pumps_channel.close()
        self._channel.close()


def address_of(urb: Submit) -> int:
    return urb.ep | (0x80 if urb.direction else 0)


def summary(reply: Reply) -> tuple[int, int, bytes]:
    return reply.seqnum, reply.status, reply.data if isinstance(reply, RetSubmit) else b""
