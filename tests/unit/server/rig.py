"""A server under test: real TCP on loopback, and a fake extension behind it."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from usbipd.access import AccessList
from usbipd.addresses import parse_listen
from usbipd.errors import UsbipdError
from usbipd.ipc.async_channel import Channel
from usbipd.ipc.children import (
    CHILDREN,
    DevlistParameters,
    DevlistResult,
    ReservationParameters,
    ReserveParameters,
    ReserveResult,
)
from usbipd.ipc.conversation import Request
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command, Nothing
from usbipd.ipc.row import Role
from usbipd.protocol.constants import ST_NODEV, ST_OK
from usbipd.protocol.op import UsbDevice
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
        self.devices = [DEVICE]
        self.asked: list[Request] = []
        self.status = ST_OK
        self.silent: set[Command] = set()
        self.held: dict[Command, asyncio.Event] = {}
        """Commands whose answers wait for the event."""
        self.is_patient = False
        """Whether a RESERVE that may wait blocks until ABANDON."""
        self.waiting: dict[int, asyncio.Event] = {}
        """The waiting ones, by reservation number."""
        self.most_running = 0
        self.most_waiting = 0
        self.refused: set[Command] = set()
        self.client: socket.socket | None = None
        """The connections that arrived with HANDOVER."""
        self.channel = Channel(
            connection, name="server", role=Role.SERVER, table=CHILDREN, on_request=self._answer
        )

    @property
    def commands(self) -> list[Command]:
        return [request.command for request in self.asked]

    async def _answer(self, request: Request) -> Message:
        self.asked.append(request)
        self.most_running = max(self.most_running, len(self.channel._running))
        if request.command in self.silent:
            await asyncio.Event().wait()
        if request.command in self.held:
            await self.held[request.command].wait()
        if request.command in self.refused:
            raise UsbipdError("the reservation is no longer valid", code="no-reservation")
        if request.command is Command.DEVLIST:
            assert isinstance(request.parameters, DevlistParameters)
            everything = list(range(len(self.devices)))
            return DevlistResult(
                devices=self.devices, lists=[everything], list_of=[0] * len(request.parameters.addresses)
            )
        if request.command is Command.RESERVE:
            assert isinstance(request.parameters, ReserveParameters)
            if request.parameters.busid != "240-1":
                return ReserveResult(status=ST_NODEV)
            if self.is_patient and request.parameters.wait:
                await self._wait(request.parameters.reservation)
            if self.status != ST_OK:
                return ReserveResult(status=self.status)
            return ReserveResult(status=ST_OK, device=DEVICE)
        if request.command is Command.ABANDON:
            assert isinstance(request.parameters, ReservationParameters)
            if request.parameters.reservation in self.waiting:
                self.waiting[request.parameters.reservation].set()
        if request.descriptor is not None:
            if self.client is not None:
                self.client.close()
            self.client = socket.socket(fileno=os.dup(request.descriptor))
        return Nothing()

    async def _wait(self, number: int) -> None:
        abandoned = self.waiting[number] = asyncio.Event()
        self.most_waiting = max(self.most_waiting, len(self.waiting))
        await abandoned.wait()
        del self.waiting[number]


class Server:
    """A coordinator that listens, the extension behind it, and clients."""

    def __init__(
        self, coordinator: ServerCoordinator, extension: FakeExtension, address: str, failed: asyncio.Event
    ) -> None:
        """`failed` is set when a listener fails for good."""
        self.coordinator = coordinator
        self.failed = failed
        self.extension = extension
        self.address = parse_listen(address)

    async def connect(self, *, source: str = "127.0.0.1") -> Streams:
        return await asyncio.open_connection(*self.address, local_addr=(source, 0))

    async def ask(self, request: bytes, *, source: str = "127.0.0.1") -> bytes:
        """All bytes from the server until it closes."""
        reader, writer = await self.connect(source=source)
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
    lost_client_timeout: int = 120,
    send_buffer: int = 0,
    listen: str = "127.0.0.1:0",
    allow: Sequence[str] = (),
) -> AsyncIterator[Server]:
    one, other = socket.socketpair()
    extension = FakeExtension(one)
    channel = Channel(
        other, name="extension", role=Role.EXTENSION, table=CHILDREN, on_request=extension._answer
    )
    coordinator = ServerCoordinator(
        channel,
        AccessList(allow),
        max_connections=total,
        max_connections_per_address=per_address,
        handshake_timeout=handshake_timeout,
        lost_client_timeout=lost_client_timeout,
        send_buffer=send_buffer,
    )
    address = coordinator.bind([listen])[0]
    failed = asyncio.Event()
    coordinator.start(failed.set)
    yield Server(coordinator, extension, address, failed)
    channel.close()
    extension.channel.close()
    if extension.client is not None:
        extension.client.close()
    for listener in coordinator._listeners:
        asyncio.get_running_loop().remove_reader(listener)
        listener.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


async def until_log(caplog: pytest.LogCaptureFixture, text: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while text not in caplog.text:  # noqa: ASYNC110 - a log has no event
            await asyncio.sleep(0.001)
