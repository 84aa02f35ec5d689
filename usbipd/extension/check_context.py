"""What a check of the daemon's health looks at.  Runs in the extension."""

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
    """What health needs of a `Device`."""

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
    """What health needs of the manager."""

    @property
    def shared_devices(self) -> Mapping[str, SharedDevice]:
        """By busid."""

    async def list_devices(self) -> list[DeviceInfo]:
        """Raises `UsbipdError` if the host cannot list them."""

    async def orphans(self) -> list[str]:
        """Busids of devices that were left without drivers, are not bound, and that no driver or program has
        now.  Raises likewise."""

    async def survey(self) -> ListResult:
        """The same devices, and all bindings.  Raises likewise."""


class ServerView(Protocol):
    """What health needs of the server's supervisor."""

    @property
    def child(self) -> Child | None:
        """The server; None while there is none."""

    @property
    def listening(self) -> list[str]:
        """`ADDRESS:PORT`, IPv6 in brackets."""

    @property
    def allow(self) -> list[str]:
        """Addresses and networks of clients that are let in; none: all."""


class StoreView(Protocol):
    """What health needs of the store."""

    @property
    def problems(self) -> list[str]:
        """What recovery found and did when the store was opened."""

    async def check(self) -> list[UsbipdError]:
        """What is wrong with it now; code `KEPT_ASIDE`: only what lies beside it."""


class Discovery(Protocol):
    """What health needs of the list of this host's devices."""

    @property
    def problem(self) -> str | None:
        """What is not known, because the system does not answer."""

    @property
    def left_out(self) -> Mapping[str, UsbipdError]:
        """By busid: devices that are present and not listed, and why."""


class PlugEvents(Protocol):
    """What health needs of a listener to events of the system."""

    @property
    def problem(self) -> str | None:
        """Why the system does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Facts about this machine.  Which platform it is, only they tell."""

    uid: int = field(default_factory=os.geteuid)
    mac_version: str = field(default_factory=lambda: platform.mac_ver()[0])
    """Empty where this is not macOS."""
    machine: str = field(default_factory=platform.machine)
    launch_daemon: Path | None = field(default_factory=paths.launch_daemon)
    """The property list of the launchd job; None where there is no launchd."""
    launchctl: Path = LAUNCHCTL


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckContext:
    """The daemon, as far as its health goes."""

    manager: ManagerView
    server: ServerView
    store: StoreView
    discovery: Discovery | None
    """None where there are simulated devices only."""
    hotplug: PlugEvents | None
    """None where there are simulated devices only."""
    power: PlugEvents | None
    """What tells of sleep and wake; None where the devices' own events are enough."""
    control_socket: Path
    run_as: RunAs | None
    """The user that the server becomes; None: it stays what we are."""
    confine: Sandbox = "auto"
    """How far workers are to be confined; "off": they stay what we are."""
    access: Sequence[DeviceRule]
    """The devices for which the configuration says who may have them."""
    host: Host
