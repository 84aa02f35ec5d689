"""The CMD_* and RET_* messages, which carry URBs, for tests.  Workers use the codec in `cython/urb.pxi`.

Both codecs are tested with the same golden vectors.  The layouts are from
Documentation/usb/usbip_protocol.rst.  All numbers are big-endian, except the setup packet, which is
little-endian as in USB.  A message is a 48-byte header, then the data, then the isochronous descriptors:

    CMD_SUBMIT OUT  header, transfer_buffer_length bytes, descriptors
    CMD_SUBMIT IN   header, descriptors
    RET_SUBMIT OUT  header, descriptors
    RET_SUBMIT IN   header, actual_length bytes, descriptors
    CMD_UNLINK, RET_UNLINK   header

Nothing on the wire says whether descriptors follow: number_of_packets is stale unless the transfer is
isochronous.  For a CMD_SUBMIT the type of the endpoint decides, for a RET_SUBMIT the URB that it answers.
"""

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar, assert_never

from usbipd.errors import ProtocolError
from usbipd.protocol.constants import (
    ISO_PACKET_SIZE,
    LINUX_EREMOTEIO,
    MAX_ISO_PACKETS,
    MAX_TRANSFER_LENGTH,
    NO_ISO_PACKETS,
    URB_HEADER_SIZE,
    URB_SHORT_NOT_OK,
    USBIP_CMD_SUBMIT,
    USBIP_CMD_UNLINK,
    USBIP_DIR_IN,
    USBIP_DIR_OUT,
    USBIP_RET_SUBMIT,
    USBIP_RET_UNLINK,
)

MessageT = TypeVar("MessageT")

# drivers/usb/usbip/usbip_common.h: struct usbip_header_basic, then one of the four
_BASIC: Final = struct.Struct("!IIIII")
_CMD_SUBMIT: Final = struct.Struct("!IIIII8s")
_CMD_UNLINK: Final = struct.Struct("!I24x")
_RET_SUBMIT: Final = struct.Struct("!iIIII8x")
_RET_UNLINK: Final = struct.Struct("!i24x")
_ISO_PACKET: Final = struct.Struct("!IIIi")


@dataclass(frozen=True, slots=True)
class IsoPacket:
    """One isochronous packet: the requested `offset` and `length` in the client's buffer, and the outcome."""

    offset: int
    length: int
    actual_length: int = 0
    status: int = 0


@dataclass(frozen=True, slots=True)
class Submit:
    """CMD_SUBMIT.  `data` is for OUT; `iso` is empty unless the endpoint is isochronous."""

    seqnum: int
    devid: int
    direction: int
    ep: int
    transfer_flags: int
    transfer_buffer_length: int
    start_frame: int = 0
    number_of_packets: int = NO_ISO_PACKETS
    interval: int = 0
    setup: bytes = bytes(8)
    data: bytes = b""
    iso: tuple[IsoPacket, ...] = ()


@dataclass(frozen=True, slots=True)
class Unlink:
    """CMD_UNLINK.  Only `unlink_seqnum` identifies the URB; direction and ep may be 0."""

    seqnum: int
    devid: int
    direction: int
    ep: int
    unlink_seqnum: int


@dataclass(frozen=True, slots=True)
class RetSubmit:
    """RET_SUBMIT.  `status` is 0 or a negative Linux errno; `data` is for IN, if isochronous without gaps."""

    seqnum: int
    status: int
    actual_length: int
    start_frame: int = 0
    number_of_packets: int = NO_ISO_PACKETS
    error_count: int = 0
    data: bytes = b""
    iso: tuple[IsoPacket, ...] = ()

    def packets(self) -> tuple[bytes, ...]:
        """The data of each isochronous packet of an IN transfer."""
        chunks, begin = [], 0
        for packet in self.iso:
            chunks.append(self.data[begin : begin + packet.actual_length])
            begin += packet.actual_length
        return tuple(chunks)


