"""The messages that the processes exchange, all of them.  Used by every process.

What people ask and get stands in `reports.py`, the rest here.  An envelope is an `IPCRequest`, an
`IPCResponse` or an `IPCEvent`; a `Hello` opens every channel in both directions.  `COMMANDS` names the types
of each command's parameters and result, `EVENTS` those of each event; decoding is strict: unknown fields,
commands and trailing bytes are refused (msgspec).  Who may send which command stands in `policy.py`, how
messages become bytes in `channel.py`.
"""

from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec

from usbipd.ipc.message import Message
from usbipd.ipc.reports import (
    BindParameters,
    BindResult,
    DetachParameters,
    DetachResult,
    DeviceMemory,
    HealthResult,
    HistoryParameters,
    HistoryResult,
    ListResult,
    StatusResult,
    UnbindParameters,
    UnbindResult,
)
from usbipd.protocol.op import UsbDevice

IPC_VERSION: Final = 1
"""Raised whenever a message changes its form.  Both ends must agree; they come from one executable."""

MAX_MESSAGE: Final = 64 * 1024
"""Bytes of one encoded envelope, at most."""


# ---- envelopes -----------------------------------------------------------------------------------


class Hello(Message, frozen=True, tag="hello"):
    """The first message in each direction."""

    ipc_version: int
    software: str


class Command(StrEnum):
    """Everything that one process may ask of another."""

    # the CLI asks the extension
    LIST = "list"
    BIND = "bind"
    UNBIND = "unbind"
    DETACH = "detach"
    STATUS = "status"
    HISTORY = "history"
    HEALTH = "health"
    WATCH = "watch"
    # the server asks the extension
    DEVLIST = "devlist"
    RESERVE = "reserve"
    HANDOVER = "handover"
    ABANDON = "abandon"
    # the extension asks the server
    SERVE = "serve"
    # the extension asks the server or a worker
    LOG = "log"
    LOG_FILE = "log-file"
    # the extension asks a worker
    CLAIM = "claim"
    ATTACH = "attach"
    DISCONNECT = "disconnect"
    RELEASE = "release"


class IPCRequest(Message, frozen=True, tag="request"):
    """A command.  `client_id` is a label for logs; who the peer is, the kernel says."""

    request_id: int
    client_id: str
    command: Command
    parameters: msgspec.Raw
    timestamp: float


class ErrorReport(Message, frozen=True):
    """A `UsbipdError` on its way to another process."""

    code: str
    message: str
    advice: str | None = None


class IPCResponse(Message, frozen=True, tag="response"):
    """The answer to the request of the same `request_id`: `result` if `success`, else `error`."""

    request_id: int
    success: bool
    result: msgspec.Raw
    """An encoded None without success."""
    error: ErrorReport | None
    timestamp: float


class EventName(StrEnum):
    """Everything that a process tells another without being asked."""

    # a worker tells the extension
    DETACHED = "detached"
    RESTORED = "restored"
    DEVICE_GONE = "device-gone"
    # the extension tells a command that asked for it by WATCH
    CHANGED = "changed"


class IPCEvent(Message, frozen=True, tag="event"):
    """A fact that nobody asked for."""

    event: EventName
    parameters: msgspec.Raw
    timestamp: float


Envelope = Hello | IPCRequest | IPCResponse | IPCEvent


class Nothing(Message, frozen=True):
    """No parameters, or no result."""


# ---- server and extension ------------------------------------------------------------------------


class RunAs(Message, frozen=True):
    """The unprivileged user that a process becomes after its start; only sent when the extension is root."""

    user: str
    uid: int
    gid: int


class LogParameters(Message, frozen=True):
    """What is logged from now on."""

    level: str


class ServeParameters(Message, frozen=True):
    """How the server shall listen.  `listen` holds `ADDRESS:PORT`, IPv6 in brackets; port 0: a free one.
    `allow` holds the addresses and networks of clients that are let in; none: all."""

    listen: list[str]
    allow: list[str]
    max_connections: int
    max_connections_per_address: int
    handshake_timeout: float
    lost_client_timeout: int
    send_buffer: int
    run_as: RunAs | None
    chroot: str | None
    log_level: str
    log_to: str


class ServeResult(Message, frozen=True):
    """Where the server listens in fact, and as whom."""

    listening: list[str]
    user: str


ClientName = Annotated[str, msgspec.Meta(max_length=80)]
"""A client's address and port: at most 39 for IPv6, 16 for its scope, 8 for brackets and port.  Bounded,
since it comes from a process that reads the network, and goes into logs and the status."""


