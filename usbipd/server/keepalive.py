"""Whether a client is still there: what the kernel is told to do about one that is not.  Runs in the server.

# When is a client given up?

A client that leaves says so (FIN or RST).  One that loses power or its network says nothing, and would keep
its device.  What the kernel does then depends on what the connection is doing; `lost_client_timeout` is one
number for all of it, T seconds below.  The options are the socket's, so they stay with it when it is handed
over, and nobody but the kernel watches anything.

our side          who would notice                        with these options
idle, all is      keepalive; but the first probe would    a probe after T/2 seconds without a byte, then
acknowledged      leave after two hours                   one every T/10; it is over after T
data on its way,  retransmission, after 15 minutes and    TCP_USER_TIMEOUT: T after the data was sent;
unacknowledged    more; keepalive is silent meanwhile     macOS: TCP_RXT_CONNDROPTIME
data waits for    nobody, as long as the client's kernel  TCP_USER_TIMEOUT: T after the window closed,
a closed window   answers the probes of the window        whatever the client's kernel answers

An idle client is not a lost one: its kernel answers the probes, whatever its programs do, so a device that
has nothing to say for a week stays attached.  The last line is the price of the second: Linux counts both by
the same clock (net/ipv4/tcp_timer.c, tcp_probe_timer), and offers no other for the second.  So T must be well
above the time for which a client that is alive may not read; the kernel's own client reads always, and for a
stopped virtual machine or a debugger there is the configuration.

With TCP_USER_TIMEOUT set, Linux ends an idle connection by it instead of by the count of the probes (the same
file, tcp_keepalive_timer).  The probes are laid so that both come to T.  macOS has no TCP_USER_TIMEOUT, but a
limit for data that is not acknowledged; for closed windows it keeps its own.
"""

import socket
import sys
from typing import Final

_PROBES: Final = 5

# Linux has TCP_KEEPIDLE (tcp(7)); macOS calls the same TCP_KEEPALIVE (netinet/tcp.h).
_IDLE: Final[int | None] = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
_INTERVAL: Final[int | None] = getattr(socket, "TCP_KEEPINTVL", None)
_COUNT: Final[int | None] = getattr(socket, "TCP_KEEPCNT", None)
_USER_TIMEOUT: Final[int | None] = getattr(socket, "TCP_USER_TIMEOUT", None)
_RETRANSMISSION: Final = 0x80 if sys.platform == "darwin" else None  # TCP_RXT_CONNDROPTIME, netinet/tcp.h


def give_up_when_lost(connection: socket.socket, timeout: int) -> None:
    """Let the kernel end `connection` when the other side has been lost for `timeout` seconds, 10 at least.

    Raises `OSError`.
    """
    pause = timeout // (2 * _PROBES)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (_IDLE, timeout - _PROBES * pause),
        (_INTERVAL, pause),
        (_COUNT, _PROBES),
        (_USER_TIMEOUT, timeout * 1000),  # milliseconds
        (_RETRANSMISSION, timeout),
    ):
        if option is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
