"""One client, from connection to hand-over: real TCP on loopback, a fake extension."""

import asyncio
import contextlib
import socket

import pytest
from msgspec.structs import replace

from tests.unit.server.rig import DEVICE, PATIENCE, FakeExtension, rest, serving, until_log
from usbipd.addresses import ListenAddress
from usbipd.ipc.async_channel import Channel
from usbipd.ipc.children import CHILDREN, DevlistParameters, ReservationParameters, ReserveParameters
from usbipd.ipc.messages import Command
from usbipd.ipc.row import Role
from usbipd.protocol.constants import (
    OP_REQ_DEVLIST,
    OP_REQ_IMPORT,
    ST_DEV_BUSY,
    ST_NODEV,
    ST_OK,
    USBIP_VERSION,
)
from usbipd.protocol.op import (
    UsbInterface,
    encode_devlist_reply,
    encode_devlist_request,
    encode_import_reply,
    encode_import_request,
)
from usbipd.server.extension import ExtensionRequests, Peer
from usbipd.server.session import Session


def op_header(version: int, code: int) -> bytes:
    return version.to_bytes(2, "big") + code.to_bytes(2, "big") + bytes(4)


async def test_devlist() -> None:
    async with serving() as server:
        assert await server.ask(encode_devlist_request()) == encode_devlist_reply([DEVICE])
        [devlist] = server.extension.asked
        assert isinstance(devlist.parameters, DevlistParameters)
        assert devlist.parameters.addresses == ["127.0.0.1"]


async def test_devlist_of_a_thousand_devices_to_several_clients() -> None:
    """Longer than a message between our processes, and than the queue of one."""
    interface = UsbInterface(3, 1, 2)
    devices = [
        replace(DEVICE, busid=f"240-{number}", path=f"/sys/devices/{number}", interfaces=(interface,) * 4)
        for number in range(1000)
    ]
    async with serving() as server:
        server.extension.devices = devices
        replies = await asyncio.gather(*(server.ask(encode_devlist_request()) for _ in range(8)))
        assert set(replies) == {encode_devlist_reply(devices)}


@pytest.mark.rule("any-chunking")
async def test_a_request_byte_by_byte() -> None:
    async with serving() as server:
        reader, writer = await server.connect()
        for byte in encode_import_request("9-9"):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        assert await rest(reader, writer) == encode_import_reply(ST_NODEV, None)


@pytest.mark.rule("import-body", "tcp-options")
async def test_an_import_is_answered_and_handed_over() -> None:
    """What follows the request stays in the socket, for the worker."""
    async with serving() as server:
        reader, writer = await server.connect()
        writer.write(encode_import_request("240-1") + b"the first URB")
        reply = encode_import_reply(ST_OK, DEVICE)
        async with asyncio.timeout(PATIENCE):
            assert await reader.readexactly(len(reply)) == reply
            while server.extension.client is None:  # noqa: ASYNC110 - nothing signals it
                await asyncio.sleep(0.001)
        client = server.extension.client
        assert client.recv(100) == b"the first URB"
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        reserve, handover = server.extension.asked
        host, port = writer.get_extra_info("sockname")
        assert reserve.parameters == ReserveParameters(
            reservation=1, busid="240-1", client=f"{host}:{port}", address="127.0.0.1", wait=False
        )
        assert (handover.command, handover.parameters) == (
            Command.HANDOVER,
            ReservationParameters(reservation=1),
        )
        client.sendall(b"the first answer")
        client.close()
        assert await rest(reader, writer) == b"the first answer"


@pytest.mark.rule("import-body", "op-status")
@pytest.mark.parametrize("status", [ST_DEV_BUSY, ST_NODEV])
async def test_a_refused_import_has_no_body(status: int, caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        server.extension.status = status
        assert await server.ask(encode_import_request("240-1")) == encode_import_reply(status, None)
    assert f"import of '240-1' refused: status {status}" in caplog.text


@pytest.mark.rule("op-status")
@pytest.mark.parametrize("busid", [b"x" * 32, b"\xff-1".ljust(32, b"\0")], ids=["no NUL", "not ASCII"])
async def test_an_impossible_busid(busid: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        request = op_header(USBIP_VERSION, OP_REQ_IMPORT) + busid
        assert await server.ask(request) == encode_import_reply(ST_NODEV, None)
        assert not server.extension.asked
    assert "closed: OP_REQ_IMPORT: " in caplog.text


@pytest.mark.rule("op-version")
@pytest.mark.parametrize(
    ("request_bytes", "reason"),
    [
        (op_header(0x0100, OP_REQ_DEVLIST), "version"),
        (op_header(USBIP_VERSION, 0x8001), "unknown OP code 0x8001"),
        (b"GET / HTTP/1.1\r\n\r\n", "version"),
    ],
    ids=["another version", "an unknown code", "HTTP"],
)
async def test_a_peer_that_does_not_speak_usbip_is_closed(
    request_bytes: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as server:
        reader, writer = await server.connect()
        writer.write(request_bytes)
        with contextlib.suppress(ConnectionResetError):  # the server left bytes unread
            assert await rest(reader, writer) == b""
        await until_log(caplog, " closed: ")
    assert reason in caplog.text


async def test_a_client_that_leaves_within_its_request(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        _reader, writer = await server.connect()
        writer.write(encode_import_request("240-1")[:20])
        await writer.drain()
        writer.close()
        await until_log(caplog, "left before it had sent a complete request")
        assert not server.extension.asked


def test_a_client_that_only_checks_that_the_port_is_open(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving() as server:
            _reader, writer = await server.connect()
            writer.close()
            await until_log(caplog, "closed its connection without a request")

    caplog.set_level("DEBUG")
    asyncio.run(test())
    assert {record.levelname for record in caplog.records if "without a request" in record.message} == {
        "DEBUG"
    }


async def test_half_a_request_times_out(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(handshake_timeout=0.05) as server:
        assert await server.ask(encode_import_request("240-1")[:-1]) == b""
    assert "no complete request within 0.05 s" in caplog.text


async def test_an_unusable_reservation_is_abandoned(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        server.extension.refused = {Command.HANDOVER}
        reply = await server.ask(encode_import_request("240-1"))
        assert reply == encode_import_reply(ST_OK, DEVICE)
        async with asyncio.timeout(PATIENCE):
            while Command.ABANDON not in server.extension.commands:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    assert "no longer valid" in caplog.text


async def test_the_extension_receives_the_address_without_the_interface() -> None:
    """For a link-local client, which loopback does not have."""
    ours, theirs = socket.socketpair()
    extension = FakeExtension(ours)
    channel = Channel(
        theirs, name="extension", role=Role.EXTENSION, table=CHILDREN, on_request=extension._answer
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        connection, _name = listener.accept()
    connection.setblocking(False)
    extension_requests = ExtensionRequests(channel)
    for request in (encode_devlist_request(), encode_import_request("9-9")):
        client.sendall(request)
        session = Session(
            connection,
            Peer.at(ListenAddress("fe80::1%eth0", 4000)),
            extension_requests,
            lost_client_timeout=120,
            send_buffer=0,
            on_stage=lambda: None,
        )
        await session.run(PATIENCE)
    session.close()
    client.close()
    devlist, reserve = (request.parameters for request in extension.asked)
    assert devlist == DevlistParameters(addresses=["fe80::1"])
    assert reserve == ReserveParameters(
        reservation=1, busid="9-9", client="[fe80::1%eth0]:4000", address="fe80::1", wait=False
    )
    channel.close()
    extension.channel.close()
