"""The server is kept running, and its requests are answered."""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence

import pytest

from tests.unit.extension.fakes import (
    ORDERS,
    PATIENCE,
    FakeChild,
    FakeSource,
    FakeSpawner,
    FakeStore,
    FakeSysfs,
    make_claimer,
    record,
    until,
)
from usbipd.errors import UsbipdError
from usbipd.extension.event_recorder import EventRecorder
from usbipd.extension.reservations import Reservations
from usbipd.extension.server_supervisor import ServerSupervisor
from usbipd.ipc.children import (
    DevlistParameters,
    DevlistResult,
    LogParameters,
    ReservationParameters,
    ReserveParameters,
    ReserveResult,
)
from usbipd.ipc.control_messages import HistoryEvent
from usbipd.ipc.conversation import Request
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command, Nothing
from usbipd.ipc.row import Role
from usbipd.protocol.constants import ST_OK


class Daemon:
    """A server, and one claimed device."""

    def __init__(self, spawner: FakeSpawner, sysfs: FakeSysfs) -> None:
        self.spawner = spawner
        self.claimer = make_claimer(spawner, sysfs, FakeSource(record("1-2")).find)
        self.asked: list[str] = []
        self.store = FakeStore()

        def offers(addresses: Sequence[str]) -> DevlistResult:
            self.asked.extend(addresses)
            devices = [
                device.wire_device
                for device in self.claimer.shared_devices.values()
                if device.wire_device is not None
            ]
            return DevlistResult(devices=devices, lists=[[0]], list_of=[0] * len(addresses))

        reservations = Reservations(lambda busid, _address: self.claimer.find(busid), handover_timeout=20.0)
        self.server = ServerSupervisor(spawner, ORDERS, offers, reservations, EventRecorder(self.store))

    async def start(self) -> None:
        await self.server.start(after_a_kill=False)
        await self.claimer.claim_device(record("1-2"))

    async def stop(self) -> None:
        await self.server.stop()
        await self.claimer.release_device("1-2", timeout=5)

    async def reserve(self, number: int = 1) -> ReserveResult:
        return await self.servers[-1].channel.request(
            Command.RESERVE,
            ReserveParameters(reservation=number, busid="1-2", client="c", address="192.0.2.1", wait=False),
            ReserveResult,
            timeout=PATIENCE,
        )

    @property
    def servers(self) -> list[FakeChild]:
        return [child for child in self.spawner.children if child.role is Role.SERVER]


@pytest.fixture
def daemon(spawner: FakeSpawner, sysfs: FakeSysfs) -> Daemon:
    return Daemon(spawner, sysfs)


async def test_requests_of_a_server(daemon: Daemon) -> None:
    await daemon.start()
    server = daemon.servers[0].channel
    listed = await server.request(
        Command.DEVLIST,
        DevlistParameters(addresses=["192.0.2.1"]),
        DevlistResult,
        timeout=PATIENCE,
    )
    assert [device.busid for device in listed.devices] == ["1-2"]
    assert daemon.asked == ["192.0.2.1"]
    assert (await daemon.reserve(1)).status == ST_OK
    await server.request(Command.ABANDON, ReservationParameters(reservation=1), Nothing, timeout=PATIENCE)
    assert (await daemon.reserve(2)).status == ST_OK
    with socket.socket() as connection:
        await server.request(
            Command.HANDOVER,
            ReservationParameters(reservation=2),
            Nothing,
            timeout=PATIENCE,
            descriptor=connection.fileno(),
        )
    assert daemon.claimer.shared_devices["1-2"].client == "c"
    await daemon.stop()


