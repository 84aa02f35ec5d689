"""Listeners and limits: which clients are admitted, which are displaced, and bad addresses."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable

import pytest

from tests.loopback import from_other_addresses
from tests.unit.own_log import own_log
from tests.unit.server.rig import (
    DEVICE,
    PATIENCE,
    FakeExtension,
    Server,
    Streams,
    rest,
    serving,
    until,
    until_log,
)
from usbipd import log
from usbipd.access import AccessList
from usbipd.addresses import ListenAddress
from usbipd.errors import UsbipdError
from usbipd.ipc.messages import Command
from usbipd.limiter import BURST
from usbipd.protocol.constants import ST_DEV_BUSY
from usbipd.protocol.op import encode_devlist_reply, encode_devlist_request, encode_import_request
from usbipd.server.coordinator import ServerCoordinator
from usbipd.server.extension import MOST_WAITING_PER_SOURCE, Peer
from usbipd.server.session import Stage


@pytest.mark.parametrize(("total", "per_address"), [(100, 5), (5, 100)], ids=["of an address", "in total"])
async def test_idle_connections_do_not_lock_out_an_active_client(
    total: int, per_address: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(total=total, per_address=per_address) as server:
        idle = [await server.connect() for _number in range(30)]
        for reader, writer in idle[:25]:
            assert await rest(reader, writer) == b"", "the oldest leave"
        assert await server.ask(encode_devlist_request()) == encode_devlist_reply([DEVICE])
        for _reader, writer in idle[25:]:
            writer.close()
    assert caplog.text.count("closed: more than 5 connections") == 26


@from_other_addresses
async def test_a_flooding_source_displaces_its_own_connections() -> None:
    async with serving(total=5) as server:
        quiet = await server.connect(source="127.0.0.2")
        flood = [await server.connect(source="127.0.0.3") for _number in range(20)]
        for reader, writer in flood[:16]:
            assert await rest(reader, writer) == b""
        quiet[1].write(encode_devlist_request())
        assert await rest(*quiet) == encode_devlist_reply([DEVICE])
        for _reader, writer in flood[16:]:
            writer.close()


async def test_idle_clients_do_not_displace_one_with_a_request() -> None:
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


async def ask_for_a_device_in_use(server: Server, *, source: str = "127.0.0.1") -> Streams:
    """A client that waits for the device."""
    waiting = len(server.extension.waiting)
    server.extension.status, server.extension.is_patient = ST_DEV_BUSY, True
    reader, writer = await server.connect(source=source)
    writer.write(encode_import_request("240-1"))
    await until(lambda: len(server.extension.waiting) == waiting + 1)
    return reader, writer


async def has_left(client: Streams) -> bool:
    """Whether the server has closed the connection; gives it time to do so."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            return await client[0].read() == b""
    return False


@from_other_addresses
async def test_among_waiting_clients_the_oldest_of_the_busiest_source_is_displaced() -> None:
    async with serving(total=4) as server:
        sources = ["127.0.0.2", "127.0.0.3", "127.0.0.3", "127.0.0.4"]
        waiting = [await ask_for_a_device_in_use(server, source=source) for source in sources]
        newest = await server.connect(source="127.0.0.5")
        assert await rest(*waiting[1]) == b""
        await until(lambda: len(server.extension.waiting) == 3)
        assert [await has_left(each) for each in (waiting[0], *waiting[2:], newest)] == [False] * 4
        for _reader, writer in (*waiting, newest):
            writer.close()


@from_other_addresses
async def test_a_new_client_is_not_displaced_by_waiting_ones() -> None:
    """It would be the only one without a request."""
    async with serving(total=8) as server:
        waiting = [
            await ask_for_a_device_in_use(server, source=f"127.0.0.{number}") for number in range(10, 17)
        ]
        newcomer = await server.connect(source="127.0.0.2")
        waiting.append(await server.connect(source="127.0.0.17"))
        assert await rest(*waiting[0]) == b""
        newcomer[1].write(encode_devlist_request())
        assert await rest(*newcomer) == encode_devlist_reply([DEVICE])
        for _reader, writer in waiting:
            writer.close()