class DevlistParameters(Message, frozen=True):
    """`client` is who asks, for logs; `address` is without port and scope, for access rules."""

    client: ClientName
    address: ClientName


class DevlistResult(Message, frozen=True):
    """Devices that this client may import, free or not."""

    devices: list[UsbDevice]


class ReserveParameters(Message, frozen=True):
    """A client wants this device; it is kept for it until HANDOVER or ABANDON."""

    busid: str
    client: ClientName
    address: ClientName


class ReserveResult(Message, frozen=True):
    """`status` is the OP_REP_IMPORT status; the rest is there when it is 0."""

    status: int
    reservation: int | None = None
    device: UsbDevice | None = None


class ReservationParameters(Message, frozen=True):
    """HANDOVER carries the client's socket; ABANDON says that the client left before."""

    reservation: int


# ---- extension and worker ------------------------------------------------------------------------


class SimulatedSpec(Message, frozen=True):
    """Which simulated device a worker is to be, with its options as the user wrote them."""

    name: str
    options: dict[str, str]


class ClaimParameters(Message, frozen=True):
    """Take this device.  Carries the descriptor of the counter page (`worker/report.py`)."""

    busid: str
    busnum: int
    devnum: int
    path: str
    simulated: SimulatedSpec | None
    run_as: RunAs | None
    transfer_budget: int
    """Bytes that the URBs of one client may hold at most."""
    device_memory: DeviceMemory
    log_level: str
    log_to: str


class ClaimResult(Message, frozen=True):
    """The claimed device, as it goes into OP_REP_IMPORT, and how it was taken."""

    device: UsbDevice
    claim_method: str
    user: str


class AttachParameters(Message, frozen=True):
    """Serve this client.  Carries its TCP socket, on which OP_REP_IMPORT was the last thing sent."""

    client: str


class DetachedParameters(Message, frozen=True):
    """The client is gone.  `reason` is a sentence for logs; the device is not ready for the next one yet."""

    reason: str


class GoneParameters(Message, frozen=True):
    """The device was unplugged or is beyond repair; the worker is about to exit."""

    reason: str


COMMANDS: Final[dict[Command, tuple[type[Message], type[Message]]]] = {
    Command.LIST: (Nothing, ListResult),
    Command.BIND: (BindParameters, BindResult),
    Command.UNBIND: (UnbindParameters, UnbindResult),
    Command.DETACH: (DetachParameters, DetachResult),
    Command.STATUS: (Nothing, StatusResult),
    Command.HISTORY: (HistoryParameters, HistoryResult),
    Command.HEALTH: (Nothing, HealthResult),
    Command.WATCH: (Nothing, Nothing),
    Command.DEVLIST: (DevlistParameters, DevlistResult),
    Command.RESERVE: (ReserveParameters, ReserveResult),
    Command.HANDOVER: (ReservationParameters, Nothing),
    Command.ABANDON: (ReservationParameters, Nothing),
    Command.SERVE: (ServeParameters, ServeResult),
    Command.LOG: (LogParameters, Nothing),
    Command.LOG_FILE: (Nothing, Nothing),
    Command.CLAIM: (ClaimParameters, ClaimResult),
    Command.ATTACH: (AttachParameters, Nothing),
    Command.DISCONNECT: (Nothing, Nothing),
    Command.RELEASE: (Nothing, Nothing),
}
"""Each command with the type of its parameters and of its result."""

CARRIES_DESCRIPTOR: Final = frozenset({Command.HANDOVER, Command.LOG_FILE, Command.CLAIM, Command.ATTACH})
"""The commands that come with exactly one file descriptor; all others come with none."""

EVENTS: Final[dict[EventName, type[Message]]] = {
    EventName.DETACHED: DetachedParameters,
    EventName.RESTORED: Nothing,
    EventName.DEVICE_GONE: GoneParameters,
    EventName.CHANGED: Nothing,
}
"""Each event with the type of its parameters."""

_ENCODER: Final = msgspec.msgpack.Encoder()
_ENVELOPE_DECODER: Final[msgspec.msgpack.Decoder[Envelope]] = msgspec.msgpack.Decoder(Envelope)


def encode(message: Any) -> bytes:
    """Any message as bytes."""
    return _ENCODER.encode(message)


def decode_envelope(data: bytes | bytearray | memoryview) -> Envelope:
    """The envelope in `data`; raises `msgspec.DecodeError` unless it is exactly one, whole and strict,
    and `UnicodeDecodeError` for text that is none."""
    return _ENVELOPE_DECODER.decode(data)


def pack(message: Message) -> msgspec.Raw:
    """Parameters or a result, ready to be put into an envelope."""
    return msgspec.Raw(encode(message))
