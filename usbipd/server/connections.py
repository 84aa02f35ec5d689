"""The clients that are connected, their limits, and which of them has to leave.  Runs in the server.

# Who leaves when the connections are used up

A connection costs a slot from accept until its request is answered or it is handed over; a stock client needs
it for one round trip.  A limit that refused the newest client would let idle connections keep every other one
out, so an older connection leaves: first one that has not sent its request, of the source with the most
connections, the oldest of these; then likewise one that waits for its turn to wait for a device in use, then
one that waits for the device, or does not read its reply.  So a source that floods us displaces its own
connections.

Never displaced is a connection that our own processes are working for: they are done with it soon.  If only
such ones are left, the next client of a source with too many is closed; beyond the limit for all sources, one
more client a listener is accepted and waits, and then none until there is room.  The newest quarter of all
connections stays, too: a client that has just come would otherwise be the only one that has not spoken among
many that wait for a device.

Who is a source: `addresses.source_of`.

# Who has left by itself

While a request is answered nothing reads the connection, so what its client does there goes unseen.  Every
`DEPARTURE_CHECK` seconds the kernel is asked about these connections, all with one call; one whose client has
left (`Session.has_left`) ends, and its request at the extension with it.
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
"""The stages in which nothing reads the connection, and a client that leaves is not wanted any more."""


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
        """In the order of their arrival."""
        self._of_source: Counter[str] = Counter()
        self._changed = asyncio.Event()
        """Set when a session has ended or is at another stage."""
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
            reason = f"more than {self._most_per_source} connections of this address"
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
        """Close one of these sessions; False: our processes are working for all of them."""
        unfinished = [session for session in among if not self._sessions[session].done()]
        for stages in _DISPLACED:
            candidates = [session for session in unfinished if session.stage in stages]
            if candidates:  # max: of those that are equal, the oldest
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
        if session in self._sessions:  # else it was displaced
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
        if self._sessions:  # else it costs nothing
            self._check_later()
