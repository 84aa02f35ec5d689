"""The listening sockets and the access check of each client.  Runs in the server.

A client whose address is not allowed is closed before a byte is read, and takes no slot (`connections.py`).
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Final

from usbipd.access import AccessList
from usbipd.addresses import ListenAddress, explain_absent, is_absent, parse_listen, refuse_overlap
from usbipd.errors import UsbipdError
from usbipd.ipc.async_channel import Channel
from usbipd.log import LIMITED
from usbipd.server.connections import Connections
from usbipd.server.extension import ExtensionRequests, Peer

_LOG: Final = logging.getLogger(__name__)

_BACKLOG: Final = 1024
"""Connections that wait to be accepted.  Beyond that the kernel drops a client's SYN, which the client sends
again a second later.  The system may set a lower limit."""
_ACCEPT_PAUSE: Final = 0.1
"""Seconds to wait when accept fails for lack of descriptors or memory."""


class ServerCoordinator:
    """All listeners of this process."""

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
        self._access = access
        self._connections = Connections(
            ExtensionRequests(extension),
            most=max_connections,
            most_per_source=max_connections_per_address,
            handshake_timeout=handshake_timeout,
            lost_client_timeout=lost_client_timeout,
            send_buffer=send_buffer,
        )
        self._listeners: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []

    def bind(self, addresses: Sequence[str]) -> list[str]:
        """Bind these addresses and return them, each port 0 replaced by the port that the kernel chose.

        Raises `UsbipdError` if one is unavailable; then none is bound.
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
        return [_name_of(listener) for listener in self._listeners]

    def start(self, on_failure: Callable[[], None]) -> None:
        """Accept clients from now on; calls `on_failure` when a listener fails for good."""
        self._accepting = [
            asyncio.create_task(self._accept(listener), name=_name_of(listener))
            for listener in self._listeners
        ]

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                _LOG.critical("the listener on %s has failed", task.get_name(), exc_info=task.exception())
                on_failure()

        for task in self._accepting:
            task.add_done_callback(ended)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, name = await loop.sock_accept(listener)
            except OSError as error:
                _LOG.error("cannot accept on %s: %s", _name_of(listener), error.strerror, extra=LIMITED)
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            if name:
                await self._admit(connection, ListenAddress(*name[:2]))
            else:  # None on macOS: an IPv6 client has reset its connection (tcp6_usr_accept in XNU)
                connection.close()
            await asyncio.sleep(0)  # sock_accept does not yield while clients queue: let the sessions run

    async def _admit(self, connection: socket.socket, peer: ListenAddress) -> None:
        if self._access.allows(peer.host):
            await self._connections.admit(connection, Peer.at(peer))
        else:
            connection.close()
            _LOG.info("%s refused: its address is not allowed", peer, extra=LIMITED)


def _listener(address: ListenAddress) -> socket.socket:
    try:
        family, _type, _protocol, _name, where = socket.getaddrinfo(
            *address, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:  # the interface after % does not exist, or this host has no IPv6
        raise _explain(address, error) from error
    try:
        # A new server takes over the address while clients of the last one are still connected.
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


def _name_of(listener: socket.socket) -> str:
    """Its address and port, as in the configuration."""
    return str(ListenAddress(*listener.getsockname()[:2]))


def _explain(address: ListenAddress, error: OSError) -> UsbipdError:
    if error.errno == errno.EADDRINUSE:
        return UsbipdError(
            f"cannot listen on {address}: another program uses it",
            code="address-in-use",
            advice=f"stop that program (`lsof -i :{address.port}` names it), or choose another address",
        )
    if is_absent(error):
        return explain_absent(address)
    if error.errno == errno.EACCES:
        return UsbipdError(
            f"cannot listen on {address}: ports below 1024 need root",
            code="no-permission",
            advice="choose a higher port for --listen, or run the daemon as root",
        )
    return UsbipdError(f"cannot listen on {address}: {error.strerror}", code="listen")
