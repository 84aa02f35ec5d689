"""The server's clients, from connection to hand-over: real TCP on loopback, a fake extension."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator

import pytest

from usbipd.config import parse_listen
from usbipd.errors import UsbipdError
from usbipd.ipc.async_channel import Channel
from usbipd.ipc.channel import Request
from usbipd.ipc.messages import (
    Command,
    DevlistResult,
    Message,
    Nothing,
    ReservationParameters,
    ReserveParameters,
    ReserveResult,
)
from usbipd.ipc.policy import Role
from usbipd.protocol.constants import (
    OP_REQ_DEVLIST,
    OP_REQ_IMPORT,
    ST_DEV_BUSY,
    ST_NODEV,
    ST_OK,
    USBIP_VERSION,
)
from usbipd.protocol.op import (
    UsbDevice,
    encode_devlist_reply,
    encode_devlist_request,
    encode_import_reply,
    encode_import_request,
)
from usbipd.server.coordinator import ServerCoordinator

PATIENCE = 10.0

DEVICE = UsbDevice(
    path="/simulated/240-1",
    busid="240-1",
    busnum=240,
    devnum=2,
    speed=3,
    idVendor=0x1D6B,
    idProduct=0x1F1,
    bcdDevice=0x100,
    bDeviceClass=0,
    bDeviceSubClass=0,
    bDeviceProtocol=0,
    bConfigurationValue=1,
    bNumConfigurations=1,
    interfaces=(),
)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class FakeExtension:
    """Answers as the extension does; one free device, 240-1."""

    def __init__(self, connection: socket.socket) -> None:
        self.asked: list[Request] = []
        self.status = ST_OK
        self.silent: set[Command] = set()
        self.refused: set[Command] = set()
        self.client: socket.socket | None = None
        """What HANDOVER brought."""
        self.channel = Channel(connection, name="server", role=Role.SERVER, on_request=self._answer)

    @property
    def commands(self) -> list[Command]:
        return [request.command for request in self.asked]

    async def _answer(self, request: Request) -> Message:
        self.asked.append(request)
        if request.command in self.silent:
            await asyncio.Event().wait()
        if request.command in self.refused:
            raise UsbipdError("the reservation is no longer good", code="no-reservation")
        if request.command is Command.DEVLIST:
            return DevlistResult(devices=[DEVICE])
        if request.command is Command.RESERVE:
            assert isinstance(request.parameters, ReserveParameters)
            if request.parameters.busid != "240-1":
                return ReserveResult(status=ST_NODEV)
            if self.status != ST_OK:
                return ReserveResult(status=self.status)
            return ReserveResult(status=ST_OK, reservation=7, device=DEVICE)
        if request.descriptor is not None:
            self.client = socket.socket(fileno=os.dup(request.descriptor))
        return Nothing()


class Server:
    """A coordinator that listens, the extension behind it, and clients."""

    def __init__(self, coordinator: ServerCoordinator, extension: FakeExtension, address: str) -> None:
        self.coordinator = coordinator
        self.extension = extension
        self.address = parse_listen(address)

    async def connect(self, *, source: str = "127.0.0.1") -> Streams:
        return await asyncio.open_connection(*self.address, local_addr=(source, 0))

    async def ask(self, request: bytes) -> bytes:
        """All that the server answers until it closes."""
        reader, writer = await self.connect()
        writer.write(request)
        return await rest(reader, writer)


async def rest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    try:
        async with asyncio.timeout(PATIENCE):
            return await reader.read()
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def serving(
    *,
    total: int = 100,
    per_address: int = 100,
    handshake_timeout: float = PATIENCE,
    listen: str = "127.0.0.1:0",
) -> AsyncIterator[Server]:
    one, other = socket.socketpair()
    extension = FakeExtension(one)
    channel = Channel(other, name="extension", role=Role.EXTENSION, on_request=extension._answer)
    coordinator = ServerCoordinator(
        channel,
        max_connections=total,
        max_connections_per_address=per_address,
        handshake_timeout=handshake_timeout,
    )
    address = coordinator.bind([listen])[0]
    coordinator.start()
    yield Server(coordinator, extension, address)
    channel.close()
    extension.channel.close()
    if extension.client is not None:
        extension.client.close()
    for listener in coordinator._listeners:
        asyncio.get_running_loop().remove_reader(listener)
        listener.close()


async def until_log(caplog: pytest.LogCaptureFixture, text: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while text not in caplog.text:  # noqa: ASYNC110 - a log has no event
            await asyncio.sleep(0.001)


def op_header(version: int, code: int) -> bytes:
    return version.to_bytes(2, "big") + code.to_bytes(2, "big") + bytes(4)


def test_devlist() -> None:
    async def test() -> None:
        async with serving() as server:
            assert await server.ask(encode_devlist_request()) == encode_devlist_reply([DEVICE])

    asyncio.run(test())


@pytest.mark.rule("any-chunking")
def test_a_request_byte_by_byte() -> None:
    async def test() -> None:
        async with serving() as server:
            reader, writer = await server.connect()
            for byte in encode_import_request("9-9"):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)
            assert await rest(reader, writer) == encode_import_reply(ST_NODEV, None)

    asyncio.run(test())


@pytest.mark.rule("import-body", "tcp-options")
def test_an_import_is_answered_and_handed_over() -> None:
    """What follows the request stays in the socket, for the worker."""

    async def test() -> None:
        async with serving() as server:
            reader, writer = await server.connect()
            writer.write(encode_import_request("240-1") + b"the first URB")
            reply = encode_import_reply(ST_OK, DEVICE)
            async with asyncio.timeout(PATIENCE):
                assert await reader.readexactly(len(reply)) == reply
                while server.extension.client is None:  # noqa: ASYNC110 - it comes by itself
                    await asyncio.sleep(0.001)
            client = server.extension.client
            assert client.recv(100) == b"the first URB"
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            reserve, handover = server.extension.asked
            host, port = writer.get_extra_info("sockname")
            assert reserve.parameters == ReserveParameters(busid="240-1", client=f"{host}:{port}")
            assert (handover.command, handover.parameters) == (
                Command.HANDOVER,
                ReservationParameters(reservation=7),
            )
            client.sendall(b"the first answer")
            client.close()
            assert await rest(reader, writer) == b"the first answer"

    asyncio.run(test())


@pytest.mark.rule("import-body", "op-status")
@pytest.mark.parametrize("status", [ST_DEV_BUSY, ST_NODEV])
def test_a_refused_import_has_no_body(status: int, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving() as server:
            server.extension.status = status
            assert await server.ask(encode_import_request("240-1")) == encode_import_reply(status, None)

    asyncio.run(test())
    assert f"may not import '240-1': status {status}" in caplog.text


@pytest.mark.rule("op-status")
@pytest.mark.parametrize("busid", [b"x" * 32, b"\xff-1".ljust(32, b"\0")], ids=["no NUL", "not ASCII"])
def test_a_busid_that_cannot_be(busid: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving() as server:
            request = op_header(USBIP_VERSION, OP_REQ_IMPORT) + busid
            assert await server.ask(request) == encode_import_reply(ST_NODEV, None)
            assert not server.extension.asked

    asyncio.run(test())
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
def test_what_is_not_usbip_is_closed(
    request_bytes: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with serving() as server:
            reader, writer = await server.connect()
            writer.write(request_bytes)
            with contextlib.suppress(ConnectionResetError):  # bytes of it were left unread
                assert await rest(reader, writer) == b""
            await until_log(caplog, " closed: ")

    asyncio.run(test())
    assert reason in caplog.text


def test_a_client_that_leaves_in_the_middle(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving() as server:
            _reader, writer = await server.connect()
            writer.write(encode_import_request("240-1")[:20])
            await writer.drain()
            writer.close()
            await until_log(caplog, "left before it had sent a whole request")
            assert not server.extension.asked

    asyncio.run(test())


def test_half_a_request_times_out(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving(handshake_timeout=0.05) as server:
            assert await server.ask(encode_import_request("240-1")[:-1]) == b""

    asyncio.run(test())
    assert "no whole request within 0.05 s" in caplog.text


def test_a_reservation_that_cannot_be_used_is_abandoned(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving() as server:
            server.extension.refused = {Command.HANDOVER}
            reply = await server.ask(encode_import_request("240-1"))
            assert reply == encode_import_reply(ST_OK, DEVICE)
            async with asyncio.timeout(PATIENCE):
                while Command.ABANDON not in server.extension.commands:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)

    asyncio.run(test())
    assert "no longer good" in caplog.text


@pytest.mark.parametrize(("total", "per_address"), [(100, 5), (5, 100)], ids=["of an address", "in total"])
def test_idle_connections_never_keep_out_one_that_speaks(
    total: int, per_address: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with serving(total=total, per_address=per_address) as server:
            idle = [await server.connect() for _number in range(30)]
            for reader, writer in idle[:25]:
                assert await rest(reader, writer) == b"", "the oldest leave"
            assert await server.ask(encode_devlist_request()) == encode_devlist_reply([DEVICE])
            for _reader, writer in idle[25:]:
                writer.close()

    asyncio.run(test())
    assert caplog.text.count("closed: more than 5 connections") == 26


def test_who_floods_displaces_himself() -> None:
    async def test() -> None:
        async with serving(total=5) as server:
            quiet = await server.connect(source="127.0.0.2")
            flood = [await server.connect(source="127.0.0.3") for _number in range(20)]
            for reader, writer in flood[:16]:
                assert await rest(reader, writer) == b""
            quiet[1].write(encode_devlist_request())
            assert await rest(*quiet) == encode_devlist_reply([DEVICE])
            for _reader, writer in flood[16:]:
                writer.close()

    asyncio.run(test())


def test_a_client_that_has_spoken_is_not_displaced_by_idle_ones() -> None:
    async def test() -> None:
        async with serving(per_address=3) as server:
            server.extension.silent = {Command.RESERVE}
            waiting = await server.connect()
            waiting[1].write(encode_import_request("240-1"))
            async with asyncio.timeout(PATIENCE):
                while not server.extension.asked:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            idle = [await server.connect() for _number in range(10)]
            for reader, writer in idle[:8]:
                assert await rest(reader, writer) == b""
            assert not waiting[0].at_eof()
            for _reader, writer in (waiting, *idle[8:]):
                writer.close()

    asyncio.run(test())


def test_ipv6_beside_ipv4() -> None:
    async def test() -> None:
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this host has no IPv6")
        async with serving(listen="[::1]:0") as server:
            reader, writer = await asyncio.open_connection(*server.address)
            writer.write(encode_devlist_request())
            assert await rest(reader, writer) == encode_devlist_reply([DEVICE])

    asyncio.run(test())


def refused_to_bind(*addresses: str) -> UsbipdError:
    """The error of a coordinator that is to listen there."""

    async def test() -> UsbipdError:
        one, other = socket.socketpair()
        extension = FakeExtension(one)
        coordinator = ServerCoordinator(
            extension.channel, max_connections=1, max_connections_per_address=1, handshake_timeout=1
        )
        with pytest.raises(UsbipdError) as caught:
            coordinator.bind(addresses)
        extension.channel.close()
        other.close()
        return caught.value

    return asyncio.run(test())


def test_a_port_in_use_is_named_and_nothing_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with socket.create_server(("127.0.0.1", 0)) as finder:
            free = finder.getsockname()[1]
        port = taken.getsockname()[1]
        error = refused_to_bind(f"127.0.0.1:{free}", f"127.0.0.1:{port}")
        socket.create_server(("127.0.0.1", free)).close()
    assert error.message == f"cannot listen on 127.0.0.1:{port}: another program does"
    assert error.code == "address-in-use"
    assert error.advice is not None


def test_an_address_of_another_host() -> None:
    error = refused_to_bind("192.0.2.1:3240")
    assert error.message == "cannot listen on 192.0.2.1:3240: this host has no such address"


@pytest.mark.parametrize(
    ("addresses", "complaint"),
    [
        (["127.0.0.1:4000", "127.0.0.1:4000"], "127.0.0.1:4000: it is given twice"),
        (["127.0.0.1:4000", "0.0.0.0:4000"], "127.0.0.1:4000: 0.0.0.0:4000 is given too, and includes it"),
        (["[::]:4000", "[::1]:4000"], "[::1]:4000: [::]:4000 is given too, and includes it"),
    ],
)
def test_addresses_that_exclude_each_other(addresses: list[str], complaint: str) -> None:
    """The kernel would say that the port is in use, and its user would look for another program."""
    assert refused_to_bind(*addresses).message == f"cannot listen on {complaint}"


def test_free_ports_may_be_asked_for_twice() -> None:
    async def test() -> None:
        async with serving() as server:
            assert len(set(server.coordinator.bind(["127.0.0.1:0", "127.0.0.1:0"]))) == 3

    asyncio.run(test())


def test_an_interface_that_is_not_there() -> None:
    error = refused_to_bind("fe80::1%no-such-one")
    assert error.message.endswith("this host has no such address")
