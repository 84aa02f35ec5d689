"""Interprets an input of the pump's fuzzer: acts of a client and of its device.  Runs in tests and fuzzers.

An input is a program for a small machine: a byte that chooses the device, then acts, each of one byte and its
operands. All bytes have a meaning; most acts produce a message that is well-formed or nearly
so.  `RAW` puts bytes on the wire as they are.
"""

import struct
from collections.abc import Callable
from typing import Final

from tests.fuzz.hostile import HostileClient, Settings
from tests.unit.worker.rig import DEVID
from tests.urb import IsoPacket, Submit, Unlink, encode
from usbipd.protocol.constants import NO_ISO_PACKETS
from usbipd.usb.descriptors import Endpoint

LENGTHS: Final = (
    0,
    1,
    8,
    31,
    64,
    320,
    321,
    512,
    1024,
    1025,
    4096,
    16384,
    65536,
    1 << 20,
    16 << 20,
    (16 << 20) + 1,
)
COUNTS: Final = (0, 1, 2, 3, 8, 32, 1024, 1025)
MOST_DATA: Final = 4096
"""Bytes of OUT data that an act sends at most: more finds nothing new and slows the fuzzer down."""
_OVERTAKES: Final = 0xE0


class Operands:
    """The bytes of an input, read from the front; zeros after the end."""

    def __init__(self, data: bytes) -> None:
        self._rest = memoryview(data)

    def __bool__(self) -> bool:
        return bool(self._rest)

    def take(self, size: int) -> bytes:
        taken, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return taken.ljust(size, b"\0")

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.take(size), "little")


