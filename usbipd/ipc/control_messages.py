"""The messages of the control socket: requests of users, and the extension's answers.

Used by the CLI and the extension.  `docs/json.md` describes those that commands print with `--json`.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal

import msgspec

from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command, EventName, MoreParameters, Nothing, Part
from usbipd.ipc.row import CommandRow, EventRow, Role, Table

UsbId = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
"""idVendor or idProduct."""
Serial = Annotated[str, msgspec.Meta(min_length=1, max_length=126)]
"""The iSerialNumber string: a string descriptor holds at most 126 UTF-16 units (USB 2.0, 9.6.7)."""
DeviceMemory = Literal["auto", "on", "off"]
"""Whether transfers use memory that the device accesses without a copy; auto: if it is always cached."""
Busid = Annotated[str, msgspec.Meta(max_length=31)]
"""BUS-PORT[.PORT...], at most as long as on the wire."""
Networks = Annotated[list[str], msgspec.Meta(max_length=64)]
"""Addresses and networks in CIDR notation; empty: no restriction."""

HISTORY_PAGE = 100
"""Entries of the history in one answer, which is then at most some 400 KiB."""


class DeviceState(StrEnum):
    """The four states shown to users."""

    NOT_SHARED = "not shared"
    SHARED = "shared"
    ATTACHED = "attached"
    FAILED = "failed"


class Counters(Message, frozen=True):
    """A worker's traffic since it claimed its device.  Bytes are payload, as seen by the client."""

    urbs: int
    bytes_in: int
    bytes_out: int
    errors: int
    unlinks: int
    in_flight: int
    latency_us: list[int]
    """URBs by time from submit to completion: entry n counts those of less than 2**n microseconds that are
    not in entry n - 1; the last entry counts all others."""


class Rate(Message, frozen=True):
    """Traffic per second, over the last second or two."""

    urbs: float
    bytes_in: float
    bytes_out: float


class Latency(Message, frozen=True):
    """Microseconds within which 50 %, and 99 %, of all URBs since the claim were completed."""

    p50_us: int
    p99_us: int


class DeviceInfo(Message, frozen=True):
    """One device, as `usbipd list` and `usbipd status` show it."""

    busid: str
    vendor_id: int
    product_id: int
    serial: str | None
    manufacturer: str | None
    product: str | None
    speed: str
    device_class: int
    drivers: list[str]
    """Drivers of this host that hold interfaces of the device now."""
    simulated: bool
    state: DeviceState
    client: str | None = None
    claim_method: str | None = None
    claim_time: float | None = None
    attach_time: float | None = None
    worker_pid: int | None = None
    error: str | None = None
    advice: str | None = None
    next_try: float | None = None
    """When a failed claim is retried, in seconds since the epoch."""
    counters: Counters | None = None
    rate: Rate | None = None
    latency: Latency | None = None


class BindingInfo(Message, frozen=True):
    """A binding, and the devices that it shares now."""

    vendor_id: int
    product_id: int
    serial: str | None
    busid: str | None
    """The port; None: any port."""
    product: str | None
    """The device's product string when it was bound."""
    allow: list[str]
    """Addresses and networks that may use the device; empty: every client that may connect to the server."""
    created: float
    created_by: str
    devices: list[str]
    """Busids of the matching devices that are plugged in."""


class ProcessInfo(Message, frozen=True):
    """One process of the daemon."""

    role: str
    pid: int
    user: str
    memory: int | None
    """Bytes resident; None: it has just ended."""
    busid: str | None = None
    silent_for: float | None = None
    """Seconds for which it has not answered the extension; None: it answers."""
    lacks: str | None = None
    """What its confinement lacks; None: nothing."""


class LoggedError(Message, frozen=True):
    """An error that the extension has logged."""

    time: float
    message: str


class LeftOutInfo(Message, frozen=True):
    """A device that is plugged in and cannot be shared."""

    busid: str
    reason: str
    code: str
    advice: str | None


class ListResult(Message, frozen=True):
    """Every device of this host that could be shared, and every binding."""

    devices: list[DeviceInfo]
    bindings: list[BindingInfo]
    left_out: list[LeftOutInfo] = msgspec.field(default_factory=list)
    """Without hubs."""

    def instead_of(self, binding: BindingInfo) -> DeviceInfo | None:
        """The device at the port of a binding whose own device is not plugged in.

        None also if another binding shares that device: the two alternate at the port.
        """
        if binding.busid is None or any(binding.busid in each.devices for each in self.bindings):
            return None
        return next((device for device in self.devices if device.busid == binding.busid), None)


class HardwareId(Message, frozen=True):
    """Identifies devices at any port."""

    vendor_id: UsbId
    product_id: UsbId
    serial: Serial | None = None


class BindParameters(Message, frozen=True):
    """Share the device at `busid`, or every device with this hardware id; exactly one is given."""

    busid: Busid | None = None
    hardware: HardwareId | None = None
    allow: Networks = msgspec.field(default_factory=list)
    force: bool = False
    """Unmount its file systems first."""


