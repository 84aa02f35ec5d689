"""Which parameters and which result go with each command and event.

Used by every process that is asked or told something.
"""

from typing import Final

from usbipd.ipc.children import (
    AttachParameters,
    ClaimParameters,
    ClaimResult,
    DetachedParameters,
    DevlistParameters,
    DevlistResult,
    GoneParameters,
    LogParameters,
    ReservationParameters,
    ReserveParameters,
    ReserveResult,
    ServeParameters,
    ServeResult,
)
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command, EventName, MoreParameters, Nothing, Part
from usbipd.ipc.reports import (
    BindParameters,
    BindResult,
    DetachParameters,
    DetachResult,
    HealthResult,
    HistoryParameters,
    HistoryResult,
    ListResult,
    ReleaseParameters,
    ReleaseResult,
    StatusResult,
    UnbindParameters,
    UnbindResult,
)

COMMANDS: Final[dict[Command, tuple[type[Message], type[Message]]]] = {
    Command.LIST: (Nothing, ListResult),
    Command.BIND: (BindParameters, BindResult),
    Command.UNBIND: (UnbindParameters, UnbindResult),
    Command.DETACH: (DetachParameters, DetachResult),
    Command.RELEASE_DEVICE: (ReleaseParameters, ReleaseResult),
    Command.STATUS: (Nothing, StatusResult),
    Command.HISTORY: (HistoryParameters, HistoryResult),
    Command.HEALTH: (Nothing, HealthResult),
    Command.WATCH: (Nothing, Nothing),
    Command.MORE: (MoreParameters, Part),
    Command.DEVLIST: (DevlistParameters, DevlistResult),
    Command.RESERVE: (ReserveParameters, ReserveResult),
    Command.HANDOVER: (ReservationParameters, Nothing),
    Command.ABANDON: (ReservationParameters, Nothing),
    Command.SERVE: (ServeParameters, ServeResult),
    Command.PING: (Nothing, Nothing),
    Command.LOG: (LogParameters, Nothing),
    Command.LOG_FILE: (Nothing, Nothing),
    Command.CLAIM: (ClaimParameters, ClaimResult),
    Command.ATTACH: (AttachParameters, Nothing),
    Command.DISCONNECT: (Nothing, Nothing),
    Command.RELEASE: (Nothing, Nothing),
}
"""Each command with the type of its parameters and of its result."""

EVENTS: Final[dict[EventName, type[Message]]] = {
    EventName.DETACHED: DetachedParameters,
    EventName.RESTORED: Nothing,
    EventName.DEVICE_GONE: GoneParameters,
    EventName.CHANGED: Nothing,
}
"""Each event with the type of its parameters."""