class Program:
    """Carries out the acts of one input."""

    def __init__(
        self,
        client: HostileClient,
        settings: Settings,
        operands: Operands,
        hand: "Callable[[Program, Operands], None]",
    ) -> None:
        """`hand` is what one act does to the device, as its operands say."""
        self.client = client
        self._settings = settings
        self._operands = operands
        self._hand = hand
        self._seqnum = 0
        self._sent: list[int] = []

    def run(self) -> None:
        """All acts, or those until the session ends."""
        while self._operands and self.client.alive:
            act = ACTS[self._operands.number() % len(ACTS)]
            act(self)

    # ---- acts of the client ----------------------------------------------------------------------

    def submit(self) -> None:
        """An URB for an existing endpoint, if any exists."""
        operands = self._operands
        endpoints: list[Endpoint | None] = [None, *self._settings.active()]
        endpoint = endpoints[operands.number() % len(endpoints)]
        length = LENGTHS[operands.number() % len(LENGTHS)]
        flags = operands.number(2)
        if endpoint is None:
            self._send(self._urb(operands.number() & 0x8F, length, flags, operands.take(8)))
        elif endpoint.bmAttributes & 3 == 1:
            self._send(self._stream(endpoint.bEndpointAddress, flags))
        else:
            self._send(self._urb(endpoint.bEndpointAddress, length, flags))

    def control(self) -> None:
        """A request that is intercepted or answered from a table, with operands of any value."""
        operands = self._operands
        setup = REQUESTS[operands.number() % len(REQUESTS)] + operands.take(4)
        length = operands.number(2)
        data = operands.take(min(length, 64)) if not setup[0] & 0x80 else b""
        wanted = length if setup[0] & 0x80 else len(data)
        setup += wanted.to_bytes(2, "little")
        self._send(self._urb(setup[0] & 0x80, wanted, 0, setup, data))

    def unlink(self) -> None:
        """Of an URB that was sent, or of any."""
        self._send(self.unlink_of(self._operands.number()))

    def mutated(self) -> None:
        """A bulk URB with any value in one field of its header."""
        where = self._operands.number() % 12
        header = bytearray(encode(self._urb(0x81, 64, 0)))
        header[4 * where : 4 * where + 4] = self._operands.take(4)
        self.client.write(bytes(header))

    def repeated(self) -> None:
        """The next message has the seqnum of an earlier one."""
        back = self._operands.number()
        if self._sent:
            self._seqnum = self._sent[-1 - back % len(self._sent)] - 1

    def jump(self) -> None:
        """Seqnums go on from here."""
        self._seqnum = self._operands.number(4)

    def raw(self) -> None:
        """Bytes as they are."""
        self.client.write(self._operands.take(self._operands.number(2) % 2048))

    def command_block(self) -> None:
        """A SCSI command in its wrapper, for a disk; its data is a separate URB (BOT 1.0, section 5.1)."""
        operands = self._operands
        tag, length, flags, size = (
            operands.number(4),
            operands.number(2),
            operands.number(),
            operands.number(),
        )
        block = b"USBC" + struct.pack("<IIBBB", tag, length, flags, 0, size % 17) + operands.take(16)
        self._send(self._urb(0x01, len(block), 0, data=block))

    def deliver(self) -> None:
        """Sends the written bytes in pieces of this size."""
        self.client.deliver(self._operands.number(2) or 1 << 16)

    def wait(self) -> None:
        self.client.deliver()
        self.client.wait_for_streams(0.002)

    def device(self) -> None:
        """An act of the device."""
        self._hand(self, self._operands)

    # ---- messages --------------------------------------------------------------------------------

    def unlink_of(self, back: int) -> Unlink:
        """An UNLINK of an URB that many URBs back, or of the next one, which it overtakes."""
        if back >= _OVERTAKES:
            target, seqnum = self._next(), self._next()
            self._seqnum = target - back % 2
            return Unlink(seqnum, DEVID, 0, 0, target)
        target = self._sent[-1 - back % len(self._sent)] if self._sent else back
        return Unlink(self._next(), DEVID, 0, 0, target)

    def _next(self) -> int:
        self._seqnum = (self._seqnum + 1) & 0xFFFFFFFF
        return self._seqnum

    def _send(self, message: Submit | Unlink) -> None:
        if isinstance(message, Submit):
            self._sent.append(message.seqnum)
        self.client.write(encode(message))

    def _urb(
        self, address: int, length: int, flags: int, setup: bytes = bytes(8), data: bytes | None = None
    ) -> Submit:
        incoming = address & 0x80 != 0
        if not incoming and data is None:
            length = min(length, MOST_DATA)
            data = bytes(number & 0xFF for number in range(self._seqnum, self._seqnum + length))
        return Submit(
            seqnum=self._next(),
            devid=DEVID,
            direction=int(incoming),
            ep=address & 15,
            transfer_flags=flags,
            transfer_buffer_length=length,
            number_of_packets=NO_ISO_PACKETS if flags & 0x8000 else 0,
            setup=setup,
            data=data or b"",
        )

    def _stream(self, address: int, flags: int) -> Submit:
        """An isochronous URB: packets contiguous, with gaps, or anywhere."""
        operands = self._operands
        count = COUNTS[operands.number() % len(COUNTS)]
        size, gap, kind = operands.number(2) % 1025, operands.number(), operands.number()
        places = [(number * (size + gap), size) for number in range(min(count, 1024))]
        if kind & 1 and places:
            places[kind % len(places)] = (operands.number(4), operands.number(4))
        length = max((offset + each for offset, each in places), default=0)
        length = length & 0xFFFFF if kind & 2 else min(length, 1 << 20)
        incoming = address & 0x80 != 0
        return Submit(
            seqnum=self._next(),
            devid=DEVID,
            direction=int(incoming),
            ep=address & 15,
            transfer_flags=flags,
            transfer_buffer_length=length,
            number_of_packets=count,
            data=b"" if incoming else bytes(length),
            iso=tuple(IsoPacket(*place) for place in places),
        )


REQUESTS: Final = tuple(
    bytes.fromhex(each)
    for each in (
        "0009",  # SET_CONFIGURATION
        "010b",  # SET_INTERFACE
        "0201",  # CLEAR_FEATURE of an endpoint
        "0203",  # SET_FEATURE of an endpoint
        "2303",  # SET_FEATURE of a port
        "8006",  # GET_DESCRIPTOR
        "8000",  # GET_STATUS
        "8100",
        "8200",
        "8008",  # GET_CONFIGURATION
        "810a",  # GET_INTERFACE
        "a1fe",  # GET_MAX_LUN
        "21ff",  # bulk-only reset
        "2109",  # SET_REPORT
        "a101",  # GET_REPORT
        "2120",  # SET_LINE_CODING
        "a121",  # GET_LINE_CODING
        "c001",  # of the vendor
        "4001",
    )
)
"""bmRequestType and bRequest: USB 2.0 table 9-3, and those of the simulated devices' classes."""

ACTS: Final[tuple[Callable[[Program], None], ...]] = (
    Program.raw,
    Program.submit,
    Program.control,
    Program.unlink,
    Program.mutated,
    Program.repeated,
    Program.jump,
    Program.command_block,
    Program.deliver,
    Program.wait,
    Program.device,
    Program.device,
    Program.submit,
    Program.submit,
    Program.unlink,
    Program.deliver,
)
"""Indexed by the byte of an act, modulo their number."""
