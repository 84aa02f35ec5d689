"""A small USB/IP client, for tests and `make demo`: blocking, and strict about replies.

    client = Client("127.0.0.1", 3240)
    for device in client.devlist():
        print(device.busid)
    with client.import_device("240-1") as session:
        session.control_in(0x80, USB_REQ_GET_DESCRIPTOR, USB_DT_DEVICE << 8, length=18)
        session.bulk_out(0x02, b"hello")
        pending = session.submit(0x82, length=512)
        session.wait(pending)

Endpoints are given as bEndpointAddress, with 0x80 for IN.  `ReplyReader` parses everything that the server
sends, and raises `ProtocolError` where a kernel would drop the connection.
"""

import socket
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self, TypeVar

from tests.urb import (
    Command,
    IsoPacket,
    Reply,
    ReplyReader,
    RetSubmit,
    RetUnlink,
    Submit,
    Unlink,
    encode,
)
from usbipd.errors import UsbipdError
from usbipd.protocol.constants import (
    NO_ISO_PACKETS,
    ST_OK,
    URB_DIR_IN,
    URB_ISO_ASAP,
    USB_DIR_IN,
    USB_ENDPOINT_NUMBER_MASK,
    USBIP_DIR_IN,
    USBIP_DIR_OUT,
    USBIP_PORT,
)
from usbipd.protocol.op import (
    DevlistReplyReader,
    ImportReplyReader,
    UsbDevice,
    encode_devlist_request,
    encode_import_request,
)
from usbipd.protocol.reader import OneMessageReader

ReplyT = TypeVar("ReplyT")

_CHUNK: Final = 256 * 1024
"""Bytes per read from the socket."""

_SETUP: Final = struct.Struct("<BBHHH")  # USB 2.0, table 9-2


class RefusedError(UsbipdError):
    """The server refused the request: `status` is an ST_* number."""

    def __init__(self, what: str, status: int) -> None:
        super().__init__(f"{what}: refused by the server with status {status}")
        self.status = status


class TransferError(UsbipdError):
    """A transfer failed: `status` is a negative Linux errno, `reply` the whole answer."""

    def __init__(self, reply: RetSubmit) -> None:
        super().__init__(f"transfer {reply.seqnum} ended with status {reply.status}")
        self.status = reply.status
        self.reply = reply


class ClosedError(UsbipdError):
    """The server closed the connection."""


class Client:
    """A client of one server; each operation uses a separate connection, as USB/IP requires."""

    def __init__(
        self,
        host: str,
        port: int = USBIP_PORT,
        *,
        timeout: float = 10.0,
        source: str | None = None,
    ) -> None:
        """`timeout` is in seconds, for each read and write; `source` is the address to connect from."""
        self._address = (host, port)
        self._timeout = timeout
        self._source = None if source is None else (source, 0)

    def connect(self) -> socket.socket:
        """A bare connection."""
        connection = socket.create_connection(self._address, self._timeout, self._source)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def devlist(self) -> tuple[UsbDevice, ...]:
        """The devices that the server shares.  Raises `RefusedError`."""
        with self.connect() as connection:
            connection.sendall(encode_devlist_request())
            reply = receive(connection, DevlistReplyReader())
        if reply.status != ST_OK:
            raise RefusedError("OP_REQ_DEVLIST", reply.status)
        return reply.devices

    def import_device(self, busid: str) -> "Session":
        """Attaches a device.  Raises `RefusedError`."""
        connection = self.connect()
        try:
            connection.sendall(encode_import_request(busid))
            reply = receive(connection, ImportReplyReader())
            if reply.device is None:
                raise RefusedError(f"OP_REQ_IMPORT {busid}", reply.status)
            return Session(connection, reply.device)
        except BaseException:
            connection.close()
            raise


