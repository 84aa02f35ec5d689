"""The control socket: identification, answers, and limits per user."""

import asyncio
import os
import resource
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from tests.unit.extension.fakes import (
    ORDERS,
    PATIENCE,
    FakeSource,
    FakeSpawner,
    FakeStore,
    FakeSysfs,
    make_manager,
    record,
    run,
    until,
)
from tests.unit.own_log import own_log
from usbipd import log, privileges
from usbipd.errors import UsbipdError
from usbipd.extension import control as module
from usbipd.extension.control import Answers, IPCHandler
from usbipd.extension.reservations import Reservations
from usbipd.extension.server_supervisor import ServerSupervisor
from usbipd.extension.status_monitor import StatusMonitor
from usbipd.ipc.blocking_channel import BlockingChannel
from usbipd.ipc.control_messages import (
    PEOPLE,
    BindParameters,
    BindResult,
    DetachParameters,
    DetachResult,
    DeviceState,
    HardwareId,
    HealthResult,
    HistoryEntry,
    HistoryParameters,
    HistoryResult,
    ListResult,
    ReleaseParameters,
    ReleaseResult,
    StatusResult,
    UnbindParameters,
    UnbindResult,
)
from usbipd.ipc.conversation import Conversation, Event, Result, request_frame
from usbipd.ipc.framing import encode_frame
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command, EventName, IPCRequest, Nothing, encode
from usbipd.ipc.row import Role
from usbipd.limiter import BURST
from usbipd.log import ErrorCounter
from usbipd.paths import RuntimeFiles

OTHER_USER = 54321
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


class Daemon:
    """An extension with one device, on a socket in a directory that all users can enter."""

    def __init__(self, spawner: FakeSpawner, sysfs: FakeSysfs, path: Path) -> None:
        self.path = path
        self.spawner = spawner
        self.store = FakeStore()
        self.source = FakeSource(record("1-2"))
        self.manager = make_manager(spawner, sysfs, self.source, store=self.store)
        reservations = Reservations(self.manager.find_for, 1.0)
        self.server = ServerSupervisor(
            spawner, ORDERS, self.manager.offers, reservations, self.manager._recorder
        )
        self.status_monitor = StatusMonitor(
            self.manager,
            self.server,
            self.store,
            None,
            None,
            None,
            ErrorCounter(),
            path,
            run_as=None,
            access=(),
        )
        self.recorder = self.manager._recorder
        self.handler = self.new_handler()

    def new_handler(self) -> IPCHandler:
        return IPCHandler(self.path, run_as=None, worker_uids=range(0))

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        await self.server.start(after_a_kill=False)
        self.handler.start_listener()
        self.handler.serve(Answers(self.manager, self.status_monitor, self.recorder))
        yield
        self.handler.close()
        await self.manager.stop()
        await self.server.stop()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self.path))
        return connection

    async def ask(
        self,
        command: Command,
        parameters: Message,
        result: type[Result],
        *,
        uid: int | None = None,
        groups: Sequence[int] = (),
    ) -> Result:
        """A request as the CLI sends it, by the user `uid`, a member of `groups`."""
        with identity(uid, groups):
            connection = self.connect()

        def request() -> Result:
            with closing(BlockingChannel(connection, "test", PEOPLE)) as channel:
                return channel.request(command, parameters, result, timeout=PATIENCE)

        return await asyncio.to_thread(request)


@contextmanager
def identity(uid: int | None, groups: Sequence[int] = ()) -> Iterator[None]:
    """Act as another user for a moment; the kernel records who connects."""
    if uid is None:
        yield
        return
    own = os.getgroups()
    os.setgroups(groups)
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(own)


@pytest.fixture
def daemon(spawner: FakeSpawner, sysfs: FakeSysfs) -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Daemon(spawner, sysfs, Path(directory, "control.sock"))


