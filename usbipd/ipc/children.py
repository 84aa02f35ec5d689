"""What the extension, the server and the workers tell each other.  Used by all three, and by no command."""

from typing import Annotated, Final, Literal

import msgspec

from usbipd.ipc.control_messages import DeviceMemory
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command, EventName, MoreParameters, Nothing, Part
from usbipd.ipc.row import CommandRow, EventRow, Role, Table
from usbipd.privileges import RunAs
from usbipd.protocol.op import UsbDevice
from usbipd.simulated.spec import SimulatedSpec

# ---- server and extension ------------------------------------------------------------------------


Sandbox = Literal["auto", "require", "off"]
"""Whether a process enters the sandbox of its system: it reports what that lacks, exits if it lacks anything,
or does without."""


class Confinement(Message, frozen=True):
    """What a process gives up once it has what it needs (`usbipd/confinement.py`).

    `run_as` and `root`, its empty root directory, are there if the extension is root.
    """

    run_as: RunAs | None
    root: str | None
    sandbox: Sandbox = "auto"


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
    confinement: Confinement | None
    log_level: str
    log_to: str


class ServeResult(Message, frozen=True):
    """Where the server listens in fact, and as whom."""

    listening: list[str]
    user: str
    lacks: str | None = None
    """What its confinement lacks; None: nothing."""


ClientName = Annotated[str, msgspec.Meta(max_length=80)]
"""A client's address and port: at most 39 for IPv6, 16 for its scope, 8 for brackets and port.  Bounded,
since it comes from a process that reads the network, and goes into logs and the status."""


MOST_ADDRESSES: Final = 64
"""Clients about which one DEVLIST asks, at most."""


class DevlistParameters(Message, frozen=True):
    """The clients that wait for a list of devices: their addresses without port and scope, for access
    rules."""

    addresses: Annotated[list[ClientName], msgspec.Meta(min_length=1, max_length=MOST_ADDRESSES)]


class DevlistResult(Message, frozen=True):
    """Devices that these clients may import, free or not.

    Most clients may import the same ones, so each different list comes once.
    """

    devices: list[UsbDevice]
    """All that are in one of the lists."""
    lists: list[list[int]]
    """Indices into `devices`."""
    list_of: list[int]
    """For each address, in the order of the request, its index into `lists`."""


class ReserveParameters(Message, frozen=True):
    """A client wants this device; it is reserved for it until HANDOVER or ABANDON.

    `reservation` is a number of the server that it has not in use; ABANDON with it also ends a RESERVE that
    is not answered yet.  With `wait`, a device that another client is about to leave is waited for.
    """

    reservation: int
    busid: str
    client: ClientName
    address: ClientName
    wait: bool


class ReserveResult(Message, frozen=True):
    """`status` is the OP_REP_IMPORT status; the device is present when it is 0."""

    status: int
    device: UsbDevice | None = None


class ReservationParameters(Message, frozen=True):
    """HANDOVER carries the client's socket; ABANDON says that the client left before."""

    reservation: int


# ---- extension and worker ------------------------------------------------------------------------


class ClaimParameters(Message, frozen=True):
    """Take this device.  Carries the descriptor of the counter page (`counters.py`)."""

    busid: str
    busnum: int
    devnum: int
    path: str
    simulated: SimulatedSpec | None
    confinement: Confinement | None
    transfer_budget: int
    """Bytes that the URBs of one client may hold at most."""
    device_memory: DeviceMemory
    log_level: str
    log_to: str


USELESS_WHEN_CONFINED: Final = "useless-when-confined"
"""Code of the error of a worker that can no longer use its device once it is confined."""


class ClaimResult(Message, frozen=True):
    """The claimed device, as it goes into OP_REP_IMPORT, and how it was taken."""

    device: UsbDevice
    claim_method: str
    user: str
    lacks: str | None = None
    """What its confinement lacks; None: nothing."""


class AttachParameters(Message, frozen=True):
    """Serve this client.  Carries its TCP socket, on which OP_REP_IMPORT was the last thing sent."""

    client: str


class DetachedParameters(Message, frozen=True):
    """The client is gone.  `reason` is a sentence for logs; the device is not ready for the next one yet."""

    reason: str


class GoneParameters(Message, frozen=True):
    """The device was unplugged or is beyond repair; the worker is about to exit."""

    reason: str


# ---- the table ---------------------------------------------------------------------------------------------

_SERVER: Final = frozenset({Role.SERVER})
_EXTENSION: Final = frozenset({Role.EXTENSION})

CHILDREN: Final = Table(
    {
        Command.DEVLIST: CommandRow(
            DevlistParameters, DevlistResult, _SERVER, is_long=True, ends_with_its_peer=True
        ),
        Command.RESERVE: CommandRow(ReserveParameters, ReserveResult, _SERVER, ends_with_its_peer=True),
        Command.HANDOVER: CommandRow(ReservationParameters, Nothing, _SERVER, carries_descriptor=True),
        Command.ABANDON: CommandRow(ReservationParameters, Nothing, _SERVER),
        Command.MORE: CommandRow(MoreParameters, Part, _SERVER),
        Command.SERVE: CommandRow(ServeParameters, ServeResult, _EXTENSION),
        Command.PING: CommandRow(Nothing, Nothing, _EXTENSION),
        Command.LOG: CommandRow(LogParameters, Nothing, _EXTENSION),
        Command.LOG_FILE: CommandRow(Nothing, Nothing, _EXTENSION, carries_descriptor=True),
        Command.CLAIM: CommandRow(ClaimParameters, ClaimResult, _EXTENSION, carries_descriptor=True),
        Command.ATTACH: CommandRow(AttachParameters, Nothing, _EXTENSION, carries_descriptor=True),
        Command.DISCONNECT: CommandRow(Nothing, Nothing, _EXTENSION),
        Command.RELEASE: CommandRow(Nothing, Nothing, _EXTENSION),
    },
    {
        EventName.DETACHED: EventRow(DetachedParameters, Role.WORKER),
        EventName.RESTORED: EventRow(Nothing, Role.WORKER),
        EventName.DEVICE_GONE: EventRow(GoneParameters, Role.WORKER),
    },
)
"""What extension, server and workers ask and tell each other."""
