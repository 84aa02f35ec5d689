"""One client, from accept until it is answered or handed over.  Runs in the server.

The client sends exactly one request.  Not a byte beyond it is read: what follows an OP_REQ_IMPORT is for the
worker.

# When a client has left

While its request is being answered, `connections.py` asks the kernel about the connection, without reading
(usbipd/hangup.py).  An OP_REQ_IMPORT is dropped when the client has closed its half: it could send no
CMD_SUBMIT.  An OP_REQ_DEVLIST is not, since such a client still reads its answer (`nc -N` closes its half
after the request); it is dropped when the connection is reset.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from enum import Enum
from typing import Final

from usbipd.errors import ProtocolError, UsbipdError
from usbipd.hangup import closed_by_peer, was_reset
from usbipd.log import LIMITED
from usbipd.protocol.constants import ST_DEV_BUSY, ST_NODEV, ST_OK
from usbipd.protocol.op import (
    DevlistRequest,
    ImportRequest,
    Request,
    RequestReader,
    encode_import_reply,
)
from usbipd.server.extension import ExtensionRequests, Peer
from usbipd.server.keepalive import give_up_when_lost

_LOG: Final = logging.getLogger(__name__)

LEFT: Final = "the client left before its request was answered"


class Stage(Enum):
    """What a session waits for."""

    REQUEST = "the client's request"
    ANSWER = "our other processes, which answer at once"
    TURN = "other clients, which wait for devices in use"
    DEVICE = "a device in use"
    REPLY = "the client to read its reply"
    HAND_OVER = "the worker to take the client over"


class Session:
    """A connection not yet handed to a worker."""

    def __init__(
        self,
        connection: socket.socket,
        peer: Peer,
        extension: ExtensionRequests,
        *,
        lost_client_timeout: int,
        send_buffer: int,
        on_stage: Callable[[], None],
    ) -> None:
        """`connection` is non-blocking; `send_buffer` is SO_SNDBUF in bytes, 0 for the system's default;
        `on_stage` is called after each change of `stage`."""
        self.peer = peer
        self.connection = connection
        self.stage = Stage.REQUEST
        self._leaves_with_its_half = False
        """Whether a client that closes its half of the connection counts as gone."""
        self._extension = extension
        self._on_stage = on_stage
        self._lost_client_timeout = lost_client_timeout
        self._send_buffer = send_buffer

    async def run(self, handshake_timeout: float) -> None:
        """Serve the client; every error ends here, as a log line."""
        reader = RequestReader()
        try:
            self._tune()
            async with asyncio.timeout(handshake_timeout):
                request = await self._read_request(reader)
            if request is None:
                _LOG.debug("%s closed its connection without a request", self.peer.name)
            elif isinstance(request, DevlistRequest):
                await self._answer_devlist(handshake_timeout)
            elif isinstance(request, ImportRequest):
                await self._answer_import(request.busid, handshake_timeout)
            else:
                self._log_closed(f"OP_REQ_IMPORT: {request.reason}")
                await self._send(encode_import_reply(ST_NODEV, None), handshake_timeout)
        except TimeoutError:
            what = "no complete request" if self.stage is Stage.REQUEST else "the reply was not read"
            self._log_closed(f"{what} within {handshake_timeout:g} s")
        except (ProtocolError, UsbipdError) as error:
            self._log_closed(str(error))
        except OSError as error:
            self._log_closed(error.strerror or str(error))

    def displace(self, reason: str) -> None:
        """Log why this session is about to be cancelled."""
        self._log_closed(reason)

    def has_left(self) -> bool:
        """Whether the client left before its answer; for a connection that `closed_by_peer` returned."""
        return self._leaves_with_its_half or was_reset(self.connection)

    def close(self) -> None:
        """Close our side of the connection after `run` has returned."""
        self.connection.close()

    async def _read_request(self, reader: RequestReader) -> Request | None:
        """None: the client only checked that the port is open, as `usbipd doctor` does."""
        loop = asyncio.get_running_loop()
        received = False
        while True:
            data = await loop.sock_recv(self.connection, reader.wanted)
            if not data and not received:
                return None
            if not data:
                raise ProtocolError("the client left before it had sent a complete request")
            received = True
            request = reader.feed(data)
            if request is not None:
                return request

    async def _answer_devlist(self, timeout: float) -> None:  # noqa: ASYNC109 - bounds one step
        self._enter(Stage.ANSWER)
        reply = await self._extension.device_list(self.peer)
        await self._send(reply.data, timeout)
        _LOG.info("%s listed %d devices", self.peer.name, reply.devices, extra=LIMITED)

    async def _answer_import(self, busid: str, timeout: float) -> None:  # noqa: ASYNC109 - bounds one step
        self._leaves_with_its_half = True
        if closed_by_peer([self.connection]):  # before any work for it begins
            raise ProtocolError(LEFT)
        self._enter(Stage.ANSWER)
        number, result = await self._extension.reserve(self.peer, busid)
        if result.status == ST_DEV_BUSY:
            self._enter(Stage.TURN)
            number, result = await self._extension.wait_for(
                self.peer, busid, on_turn=lambda: self._enter(Stage.DEVICE)
            )
        if result.status != ST_OK:
            self._log_closed(f"import of {busid!r} refused: status {result.status}")
            await self._send(encode_import_reply(result.status, None), timeout)
            return
        try:
            await self._send(encode_import_reply(ST_OK, result.device), timeout)
            self._enter(Stage.HAND_OVER)
            await self._extension.hand_over(self.peer, number, self.connection.fileno())
        except BaseException:
            self._extension.abandon(number)
            raise
        _LOG.info("%s imported %s", self.peer.name, busid, extra=LIMITED)

    async def _send(self, data: bytes, timeout: float) -> None:  # noqa: ASYNC109 - bounds one step
        self._enter(Stage.REPLY)
        async with asyncio.timeout(timeout):
            await asyncio.get_running_loop().sock_sendall(self.connection, data)

    def _enter(self, stage: Stage) -> None:
        self.stage = stage
        self._on_stage()

    def _tune(self) -> None:
        """As usbipd.c does (tools/usb/usbip/src/usbipd.c, do_accept), but with our timeout, not two hours.

        Done here: most clients are handed over before any other code could.
        """
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        give_up_when_lost(self.connection, self._lost_client_timeout)
        if self._send_buffer:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer)

    def _log_closed(self, reason: str) -> None:
        _LOG.warning("%s closed: %s", self.peer.name, reason, extra=LIMITED)