def nested(depth: int) -> bytes:
    """A request whose parameters are an array in an array in an array..."""
    deep = msgspec.Raw(b"\x91" * depth + b"\x80")
    return encode(IPCRequest(request_id=1, client_id="", command=Command.LIST, parameters=deep, timestamp=0))


async def test_every_request_is_answered(daemon: Daemon) -> None:
    async with daemon.listening():
        listed = await daemon.ask(Command.LIST, Nothing(), ListResult)
        assert [(device.busid, device.state) for device in listed.devices] == [
            ("1-2", DeviceState.NOT_SHARED)
        ]
        bound = await daemon.ask(Command.BIND, BindParameters(busid="1-2"), BindResult)
        assert [device.state for device in bound.devices] == [DeviceState.SHARED]
        assert [
            binding.busid for binding in (await daemon.ask(Command.LIST, Nothing(), ListResult)).bindings
        ] == ["1-2"]
        status = await daemon.ask(Command.STATUS, Nothing(), StatusResult)
        assert status.pid == os.getpid()
        assert status.listening == ["127.0.0.1:4321", "[::1]:3240"]
        assert [(process.role, process.busid, process.user) for process in status.processes[1:]] == [
            ("server", None, "nobody"),
            ("worker", "1-2", "nobody"),
        ]
        assert status.processes[0].pid == os.getpid()
        assert status.memory_usage > 1 << 20
        assert 0 <= status.uptime < 60
        assert daemon.status_monitor.get_current_status().claimed_devices[0].bus_id == "1-2"
        unbound = await daemon.ask(Command.UNBIND, UnbindParameters(busid=None), UnbindResult)
        assert unbound.busids == ["1-2"]
        if os.geteuid() == 0:
            released = await daemon.ask(Command.RELEASE_DEVICE, ReleaseParameters(busid="1-2"), ReleaseResult)
            assert released.drivers == []