@dataclass(frozen=True, slots=True)
class RetUnlink:
    """RET_UNLINK.  `status` is -ECONNRESET if the URB was cancelled, 0 if it was not in flight."""

    seqnum: int
    status: int


Command = Submit | Unlink
Reply = RetSubmit | RetUnlink


def encode(message: Command | Reply) -> bytes:
    """The bytes of a message, without checks; raises `struct.error` if a field does not fit."""
    match message:
        case Submit():
            basic = (USBIP_CMD_SUBMIT, message.seqnum, message.devid, message.direction, message.ep)
            rest = _CMD_SUBMIT.pack(
                message.transfer_flags,
                message.transfer_buffer_length,
                message.start_frame,
                message.number_of_packets,
                message.interval,
                message.setup,
            )
            rest += message.data + _encode_iso(message.iso)
        case Unlink():
            basic = (USBIP_CMD_UNLINK, message.seqnum, message.devid, message.direction, message.ep)
            rest = _CMD_UNLINK.pack(message.unlink_seqnum)
        case RetSubmit():
            basic = (USBIP_RET_SUBMIT, message.seqnum, 0, 0, 0)
            rest = _RET_SUBMIT.pack(
                message.status,
                message.actual_length,
                message.start_frame,
                message.number_of_packets,
                message.error_count,
            )
            rest += message.data + _encode_iso(message.iso)
        case RetUnlink():
            basic = (USBIP_RET_UNLINK, message.seqnum, 0, 0, 0)
            rest = _RET_UNLINK.pack(message.status)
        case _:
            assert_never(message)
    return _BASIC.pack(*basic) + rest


def answer(submit: Submit, status: int, actual_length: int, buffer: bytes = b"") -> RetSubmit:
    """The RET_SUBMIT for a finished transfer that is not isochronous.

    `buffer` is the transfer's buffer, `actual_length` the number of bytes transferred.
    """
    incoming = submit.direction == USBIP_DIR_IN
    short = actual_length < submit.transfer_buffer_length
    if status == 0 and incoming and short and submit.transfer_flags & URB_SHORT_NOT_OK:
        status = -LINUX_EREMOTEIO
    return RetSubmit(
        seqnum=submit.seqnum,
        status=status,
        actual_length=actual_length,
        number_of_packets=submit.number_of_packets,
        data=buffer[:actual_length] if incoming else b"",
    )


def answer_isochronous(
    submit: Submit, start_frame: int, packet_results: Sequence[tuple[int, int]], buffer: bytes = b""
) -> RetSubmit:
    """The RET_SUBMIT for a finished isochronous transfer.

    `packet_results` has (actual_length, status) of each packet, `buffer` an IN transfer's buffer with each
    packet at its offset: the gaps after short packets are not sent.
    """
    iso = tuple(
        IsoPacket(packet.offset, packet.length, actual_length, status)
        for packet, (actual_length, status) in zip(submit.iso, packet_results, strict=True)
    )
    data = b""
    if submit.direction == USBIP_DIR_IN:
        data = b"".join(buffer[packet.offset : packet.offset + packet.actual_length] for packet in iso)
    return RetSubmit(
        seqnum=submit.seqnum,
        status=0,
        actual_length=sum(packet.actual_length for packet in iso),
        start_frame=start_frame,
        number_of_packets=submit.number_of_packets,
        error_count=sum(packet.status != 0 for packet in iso),
        data=data,
        iso=iso,
    )


