"""Answers `status`, `history` and `doctor`.  Runs in the extension."""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

import usbipd
from usbipd.extension.check_context import (
    CheckContext,
    Discovery,
    Host,
    ManagerView,
    PlugEvents,
    ServerView,
    StoreView,
)
from usbipd.extension.device import ClaimedDevice
from usbipd.extension.health import examine
from usbipd.extension.liveness import silence_of
from usbipd.ipc.children import Sandbox
from usbipd.ipc.control_messages import HealthResult, HistoryEntry, ProcessInfo, StatusResult
from usbipd.log import ErrorCounter
from usbipd.privileges import RunAs, user_name
from usbipd.usb.identity import DeviceRule


class ClaimedDevices(ManagerView, Protocol):
    """The part of the manager that the status uses."""

    @property
    def is_running(self) -> bool:
        """Whether the daemon is not shutting down."""

    def get_claimed_devices(self) -> list[ClaimedDevice]:
        """The devices that workers hold now."""


class History(StoreView, Protocol):
    """The part of the store that the status uses."""

    async def history(self, limit: int, before: int | None = None) -> list[HistoryEntry]:
        """The newest entries first."""


@dataclass(frozen=True, slots=True)
class SystemExtensionStatus:
    """The state of the extension process."""

    is_running: bool
    """Whether it is not shutting down."""
    claimed_devices: list[ClaimedDevice]
    last_start_time: float
    """Seconds since the epoch."""
    error_count: int
    """Errors logged since then."""
    memory_usage: int
    """Bytes resident."""


class StatusMonitor:
    """Reports status, history and health of the daemon."""

    def __init__(
        self,
        manager: ClaimedDevices,
        server: ServerView,
        store: History,
        discovery: Discovery | None,
        hotplug: PlugEvents | None,
        power: PlugEvents | None,
        errors: ErrorCounter,
        control_socket: Path,
        *,
        run_as: RunAs | None,
        confine: Sandbox = "auto",
        access: Sequence[DeviceRule],
        host: Host | None = None,
    ) -> None:
        """`run_as` is the server's user, `confine` the key of the configuration, `access` the devices that
        have an `[[access]]` table."""
        self._manager = manager
        self._server = server
        self._store = store
        self._errors = errors
        self._context = CheckContext(
            manager=manager,
            server=server,
            store=store,
            discovery=discovery,
            hotplug=hotplug,
            power=power,
            control_socket=control_socket,
            run_as=run_as,
            confine=confine,
            access=access,
            host=host or Host(),
        )
        self._examination: asyncio.Task[HealthResult] | None = None
        self._start_time = time.time()
        self._started = time.monotonic()

    def get_current_status(self) -> SystemExtensionStatus:
        """The extension process, without asking any other process."""
        return SystemExtensionStatus(
            is_running=self._manager.is_running,
            claimed_devices=self._manager.get_claimed_devices(),
            last_start_time=self._start_time,
            error_count=self._errors.count,
            memory_usage=resident_bytes(os.getpid()) or 0,
        )

    async def get_full_status(self) -> StatusResult:
        """The whole daemon: devices, bindings and processes.

        Raises `UsbipdError` if the host cannot list its devices."""
        listed = await self._manager.survey()
        now = self.get_current_status()
        processes = await self._processes(now)
        return StatusResult(
            version=usbipd.__version__,
            pid=os.getpid(),
            user=user_name(os.geteuid()),
            start_time=now.last_start_time,
            uptime=time.monotonic() - self._started,
            listening=self._server.listening if now.is_running else [],
            devices=listed.devices,
            bindings=listed.bindings,
            processes=processes,
            error_count=now.error_count,
            last_errors=list(self._errors.last),
            memory_usage=sum(process.memory or 0 for process in processes),
        )

    async def get_claim_history(self, limit: int, before: int | None = None) -> list[HistoryEntry]:
        """The history, newest first: at most `limit` entries, of those with an id below `before`.

        Raises `UsbipdError` if the store cannot be read.
        """
        return await self._store.history(limit, before)

    async def perform_health_check(self) -> HealthResult:
        """Run all checks, within seconds.  Concurrent callers share one run: any user may ask, and asking
        more often must not cause more work."""
        if self._examination is None or self._examination.done():
            self._examination = asyncio.create_task(examine(self._context))
        examination = self._examination
        await asyncio.wait({examination})  # not cancelled with our caller
        return examination.result()

    async def _processes(self, now: SystemExtensionStatus) -> list[ProcessInfo]:
        """The extension, the server, and the worker of each claimed device."""
        shared = self._manager.shared_devices
        workers = [shared[busid].worker for busid in sorted(device.bus_id for device in now.claimed_devices)]
        children = [child for child in (self._server.child, *workers) if child is not None]
        silences = await asyncio.gather(*map(silence_of, children))
        memories = await asyncio.to_thread(lambda: [resident_bytes(child.pid) for child in children])
        own = ProcessInfo(
            role="extension", pid=os.getpid(), user=user_name(os.geteuid()), memory=now.memory_usage
        )
        return [own] + [
            ProcessInfo(
                role=child.role,
                pid=child.pid,
                user=child.user,
                memory=memory,
                busid=child.busid,
                silent_for=silence,
                lacks=child.lacks,
            )
            for child, silence, memory in zip(children, silences, memories, strict=True)
        ]


def resident_bytes(pid: int) -> int | None:
    """Bytes of memory that a process has resident; None if it has ended."""
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return None
