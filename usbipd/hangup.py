"""Detects, without reading, that the peer of a socket has closed it.  Used by the extension and the server.

A read would also show it, but the bytes after a request belong to another process, and a peer that sends more
before it closes would hide the close behind these bytes.
"""

import select
import socket
from collections.abc import Iterable
from typing import Final

# Linux reports a FIN as POLLRDHUP, and POLLHUP only when both directions are closed (poll(2)); macOS has no
# POLLRDHUP and reports a FIN as POLLHUP.
_CLOSED: Final[int] = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


def closed_by_peer(connections: Iterable[socket.socket]) -> list[socket.socket]:
    """Those of `connections` whose peer will send no more: it has closed them, or its half."""
    by_descriptor = {connection.fileno(): connection for connection in connections}
    poll = select.poll()
    for descriptor in by_descriptor:
        poll.register(descriptor, _CLOSED)
    return [by_descriptor[descriptor] for descriptor, _events in poll.poll(0)]


def was_reset(connection: socket.socket) -> bool:
    """Whether the peer has closed both directions of a TCP connection, so that nothing can be sent to it.

    The kernel knows that only once the peer has answered our data or has reset the connection.  Consumes the
    pending error of the socket.
    """
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
