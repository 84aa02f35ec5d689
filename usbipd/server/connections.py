"""The connected clients, their limits, and the choice of which to close.  Runs in the server.

# Which connection is closed at the limit

A connection holds a slot from accept until its request is answered or it is handed over; a stock client needs
one round trip.  If the limit refused the newest client, idle connections could lock out all others.  So an
older connection is closed: first one that has not sent its request, the oldest of the source with the most
connections; next, by the same order, one that queues to wait for a device in use; last, one that waits for
the device or does not read its reply.  A source that floods the server displaces its own connections.

A connection that our processes are working for is never displaced: its answer is near.  If only such
connections remain, the next client of a source over its limit is closed; at the limit for all sources, each
listener accepts one more client, which waits for a free slot.  The newest quarter of all connections is never
displaced either: a new client would otherwise be the only one without a request among many that wait for a
device.

A source is defined by `addresses.source_of`.

# Which client has left

While a request is being answered, nothing reads its connection, so a departure goes unnoticed.  Every
`DEPARTURE_CHECK` seconds one call asks the kernel about all these connections.  If a client has left
(`Session.has_left`), its session ends, and its request to the extension with it.
"""

import asyncio
import functools
import socket
from collections import Counter
from collections.abc import Collection
from typing import Final

from usbipd.hangup import closed_by_peer
from usbipd.server.extension import ExtensionRequests, Peer
from usbipd.server.session import LEFT, Session, Stage

DEPARTURE_CHECK: Final = 0.05

_DISPLACED: Final = (
    frozenset({Stage.REQUEST}),
    frozenset({Stage.TURN}),
    frozenset({Stage.DEVICE, Stage.REPLY}),
)
"""The stages in which a connection may be displaced, those of the first set first."""
_UNREAD: Final = frozenset({Stage.ANSWER, Stage.TURN, Stage.DEVICE})
"""The stages in which nothing reads the connection, so its client can leave unnoticed."""


class Connections:
    """All sessions of this process."""

    def __init__(
        self,
        extension: ExtensionRequests,
        *,
        most: int,
        most_per_source: int,
        handshake_timeout: float,
        lost_client_timeout: int,
        send_buffer: int,
    ) -> None:
        self._extension = extension
        self._most = most
        self._most_per_source = most_per_source
        self._handshake_timeout = handshake_timeout
        self._lost_client_timeout = lost_client_timeout
        self._send_buffer = send_buffer
        self._sessions: dict[Session, asyncio.Task[None]] = {}
        """In order of arrival."""
        self._of_source: Counter[str] = Counter()
        self._changed = asyncio.Event()
        """Set when a session ends or enters another stage."""
        self._check: asyncio.TimerHandle | None = None

    async def admit(self, connection: socket.socket, peer: Peer) -> None:
        """Serve this client; returns when the next one may be accepted."""
        session = Session(
            connection,
            peer,
            self._extension,
            lost_client_timeout=self._lost_client_timeout,
            send_buffer=self._send_buffer,
            on_stage=self._changed.set,
        )
        if self._of_source[peer.source] >= self._most_per_source:
            reason = f"more than {self._most_per_source} connections from this address"
            theirs = [each for each in self._sessions if each.peer.source == peer.source]
            if not self._displace(theirs, reason):
                session.displace(reason)
                session.close()
                return
        while len(self._sessions) >= self._most:
            settled = list(self._sessions)[: self._most - self._most // 4]
            if not self._displace(settled, f"more than {self._most} connections"):
                self._changed.clear()
                await self._changed.wait()
        task = asyncio.create_task(session.run(self._handshake_timeout))
        self._sessions[session] = task
        self._of_source[peer.source] += 1
        task.add_done_callback(functools.partial(self._ended, session))
        if self._check is None:
            self._check_later()

    def _displace(self, among: Collection[Session], reason: str) -> bool:
        """Close one of these sessions; False if our processes are working for all of them."""
        unfinished = [session for session in among if not self._sessions[session].done()]
        for stages in _DISPLACED:
            candidates = [session for session in unfinished if session.stage in stages]
            if candidates:  # max: among equals, the oldest
                self._end(max(candidates, key=lambda session: self._of_source[session.peer.source]), reason)
                return True
        return False

    def _end(self, session: Session, reason: str) -> None:
        session.displace(reason)
        self._forget(session).cancel()

    def _forget(self, session: Session) -> asyncio.Task[None]:
        source = session.peer.source
        self._of_source[source] -= 1
        if not self._of_source[source]:
            del self._of_source[source]
        self._changed.set()
        return self._sessions.pop(session)

    def _ended(self, session: Session, _task: asyncio.Task[None]) -> None:
        if session in self._sessions:  # else displaced
            self._forget(session)
        session.close()

    def _check_later(self) -> None:
        self._check = asyncio.get_running_loop().call_later(DEPARTURE_CHECK, self._end_departed)

    def _end_departed(self) -> None:
        unread = {session.connection: session for session in self._sessions if session.stage in _UNREAD}
        for connection in closed_by_peer(unread):
            if unread[connection].has_left():
                self._end(unread[connection], LEFT)
        self._check = None
        if self._sessions:  # no timer while idle
            self._check_later()
