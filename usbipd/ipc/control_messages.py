"""What people ask the extension and what it answers: the messages of the control socket.

Used by the CLI and the extension.  `docs/json.md` describes those that commands print under `--json`.
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
"""iSerialNumber's string: a string descriptor has room for 126 UTF-16 units (USB 2.0, 9.6.7)."""
DeviceMemory = Literal["auto", "on", "off"]
"""Whether transfers use memory that the device reaches without a copy; auto: where it is always cached."""
Busid = Annotated[str, msgspec.Meta(max_length=31)]
"""BUS-PORT[.PORT...], as long as the wire has room for."""
Networks = Annotated[list[str], msgspec.Meta(max_length=64)]
"""Addresses and networks in CIDR notation; none: no restriction."""

HISTORY_PAGE = 100
"""Entries of the history in one answer, which is some 400 KiB at most."""


class DeviceState(StrEnum):
    """The four states shown to people."""

    NOT_SHARED = "not shared"
    SHARED = "shared"
    ATTACHED = "attached"
    FAILED = "failed"


class Counters(Message, frozen=True):
    """What a worker has moved since it claimed its device.  Bytes are payload, seen from the client."""

    urbs: int
    bytes_in: int
    bytes_out: int
    errors: int
    unlinks: int
    in_flight: int
    latency_us: list[int]
    """URBs by time from submit to completion: entry n counts those of less than 2**n microseconds
    that did not fit entry n - 1; the last one takes all the rest."""


class Rate(Message, frozen=True):
    """Traffic per second, over the last second or two."""

    urbs: float
    bytes_in: float
    bytes_out: float


class Latency(Message, frozen=True):
    """Microseconds within which half, and 99 of 100, of all URBs since the claim were completed."""

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
    """Drivers of this host that hold the device's interfaces now."""
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
    """When a failed claim is tried again, seconds since the epoch."""
    counters: Counters | None = None
    rate: Rate | None = None
    latency: Latency | None = None


class BindingInfo(Message, frozen=True):
    """A rule that says what is shared, with the devices that it shares now."""

    vendor_id: int
    product_id: int
    serial: str | None
    busid: str | None
    """The port; None: wherever the device is plugged in."""
    product: str | None
    """What the device called itself when it was bound."""
    allow: list[str]
    """Addresses and networks that may use the device; none: every client that the server lets in."""
    created: float
    created_by: str
    devices: list[str]
    """Busids of the devices that are plugged in and fit."""


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
        """The other device at the port of a binding whose own is not plugged in.

        None also if another binding shares it: the two take turns at the port.
        """
        if binding.busid is None or any(binding.busid in each.devices for each in self.bindings):
            return None
        return next((device for device in self.devices if device.busid == binding.busid), None)


class HardwareId(Message, frozen=True):
    """Devices by what they are, wherever they are plugged in."""

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
    """The binding, and the devices that it shares now."""

    binding: BindingInfo
    devices: list[DeviceInfo]


class UnbindParameters(Message, frozen=True):
    """Remove the bindings of this port, or the one of this hardware id, or (neither) all."""

    busid: Busid | None = None
    hardware: HardwareId | None = None


class UnbindResult(Message, frozen=True):
    """The bindings that are no more, and the devices that went back to this host."""

    bindings: list[BindingInfo]
    busids: list[str]


class DetachParameters(Message, frozen=True):
    """End the session of the client that uses this device; the device stays shared."""

    busid: Busid


class DetachResult(Message, frozen=True):
    """Who was cut off."""

    client: str


class ReleaseParameters(Message, frozen=True):
    """Reattach this host's drivers to a device that no worker holds."""

    busid: Busid


class ReleaseResult(Message, frozen=True):
    """The drivers that hold the device or interfaces of it then."""

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
    """The newest last."""
    memory_usage: int
    """Bytes resident in all processes together."""


class HistoryEvent(StrEnum):
    """What can happen."""

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
    """Something that happened, to the daemon itself (without `busid`) or to a device."""

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
    """How long what ended now had lasted: a session, a claim."""
    bytes_in: int | None = None
    bytes_out: int | None = None
    """What a session has moved, seen from the client."""
    count: int = 1
    """How many of its kind it stands for: more than one if they came too fast.  `seconds` and bytes are then
    those of all together, the rest is that of the last one."""


class HistoryParameters(Message, frozen=True):
    """The newest entries, or the newest of those with an id below `before`."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=HISTORY_PAGE)]
    before: int | None = None


class HistoryResult(Message, frozen=True):
    """The newest first; fewer than `limit` only where there are no more."""

    entries: list[HistoryEntry]


class CheckState(StrEnum):
    """How a check of the daemon's health came out."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class CheckResult(Message, frozen=True):
    """One check, what it found, and the steps that fix it."""

    name: str
    state: CheckState
    message: str
    steps: list[str] = msgspec.field(default_factory=list)


class HealthResult(Message, frozen=True):
    """Every check that the extension can make."""

    checks: list[CheckResult]


# ---- the table ---------------------------------------------------------------------------------------------

_MANAGERS: Final = frozenset({Role.ROOT, Role.ADMIN, Role.OWNER})
_EVERYBODY: Final = _MANAGERS | {Role.USER}

PEOPLE: Final = Table(
    {
        Command.LIST: CommandRow(Nothing, ListResult, _EVERYBODY, is_long=True, ends_with_its_peer=True),
        Command.STATUS: CommandRow(Nothing, StatusResult, _EVERYBODY, is_long=True, ends_with_its_peer=True),
        Command.HISTORY: CommandRow(
            HistoryParameters, HistoryResult, _EVERYBODY, is_long=True, ends_with_its_peer=True
        ),
        Command.HEALTH: CommandRow(Nothing, HealthResult, _EVERYBODY, is_long=True, ends_with_its_peer=True),
        Command.WATCH: CommandRow(Nothing, Nothing, _EVERYBODY),
        Command.BIND: CommandRow(BindParameters, BindResult, _MANAGERS, is_long=True),
        Command.UNBIND: CommandRow(UnbindParameters, UnbindResult, _MANAGERS, is_long=True),
        Command.DETACH: CommandRow(DetachParameters, DetachResult, _MANAGERS),
        Command.RELEASE_DEVICE: CommandRow(ReleaseParameters, ReleaseResult, _MANAGERS),
        Command.MORE: CommandRow(MoreParameters, Part, _EVERYBODY),
    },
    {EventName.CHANGED: EventRow(Nothing, Role.EXTENSION)},
)
"""What people ask the extension, and what it tells those who watch."""