async def test_the_log_names_what_was_bound_and_unbound(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    user = privileges.user_name(os.geteuid())
    async with daemon.listening():
        port = await daemon.ask(Command.BIND, BindParameters(busid="1-2"), BindResult)
        ids = HardwareId(vendor_id=0x1234, product_id=0xB0D, serial="S3CRET")
        await daemon.ask(Command.BIND, BindParameters(hardware=ids), BindResult)
        await daemon.ask(Command.UNBIND, UnbindParameters(), UnbindResult)
        await daemon.ask(Command.UNBIND, UnbindParameters(), UnbindResult)
    rule = f"{port.binding.vendor_id:04x}:{port.binding.product_id:04x} at 1-2"
    hidden = "1234:0b0d with its serial number"
    lines = [entry.getMessage() for entry in caplog.records if "bound by" in entry.getMessage()]
    assert lines == [
        f"{rule} bound by {user}",
        f"{hidden} bound by {user}",
        f"{rule}, {hidden} unbound by {user}",
        f"nothing unbound by {user}",
    ]


async def test_the_log_names_some_of_many_bindings(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with daemon.listening():
        for product in range(10):
            ids = HardwareId(vendor_id=0x1234, product_id=product)
            await daemon.ask(Command.BIND, BindParameters(hardware=ids), BindResult)
        await daemon.ask(Command.UNBIND, UnbindParameters(), UnbindResult)
    assert "1234:0006, 1234:0007, 2 more unbound by " in caplog.text


async def test_a_thousand_devices(daemon: Daemon) -> None:
    """Each answer about all of them is longer than a message.  100 are bound and have a worker each."""
    busids = [f"{bus}-{port}" for bus in range(1, 11) for port in range(1, 101)]
    bound = HardwareId(vendor_id=0x1234, product_id=0xB0D)
    for number, busid in enumerate(busids):
        device = replace(record(busid), serial=f"{number:0126}", manufacturer="m" * 126, product="p" * 126)
        daemon.source.records[busid] = replace(device, product_id=0xB0D if number < 100 else 0xEEE)
    async with daemon.listening():
        listed = await daemon.ask(Command.LIST, Nothing(), ListResult)
        assert {device.busid for device in listed.devices} == set(busids)
        shared = await daemon.ask(Command.BIND, BindParameters(hardware=bound), BindResult)
        assert {device.busid for device in shared.devices} == set(busids[:100])
        assert {device.state for device in shared.devices} == {DeviceState.SHARED}
        status = await daemon.ask(Command.STATUS, Nothing(), StatusResult)
        assert [len(binding.devices) for binding in status.bindings] == [100]
        assert len(status.devices) == 1000
        assert len(status.processes) == 102
        health = await daemon.ask(Command.HEALTH, Nothing(), HealthResult)
        assert health.checks
        offered = daemon.manager.offers(["192.0.2.1"])
        assert len(offered.devices) == 100
        unbound = await daemon.ask(Command.UNBIND, UnbindParameters(), UnbindResult)
        assert len(unbound.busids) == 100


async def test_only_one_long_answer_is_built_at_a_time(daemon: Daemon) -> None:
    made: list[int] = []

    async def survey() -> ListResult:
        made.append(1)
        await asyncio.sleep(0.001)
        assert sum(made) == 1
        made.clear()
        return ListResult(devices=[], bindings=[])

    async with daemon.listening():
        daemon.manager.survey = survey  # type: ignore[method-assign]
        await asyncio.gather(
            *(daemon.ask(Command.LIST, Nothing(), ListResult) for _ in range(4)),
            *(daemon.ask(Command.STATUS, Nothing(), StatusResult) for _ in range(4)),
        )


class Surveys:
    """Replaces the work of LIST or HISTORY; each waits until the test lets it continue."""

    def __init__(self, daemon: Daemon) -> None:
        self.begun = 0
        self.go = asyncio.Event()
        daemon.manager.survey = self._survey  # type: ignore[method-assign]
        daemon.status_monitor.get_claim_history = self._history  # type: ignore[method-assign]

    async def _survey(self) -> ListResult:
        await self._work()
        return ListResult(devices=[], bindings=[])

    async def _history(self, limit: int, before: int | None) -> list[HistoryEntry]:
        await self._work()
        return []

    async def _work(self) -> None:
        self.begun += 1
        await self.go.wait()
        await asyncio.sleep(0.001)


A_LIST = Command.LIST, Nothing(), ListResult
A_HISTORY = Command.HISTORY, HistoryParameters(limit=1), HistoryResult


def flood(
    daemon: Daemon,
    connections: int,
    uid: int | None = None,
    asked: tuple[Command, Message, type[Message]] = A_LIST,
) -> list[socket.socket]:
    """As many requests as these connections allow at the same time."""
    command, parameters, _result = asked
    requests = b"".join(request_frame(number, "x", command, parameters) for number in range(1, 65))
    with identity(uid):
        flooding = [daemon.connect() for _number in range(connections)]
    for connection in flooding:
        connection.sendall(Conversation(PEOPLE).hello() + requests)
    return flooding


def in_progress(daemon: Daemon) -> list[int]:
    """The number of requests of each connection."""
    return [len(channel._running) for channel in daemon.handler._channels]


@as_root
async def test_a_flood_of_one_user_hardly_delays_another(daemon: Daemon) -> None:
    async with daemon.listening():
        surveys = Surveys(daemon)
        flooding = flood(daemon, module.MAX_CONNECTIONS_PER_USER, uid=OTHER_USER)
        await until(lambda: in_progress(daemon) == [8] * module.MAX_CONNECTIONS_PER_USER)
        for _turn in range(100):
            await asyncio.sleep(0)
        assert sum(in_progress(daemon)) == 8 * module.MAX_CONNECTIONS_PER_USER
        asking = asyncio.create_task(daemon.ask(Command.LIST, Nothing(), ListResult))
        await until(lambda: 1 in in_progress(daemon))
        assert surveys.begun == 1
        surveys.go.set()
        await asking
        assert surveys.begun < 10, "of the 2048 requested before"
        for connection in flooding:
            connection.close()


@pytest.mark.parametrize(
    ("asked", "at_once"), [(A_LIST, 1), (A_HISTORY, module.READING_PER_USER)], ids=["list", "history"]
)
async def test_requests_that_only_read_end_with_the_connection(
    daemon: Daemon, asked: tuple[Command, Message, type[Message]], at_once: int
) -> None:
    async with daemon.listening():
        surveys = Surveys(daemon)
        flooding = flood(daemon, 10, asked=asked)
        await until(lambda: in_progress(daemon) == [8] * 10)
        for connection in flooding:
            connection.close()
        surveys.go.set()
        await daemon.ask(*asked)
        assert surveys.begun == at_once + 1, "those in progress, and ours"


async def test_concurrent_answers_per_user_are_limited(daemon: Daemon) -> None:
    """Only requests that read are limited; those that change something do not wait for them."""
    async with daemon.listening():
        histories = Surveys(daemon)
        frame = request_frame(1, "x", Command.HISTORY, HistoryParameters(limit=1))
        asking = [daemon.connect() for _number in range(3)]
        for connection in asking:
            connection.sendall(Conversation(PEOPLE).hello() + frame * 8)
        await until(lambda: in_progress(daemon) == [8] * 3)
        for _turn in range(100):
            await asyncio.sleep(0)
        assert histories.begun == module.READING_PER_USER
        bound = await daemon.ask(Command.BIND, BindParameters(busid="1-2"), BindResult)
        assert bound.devices
        histories.go.set()
        await until(lambda: histories.begun == 24)
        for connection in asking:
            connection.close()


async def test_an_error_carries_its_advice(daemon: Daemon) -> None:
    async with daemon.listening():
        with pytest.raises(UsbipdError, match="device '9-9' does not exist") as caught:
            await daemon.ask(Command.BIND, BindParameters(busid="9-9"), BindResult)
        assert caught.value.code == "no-device"
        assert caught.value.advice


ADMINS = 54322
"""The group of the administrators in these tests."""

LOOK = (
    (Command.LIST, Nothing(), ListResult),
    (Command.STATUS, Nothing(), StatusResult),
    (Command.HISTORY, HistoryParameters(limit=1), HistoryResult),
    (Command.HEALTH, Nothing(), HealthResult),
    (Command.WATCH, Nothing(), Nothing),
)
CHANGE = (
    (Command.BIND, BindParameters(busid="1-2"), BindResult),
    (Command.UNBIND, UnbindParameters(busid="1-2"), UnbindResult),
    (Command.RELEASE_DEVICE, ReleaseParameters(busid="1-2"), ReleaseResult),
)


@as_root
@pytest.mark.parametrize(
    ("uid", "groups", "may_change"),
    [(None, (), True), (OTHER_USER, (ADMINS,), True), (OTHER_USER, (ADMINS + 1,), False)],
    ids=["root", "a member of the group", "another user"],
)
async def test_each_row_of_the_table(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, uid: int | None, groups: Sequence[int], may_change: bool
) -> None:
    """The kernel identifies the peer of a real connection."""
    monkeypatch.setattr(privileges, "admin_group", lambda: ADMINS)
    async with daemon.listening():
        for command, parameters, result in LOOK:
            await daemon.ask(command, parameters, result, uid=uid, groups=groups)
        for command, parameters, result in CHANGE:
            if may_change:
                await daemon.ask(command, parameters, result, uid=uid, groups=groups)
                continue
            with pytest.raises(
                UsbipdError, match=f"permission denied: {command.partition('-')[0]} "
            ) as caught:
                await daemon.ask(command, parameters, result, uid=uid, groups=groups)
            assert caught.value.code == "not-permitted"
        with pytest.raises(UsbipdError) as caught:
            await daemon.ask(
                Command.DETACH, DetachParameters(busid="1-2"), DetachResult, uid=uid, groups=groups
            )
        assert caught.value.code == ("not-attached" if may_change else "not-permitted")
        for command in set(Command) - {row[0] for row in LOOK + CHANGE} - {Command.DETACH}:
            with pytest.raises(UsbipdError) as caught:
                await daemon.ask(command, Nothing(), Nothing, uid=uid, groups=groups)
            assert caught.value.code in ("not-permitted", "gone"), "only our processes may send these"


async def test_watching(daemon: Daemon) -> None:
    """One CHANGED, however much changes, until the watcher sends another request."""
    async with daemon.listening():
        channel = await asyncio.to_thread(BlockingChannel, daemon.connect(), "test", PEOPLE)
        await asyncio.to_thread(channel.request, Command.WATCH, Nothing(), Nothing, timeout=PATIENCE)
        for _turn in range(2):
            for _change in range(100):
                daemon.recorder.changed()
            event = await asyncio.to_thread(channel.receive, PATIENCE)
            assert isinstance(event, Event)
            assert event.event is EventName.CHANGED
            await asyncio.to_thread(channel.request, Command.LIST, Nothing(), ListResult, timeout=PATIENCE)
        channel.close()
        await until(lambda: not daemon.handler._watching)
        daemon.recorder.changed()


async def test_a_connection_that_is_closed_before_its_watch_runs_is_not_kept(daemon: Daemon) -> None:
    """The frame after WATCH closes the connection before WATCH is handled."""
    async with daemon.listening():
        connection = daemon.connect()
        watch = request_frame(1, "x", Command.WATCH, Nothing())
        connection.sendall(Conversation(PEOPLE).hello() + watch + encode_frame(b"\xc1", descriptor=False))
        async with asyncio.timeout(PATIENCE):
            while await asyncio.to_thread(connection.recv, 1000):
                pass
        connection.close()
        await daemon.ask(Command.LIST, Nothing(), ListResult)  # WATCH has been handled by then
        assert not daemon.handler._watching


async def test_a_request_waits_until_the_daemon_can_answer(daemon: Daemon) -> None:
    daemon.handler.start_listener()
    asking = asyncio.create_task(daemon.ask(Command.LIST, Nothing(), ListResult))
    await until(lambda: daemon.handler._channels)
    assert not asking.done()
    daemon.handler.serve(Answers(daemon.manager, daemon.status_monitor, daemon.recorder))
    assert (await asking).devices
    daemon.handler.close()


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
        Conversation(PEOPLE).hello() + encode_frame(b"\xc1", descriptor=False),
        Conversation(PEOPLE).hello() + encode_frame(nested(60_000), descriptor=False),
    ],
    ids=["4 GiB", "HTTP", "no MessagePack", "deep"],
)
async def test_garbage_ends_only_its_own_connection(
    daemon: Daemon, rubbish: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with daemon.listening():
        connection = daemon.connect()
        connection.sendall(rubbish)
        async with asyncio.timeout(PATIENCE):
            while await asyncio.to_thread(connection.recv, 1000):
                pass
        connection.close()
        await daemon.ask(Command.LIST, Nothing(), ListResult)
    assert "dropped: " in caplog.text
    assert "Traceback" not in caplog.text


def test_a_flood_of_garbage_logs_few_lines_with_correct_counts(daemon: Daemon) -> None:
    number = BURST + 30

    async def test() -> None:
        async with daemon.listening():
            for _each in range(number):
                connection = daemon.connect()
                connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
                async with asyncio.timeout(PATIENCE):
                    while await asyncio.to_thread(connection.recv, 1000):
                        pass
                connection.close()

    with own_log() as log_of_it:
        run(test())
        assert len(log_of_it.lines(" dropped: ")) == BURST
        log.tell_left_out()
        assert len(log_of_it.lines(" dropped: ")) == BURST + 1
        assert log_of_it.count(" dropped: ") == number


async def test_connections_per_user_are_limited(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONNECTIONS_PER_USER", 3)
    async with daemon.listening():
        idle = [daemon.connect() for _number in range(3)]
        await until(lambda: len(daemon.handler._channels) == 3)
        refused = daemon.connect()
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.to_thread(refused.recv, 1) == b""
        refused.close()
        if os.geteuid() == 0:
            await daemon.ask(Command.LIST, Nothing(), ListResult, uid=OTHER_USER)
        idle.pop().close()
        await until(lambda: len(daemon.handler._channels) == 2)
        await daemon.ask(Command.LIST, Nothing(), ListResult)
        for connection in idle:
            connection.close()


async def test_the_mode_of_the_socket(daemon: Daemon) -> None:
    async with daemon.listening():
        mode = stat.S_IMODE(daemon.path.stat().st_mode)
        assert mode == (0o666 if os.geteuid() == 0 else 0o600)


async def test_accept_without_a_free_descriptor(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It waits for a free one, and meanwhile neither spins nor floods the log."""
    monkeypatch.setattr("usbipd.extension.control.ACCEPT_PAUSE", 1.0)  # longer than the turns below may take
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


# ---- files of others at its paths: of a running or killed extension, or of another program -----------------


async def test_a_second_extension_is_refused(daemon: Daemon) -> None:
    async with daemon.listening():
        with pytest.raises(UsbipdError, match="running already") as caught:
            daemon.new_handler().start_listener()
        assert caught.value.code == "already-running"
        other = IPCHandler(daemon.path.with_name("other.sock"), None, range(0))
        with pytest.raises(UsbipdError, match="running already") as caught:
            other.start_listener()
        assert f"`usbipd-ext --status --socket {daemon.path}` shows it" in (caught.value.advice or "")
        await daemon.ask(Command.LIST, Nothing(), ListResult)


async def test_a_pid_file_stays_as_long_as_its_extension_runs(daemon: Daemon) -> None:
    files = RuntimeFiles(daemon.path)
    async with daemon.listening():
        files.write_pid()
        files.remove_stale_pid()
        assert files.pid_file.exists()
    files.remove_stale_pid()
    assert not files.pid_file.exists()
    files.remove_stale_pid()


async def test_two_extensions_start_at_the_same_time(daemon: Daemon) -> None:
    """The second one never mistakes the first one's socket for a stale one."""
    async with daemon.listening():
        daemon.path.unlink()
        with pytest.raises(UsbipdError, match="running already"):
            daemon.new_handler().start_listener()
    async with daemon.listening():
        await daemon.ask(Command.LIST, Nothing(), ListResult)
    assert not daemon.path.exists()


async def test_the_socket_of_a_killed_extension_is_replaced(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(daemon.path))
    async with daemon.listening():
        await daemon.ask(Command.LIST, Nothing(), ListResult)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_the_socket_of_another_program_stays(daemon: Daemon, kind: socket.SocketKind) -> None:
    async def test() -> None:
        with pytest.raises(UsbipdError, match=f"another program listens on {daemon.path}"):
            daemon.handler.start_listener()

    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(daemon.path))
        if kind is socket.SOCK_STREAM:
            other.listen()
        run(test())
        with socket.socket(socket.AF_UNIX, kind) as client:
            client.connect(str(daemon.path))


def test_the_socket_of_another_program_with_a_full_queue_stays(daemon: Daemon) -> None:
    async def test() -> None:
        with pytest.raises(UsbipdError, match="another program listens"):
            daemon.handler.start_listener()

    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as client:
        other.bind(str(daemon.path))
        other.listen(0)
        client.connect(str(daemon.path))
        run(test())
    assert daemon.path.is_socket()


async def test_a_file_that_is_not_a_socket_stays(daemon: Daemon) -> None:
    daemon.path.write_text("precious")
    with pytest.raises(UsbipdError, match="exists and is not a socket"):
        daemon.handler.start_listener()
    assert daemon.path.read_text() == "precious"