async def test_a_log_level_that_changes_while_a_server_starts(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = FakeChild._answer

    async def change_first(child: FakeChild, request: Request) -> Message:
        if request.command is Command.SERVE:
            daemon.server.set_log_level("debug")
        return await answer(child, request)

    monkeypatch.setattr(FakeChild, "_answer", change_first)
    await daemon.server.start(after_a_kill=False)
    [server] = daemon.servers
    await until(lambda: server.commands == [Command.SERVE, Command.LOG])
    assert server.parameters(Command.LOG) == LogParameters(level="debug")
    await daemon.server.stop()


def unix_socket() -> int:
    return socket.socket(socket.AF_UNIX).detach()


def datagram_socket() -> int:
    return socket.socket(type=socket.SOCK_DGRAM).detach()


def no_socket() -> int:
    return os.open(os.devnull, os.O_RDONLY)


@pytest.mark.parametrize("make", [no_socket, unix_socket, datagram_socket])
async def test_a_server_that_hands_over_a_wrong_descriptor_is_replaced(
    daemon: Daemon, make: Callable[[], int]
) -> None:
    """It was compromised: the worker, which would crash, never gets the descriptor."""
    await daemon.start()
    worker = daemon.spawner.last
    assert (await daemon.reserve(1)).status == ST_OK
    descriptor = make()
    with pytest.raises(UsbipdError):
        await daemon.servers[0].channel.request(
            Command.HANDOVER,
            ReservationParameters(reservation=1),
            Nothing,
            timeout=PATIENCE,
            descriptor=descriptor,
        )
    os.close(descriptor)
    await until(lambda: len(daemon.servers) == 2 and daemon.server.child is not None)
    assert worker.commands == [Command.CLAIM]
    assert daemon.claimer.shared_devices["1-2"].is_free
    await daemon.stop()


async def test_a_server_that_reports_a_too_long_client_name_is_replaced(daemon: Daemon) -> None:
    """Names of clients go into logs and the status."""
    await daemon.start()
    with pytest.raises(UsbipdError):
        await daemon.servers[0].channel.request(
            Command.RESERVE,
            ReserveParameters(reservation=1, busid="1-2", client="c" * 81, address="192.0.2.1", wait=False),
            ReserveResult,
            timeout=PATIENCE,
        )
    await until(lambda: len(daemon.servers) == 2 and daemon.server.child is not None)
    assert daemon.claimer.shared_devices["1-2"].is_free
    await daemon.stop()


async def test_a_server_that_dies_is_replaced_on_the_same_ports(daemon: Daemon) -> None:
    await daemon.start()
    assert daemon.server.listening == ["127.0.0.1:4321", "[::1]:3240"]
    device = daemon.claimer.shared_devices["1-2"]
    assert (await daemon.reserve()).status == ST_OK
    assert not device.is_free
    daemon.servers[0].die()
    await until(lambda: len(daemon.servers) == 2 and daemon.server.child is not None)
    [failure] = daemon.store.recorded(HistoryEvent.FAILED)
    assert failure["reason"].startswith("the server ended with ")
    assert device.is_free, "its client is gone, too"
    assert daemon.servers[1].parameters(Command.SERVE).listen == ["127.0.0.1:4321", "[::1]:3240"]
    await daemon.stop()
    assert not daemon.servers[1].channel.is_open
    assert len(daemon.store.events) == 1, "its end is no failure when the daemon shuts down"


def delays_of_servers(caplog: pytest.LogCaptureFixture) -> list[float]:
    """The seconds before each next server, as the log has them."""
    records = [record for record in caplog.records if record.msg.startswith("no server")]
    return [float(record.args[0]) for record in records if isinstance(record.args, tuple)]


async def test_a_port_in_use_is_recorded_once_in_the_history(
    daemon: Daemon,
    spawner: FakeSpawner,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And retries are less and less frequent."""
    monkeypatch.setattr("usbipd.extension.supervisor.FIRST_DELAY", 0.001)
    await daemon.start()
    spawner.answers[Command.SERVE] = UsbipdError("port 3240 is in use", code="address-in-use")
    daemon.servers[0].die()
    await until(lambda: len(daemon.servers) == 4)
    spawner.answers[Command.SERVE] = UsbipdError("there is no such address", code="no-such-address")
    await until(lambda: len(daemon.servers) == 6)
    del spawner.answers[Command.SERVE]
    await until(lambda: daemon.server.child is not None)
    assert [details["reason"] for details in daemon.store.recorded(HistoryEvent.FAILED)] == [
        "the server ended with signal SIGKILL",
        "the server cannot listen: port 3240 is in use",
        "the server cannot listen: there is no such address",
    ]
    await daemon.stop()
    delays = delays_of_servers(caplog)
    assert delays[-1] > 2 * delays[0]


async def test_a_port_in_use_is_an_error_at_the_start(daemon: Daemon, spawner: FakeSpawner) -> None:
    spawner.answers[Command.SERVE] = UsbipdError("in use", code="address-in-use", advice="choose another")
    with pytest.raises(UsbipdError, match="in use"):
        await daemon.server.start(after_a_kill=False)
    assert not daemon.servers[0].channel.is_open
    assert daemon.server.child is None


async def test_the_port_of_a_killed_extension_is_waited_for(daemon: Daemon, spawner: FakeSpawner) -> None:
    """Its server exits on its own, but only after we have started."""
    spawner.answers[Command.SERVE] = UsbipdError("in use", code="address-in-use")
    starting = asyncio.create_task(daemon.server.start(after_a_kill=True))
    await until(lambda: len(daemon.servers) > 1)
    del spawner.answers[Command.SERVE]
    await starting
    assert daemon.server.child is not None
    await daemon.server.stop()


async def test_the_delay_after_a_server_that_listened_stays_short(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that can crash servers must not lock out others."""
    monkeypatch.setattr("usbipd.extension.supervisor.FIRST_DELAY", 0.001)
    monkeypatch.setattr("usbipd.extension.server_supervisor.LONGEST_GAP", 0.004)
    await daemon.start()
    for number in range(1, 9):
        daemon.servers[-1].die()
        await until(lambda: len(daemon.servers) == number + 1 and daemon.server.child is not None)  # noqa: B023
    await daemon.stop()
    delays = delays_of_servers(caplog)
    assert len(delays) == 8
    assert max(delays) <= 0.004


async def test_pending_requests_of_a_server_end_with_it(daemon: Daemon) -> None:
    await daemon.start()
    device = daemon.claimer.shared_devices["1-2"]
    assert (await daemon.reserve(1)).status == ST_OK
    parameters = ReserveParameters(reservation=2, busid="1-2", client="c", address="192.0.2.1", wait=True)
    waiting = asyncio.create_task(
        daemon.servers[0].channel.request(Command.RESERVE, parameters, ReserveResult, timeout=PATIENCE)
    )
    await until(lambda: daemon.server._reservations._waiting)
    daemon.servers[0].die()
    await asyncio.wait({waiting})
    await until(lambda: not daemon.server._reservations._waiting)
    await until(lambda: device.is_free)
    await until(lambda: daemon.server.child is not None)
    assert device.is_free
    assert waiting.exception() is not None
    await daemon.stop()


async def test_a_missing_address_is_not_waited_for(daemon: Daemon, spawner: FakeSpawner) -> None:
    spawner.answers[Command.SERVE] = UsbipdError("no such address", code="no-such-address")
    with pytest.raises(UsbipdError, match="no such address"):
        await daemon.server.start(after_a_kill=True)
    assert len(daemon.servers) == 1


async def test_a_port_in_use_later_is_waited_for(daemon: Daemon, spawner: FakeSpawner) -> None:
    await daemon.start()
    spawner.answers[Command.SERVE] = UsbipdError("in use", code="address-in-use")
    daemon.servers[0].die()
    await until(lambda: len(daemon.servers) >= 3)
    assert daemon.server.child is None
    del spawner.answers[Command.SERVE]
    await until(lambda: daemon.server.child is not None)
    await daemon.stop()


async def test_a_server_that_does_not_end_is_killed(daemon: Daemon, spawner: FakeSpawner) -> None:
    await daemon.server.start(after_a_kill=False)
    spawner.answers[Command.CLAIM] = "silence"  # nor does it notice that its channel is closed
    assert not daemon.servers[0].killed
    await daemon.stop()
    assert daemon.servers[0].killed
