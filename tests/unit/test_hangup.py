"""Detection of a closed peer, over real sockets and without reading."""

import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from usbipd.hangup import closed_by_peer, was_reset

RESET = struct.pack("ii", 1, 0)  # include/linux/socket.h, struct linger: close sends RST, not FIN


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our side of a TCP connection, and that of the peer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        ours, _name = listener.accept()
    with ours, peer:
        yield ours, peer


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    peer.close()


@pytest.mark.parametrize("sent", [b"", b"what belongs to another process"])
@pytest.mark.parametrize(
    ("leave", "resets"),
    [(socket.socket.close, False), (lambda peer: peer.shutdown(socket.SHUT_WR), False), (reset, True)],
    ids=["close", "half", "reset"],
)
def test_a_peer_that_has_closed(
    connection: tuple[socket.socket, socket.socket],
    sent: bytes,
    leave: Callable[[socket.socket], None],
    resets: bool,
) -> None:
    ours, peer = connection
    peer.sendall(sent)
    assert closed_by_peer([ours]) == []
    leave(peer)
    assert closed_by_peer([ours]) == [ours]
    assert was_reset(ours) == resets
    if not resets:
        assert ours.recv(100) == sent, "nothing was read"


def test_closed_peers_among_others() -> None:
    pairs = [socket.socketpair() for _number in range(4)]
    pairs[1][1].close()
    pairs[3][1].close()
    assert closed_by_peer(ours for ours, _theirs in pairs) == [pairs[1][0], pairs[3][0]]
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def test_no_connections() -> None:
    assert closed_by_peer([]) == []