@from_other_addresses
async def test_a_queued_client_is_displaced_before_one_that_waits_for_a_device() -> None:
    """However old the other one is: displacing it costs more."""
    async with serving(total=MOST_WAITING_PER_SOURCE + 6) as server:
        waiting = [await ask_for_a_device_in_use(server) for _number in range(MOST_WAITING_PER_SOURCE)]
        queueing = []
        for number in range(6):
            queueing.append(await server.connect())
            queueing[-1][1].write(encode_import_request("240-1"))
            await until(lambda: server.extension.commands.count(Command.RESERVE) == 17 + number)  # noqa: B023
        newest = await server.connect(source="127.0.0.2")
        assert await rest(*queueing[0]) == b""
        assert len(server.extension.waiting) == MOST_WAITING_PER_SOURCE
        for _reader, writer in (*waiting, *queueing, newest):
            writer.close()


@from_other_addresses
async def test_a_client_that_does_not_read_its_reply_can_be_displaced() -> None:
    async with serving(total=2, send_buffer=4096) as server:
        server.extension.devices = [DEVICE] * 10_000
        idle = socket.create_connection(server.address, source_address=("127.0.0.2", 0))
        idle.sendall(encode_devlist_request())
        sessions = server.coordinator._connections._sessions
        await until(lambda: [each.stage for each in sessions] == [Stage.REPLY])
        waiting = await ask_for_a_device_in_use(server)
        newest = await server.connect(source="127.0.0.3")
        await until(lambda: [each.stage for each in sessions] == [Stage.DEVICE, Stage.REQUEST])
        for _reader, writer in (waiting, newest):
            writer.close()
        idle.close()


@from_other_addresses
async def test_clients_being_served_are_not_displaced(caplog: pytest.LogCaptureFixture) -> None:
    """The next client is accepted when one of them has its answer."""
    async with serving(total=4) as server:
        answer = server.extension.held[Command.DEVLIST] = asyncio.Event()
        sessions = server.coordinator._connections._sessions
        clients = []
        for number in range(10):
            clients.append(await server.connect(source=f"127.0.0.{number + 2}"))
            clients[-1][1].write(encode_devlist_request())
            if number < 4:
                await until(lambda: {each.stage for each in sessions} == {Stage.ANSWER})
        assert len(sessions) == 4
        answer.set()
        assert [await rest(*client) for client in clients] == [encode_devlist_reply([DEVICE])] * 10
    assert "closed:" not in caplog.text


async def test_the_next_client_of_a_source_is_closed_while_its_others_are_served() -> None:
    async with serving(per_address=3) as server:
        answer = server.extension.held[Command.DEVLIST] = asyncio.Event()
        clients = [await server.connect() for _number in range(3)]
        for _reader, writer in clients:
            writer.write(encode_devlist_request())
        await until(lambda: server.extension.asked)
        assert await rest(*await server.connect()) == b""
        answer.set()
        assert [await rest(*client) for client in clients] == [encode_devlist_reply([DEVICE])] * 3


async def test_a_flood_from_one_ipv6_network_displaces_itself() -> None:
    """Such a network has 2**64 addresses; loopback connections stand for them here."""
    async with serving(total=100, per_address=3) as server:
        connections = server.coordinator._connections
        ours, theirs = [], []
        for number in range(20):
            one, other = socket.socketpair()
            one.setblocking(False)
            ours.append(one)
            theirs.append(other)
            network = "2001:db8:0:1" if number else "2001:db8:0:2"
            peer = Peer.at(ListenAddress(f"{network}::{number + 1:x}", 4000))
            await connections.admit(one, peer)
        assert dict(connections._of_source) == {"2001:db8:0:1::/64": 3, "2001:db8:0:2::/64": 1}
        for each in theirs:
            each.close()
        await until(lambda: not connections._sessions)
        assert not connections._of_source


def leave_nothing_behind(writer: asyncio.StreamWriter) -> None:
    writer.close()


def leave_bytes_behind(writer: asyncio.StreamWriter) -> None:
    writer.write(b"what would be for the worker")
    writer.close()


def close_half(writer: asyncio.StreamWriter) -> None:
    writer.write_eof()


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