class BindResult(Message, frozen=True):
    """The new binding, and the devices that it shares now."""

    binding: BindingInfo
    devices: list[DeviceInfo]


class UnbindParameters(Message, frozen=True):
    """Remove the bindings of this port, or the one of this hardware id, or (neither given) all."""

    busid: Busid | None = None
    hardware: HardwareId | None = None


class UnbindResult(Message, frozen=True):
    """The removed bindings, and the busids of the released devices."""

    bindings: list[BindingInfo]
    busids: list[str]


class DetachParameters(Message, frozen=True):
    """End the session of the client that uses this device; the device stays shared."""

    busid: Busid


class DetachResult(Message, frozen=True):
    """The client that was disconnected."""

    client: str


class ReleaseParameters(Message, frozen=True):
    """Reattach this host's drivers to a device that no worker holds."""

    busid: Busid


class ReleaseResult(Message, frozen=True):
    """The drivers that hold the device or its interfaces after that."""

    drivers: list[str]


class StatusResult(Message, frozen=True):
    """The whole daemon at one moment.  Times are seconds since the epoch."""

    version: str
    pid: int
    user: str
    start_time: float
    uptime: float
    listening: list[str]
    devices: list[DeviceInfo]
    bindings: list[BindingInfo]
    processes: list[ProcessInfo]
    error_count: int
    last_errors: list[LoggedError]
    """Oldest first."""
    memory_usage: int
    """Bytes resident in all processes together."""


class HistoryEvent(StrEnum):
    """The kinds of events in the history."""

    STARTED = "started"
    STOPPED = "stopped"
    BOUND = "bound"
    UNBOUND = "unbound"
    CLAIMED = "claimed"
    RELEASED = "released"
    ATTACHED = "attached"
    DETACHED = "detached"
    UNPLUGGED = "unplugged"
    FAILED = "failed"


class HistoryEntry(Message, frozen=True):
    """One event, of the daemon (without `busid`) or of a device."""

    id: int
    """Grows with time."""
    time: float
    event: HistoryEvent
    busid: str | None = None
    vendor_id: int | None = None
    product_id: int | None = None
    product: str | None = None
    client: str | None = None
    reason: str | None = None
    seconds: float | None = None
    """The duration of the session or claim that ended."""
    bytes_in: int | None = None
    bytes_out: int | None = None
    """The traffic of the session that ended, as seen by the client."""
    count: int = 1
    """How many events of its kind it represents: several if they came too fast.  `seconds` and bytes are then
    totals, all else is that of the last event."""


class HistoryParameters(Message, frozen=True):
    """The newest entries, or the newest of those with an id below `before`."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=HISTORY_PAGE)]
    before: int | None = None


class HistoryResult(Message, frozen=True):
    """Newest first; fewer than `limit` only if no more exist."""

    entries: list[HistoryEntry]


class CheckState(StrEnum):
    """The result of a health check."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class CheckResult(Message, frozen=True):
    """One check, its finding, and the steps that fix the problem."""

    name: str
    state: CheckState
    message: str
    steps: list[str] = msgspec.field(default_factory=list)


class HealthResult(Message, frozen=True):
    """The findings of all checks."""

    checks: list[CheckResult]


# ---- the table ---------------------------------------------------------------------------------------------

_MANAGERS: Final = frozenset({Role.ROOT, Role.ADMIN, Role.OWNER})
_ALL_USERS: Final = _MANAGERS | {Role.USER}

PEOPLE: Final = Table(
    {
        Command.LIST: CommandRow(Nothing, ListResult, _ALL_USERS, is_long=True, ends_with_its_peer=True),
        Command.STATUS: CommandRow(Nothing, StatusResult, _ALL_USERS, is_long=True, ends_with_its_peer=True),
        Command.HISTORY: CommandRow(
            HistoryParameters, HistoryResult, _ALL_USERS, is_long=True, ends_with_its_peer=True
        ),
        Command.HEALTH: CommandRow(Nothing, HealthResult, _ALL_USERS, is_long=True, ends_with_its_peer=True),
        Command.WATCH: CommandRow(Nothing, Nothing, _ALL_USERS),
        Command.BIND: CommandRow(BindParameters, BindResult, _MANAGERS, is_long=True),
        Command.UNBIND: CommandRow(UnbindParameters, UnbindResult, _MANAGERS, is_long=True),
        Command.DETACH: CommandRow(DetachParameters, DetachResult, _MANAGERS),
        Command.RELEASE_DEVICE: CommandRow(ReleaseParameters, ReleaseResult, _MANAGERS),
        Command.MORE: CommandRow(MoreParameters, Part, _ALL_USERS),
    },
    {EventName.CHANGED: EventRow(Nothing, Role.EXTENSION)},
)
"""Requests of users, and the event for watchers."""
