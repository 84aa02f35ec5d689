"""A healthy daemon made of fakes: a test breaks one part and checks the finding."""

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.unit.extension.fakes import record
from usbipd.errors import IPCError, UsbipdError
from usbipd.extension.check_context import CheckContext, Host
from usbipd.extension.device import ClaimedDevice, ClaimState, Failure
from usbipd.extension.health import Check
from usbipd.extension.supervisor import Child
from usbipd.findings import Finding
from usbipd.ipc.control_messages import (
    BindingInfo,
    CheckState,
    DeviceInfo,
    DeviceState,
    HistoryEntry,
    ListResult,
)
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command, Nothing
from usbipd.ipc.row import Role
from usbipd.protocol.constants import Speed
from usbipd.usb.discovery import DeviceRecord

PATIENCE = 20.0


class FakeChannel:
    """Answers PING, unless it is `silent`: then all requests wait until it is closed."""

    def __init__(self, *, silent: bool = False) -> None:
        self.is_open = True
        self.asked = 0
        self._silent = silent
        self._closed = asyncio.Event()

    async def request(
        self,
        command: Command,
        _parameters: Message,
        _result: type[Message],
        *,
        timeout: None,
    ) -> Message:
        assert command is Command.PING
        self.asked += 1
        if self._silent:
            await self._closed.wait()
        if not self.is_open:
            raise IPCError("fake is gone", code="gone")
        return Nothing()

    def close(self) -> None:
        self.is_open = False
        self._closed.set()


def child(
    role: Role = Role.WORKER, busid: str | None = None, *, pid: int | None = None, user: str = "usbipd"
) -> Child:
    """A child that runs and answers; by default with the pid of the test process."""
    return Child(role, busid, pid or os.getpid(), channel=FakeChannel(), user=user)  # type: ignore[arg-type]


def device(busid: str = "1-2", **changes: Any) -> DeviceInfo:
    """A real device, shared and without drivers, with `changes` applied."""
    fields: dict[str, Any] = {
        "busid": busid,
        "vendor_id": 0x1234,
        "product_id": 0x5678,
        "serial": None,
        "manufacturer": "Maker",
        "product": "Thing",
        "speed": Speed.HIGH.label,
        "device_class": 0,
        "drivers": [],
        "simulated": False,
        "state": DeviceState.SHARED,
    }
    return DeviceInfo(**(fields | changes))


def binding(busid: str | None = "1-2", **changes: Any) -> BindingInfo:
    """The binding of that device at its port."""
    fields: dict[str, Any] = {
        "vendor_id": 0x1234,
        "product_id": 0x5678,
        "serial": None,
        "busid": busid,
        "product": "Thing",
        "allow": [],
        "created": 1.7e9,
        "created_by": "root",
        "devices": [busid],
    }
    return BindingInfo(**(fields | changes))


@dataclass
class FakeSharedDevice:
    """The device as held by its worker."""

    record: DeviceRecord
    state: ClaimState = ClaimState.READY
    worker: Child | None = field(default_factory=child)
    failure: Failure | None = None
    waits_for_device: float | None = None

    def blocked(self) -> float | None:
        return self.waits_for_device


def shared_device(busid: str = "1-2", *, simulated: bool = False, **changes: Any) -> FakeSharedDevice:
    return FakeSharedDevice(record(busid, simulated=simulated), **changes)


@dataclass
class FakeManager:
    """A manager of one device, 1-2, which is bound and claimed."""

    shared_devices: dict[str, FakeSharedDevice] = field(default_factory=lambda: {"1-2": shared_device()})
    devices: list[DeviceInfo] = field(default_factory=lambda: [device()])
    bindings: list[BindingInfo] = field(default_factory=lambda: [binding()])
    left: list[str] = field(default_factory=list)
    """Devices left without drivers by a killed worker."""
    error: UsbipdError | None = None
    """Raised instead of listing devices."""
    is_running: bool = True

    async def list_devices(self) -> list[DeviceInfo]:
        if self.error is not None:
            raise self.error
        return self.devices

    async def orphans(self) -> list[str]:
        return self.left

    async def survey(self) -> ListResult:
        return ListResult(devices=await self.list_devices(), bindings=self.bindings)

    def get_claimed_devices(self) -> list[ClaimedDevice]:
        return [
            ClaimedDevice(0x1000C, busid, 0x1234, 0x5678, "Thing", 1.7e9, "fake")
            for busid, device in self.shared_devices.items()
            if device.worker is not None
        ]


@dataclass
class FakeServer:
    child: Child | None = field(default_factory=lambda: child(Role.SERVER))
    listening: list[str] = field(default_factory=list)
    allow: list[str] = field(default_factory=list)


@dataclass
class FakeStore:
    problems: list[str] = field(default_factory=list)
    wrong: list[UsbipdError] = field(default_factory=list)
    entries: list[HistoryEntry] = field(default_factory=list)

    async def check(self) -> list[UsbipdError]:
        return self.wrong

    async def history(self, limit: int, before: int | None = None) -> list[HistoryEntry]:
        return [entry for entry in self.entries if before is None or entry.id < before][:limit]


@dataclass
class FakeHotplug:
    problem: str | None = None


@dataclass
class FakeDiscovery:
    problem: str | None = None
    left_out: dict[str, UsbipdError] = field(default_factory=dict)


def linux(**changes: Any) -> Host:
    """A Linux host on which we are root, with `changes` applied."""
    facts: dict[str, Any] = {"uid": 0, "mac_version": "", "machine": "x86_64", "launch_daemon": None}
    return Host(**(facts | changes))


def mac(**changes: Any) -> Host:
    """A Mac with Apple silicon, with `changes` applied."""
    return linux(**({"mac_version": "26.4", "machine": "arm64"} | changes))


def make_context(**changes: Any) -> CheckContext:
    """A healthy daemon, with `changes` applied."""
    parts: dict[str, Any] = {
        "manager": FakeManager(),
        "server": FakeServer(),
        "store": FakeStore(),
        "discovery": FakeDiscovery(),
        "hotplug": FakeHotplug(),
        "power": None,
        "control_socket": Path("/nowhere/control.sock"),
        "run_as": None,
        "access": (),
        "host": linux(),
    }
    return CheckContext(**(parts | changes))


def findings(check: Check, context: CheckContext) -> list[Finding]:
    """The findings of `check`."""

    async def look() -> list[Finding]:
        async with asyncio.timeout(PATIENCE):
            return list(await check(context))

    return asyncio.run(look())


def finding(check: Check, context: CheckContext) -> Finding:
    """The only finding of `check`; unless it is ok, it has steps."""
    (found,) = findings(check, context)
    assert bool(found.steps) == (found.state is not CheckState.OK)
    return found
