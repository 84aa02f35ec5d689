"""An extension behind its control socket, and who asks it, for the tests of both."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from tests.unit.extension.fakes import (
    ORDERS,
    PATIENCE,
    FakeSource,
    FakeSpawner,
    FakeStore,
    FakeSysfs,
    make_manager,
    record,
)
from usbipd.extension.control import Answers, IPCHandler
from usbipd.extension.reservations import Reservations
from usbipd.extension.server_supervisor import ServerSupervisor
from usbipd.extension.status_monitor import StatusMonitor
from usbipd.ipc.blocking_channel import BlockingChannel
from usbipd.ipc.control_messages import PEOPLE
from usbipd.ipc.conversation import Result
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command
from usbipd.log import ErrorCounter


class Daemon:
    """An extension with one device, on a socket in a directory that everybody can enter."""

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
            channel = BlockingChannel(connection, "test", PEOPLE)
            try:
                return channel.request(command, parameters, result, timeout=PATIENCE)
            finally:
                channel.close()

        return await asyncio.to_thread(request)


@contextmanager
def identity(uid: int | None, groups: Sequence[int] = ()) -> Iterator[None]:
    """Be another user for a moment; the kernel notes who connects."""
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
