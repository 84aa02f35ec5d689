"""The input of the health checks.  Runs in the extension."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from usbipd import paths
from usbipd.errors import UsbipdError
from usbipd.extension.device import ClaimState, Failure
from usbipd.extension.supervisor import Child
from usbipd.ipc.children import Sandbox
from usbipd.ipc.control_messages import DeviceInfo, ListResult
from usbipd.launchd import LAUNCHCTL
from usbipd.privileges import RunAs
from usbipd.usb.discovery import DeviceRecord
from usbipd.usb.identity import DeviceRule


class SharedDevice(Protocol):
    """The part of `Device` that the checks use."""

    @property
    def record(self) -> DeviceRecord: ...
    @property
    def state(self) -> ClaimState: ...
    @property
    def worker(self) -> Child | None: ...
    @property
    def failure(self) -> Failure | None: ...
    def blocked(self) -> float | None: ...


class ManagerView(Protocol):
    """The part of the manager that the checks use."""

    @property
    def shared_devices(self) -> Mapping[str, SharedDevice]:
        """By busid."""

    async def list_devices(self) -> list[DeviceInfo]:
        """Raises `UsbipdError` if the host cannot list them."""

    async def orphans(self) -> list[str]:
        """Busids of unbound devices that were left without drivers and are still unused.

        Raises `UsbipdError` if the host cannot list its devices."""

    async def survey(self) -> ListResult:
        """All devices and all bindings.  Raises `UsbipdError` if the host cannot list its devices."""


class ServerView(Protocol):
    """The part of the server's supervisor that the checks use."""

    @property
    def child(self) -> Child | None:
        """The server; None while none is running."""

    @property
    def listening(self) -> list[str]:
        """`ADDRESS:PORT`, IPv6 in brackets."""

    @property
    def allow(self) -> list[str]:
        """Addresses and networks of clients that may connect; empty: all."""


class StoreView(Protocol):
    """The part of the store that the checks use."""

    @property
    def problems(self) -> list[str]:
        """What recovery found and did when the store was opened."""

    async def check(self) -> list[UsbipdError]:
        """What is wrong with it now; code `KEPT_ASIDE`: an old file that was set aside."""


class Discovery(Protocol):
    """The part of device discovery that the checks use."""

    @property
    def problem(self) -> str | None:
        """What is unknown because the system does not answer."""

    @property
    def left_out(self) -> Mapping[str, UsbipdError]:
        """By busid: devices that are present and not listed, and why."""


class PlugEvents(Protocol):
    """The part of a listener for system events that the checks use."""

    @property
    def problem(self) -> str | None:
        """Why the system sends no events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Facts about this machine.  Checks take the platform from here only."""

    uid: int = field(default_factory=os.geteuid)
    mac_version: str = field(default_factory=lambda: platform.mac_ver()[0])
    """Empty on systems other than macOS."""
    machine: str = field(default_factory=platform.machine)
    launch_daemon: Path | None = field(default_factory=paths.launch_daemon)
    """The property list of the launchd job; None on systems without launchd."""
    launchctl: Path = LAUNCHCTL


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckContext:
    """Everything that the checks look at."""

    manager: ManagerView
    server: ServerView
    store: StoreView
    discovery: Discovery | None
    """None if only simulated devices are shared."""
    hotplug: PlugEvents | None
    """None if only simulated devices are shared."""
    power: PlugEvents | None
    """Sleep and wake events; None on systems where hotplug events are enough."""
    control_socket: Path
    run_as: RunAs | None
    """The user that the server runs as; None: the daemon's own user."""
    confine: Sandbox = "auto"
    """How far workers are confined; "off": they run as the daemon's own user."""
    access: Sequence[DeviceRule]
    """The devices that have an `[[access]]` table."""
    host: Host
