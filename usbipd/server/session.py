"""One client, from its connection until it is answered or handed over.  Runs in the server.

The client sends exactly one request.  Not a byte more than that request is read: what comes behind an
OP_REQ_IMPORT is for the worker.
"""

import asyncio
import logging
import socket
from typing import Final

from usbipd.errors import ProtocolError, UsbipdError
from usbipd.ipc.async_channel import Channel
from usbipd.ipc.children import (
    DevlistParameters,
    DevlistResult,
    ReservationParameters,
    ReserveParameters,
    ReserveResult,
)
from usbipd.ipc.messages import Command, Nothing
from usbipd.log import LIMITED
from usbipd.protocol.constants import ST_NODEV, ST_OK
from usbipd.protocol.op import (
    DevlistRequest,
    ImportRequest,
    Request,
    RequestReader,
    encode_devlist_reply,
    encode_import_reply,
)
from usbipd.server.keepalive import give_up_when_lost

_LOG: Final = logging.getLogger(__name__)

EXTENSION_TIMEOUT: Final = 30.0
"""Seconds for an answer of the extension: longer than a client waits there for a device to become free."""


class Session:
    """A connection that has not been given to a worker yet."""

    def __init__(
        self,
        connection: socket.socket,
        address: str,
        peer: str,
        extension: Channel,
        *,
        lost_client_timeout: int,
        send_buffer: int,
    ) -> None:
        """`connection` is non-blocking; `address` is the client's, `peer` with its port; `send_buffer` bytes
        of SO_SNDBUF, 0: as the system has it."""
        self.address = address
        """Numeric; with an interface behind `%` where it is link-local."""
        self.waiting = True
        """Whether the request is not here yet."""
        self._connection = connection
        self._peer = peer
        self._extension = extension
        self._lost_client_timeout = lost_client_timeout
        self._send_buffer = send_buffer

    async def run(self, handshake_timeout: float) -> None:
        """Serve the client; all errors end here, in a line of the log."""
        reader = RequestReader()
        try:
            self._tune()
            async with asyncio.timeout(handshake_timeout):
                request = await self._read_request(reader)
            self.waiting = False
            if request is None:
                _LOG.debug("%s left without a word", self._peer)
            elif isinstance(request, DevlistRequest):
                await self._answer_devlist(handshake_timeout)
            elif isinstance(request, ImportRequest):
                await self._answer_import(request.busid, handshake_timeout)
            else:
                self._log_closed(f"OP_REQ_IMPORT: {request.reason}")
                await self._send(encode_import_reply(ST_NODEV, None), handshake_timeout)
        except TimeoutError:
            what = "no whole request" if self.waiting else "the reply was not read"
            self._log_closed(f"{what} within {handshake_timeout:g} s")
        except (ProtocolError, UsbipdError) as error:
            self._log_closed(str(error))
        except OSError as error:
            self._log_closed(error.strerror or str(error))

    def displace(self, reason: str) -> None:
        """Say why this session is about to be cancelled."""
        self._log_closed(reason)

    def close(self) -> None:
        """Close our side of the connection, when `run` is over."""
        self._connection.close()

    async def _read_request(self, reader: RequestReader) -> Request | None:
        """None: somebody has only looked whether the port is open, as `usbipd doctor` does."""
        loop = asyncio.get_running_loop()
        said_something = False
        while True:
            data = await loop.sock_recv(self._connection, reader.wanted)
            if not data and not said_something:
                return None
            if not data:
                raise ProtocolError("the client left before it had sent a whole request")
            said_something = True
            request = reader.feed(data)
            if request is not None:
                return request

    async def _answer_devlist(self, timeout: float) -> None:  # noqa: ASYNC109 - bounds one step
        result = await self._extension.request(
            Command.DEVLIST,
            DevlistParameters(client=self._peer, address=self._address_without_interface),
            DevlistResult,
            timeout=EXTENSION_TIMEOUT,
        )
        await self._send(encode_devlist_reply(result.devices), timeout)
        _LOG.info("%s listed %d devices", self._peer, len(result.devices), extra=LIMITED)

    async def _answer_import(self, busid: str, timeout: float) -> None:  # noqa: ASYNC109 - bounds one step
        result = await self._extension.request(
            Command.RESERVE,
            ReserveParameters(busid=busid, client=self._peer, address=self._address_without_interface),
            ReserveResult,
            timeout=EXTENSION_TIMEOUT,
        )
        if result.status != ST_OK or result.reservation is None:
            self._log_closed(f"it may not import {busid!r}: status {result.status}")
            await self._send(encode_import_reply(result.status, None), timeout)
            return
        reservation = ReservationParameters(reservation=result.reservation)
        try:
            await self._send(encode_import_reply(ST_OK, result.device), timeout)
            await self._extension.request(
                Command.HANDOVER,
                reservation,
                Nothing,
                timeout=EXTENSION_TIMEOUT,
                descriptor=self._connection.fileno(),
            )
        except BaseException:
            # Harmless if the reservation is used up.  Not awaited: this session may be being cancelled.
            self._extension.tell(Command.ABANDON, reservation)
            raise
        _LOG.info("%s imported %s", self._peer, busid, extra=LIMITED)

    async def _send(self, data: bytes, timeout: float) -> None:  # noqa: ASYNC109 - bounds one step
        async with asyncio.timeout(timeout):
            await asyncio.get_running_loop().sock_sendall(self._connection, data)

    @property
    def _address_without_interface(self) -> str:
        return self.address.partition("%")[0]

    def _tune(self) -> None:
        """As usbipd.c does (tools/usb/usbip/src/usbipd.c, do_accept), but with our time instead of two hours.

        Here, since most clients are given away before anything else could do it.
        """
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        give_up_when_lost(self._connection, self._lost_client_timeout)
        if self._send_buffer:
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer)

    def _log_closed(self, reason: str) -> None:
        _LOG.warning("%s closed: %s", self._peer, reason, extra=LIMITED)