class Session:
    """An attached device, until `close`."""

    def __init__(self, connection: socket.socket, device: UsbDevice) -> None:
        self.device = device
        self.connection = connection
        self.replies: dict[int, Reply] = {}
        """Replies that have arrived but were not waited for, by seqnum, in order of arrival."""
        self._reader = ReplyReader()
        self._seqnum = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Detaches the device."""
        self.connection.close()

    # ---- whole transfers ----

    def control_in(
        self, bmRequestType: int, bRequest: int, wValue: int = 0, wIndex: int = 0, *, length: int
    ) -> bytes:
        """The data of a control transfer from the device.  Raises `TransferError`."""
        setup = _SETUP.pack(bmRequestType, bRequest, wValue, wIndex, length)
        return self._finish(self.submit(USB_DIR_IN, length=length, setup=setup)).data

    def control_out(
        self, bmRequestType: int, bRequest: int, wValue: int = 0, wIndex: int = 0, data: bytes = b""
    ) -> int:
        """Bytes that the device took in a control transfer to it.  Raises `TransferError`."""
        setup = _SETUP.pack(bmRequestType, bRequest, wValue, wIndex, len(data))
        return self._finish(self.submit(0, data=data, setup=setup)).actual_length

    def bulk_in(self, endpoint: int, length: int) -> bytes:
        """Data from the device, at most `length` bytes.  Raises `TransferError`."""
        return self._finish(self.submit(endpoint, length=length)).data

    def bulk_out(self, endpoint: int, data: bytes) -> int:
        """Bytes of `data` that the device took.  Raises `TransferError`."""
        return self._finish(self.submit(endpoint, data=data)).actual_length

    def interrupt_in(self, endpoint: int, length: int) -> bytes:
        """The next report; on the wire it is a bulk transfer with an interval.  Raises `TransferError`."""
        return self._finish(self.submit(endpoint, length=length, interval=1)).data

    def iso_in(self, endpoint: int, lengths: Sequence[int]) -> RetSubmit:
        """Consecutive isochronous packets of these lengths.  Raises `TransferError`."""
        return self._finish(self.submit(endpoint, iso=lengths, transfer_flags=URB_ISO_ASAP))

    # ---- transfers in parts ----

    def submit(
        self,
        endpoint: int,
        *,
        length: int | None = None,
        data: bytes = b"",
        setup: bytes = bytes(8),
        iso: Sequence[int] = (),
        transfer_flags: int = 0,
        number_of_packets: int | None = None,
        interval: int = 0,
        devid: int | None = None,
    ) -> int:
        """Sends a CMD_SUBMIT and returns its seqnum.

        `iso` contains the lengths of the packets, for isochronous endpoints only.  The defaults are what a
        well-behaved client sends.
        """
        incoming = bool(endpoint & USB_DIR_IN)
        packets = tuple(IsoPacket(sum(iso[:index]), size) for index, size in enumerate(iso))
        if length is None:
            length = sum(iso) if iso else len(data)
        if number_of_packets is None:
            number_of_packets = len(iso) if iso else NO_ISO_PACKETS
        return self.send(
            Submit(
                seqnum=self.next_seqnum(),
                devid=self.device.devid if devid is None else devid,
                direction=USBIP_DIR_IN if incoming else USBIP_DIR_OUT,
                ep=endpoint & USB_ENDPOINT_NUMBER_MASK,
                transfer_flags=transfer_flags | (URB_DIR_IN if incoming else 0),
                transfer_buffer_length=length,
                number_of_packets=number_of_packets,
                interval=interval,
                setup=setup,
                data=data,
                iso=packets,
            )
        )

    def unlink(self, seqnum: int) -> int:
        """Unlinks a transfer; returns the status of RET_UNLINK."""
        reply = self.wait(self.send_unlink(seqnum))
        assert isinstance(reply, RetUnlink)
        return reply.status

    def send_unlink(self, seqnum: int) -> int:
        """Sends a CMD_UNLINK and returns its own seqnum."""
        return self.send(Unlink(self.next_seqnum(), self.device.devid, USBIP_DIR_OUT, 0, seqnum))

    def send(self, command: Command) -> int:
        """Sends any command; returns its seqnum.  Raises `ClosedError`."""
        self.expect(command)
        try:
            self.connection.sendall(encode(command))
        except ConnectionError as error:
            raise ClosedError("the server closed the connection") from error
        return command.seqnum

    def expect(self, command: Command) -> None:
        """Announces a command that the caller sends itself."""
        self._reader.expect(command)

    def next_seqnum(self) -> int:
        """An unused seqnum."""
        self._seqnum += 1
        return self._seqnum

    def wait(self, seqnum: int) -> Reply:
        """The reply to `seqnum`; earlier ones are kept in `replies`.

        Raises `ClosedError`, `TimeoutError` and `ProtocolError`.
        """
        while seqnum not in self.replies:
            self.receive()
        return self.replies.pop(seqnum)

    def wait_submit(self, seqnum: int) -> RetSubmit:
        """The RET_SUBMIT to `seqnum`, whatever its status."""
        reply = self.wait(seqnum)
        assert isinstance(reply, RetSubmit)
        return reply

    def wait_closed(self) -> None:
        """Returns once the server has closed the connection; earlier replies are kept in `replies`."""
        try:
            while True:
                self.receive()
        except ClosedError:
            return

    def _finish(self, seqnum: int) -> RetSubmit:
        reply = self.wait_submit(seqnum)
        if reply.status != 0:
            raise TransferError(reply)
        return reply

    def receive(self) -> None:
        """Waits for bytes, and keeps the replies that they complete in `replies`.  Raises as `wait` does."""
        for reply in self._reader.feed(read_some(self.connection, _CHUNK)):
            self.replies[reply.seqnum] = reply


def read_some(connection: socket.socket, size: int) -> bytes:
    """The next bytes, at most `size`.  Raises `ClosedError` and `TimeoutError`."""
    try:
        data = connection.recv(size)
    except ConnectionError:
        data = b""
    if not data:
        raise ClosedError("the server closed the connection")
    return data


def receive(connection: socket.socket, reader: OneMessageReader[ReplyT]) -> ReplyT:
    """Reads exactly one message with `reader`.  Raises `ClosedError`, `TimeoutError`, `ProtocolError`."""
    while (message := reader.feed(read_some(connection, reader.wanted))) is None:
        pass
    return message
