"""Fake children inside the test's process, behind real channels."""

import asyncio
import itertools
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.unit.usb.fake_sysfs import FakeSysfs as FakeSysfs  # one of the fakes that tests take from here
from usbipd.config import AccessRule
from usbipd.errors import IPCError, UsbipdError
from usbipd.extension.bindings import Bindings
from usbipd.extension.claimer import DeviceClaimer, FindDevice
from usbipd.extension.driver_reattach import DriverReattacher
from usbipd.extension.event_recorder import EventRecorder
from usbipd.extension.manager import SystemExtensionManager
from usbipd.extension.store import Binding, StoredClaim
from usbipd.extension.supervisor import Child
from usbipd.extension.usb_stack import LINUX, UsbStack
from usbipd.extension.worker_confinement import WorkerConfinement
from usbipd.ipc.async_channel import Channel, EventHandler, RequestHandler
from usbipd.ipc.children import (
    CHILDREN,
    AttachParameters,
    ClaimParameters,
    ClaimResult,
    DetachedParameters,
    GoneParameters,
    LogParameters,
    ServeParameters,
    ServeResult,
)
from usbipd.ipc.control_messages import HistoryEntry, HistoryEvent
from usbipd.ipc.conversation import Request
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command, EventName, Nothing
from usbipd.ipc.row import Role
from usbipd.protocol.constants import Speed
from usbipd.protocol.op import UsbDevice
from usbipd.simulated.spec import SimulatedSpec
from usbipd.usb.discovery import DeviceRecord
from usbipd.usb.identity import DeviceRule
from usbipd.usb.ownership import Ownership

PATIENCE = 10.0


def run(test: Awaitable[None]) -> None:
    """Run an asyncio test, with a time limit."""

    async def bounded() -> None:
        async with asyncio.timeout(3 * PATIENCE):
            await test

    asyncio.run(bounded())


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until `condition` holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - no event exists for this
            await asyncio.sleep(0.001)


def record(busid: str = "1-2", *, simulated: bool = False) -> DeviceRecord:
    """A device as discovery lists it."""
    bus, _, port = busid.partition("-")
    return DeviceRecord(
        busid=busid,
        busnum=int(bus),
        devnum=int(port[-1]) + 10,
        path=f"/sys/devices/{busid}",
        vendor_id=0x1234,
        product_id=0x5678,
        serial=None,
        device_class=0,
        speed=Speed.HIGH,
        manufacturer="Maker",
        product="Thing",
        simulated=SimulatedSpec(name="loopback", options={}) if simulated else None,
    )


class FakeSource:
    """A source of devices that the test plugs and unplugs."""

    def __init__(self, *records: DeviceRecord) -> None:
        self.records = {record.busid: record for record in records}
        self.left_out: dict[str, UsbipdError] = {}
        self.problem: str | None = None
        self.lists = 0
        """How often the devices were listed."""

    async def list_devices(self) -> list[DeviceRecord]:
        self.lists += 1
        return list(self.records.values())

    async def find(self, busid: str) -> DeviceRecord | None:
        return self.records.get(busid)