class StreamReader(ABC, Generic[MessageT]):
    """Reads messages in sequence.  After a `ProtocolError` it raises the same error on every call."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._error: ProtocolError | None = None
        self._begin()

    @abstractmethod
    def _parse(self) -> Generator[int, bytes, MessageT]:
        """The parser of one message: yields how many bytes it needs next, and is sent them."""

    def _begin(self) -> None:
        self._parser = self._parse()
        self._size = next(self._parser)

    def feed(self, data: bytes) -> list[MessageT]:
        """Every message that `data` completes, in order; raises `ProtocolError`."""
        self._buffer += data
        if self._error is not None:
            raise self._error
        messages: list[MessageT] = []
        while len(self._buffer) >= self._size:
            part = bytes(self._buffer[: self._size])
            del self._buffer[: self._size]
            try:
                self._size = self._parser.send(part)
            except StopIteration as stop:
                messages.append(stop.value)
                self._begin()
            except ProtocolError as error:
                self._error = error
                raise
        return messages


class CommandReader(StreamReader[Command]):
    """Reads what a client sends.

    `is_isochronous(ep, direction)` is called for each endpoint but 0, and returns None if it does not exist.
    """

    def __init__(self, is_isochronous: Callable[[int, int], bool | None]) -> None:
        self._is_isochronous = is_isochronous
        super().__init__()

    def _parse(self) -> Generator[int, bytes, Command]:
        header = yield URB_HEADER_SIZE
        command, seqnum, devid, direction, ep = _BASIC.unpack_from(header)
        if command == USBIP_CMD_UNLINK:
            (unlink_seqnum,) = _CMD_UNLINK.unpack_from(header, _BASIC.size)
            return Unlink(seqnum, devid, direction, ep, unlink_seqnum)
        if command != USBIP_CMD_SUBMIT:
            raise ProtocolError(f"command {command:#010x} is neither CMD_SUBMIT nor CMD_UNLINK")
        if direction not in (USBIP_DIR_OUT, USBIP_DIR_IN) or ep > 15:
            raise ProtocolError(
                f"CMD_SUBMIT seqnum {seqnum}: direction {direction}, ep {ep}: ep is 0 to 15, direction 0 or 1"
            )
        fields = _CMD_SUBMIT.unpack_from(header, _BASIC.size)
        transfer_flags, transfer_buffer_length, start_frame, number_of_packets, interval, setup = fields
        if transfer_buffer_length > MAX_TRANSFER_LENGTH:
            raise ProtocolError(
                f"CMD_SUBMIT seqnum {seqnum}: transfer_buffer_length {transfer_buffer_length} "
                f"is above {MAX_TRANSFER_LENGTH}"
            )
        packets = self._iso_packets(seqnum, direction, ep, number_of_packets)
        data = b""
        if direction == USBIP_DIR_OUT and transfer_buffer_length:
            data = yield transfer_buffer_length
        iso = _decode_iso((yield packets * ISO_PACKET_SIZE)) if packets else ()
        return Submit(
            seqnum,
            devid,
            direction,
            ep,
            transfer_flags,
            transfer_buffer_length,
            start_frame,
            number_of_packets,
            interval,
            setup,
            data,
            iso,
        )

    def _iso_packets(self, seqnum: int, direction: int, ep: int, number_of_packets: int) -> int:
        """The number of isochronous descriptors that follow."""
        isochronous = False if ep == 0 else self._is_isochronous(ep, direction)
        if isochronous is False or number_of_packets in (0, NO_ISO_PACKETS):
            return 0
        if isochronous is None:
            raise ProtocolError(
                f"CMD_SUBMIT seqnum {seqnum}: no endpoint {ep} of direction {direction}, "
                f"and number_of_packets {number_of_packets}"
            )
        if number_of_packets > MAX_ISO_PACKETS:
            raise ProtocolError(
                f"CMD_SUBMIT seqnum {seqnum}: number_of_packets {number_of_packets} "
                f"is above {MAX_ISO_PACKETS}"
            )
        return number_of_packets


class ReplyReader(StreamReader[Reply]):
    """Reads what a server sends, as strictly as the strictest client: it rejects what makes the kernel drop
    the connection (drivers/usb/usbip/vhci_rx.c, usbip_common.c) or violates the documentation.

    Announce every CMD_* with `expect` before sending it.
    """

    def __init__(self) -> None:
        self._submits: dict[int, Submit] = {}
        self._unlinks: dict[int, Unlink] = {}
        super().__init__()

    def expect(self, command: Command) -> None:
        """Announces a command that is about to be sent."""
        if isinstance(command, Submit):
            self._submits[command.seqnum] = command
        else:
            self._unlinks[command.seqnum] = command

    def _parse(self) -> Generator[int, bytes, Reply]:
        header = yield URB_HEADER_SIZE
        command, seqnum, *rest = _BASIC.unpack_from(header)
        if command not in (USBIP_RET_SUBMIT, USBIP_RET_UNLINK):
            raise ProtocolError(f"command {command:#010x} is neither RET_SUBMIT nor RET_UNLINK")
        if any(rest):
            raise ProtocolError(f"reply to seqnum {seqnum}: devid, direction and ep are {rest}, not 0")
        if command == USBIP_RET_UNLINK:
            (status,) = _RET_UNLINK.unpack_from(header, _BASIC.size)
            return self._ret_unlink(seqnum, status)
        fields = _RET_SUBMIT.unpack_from(header, _BASIC.size)
        status, actual_length, start_frame, number_of_packets, error_count = fields
        submit = self._submits.pop(seqnum, None)
        if submit is None:
            raise ProtocolError(f"RET_SUBMIT seqnum {seqnum}: no such URB, or answered already")
        if number_of_packets != submit.number_of_packets:
            raise ProtocolError(
                f"RET_SUBMIT seqnum {seqnum}: number_of_packets {number_of_packets}, "
                f"not {submit.number_of_packets}"
            )
        if actual_length > submit.transfer_buffer_length:
            raise ProtocolError(
                f"RET_SUBMIT seqnum {seqnum}: actual_length {actual_length} "
                f"is above transfer_buffer_length {submit.transfer_buffer_length}"
            )
        data = b""
        if submit.direction == USBIP_DIR_IN and actual_length:
            data = yield actual_length
        iso: tuple[IsoPacket, ...] = ()
        if submit.iso:
            iso = _decode_iso((yield len(submit.iso) * ISO_PACKET_SIZE))
            _check_iso(submit, actual_length, iso)
        return RetSubmit(
            seqnum, status, actual_length, start_frame, number_of_packets, error_count, data=data, iso=iso
        )

    def _ret_unlink(self, seqnum: int, status: int) -> RetUnlink:
        unlink = self._unlinks.pop(seqnum, None)
        if unlink is None:
            raise ProtocolError(f"RET_UNLINK seqnum {seqnum}: no such CMD_UNLINK")
        # Each SUBMIT ends in exactly one RET_SUBMIT, or in the RET_UNLINK that reports its cancellation.
        pending = self._submits.pop(unlink.unlink_seqnum, None) is not None
        if pending != (status != 0):
            state = "still to be answered" if pending else "not in flight"
            raise ProtocolError(
                f"RET_UNLINK seqnum {seqnum}: status {status}, but seqnum {unlink.unlink_seqnum} is {state}"
            )
        return RetUnlink(seqnum, status)


def _check_iso(submit: Submit, actual_length: int, iso: tuple[IsoPacket, ...]) -> None:
    total = sum(packet.actual_length for packet in iso)
    if total != actual_length:
        raise ProtocolError(
            f"RET_SUBMIT seqnum {submit.seqnum}: the packets' actual lengths are {total} together, "
            f"actual_length is {actual_length}"
        )
    for asked, packet in zip(submit.iso, iso, strict=True):
        place = (packet.offset, packet.length)
        if place != (asked.offset, asked.length) or packet.actual_length > packet.length:
            raise ProtocolError(f"RET_SUBMIT seqnum {submit.seqnum}: {packet} answers {asked}")


def _encode_iso(iso: tuple[IsoPacket, ...]) -> bytes:
    return b"".join(
        _ISO_PACKET.pack(packet.offset, packet.length, packet.actual_length, packet.status) for packet in iso
    )


def _decode_iso(descriptors: bytes) -> tuple[IsoPacket, ...]:
    return tuple(IsoPacket(*fields) for fields in _ISO_PACKET.iter_unpack(descriptors))