@pytest.mark.parametrize("leave", [leave_nothing_behind, leave_bytes_behind, close_half, reset])
async def test_the_request_of_an_import_ends_with_its_client(
    leave: Callable[[asyncio.StreamWriter], None], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as server:
        _reader, writer = await ask_for_a_device_in_use(server)
        connections = server.coordinator._connections
        first_check = connections._check
        await until(lambda: connections._check is not first_check)
        leave(writer)
        await until(lambda: not server.extension.waiting)
        await until(lambda: not server.coordinator._connections._sessions)
        assert server.extension.commands == [Command.RESERVE, Command.RESERVE, Command.ABANDON]
        writer.close()
    assert caplog.text.count("closed: the client left before its request was answered") == 1


async def test_no_request_is_sent_for_a_client_that_has_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as server:
        with socket.create_connection(server.address) as client:  # blocks the loop: the server cannot run
            client.sendall(encode_import_request("240-1"))
        await until_log(caplog, "closed: the client left before its request was answered")
        assert not server.extension.asked


async def test_a_waiting_client_does_not_count_as_gone() -> None:
    async with serving() as server:
        waiting = await ask_for_a_device_in_use(server)
        waiting[1].write(b"what is for the worker")
        leaving = await ask_for_a_device_in_use(server)
        leaving[1].close()
        await until(lambda: len(server.extension.waiting) == 1)
        assert not waiting[0].at_eof()
        waiting[1].close()


async def test_a_client_that_closes_its_half_after_the_request_gets_its_list() -> None:
    """As `nc -N` does.  A reset by another client meanwhile is noticed."""
    async with serving() as server:
        answer = server.extension.held[Command.DEVLIST] = asyncio.Event()
        half, gone = await server.connect(), await server.connect()
        for _reader, writer in (half, gone):
            writer.write(encode_devlist_request())
        await until(lambda: server.extension.asked)
        close_half(half[1])
        reset(gone[1])
        await until(lambda: len(server.coordinator._connections._sessions) == 1)
        answer.set()
        assert await rest(*half) == encode_devlist_reply([DEVICE])


@from_other_addresses
async def test_a_refused_client_is_closed_before_a_byte_is_read() -> None:
    async with serving(allow=["127.0.0.2", "127.0.1.0/24"]) as server:
        for source in ("127.0.0.1", "127.0.0.3", "127.0.2.1"):
            with contextlib.suppress(ConnectionResetError):  # the server left bytes unread
                assert await server.ask(encode_devlist_request(), source=source) == b""
        assert not server.extension.asked
        for source in ("127.0.0.2", "127.0.1.77"):
            reply = await server.ask(encode_devlist_request(), source=source)
            assert reply == encode_devlist_reply([DEVICE])


@from_other_addresses
async def test_a_refused_client_takes_no_slot() -> None:
    async with serving(total=1, allow=["127.0.0.2"]) as server:
        quiet = await server.connect(source="127.0.0.2")
        for _number in range(50):
            assert await rest(*await server.connect()) == b""
        quiet[1].write(encode_devlist_request())
        assert await rest(*quiet) == encode_devlist_reply([DEVICE])


@from_other_addresses
@pytest.mark.parametrize(
    ("request_bytes", "source", "line"),
    [
        (b"", "127.0.0.1", " refused: its address is not allowed"),
        (b"GET / HTTP/1.1", "127.0.0.2", " closed: "),
        (encode_import_request("9-9"), "127.0.0.2", " closed: import of '9-9' refused"),
        (encode_devlist_request(), "127.0.0.2", " listed 1 devices"),
        (encode_import_request("240-1"), "127.0.0.2", " imported 240-1"),
    ],
    ids=["refused", "no request", "no device", "listed", "imported"],
)
def test_a_flood_is_few_lines_whose_numbers_add_up(request_bytes: bytes, source: str, line: str) -> None:
    number = BURST + 80

    async def test() -> None:
        async with serving(allow=["127.0.0.2"]) as server:
            for _each in range(number):
                reader, writer = await server.connect(source=source)
                writer.write(request_bytes)
                with contextlib.suppress(ConnectionResetError):  # the server left bytes unread
                    await reader.read(1)
                writer.close()
            async with asyncio.timeout(PATIENCE):
                while server.coordinator._connections._sessions:  # noqa: ASYNC110 - the last one still writes its line
                    await asyncio.sleep(0.001)

    with own_log() as log_of_it:
        asyncio.run(test())
        assert len(log_of_it.lines(line)) == BURST
        log.tell_left_out()
        assert len(log_of_it.lines(line)) == BURST + 1
        assert log_of_it.count(line) == number
        assert f" {number - BURST} more lines like this, the last one: {source}:" in log_of_it.lines(line)[-1]


@from_other_addresses
async def test_queued_refused_clients_do_not_delay_others() -> None:
    """All connect before the server can accept; the first accepted one is served
    while the rest still queue."""
    async with serving(allow=["127.0.0.2"]) as server:
        address, reply = server.address, encode_devlist_reply([DEVICE])
        with contextlib.ExitStack() as stack:
            allowed = stack.enter_context(socket.create_connection(address, source_address=("127.0.0.2", 0)))
            allowed.sendall(encode_devlist_request())
            crowd = [stack.enter_context(socket.create_connection(address)) for _number in range(100)]
            for connection in (allowed, crowd[-1]):
                connection.setblocking(False)
            async with asyncio.timeout(PATIENCE):
                assert await asyncio.get_running_loop().sock_recv(allowed, len(reply)) == reply
            with pytest.raises(BlockingIOError):
                crowd[-1].recv(1)  # not accepted yet


async def test_ipv6_beside_ipv4() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this host has no IPv6")
    async with serving(listen="[::1]:0") as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(encode_devlist_request())
        assert await rest(reader, writer) == encode_devlist_reply([DEVICE])


def refused_to_bind(*addresses: str) -> UsbipdError:
    """The error of a coordinator that listens there."""

    async def test() -> UsbipdError:
        one, other = socket.socketpair()
        extension = FakeExtension(one)
        coordinator = ServerCoordinator(
            extension.channel,
            AccessList([]),
            max_connections=1,
            max_connections_per_address=1,
            handshake_timeout=1,
            lost_client_timeout=120,
            send_buffer=0,
        )
        with pytest.raises(UsbipdError) as caught:
            coordinator.bind(addresses)
        extension.channel.close()
        other.close()
        return caught.value

    return asyncio.run(test())


def test_a_port_in_use_is_named_and_no_address_stays_bound() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with socket.create_server(("127.0.0.1", 0)) as finder:
            free = finder.getsockname()[1]
        port = taken.getsockname()[1]
        error = refused_to_bind(f"127.0.0.1:{free}", f"127.0.0.1:{port}")
        socket.create_server(("127.0.0.1", free)).close()
    assert error.message == f"cannot listen on 127.0.0.1:{port}: another program uses it"
    assert error.code == "address-in-use"
    assert error.advice is not None


def test_an_address_of_another_host() -> None:
    error = refused_to_bind("192.0.2.1:3240")
    assert error.message == "cannot listen on 192.0.2.1:3240: this host has no such address"


@pytest.mark.parametrize(
    ("addresses", "complaint"),
    [
        (["127.0.0.1:4000", "127.0.0.1:4000"], "127.0.0.1:4000: it is listed twice"),
        (["127.0.0.1:4000", "0.0.0.0:4000"], "127.0.0.1:4000: 0.0.0.0:4000 is also listed, and includes it"),
        (["[::]:4000", "[::1]:4000"], "[::1]:4000: [::]:4000 is also listed, and includes it"),
    ],
)
def test_overlapping_addresses(addresses: list[str], complaint: str) -> None:
    """The kernel would only report the port as in use, which suggests another program."""
    assert refused_to_bind(*addresses).message == f"cannot listen on {complaint}"


async def test_port_0_may_be_repeated() -> None:
    async with serving() as server:
        assert len(set(server.coordinator.bind(["127.0.0.1:0", "127.0.0.1:0"]))) == 3


def test_an_interface_that_does_not_exist() -> None:
    error = refused_to_bind("fe80::1%no-such-one")
    assert error.message.endswith("this host has no such address")


Accepted = tuple[socket.socket, object]


def next_accept(monkeypatch: pytest.MonkeyPatch, change: Callable[[Accepted], Accepted]) -> None:
    """The next accept returns its result changed by `change`, or raises the error of `change`."""
    loop = asyncio.get_running_loop()
    real = loop.sock_accept

    async def accept(listener: socket.socket) -> Accepted:
        monkeypatch.setattr(loop, "sock_accept", real)
        return change(await real(listener))

    monkeypatch.setattr(loop, "sock_accept", accept)


async def test_a_client_without_an_address_does_not_end_the_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    """It resets its connection before accept, which then returns no address on macOS."""
    async with serving() as server:
        next_accept(monkeypatch, lambda accepted: (accepted[0], None))
        assert await rest(*await server.connect()) == b""
        assert await server.ask(encode_devlist_request()) == encode_devlist_reply([DEVICE])
        assert not server.failed.is_set()


async def test_a_listener_that_fails_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(accepted: Accepted) -> Accepted:
        accepted[0].close()
        raise TypeError("no such thing")

    async with serving() as server:
        next_accept(monkeypatch, fail)
        _reader, writer = await server.connect()
        async with asyncio.timeout(PATIENCE):
            await server.failed.wait()
        writer.close()
    assert f"the listener on {server.address} has failed" in caplog.text
    assert "no such thing" in caplog.text