class FakeStore:
    """A `Store` without a file; `error` is raised when bindings are written."""

    def __init__(self) -> None:
        self.kept: dict[DeviceRule, Binding] = {}
        self.held: dict[str, StoredClaim] = {}
        self.events: list[tuple[HistoryEvent, dict[str, Any]]] = []
        self.error: UsbipdError | None = None
        self.problems: list[str] = []

    def recorded(self, event: HistoryEvent) -> list[dict[str, Any]]:
        """The details of each event of this kind."""
        return [details for kind, details in self.events if kind is event]

    async def check(self) -> list[UsbipdError]:
        return []

    async def bindings(self) -> list[Binding]:
        return list(self.kept.values())

    async def add_binding(self, binding: Binding) -> None:
        if self.error is not None:
            raise self.error
        self.kept[binding.rule] = binding

    async def remove_bindings(self, rules: Sequence[DeviceRule]) -> None:
        if self.error is not None:
            raise self.error
        for rule in rules:
            del self.kept[rule]

    async def claims(self) -> list[StoredClaim]:
        return list(self.held.values())

    async def begin_claim(self, claim: StoredClaim) -> None:
        self.held[claim.busid] = claim

    async def end_claim(self, busid: str) -> None:
        self.held.pop(busid, None)

    def record(self, event: HistoryEvent, **details: Any) -> None:
        self.events.append((event, details))

    async def history(self, limit: int, before: int | None = None) -> list[HistoryEntry]:
        entries = [
            HistoryEntry(id=number, time=float(number), event=event, **details)
            for number, (event, details) in enumerate(self.events, 1)
            if before is None or number < before
        ]
        return entries[-limit:][::-1]


def make_claimer(
    spawner: "FakeSpawner",
    sysfs: FakeSysfs,
    find: FindDevice,
    store: FakeStore | None = None,
    *,
    uids: range = range(70000, 70003),
    stack: UsbStack = LINUX,
    ownership: Ownership | None = None,
) -> DeviceClaimer:
    """A claimer on the host that `sysfs` describes, with `uids` for its workers."""
    store = store or FakeStore()
    ownership = ownership or sysfs.ownership()
    return DeviceClaimer(
        spawner,
        ownership,
        find,
        DriverReattacher(ownership, store, stack),
        EventRecorder(store),
        stack=stack,
        confinement=WorkerConfinement(uids, Path("/empty")),
        transfer_budget=1 << 20,
        device_memory="auto",
        log_level="debug",
        log_to="stderr",
        on_end=lambda: None,
    )


def make_manager(
    spawner: "FakeSpawner",
    sysfs: FakeSysfs,
    *sources: "FakeSource",
    store: FakeStore | None = None,
    access: Sequence[AccessRule] = (),
    with_real: bool = True,
    stack: UsbStack = LINUX,
    ownership: Ownership | None = None,
) -> SystemExtensionManager:
    """A manager of the devices of `sources`."""
    store = store or FakeStore()
    return SystemExtensionManager(
        sources,
        spawner,
        ownership or sysfs.ownership(),
        store,
        Bindings(store, access),
        EventRecorder(store),
        stack=stack,
        with_real=with_real,
        confinement=WorkerConfinement(None, Path("/empty")),
        transfer_budget=1 << 20,
        device_memory="auto",
        log_level="info",
        log_to="stderr",
    )


ORDERS = ServeParameters(
    listen=["127.0.0.1:0", "[::1]:3240"],
    allow=[],
    max_connections=5,
    max_connections_per_address=2,
    handshake_timeout=1.0,
    lost_client_timeout=120,
    send_buffer=0,
    confinement=None,
    log_level="info",
    log_to="stderr",
)


