"""Socket options with which the kernel disconnects a lost client.  Runs in the server.

# When a client counts as lost

A client that leaves sends FIN or RST.  A client that loses power or its network sends nothing, and would keep
its device.  What the kernel does then depends on the state of the connection; `lost_client_timeout`, T
seconds below, covers all states.  The options belong to the socket, so they stay with it when it is handed
over, and only the kernel has to watch it.

our side          who would notice                        with these options
idle, all is      keepalive, but its first probe leaves   a probe after T/2 seconds without a byte, then
acknowledged      after two hours                         one every T/10; closed after T
data in flight,   retransmission, after 15 minutes or     TCP_USER_TIMEOUT: T after the data was sent;
unacknowledged    more; keepalive sends nothing then      macOS: TCP_RXT_CONNDROPTIME
data waits for    nothing, while the client's kernel      TCP_USER_TIMEOUT: T after the window closed,
a closed window   answers the window probes               whatever the client's kernel answers

An idle client is not lost: its kernel answers the probes, whatever its programs do, so a device that is
silent for a week stays attached.  The third row is the price of the second: Linux uses one clock for both
(net/ipv4/tcp_timer.c, tcp_probe_timer) and offers no other for the second.  So T must be well above the time
for which a live client may stop reading.  The kernel's own client never stops; for a suspended virtual
machine or a debugger, raise T in the configuration.

With TCP_USER_TIMEOUT set, Linux uses it to end an idle connection, not the count of probes (same file,
tcp_keepalive_timer).  The probe times are chosen so that both give T.  macOS has no TCP_USER_TIMEOUT but a
limit for unacknowledged data; for closed windows it keeps its own limit.
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
    """Let the kernel end `connection` when the peer has been lost for `timeout` seconds, at least 10.

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
