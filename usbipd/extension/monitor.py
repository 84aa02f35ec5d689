"""The whole daemon at one moment.  Runs in the extension."""

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import usbipd
from usbipd.extension.claim import ClaimedDevice
from usbipd.extension.manager import SystemExtensionManager
from usbipd.extension.network import NetworkServer
from usbipd.extension.supervisor import Child
from usbipd.ipc.messages import ProcessReport, StatusResult
from usbipd.log import ErrorCounter
from usbipd.privileges import user_name


@dataclass(frozen=True, slots=True)
class SystemExtensionStatus:
    """How the extension itself is."""

    is_running: bool
    claimed_devices: list[ClaimedDevice]
    last_start_time: float
    """Seconds since the epoch."""
    error_count: int
    """Errors logged since then."""
    memory_usage: int
    """Bytes resident."""


class StatusMonitor:
    """Answers what people ask about the daemon."""

    def __init__(self, manager: SystemExtensionManager, network: NetworkServer, errors: ErrorCounter) -> None:
        self._manager = manager
        self._network = network
        self._errors = errors
        self._start_time = time.time()
        self._started = time.monotonic()

    def get_current_status(self) -> SystemExtensionStatus:
        """The extension, without asking any other process."""
        return SystemExtensionStatus(
            is_running=True,
            claimed_devices=self._manager.get_claimed_devices(),
            last_start_time=self._start_time,
            error_count=self._errors.count,
            memory_usage=_resident_bytes(),
        )

    async def report(self) -> StatusResult:
        """The extension with all its devices and processes.  Raises `UsbipdError` if libusb fails."""
        status = self.get_current_status()
        return StatusResult(
            version=usbipd.__version__,
            pid=os.getpid(),
            user=user_name(os.geteuid()),
            start_time=status.last_start_time,
            uptime=time.monotonic() - self._started,
            listening=self._network.listening,
            devices=await self._manager.list_devices(),
            processes=self._processes(),
            error_count=status.error_count,
            memory_usage=status.memory_usage,
        )

    def _processes(self) -> list[ProcessReport]:
        children = [self._network.child]
        children += [claim.worker for _busid, claim in sorted(self._manager.claims.items())]
        ourselves = ProcessReport(role="extension", pid=os.getpid(), user=user_name(os.geteuid()))
        return [ourselves, *(_process(child) for child in children if child is not None)]


def _process(child: Child) -> ProcessReport:
    return ProcessReport(role=child.role, pid=child.pid, user=child.user, busid=child.busid)


def _resident_bytes() -> int:
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]  # Linux proc(5)
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS getrusage(2): bytes, at their most
    return int(pages) * resource.getpagesize()
