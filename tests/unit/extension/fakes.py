"""Children that live in the test's own process, behind real channels, and a host's sysfs made of files."""

import asyncio
import itertools
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from usbipd.errors import IPCError, UsbipdError
from usbipd.extension.supervisor import Child
from usbipd.ipc.async_channel import Channel, EventHandler, RequestHandler
from usbipd.ipc.channel import Request
from usbipd.ipc.messages import (
    AttachParameters,
    ClaimParameters,
    ClaimResult,
    Command,
    DetachedParameters,
    EventName,
    GoneParameters,
    Message,
    Nothing,
    ServeParameters,
    ServeResult,
    SimulatedSpec,
)
from usbipd.ipc.policy import Role
from usbipd.protocol.constants import Speed
from usbipd.protocol.op import UsbDevice
from usbipd.usb.discovery import DeviceRecord

PATIENCE = 10.0


def run(test: Awaitable[None]) -> None:
    """Run an asyncio test, but not for ever."""

    async def bounded() -> None:
        async with asyncio.timeout(3 * PATIENCE):
            await test

    asyncio.run(bounded())


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until `condition` holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


def record(busid: str = "1-2", *, simulated: bool = False) -> DeviceRecord:
    """A device as discovery finds it."""
    bus, _, port = busid.partition("-")
    return DeviceRecord(
        busid=busid,
        busnum=int(bus),
        devnum=int(port[-1]) + 10,
        path=f"/sys/devices/{busid}",
        vendor_id=0x1234,
        product_id=0x5678,
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

    async def list_devices(self) -> list[DeviceRecord]:
        return list(self.records.values())

    async def find(self, busid: str) -> DeviceRecord | None:
        return self.records.get(busid)


class FakeChild:
    """The child's end: answers as a good server or worker does, unless the test says otherwise."""

    def __init__(self, spawner: "FakeSpawner", role: Role, connection: socket.socket) -> None:
        self.role = role
        self.killed = False
        self.asked: list[Request] = []
        self.descriptor: int | None = None
        """That of CLAIM or ATTACH, whichever came last."""
        self._spawner = spawner
        self.channel = Channel(connection, name="extension", role=Role.EXTENSION, on_request=self._answer)

    @property
    def commands(self) -> list[Command]:
        return [request.command for request in self.asked]

    def parameters(self, command: Command) -> Message:
        """Of the last request of that kind."""
        return next(request.parameters for request in reversed(self.asked) if request.command is command)

    def detach(self) -> None:
        """The client has gone."""
        self.channel.push(EventName.DETACHED, DetachedParameters(reason="the client has gone"))

    def restored(self) -> None:
        self.channel.push(EventName.RESTORED, Nothing())

    def device_gone(self) -> None:
        self.channel.push(EventName.DEVICE_GONE, GoneParameters(reason="unplugged"))

    def die(self) -> None:
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
            asyncio.get_running_loop().call_soon(self.die)
        return answer_of(request)


def answer_of(request: Request) -> Message:
    """What a good child answers."""
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
    assert isinstance(parameters, Nothing | AttachParameters)
    return Nothing()


class FakeSpawner:
    """Starts `FakeChild`s.  `answers` says what they answer instead of the good; "silence" is nothing."""

    def __init__(self) -> None:
        self.children: list[FakeChild] = []
        self.answers: dict[Command, Message | UsbipdError | str] = {}
        self.error: OSError | None = None
        self.lingering = False
        """Whether children live on after they answered RELEASE."""
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
        fake = FakeChild(self, role, theirs)

        def closed(_reason: IPCError | None) -> None:
            # One that does not even answer CLAIM does not notice either that its channel is closed.
            if self.answers.get(Command.CLAIM) != "silence" or fake.killed:
                fake.die()
                child.ended.set()

        channel = Channel(
            ours, name=f"fake {role}", role=role, on_request=on_request, on_event=on_event, on_close=closed
        )
        child = Child(role, busid, next(self._pids), channel)
        self._ends[child.pid] = fake
        self.children.append(fake)
        return child

    def kill(self, child: Child) -> None:
        fake = self._ends[child.pid]
        fake.killed = True
        fake.die()
        child.channel.close()
        child.ended.set()


class FakeSysfs:
    """A directory that looks like the USB part of sysfs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mount_table = root / "mountinfo"
        self.mount_table.write_text("")
        self._probe = root / "bus/usb/drivers_probe"
        (root / "bus/usb/devices").mkdir(parents=True)
        (root / "class/block").mkdir(parents=True)
        self._probe.touch()

    @property
    def probed(self) -> str:
        """The interface for which a driver was last looked."""
        return self._probe.read_text()

    def add_interface(self, busid: str, number: int, driver: str | None) -> None:
        """The device has interface `number`, held by `driver`."""
        device = self.root / "devices" / busid
        device.mkdir(parents=True, exist_ok=True)
        interface = device / f"{busid}:1.{number}"
        interface.mkdir()
        link = self.root / "bus/usb/devices" / busid
        if not link.is_symlink():
            link.symlink_to(device)
        (self.root / "bus/usb/devices" / interface.name).symlink_to(interface)
        if driver is not None:
            target = self.root / "bus/usb/drivers" / driver
            target.mkdir(parents=True, exist_ok=True)
            (interface / "driver").symlink_to(target)

    def add_block_device(self, under: Path, name: str, number: str) -> Path:
        """A block device with major:minor `number` below the directory `under`."""
        block = under / name
        (block / "holders").mkdir(parents=True)
        (block / "dev").write_text(number + "\n")
        (self.root / "class/block" / name).symlink_to(block)
        return block

    def mount(self, number: str, point: str, source: str) -> None:
        """A line of the mount table."""
        line = f"36 25 {number} / {point} rw,relatime shared:1 - ext4 {source} rw\n"
        self.mount_table.write_text(self.mount_table.read_text() + line)


def other_device(original: DeviceRecord) -> DeviceRecord:
    """Another device at the same port."""
    return replace(original, product_id=original.product_id + 1)