class FakeChild:
    """The child's end: answers like a well-behaved server or worker, unless the test overrides it."""

    def __init__(
        self, spawner: "FakeSpawner", role: Role, busid: str | None, connection: socket.socket
    ) -> None:
        self.role = role
        self.busid = busid
        self.killed = False
        self.exit: str | None = None
        self.asked: list[Request] = []
        self.descriptor: int | None = None
        """The descriptor of the last CLAIM or ATTACH."""
        self._spawner = spawner
        self.channel = Channel(
            connection, name="extension", role=Role.EXTENSION, table=CHILDREN, on_request=self._answer
        )

    @property
    def commands(self) -> list[Command]:
        return [request.command for request in self.asked]

    def parameters(self, command: Command) -> Message:
        """The parameters of the last such request."""
        return next(request.parameters for request in reversed(self.asked) if request.command is command)

    def detach(self) -> None:
        """The client has left."""
        self.channel.push(EventName.DETACHED, DetachedParameters(reason="the client has gone"))

    def restored(self) -> None:
        self.channel.push(EventName.RESTORED, Nothing())

    def device_gone(self) -> None:
        self.channel.push(EventName.DEVICE_GONE, GoneParameters(reason="unplugged"))

    def end(self) -> None:
        """The child exits on its own."""
        self.exit = self.exit or "exit code 0"
        self.die()

    def die(self) -> None:
        """Kill the child, unless it has ended before."""
        self.exit = self.exit or "signal SIGKILL"
        self.channel.close()
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    async def _answer(self, request: Request) -> Message:
        self.asked.append(request)
        if request.descriptor is not None:
            if self.descriptor is not None:
                os.close(self.descriptor)
            self.descriptor = os.dup(request.descriptor)
        answer = self._spawner.answers.get(request.command)
        if answer == "silence":
            await asyncio.Event().wait()
        if isinstance(answer, UsbipdError):
            raise answer
        if isinstance(answer, Message):
            return answer
        if request.command is Command.RELEASE and not self._spawner.lingering:
            asyncio.get_running_loop().call_soon(self.end)
        if request.command is Command.DISCONNECT:
            self.detach()
            self.restored()
        return answer_of(request)


def answer_of(request: Request) -> Message:
    """The answers of a well-behaved child."""
    parameters = request.parameters
    if isinstance(parameters, ClaimParameters):
        device = UsbDevice(
            path=parameters.path,
            busid=parameters.busid,
            busnum=parameters.busnum,
            devnum=parameters.devnum,
            speed=Speed.HIGH,
            idVendor=0x1234,
            idProduct=0x5678,
            bcdDevice=0x0100,
            bDeviceClass=0,
            bDeviceSubClass=0,
            bDeviceProtocol=0,
            bConfigurationValue=1,
            bNumConfigurations=1,
            interfaces=(),
        )
        return ClaimResult(device=device, claim_method="fake", user="nobody")
    if isinstance(parameters, ServeParameters):
        return ServeResult(
            listening=[address.replace(":0", ":4321") for address in parameters.listen], user="nobody"
        )
    assert isinstance(parameters, Nothing | AttachParameters | LogParameters)
    return Nothing()


class FakeSpawner:
    """Starts `FakeChild`s.  `answers` overrides their answers; "silence" means none."""

    def __init__(self) -> None:
        self.children: list[FakeChild] = []
        self.answers: dict[Command, Message | UsbipdError | str] = {}
        self.error: OSError | None = None
        self.lingering = False
        """Whether children keep running after they answered RELEASE."""
        self._pids = itertools.count(1000)
        self._ends: dict[int, FakeChild] = {}

    @property
    def last(self) -> FakeChild:
        return self.children[-1]

    def spawn(
        self, role: Role, busid: str | None, on_request: RequestHandler, on_event: EventHandler | None
    ) -> Child:
        if self.error is not None:
            raise self.error
        ours, theirs = socket.socketpair()
        fake = FakeChild(self, role, busid, theirs)

        def closed(_reason: IPCError | None) -> None:
            # A child that does not answer CLAIM does not notice either that its channel is closed.
            if self.answers.get(Command.CLAIM) != "silence" or fake.killed:
                fake.end()
                child.exit = fake.exit
                child.ended.set()

        channel = Channel(
            ours,
            name=f"fake {role}",
            role=role,
            table=CHILDREN,
            on_request=on_request,
            on_event=on_event,
            on_close=closed,
        )
        child = Child(role, busid, next(self._pids), channel)
        self._ends[child.pid] = fake
        self.children.append(fake)
        return child

    def kill(self, child: Child) -> None:
        fake = self._ends[child.pid]
        fake.killed = True
        fake.die()
        child.exit = fake.exit
        child.channel.close()
        child.ended.set()


def other_device(original: DeviceRecord) -> DeviceRecord:
    """Another device at the same port."""
    return replace(original, product_id=original.product_id + 1)
