"""The control socket: who is behind it, what they get, and that nobody takes anybody else down."""

import asyncio
import os
import resource
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import pytest

from tests.unit.extension.fakes import PATIENCE, FakeSource, FakeSpawner, FakeSysfs, record, run, until
from usbipd.errors import UsbipdError
from usbipd.extension import control as module
from usbipd.extension.control import IPCHandler
from usbipd.extension.manager import SystemExtensionManager
from usbipd.extension.monitor import StatusMonitor
from usbipd.extension.network import NetworkServer
from usbipd.extension.reservations import Reservations
from usbipd.ipc.channel import BlockingChannel, Conversation, Result, encode_frame
from usbipd.ipc.messages import (
    BindParameters,
    BindResult,
    Command,
    DeviceState,
    IPCRequest,
    ListResult,
    Message,
    Nothing,
    ServeParameters,
    StatusResult,
    UnbindParameters,
    UnbindResult,
    encode,
)
from usbipd.ipc.policy import Role
from usbipd.log import ErrorCounter
from usbipd.usb.ownership import Ownership

SOMEBODY = 54321
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


class Daemon:
    """An extension with one device, on a socket in a directory that everybody can enter."""

    def __init__(self, spawner: FakeSpawner, sysfs: FakeSysfs, path: Path) -> None:
        self.path = path
        self.spawner = spawner
        self.manager = SystemExtensionManager(
            [FakeSource(record("1-2"))],
            spawner,
            Ownership(sysfs.root, sysfs.mount_table),
            run_as=None,
            transfer_budget=1 << 20,
            log_level="info",
        )
        orders = ServeParameters(
            listen=["127.0.0.1:0"],
            max_connections=5,
            max_connections_per_address=2,
            handshake_timeout=1.0,
            run_as=None,
            chroot=None,
            log_level="info",
        )
        self.network = NetworkServer(spawner, orders, list, Reservations(self.manager.claims, 1.0))
        self.monitor = StatusMonitor(self.manager, self.network, ErrorCounter())
        self.handler = self.new_handler()

    def new_handler(self) -> IPCHandler:
        return IPCHandler(self.path, self.manager, self.monitor, run_as=None)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        await self.network.start()
        self.handler.start_listener()
        yield
        self.handler.close()
        await self.manager.stop()
        await self.network.stop()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self.path))
        return connection

    async def ask(
        self, command: Command, parameters: Message, result: type[Result], *, uid: int | None = None
    ) -> Result:
        """A request as the CLI sends it, by the user `uid`."""
        with identity(uid):
            connection = self.connect()

        def request() -> Result:
            channel = BlockingChannel(connection, "test")
            try:
                return channel.request(command, parameters, result, timeout=PATIENCE)
            finally:
                channel.close()

        return await asyncio.to_thread(request)


@contextmanager
def identity(uid: int | None) -> Iterator[None]:
    """Be another user for a moment; the kernel notes who connects."""
    if uid is None:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.fixture
def daemon(spawner: FakeSpawner, sysfs: FakeSysfs) -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Daemon(spawner, sysfs, Path(directory, "control.sock"))


def nested(depth: int) -> bytes:
    """A request whose parameters are an array in an array in an array..."""
    deep = msgspec.Raw(b"\x91" * depth + b"\x80")
    return encode(IPCRequest(request_id=1, client_id="", command=Command.LIST, parameters=deep, timestamp=0))


def test_everything_that_can_be_asked(daemon: Daemon) -> None:
    async def test() -> None:
        async with daemon.listening():
            listed = await daemon.ask(Command.LIST, Nothing(), ListResult)
            assert [(device.busid, device.state) for device in listed.devices] == [
                ("1-2", DeviceState.NOT_SHARED)
            ]
            bound = await daemon.ask(Command.BIND, BindParameters(busid="1-2"), BindResult)
            assert bound.device.state is DeviceState.SHARED
            status = await daemon.ask(Command.STATUS, Nothing(), StatusResult)
            assert status.pid == os.getpid()
            assert status.listening == ["127.0.0.1:4321"]
            assert [(process.role, process.busid, process.user) for process in status.processes[1:]] == [
                ("server", None, "nobody"),
                ("worker", "1-2", "nobody"),
            ]
            assert status.processes[0].pid == os.getpid()
            assert status.memory_usage > 1 << 20
            assert 0 <= status.uptime < 60
            assert daemon.monitor.get_current_status().claimed_devices[0].bus_id == "1-2"
            unbound = await daemon.ask(Command.UNBIND, UnbindParameters(busid=None), UnbindResult)
            assert unbound.busids == ["1-2"]

    run(test())


def test_an_error_is_told_with_its_advice(daemon: Daemon) -> None:
    async def test() -> None:
        async with daemon.listening():
            with pytest.raises(UsbipdError, match="no device '9-9'") as caught:
                await daemon.ask(Command.BIND, BindParameters(busid="9-9"), BindResult)
            assert caught.value.code == "no-device"
            assert caught.value.advice

    run(test())


