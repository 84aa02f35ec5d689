"""A host for bulk-only mass storage, like a small usb-storage, against a model without a pump.

Source: USB Mass Storage Class, Bulk-Only Transport 1.0.
"""

import struct
from dataclasses import dataclass

from usbipd.simulated.device import Handshake
from usbipd.simulated.mass_storage import BULK_IN, BULK_OUT, MassStorage

Data = bytes | bytearray | memoryview


@dataclass
class Result:
    """The result of a command; `stalled` is the data pipe if it stalled, else 0."""

    status: int
    residue: int
    data: bytes
    stalled: int


class BotHost:
    """Halts endpoints as the pump does, and clears them as BOT 6.7 requires of a host."""

    def __init__(self, disk: MassStorage, urb_size: int = 16384) -> None:
        self.disk = disk
        self.urb_size = urb_size
        self.halted: set[int] = set()
        self.tag = 0

    def read(self, length: int) -> Data | Handshake:
        if BULK_IN in self.halted:
            return Handshake.STALL
        answer = self.disk.read(BULK_IN, length)
        if answer is Handshake.STALL:
            self.halted.add(BULK_IN)
        return answer

    def write(self, data: bytes) -> int | Handshake:
        if BULK_OUT in self.halted:
            return Handshake.STALL
        answer = self.disk.write(BULK_OUT, memoryview(data))
        if answer is Handshake.STALL:
            self.halted.add(BULK_OUT)
        return answer

    def clear_halt(self, endpoint: int) -> None:
        self.halted.discard(endpoint)
        self.disk.halt_cleared(endpoint)

    def cbw(self, cdb: bytes, length: int, is_in: bool) -> bytes:
        self.tag += 1
        flags = 0x80 if is_in else 0
        return struct.pack("<4sIIBBB16s", b"USBC", self.tag, length, flags, 0, len(cdb), cdb)

    def csw(self) -> tuple[int, int]:
        """Status and residue; clears one STALL before them (BOT figure 2)."""
        answer = self.read(13)
        if answer is Handshake.STALL:
            self.clear_halt(BULK_IN)
            answer = self.read(13)
        assert not isinstance(answer, Handshake), answer
        signature, tag, residue, status = struct.unpack("<4sIIB", answer)
        assert signature == b"USBS"
        assert tag == self.tag
        assert self.read(13) is Handshake.NAK
        return status, residue

    def command_in(self, cdb: bytes, length: int) -> Result:
        assert self.write(self.cbw(cdb, length, is_in=True)) == 31
        data = bytearray()
        while len(data) < length:
            wanted = min(self.urb_size, length - len(data))
            answer = self.read(wanted)
            if isinstance(answer, Handshake):
                assert answer is Handshake.STALL
                break
            assert len(answer) <= wanted
            data += answer
            if len(answer) < wanted:
                break
        # A short packet ends the data phase; the next read shows whether the pipe is halted after it.
        if len(data) < length and BULK_IN not in self.halted:
            assert self.read(13) is Handshake.STALL
        stalled = BULK_IN if BULK_IN in self.halted else 0
        return Result(*self.csw(), bytes(data), stalled)

    def command_out(self, cdb: bytes, data: bytes) -> Result:
        assert self.write(self.cbw(cdb, len(data), is_in=False)) == 31
        for at in range(0, len(data), self.urb_size):
            piece = data[at : at + self.urb_size]
            answer = self.write(piece)
            if answer is Handshake.STALL:
                break
            assert answer == len(piece)
        stalled = BULK_OUT if BULK_OUT in self.halted else 0
        if stalled:
            self.clear_halt(BULK_OUT)
        return Result(*self.csw(), b"", stalled)

    def command(self, cdb: bytes) -> Result:
        """A command without a data phase."""
        return self.command_out(cdb, b"")

    def sense(self) -> tuple[int, int, int]:
        """Sense key, additional sense code and qualifier."""
        data = self.command_in(bytes((0x03, 0, 0, 0, 18, 0)), 18).data
        assert len(data) == 18
        assert data[0] == 0x70
        return data[2] & 0x0F, data[12], data[13]
