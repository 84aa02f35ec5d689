"""Listeners and limits: who may connect, and who has to leave when there are too many.  Runs in the server.

# Who leaves when the connections are used up

A connection costs a slot from accept until its request is answered or it is handed over; a stock client
needs it for one round trip.  A limit that refused the newest would let idle connections keep everybody out,
so the oldest one that has not sent its request leaves instead, of the address that has most: someone who
floods us displaces himself, and a client that speaks at once is through before its turn comes.

A client whose address is not allowed never gets a slot: it is closed before a byte of it is read.
"""

import asyncio
import errno
import functools
import logging
import socket
from collections import Counter
from collections.abc import Sequence
from typing import Final

from usbipd.addresses import ListenAddress, explain_absent, is_absent, parse_listen, refuse_overlap
from usbipd.errors import UsbipdError
from usbipd.ipc.async_channel import Channel
from usbipd.log import LIMITED
from usbipd.server.access import AccessList
from usbipd.server.session import Session

_LOG: Final = logging.getLogger(__name__)

_BACKLOG: Final = 128
_ACCEPT_PAUSE: Final = 0.1
"""Seconds to wait when accept fails for want of descriptors or memory."""


class ServerCoordinator:
    """All listeners and sessions of this process."""

    def __init__(
        self,
        extension: Channel,
        access: AccessList,
        *,
        max_connections: int,
        max_connections_per_address: int,
        handshake_timeout: float,
        lost_client_timeout: int,
        send_buffer: int,
    ) -> None:
        self._extension = extension
        self._access = access
        self._max_connections = max_connections
        self._max_per_address = max_connections_per_address
        self._handshake_timeout = handshake_timeout
        self._lost_client_timeout = lost_client_timeout
        self._send_buffer = send_buffer
        self._listeners: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._sessions: dict[Session, asyncio.Task[None]] = {}
        """In the order of their arrival."""

    def bind(self, addresses: Sequence[str]) -> list[str]:
        """Take these addresses and return them, with the ports that were free where 0 was asked for.

        Raises `UsbipdError` if one cannot be had; none is taken then.
        """
        wanted = [parse_listen(text) for text in addresses]
        refuse_overlap(wanted)
        try:
            for address in wanted:
                self._listeners.append(_listener(address))
        except BaseException:
            for listener in self._listeners:
                listener.close()
            raise
        return [str(ListenAddress(*listener.getsockname()[:2])) for listener in self._listeners]

    def start(self) -> None:
        """Accept clients from now on."""
        self._accepting = [asyncio.create_task(self._accept(listener)) for listener in self._listeners]

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, name = await loop.sock_accept(listener)
            except OSError as error:
                _LOG.error("cannot accept: %s", error.strerror, extra=LIMITED)
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            peer = ListenAddress(*name[:2])
            if self._access.allows(peer.host):
                self._admit(connection, peer)
            else:
                connection.close()
                _LOG.info("%s refused: its address is not allowed", peer, extra=LIMITED)
            await asyncio.sleep(0)  # sock_accept does not wait while clients queue: sessions have their turn

    def _admit(self, connection: socket.socket, peer: ListenAddress) -> None:
        connections = Counter(session.address for session in self._sessions)
        if connections[peer.host] >= self._max_per_address:
            self._displace(peer.host, f"more than {self._max_per_address} connections of this address")
        elif len(self._sessions) >= self._max_connections:
            busiest, _number = connections.most_common(1)[0]
            self._displace(busiest, f"more than {self._max_connections} connections")
        session = Session(
            connection,
            peer.host,
            str(peer),
            self._extension,
            lost_client_timeout=self._lost_client_timeout,
            send_buffer=self._send_buffer,
        )
        task = asyncio.create_task(session.run(self._handshake_timeout))
        self._sessions[session] = task
        task.add_done_callback(functools.partial(self._leave, session))

    def _displace(self, address: str, reason: str) -> None:
        """Close the oldest connection of `address`, preferably one whose request is not here yet."""
        theirs = [session for session in self._sessions if session.address == address]
        oldest = next((session for session in theirs if session.waiting), theirs[0])
        oldest.displace(reason)
        self._sessions.pop(oldest).cancel()

    def _leave(self, session: Session, _task: asyncio.Task[None]) -> None:
        self._sessions.pop(session, None)
        session.close()


def _listener(address: ListenAddress) -> socket.socket:
    try:
        family, _type, _protocol, _name, where = socket.getaddrinfo(
            *address, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:  # the interface behind % is not there; this host has no IPv6
        raise _explain(address, error) from error
    try:
        # A new server takes over the address while connections of the last one's clients live on.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # [::] beside 0.0.0.0
        listener.setblocking(False)
        listener.bind(where)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _explain(address, error) from error
    return listener


def _explain(address: ListenAddress, error: OSError) -> UsbipdError:
    if error.errno == errno.EADDRINUSE:
        return UsbipdError(
            f"cannot listen on {address}: another program does",
            code="address-in-use",
            advice=f"end that program (`lsof -i :{address.port}` names it), or choose another address",
        )
    if is_absent(error):
        return explain_absent(address)
    if error.errno == errno.EACCES:
        return UsbipdError(
            f"cannot listen on {address}: ports below 1024 are root's",
            code="no-permission",
            advice="choose a higher port for --listen, or run the daemon as root",
        )
    return UsbipdError(f"cannot listen on {address}: {error.strerror}", code="listen")