@as_root
def test_root_may_and_somebody_may_only_look(daemon: Daemon) -> None:
    async def test() -> None:
        async with daemon.listening():
            await daemon.ask(Command.BIND, BindParameters(busid="1-2"), BindResult)
            await daemon.ask(Command.LIST, Nothing(), ListResult, uid=SOMEBODY)
            await daemon.ask(Command.STATUS, Nothing(), StatusResult, uid=SOMEBODY)
            for command, parameters in (
                (Command.BIND, BindParameters(busid="1-2")),
                (Command.UNBIND, UnbindParameters(busid=None)),
            ):
                with pytest.raises(UsbipdError, match=f"you may not {command}") as caught:
                    await daemon.ask(command, parameters, Nothing, uid=SOMEBODY)
                assert caught.value.code == "not-permitted"
            assert daemon.manager.claims

    run(test())


def test_the_role_comes_from_the_kernel(daemon: Daemon) -> None:
    one, other = socket.socketpair()
    with one, other:
        peer, role = daemon.handler.authenticate_client(one)
    assert peer.pid == os.getpid()
    assert role is (Role.ROOT if os.geteuid() == 0 else Role.OWNER)


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\xff\xff\xff\xff\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        Conversation().hello() + encode_frame(b"\xc1", descriptor=False),
        Conversation().hello() + encode_frame(nested(60_000), descriptor=False),
    ],
    ids=["4 GiB", "HTTP", "no MessagePack", "deep"],
)
def test_rubbish_ends_one_connection_and_no_other(
    daemon: Daemon, rubbish: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with daemon.listening():
            connection = daemon.connect()
            connection.sendall(rubbish)
            async with asyncio.timeout(PATIENCE):
                while await asyncio.to_thread(connection.recv, 1000):
                    pass
            connection.close()
            await daemon.ask(Command.LIST, Nothing(), ListResult)

    run(test())
    assert "dropped: " in caplog.text
    assert "Traceback" not in caplog.text


def test_one_user_cannot_take_all_connections(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(module, "MAX_CONNECTIONS_PER_USER", 3)
        async with daemon.listening():
            idle = [daemon.connect() for _number in range(3)]
            await until(lambda: len(daemon.handler._channels) == 3)
            refused = daemon.connect()
            async with asyncio.timeout(PATIENCE):
                assert await asyncio.to_thread(refused.recv, 1) == b""
            refused.close()
            if os.geteuid() == 0:
                await daemon.ask(Command.LIST, Nothing(), ListResult, uid=SOMEBODY)
            idle.pop().close()
            await until(lambda: len(daemon.handler._channels) == 2)
            await daemon.ask(Command.LIST, Nothing(), ListResult)
            for connection in idle:
                connection.close()

    run(test())


def test_who_may_connect(daemon: Daemon) -> None:
    async def test() -> None:
        async with daemon.listening():
            mode = stat.S_IMODE(daemon.path.stat().st_mode)
            assert mode == (0o666 if os.geteuid() == 0 else 0o600)

    run(test())


def test_a_second_extension_is_refused(daemon: Daemon) -> None:
    async def test() -> None:
        async with daemon.listening():
            with pytest.raises(UsbipdError, match="running already") as caught:
                daemon.new_handler().start_listener()
            assert caught.value.code == "already-running"
            await daemon.ask(Command.LIST, Nothing(), ListResult)

    run(test())


def test_two_that_start_at_one_moment(daemon: Daemon) -> None:
    """The second one does not take the first one's socket for a stale one, whatever it finds there."""

    async def test() -> None:
        async with daemon.listening():
            daemon.path.unlink()
            with pytest.raises(UsbipdError, match="running already"):
                daemon.new_handler().start_listener()
        async with daemon.listening():
            await daemon.ask(Command.LIST, Nothing(), ListResult)
        assert not daemon.path.exists()

    run(test())


def test_no_descriptor_left_for_a_connection(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It waits until there is one, and neither spins nor floods the log meanwhile."""

    async def test() -> None:
        async with daemon.listening():
            connection = socket.socket(socket.AF_UNIX)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (connection.fileno() + 1, hard))
            try:
                connection.connect(str(daemon.path))
                await until(lambda: "cannot accept" in caplog.text)
                for _turn in range(100):
                    await asyncio.sleep(0)
                assert caplog.text.count("cannot accept") == 1
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert await asyncio.to_thread(connection.recv, 1)
            connection.close()

    run(test())


def test_the_socket_of_a_killed_extension_is_replaced(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(daemon.path))

    async def test() -> None:
        async with daemon.listening():
            await daemon.ask(Command.LIST, Nothing(), ListResult)

    run(test())


def test_a_file_that_is_no_socket_stays(daemon: Daemon) -> None:
    daemon.path.write_text("precious")

    async def test() -> None:
        with pytest.raises(UsbipdError, match="is there already and is no socket"):
            daemon.handler.start_listener()

    run(test())
    assert daemon.path.read_text() == "precious"
