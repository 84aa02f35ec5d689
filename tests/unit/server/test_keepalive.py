"""Lost clients: the socket options, and when they are set."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

from tests.unit.server.rig import DEVICE, PATIENCE, serving
from usbipd.config import LONGEST_LOST, SHORTEST_LOST, Limits
from usbipd.protocol.constants import ST_OK
from usbipd.protocol.op import encode_import_reply, encode_import_request
from usbipd.server import keepalive
from usbipd.server.keepalive import give_up_when_lost

on_linux = pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no TCP_USER_TIMEOUT"
)


def options(connection: socket.socket) -> tuple[int, int, int, int]:
    """Seconds before the first probe and between probes, their count, and the limit for data."""
    return (
        connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
        connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
        connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    )


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        yield client


@on_linux
@pytest.mark.parametrize("timeout", [SHORTEST_LOST, 11, 19, 60, 120, 121, 999, LONGEST_LOST])
def test_probes_and_data_end_at_the_same_time(connection: socket.socket, timeout: int) -> None:
    give_up_when_lost(connection, timeout)
    idle, interval, count, for_data = options(connection)
    assert idle + interval * count == timeout
    assert for_data == timeout * 1000
    assert idle >= timeout // 2, "a client that says something now and then costs no probes"


@pytest.mark.rule("tcp-options")
@on_linux
@pytest.mark.parametrize(("timeout", "expected"), [(120, (60, 12, 5, 120_000)), (10, (5, 1, 5, 10_000))])
async def test_the_handed_over_socket_has_the_options(
    timeout: int, expected: tuple[int, int, int, int]
) -> None:
    async with serving(lost_client_timeout=timeout) as server:
        reader, writer = await server.connect()
        writer.write(encode_import_request("240-1"))
        async with asyncio.timeout(PATIENCE):
            await reader.readexactly(len(encode_import_reply(ST_OK, DEVICE)))
            while server.extension.client is None:  # noqa: ASYNC110 - nothing signals it
                await asyncio.sleep(0.001)
        handed_over = server.extension.client
        assert handed_over.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert options(handed_over) == expected
        writer.close()


@on_linux
@pytest.mark.parametrize("size", [0, 8192])
async def test_the_handed_over_socket_has_the_send_buffer(size: int) -> None:
    async with serving(send_buffer=size) as server:
        _reader, writer = await server.connect()
        writer.write(encode_import_request("240-1"))
        async with asyncio.timeout(PATIENCE):
            while server.extension.client is None:  # noqa: ASYNC110 - nothing signals it
                await asyncio.sleep(0.001)
        actual = server.extension.client.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert (actual == 2 * size) == bool(size), "Linux doubles it (socket(7)); 0 leaves it alone"
        writer.close()


def test_by_default_a_client_may_stop_reading_for_half_a_minute() -> None:
    """TCP_USER_TIMEOUT also counts while the client's window is closed."""
    assert Limits().lost_client_timeout >= 60


@on_linux
def test_missing_options_are_left_out(connection: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has no TCP_USER_TIMEOUT."""
    monkeypatch.setattr(keepalive, "_USER_TIMEOUT", None)
    give_up_when_lost(connection, 60)
    assert options(connection) == (30, 6, 5, 0)
