"""Messages between the extension and its children.  Used by the extension, the server and the workers."""

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
"""Whether a process enters the system's sandbox: "auto" reports what is missing, "require" exits if anything
is missing, "off" enters none."""


class Confinement(Message, frozen=True):
    """How a process drops privileges once it is ready (`usbipd/confinement.py`).

    `run_as` and `root`, its empty root directory, are set if the extension is root.
    """

    run_as: RunAs | None
    root: str | None
    sandbox: Sandbox = "auto"


class LogParameters(Message, frozen=True):
    """The new log level."""

    level: str


class ServeParameters(Message, frozen=True):
    """How the server listens.  `listen` holds `ADDRESS:PORT`, IPv6 in brackets; port 0: any free one.
    `allow` holds the addresses and networks of clients that may connect; empty: all."""

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
    """The actual addresses and ports, and the user that the server runs as."""

    listening: list[str]
    user: str
    lacks: str | None = None
    """What its confinement lacks; None: nothing."""


ClientName = Annotated[str, msgspec.Meta(max_length=80)]
"""A client's address and port: at most 39 characters for IPv6, 16 for its scope, 8 for brackets and port.
Bounded because it comes from a process that reads the network, and is shown in logs and the status."""


MOST_ADDRESSES: Final = 64
"""Addresses in one DEVLIST, at most."""


class DevlistParameters(Message, frozen=True):
    """The addresses, without port and scope, of the clients that wait for a list of devices."""

    addresses: Annotated[list[ClientName], msgspec.Meta(min_length=1, max_length=MOST_ADDRESSES)]


class DevlistResult(Message, frozen=True):
    """Devices that these clients can import, free or not.

    Most clients can import the same devices, so each distinct list is sent once.
    """

    devices: list[UsbDevice]
    """All devices that are in any of the lists."""
    lists: list[list[int]]
    """Indices into `devices`."""
    list_of: list[int]
    """For each address, in the order of the request, its index into `lists`."""


class ReserveParameters(Message, frozen=True):
    """Reserve this device for a client, until HANDOVER or ABANDON.

    `reservation` is an unused number chosen by the server; ABANDON with it also ends a RESERVE that is not
    answered yet.  With `wait`, wait for a device that is about to be free.
    """

    reservation: int
    busid: str
    client: ClientName
    address: ClientName
    wait: bool


class ReserveResult(Message, frozen=True):
    """`status` is the OP_REP_IMPORT status; if it is 0, `device` is set."""

    status: int
    device: UsbDevice | None = None


class ReservationParameters(Message, frozen=True):
    """HANDOVER carries the client's socket; ABANDON reports that the client has left."""

    reservation: int


# ---- extension and worker ------------------------------------------------------------------------


class ClaimParameters(Message, frozen=True):
    """Claim this device.  Carries the descriptor of the counter page (`counters.py`)."""

    busid: str
    busnum: int
    devnum: int
    path: str
    simulated: SimulatedSpec | None
    confinement: Confinement | None
    transfer_budget: int
    """Bytes of the URBs of one client in flight, at most."""
    device_memory: DeviceMemory
    log_level: str
    log_to: str


USELESS_WHEN_CONFINED: Final = "useless-when-confined"
"""Code of the error of a worker that cannot use its device when confined."""


class ClaimResult(Message, frozen=True):
    """The claimed device, as sent in OP_REP_IMPORT, and how it was claimed."""

    device: UsbDevice
    claim_method: str
    user: str
    lacks: str | None = None
    """What its confinement lacks; None: nothing."""


class AttachParameters(Message, frozen=True):
    """Serve this client.  Carries its TCP socket; OP_REP_IMPORT has been sent on it."""

    client: str


class DetachedParameters(Message, frozen=True):
    """The client is gone.  `reason` is a text for logs; the device is not ready for the next client yet."""

    reason: str


class GoneParameters(Message, frozen=True):
    """The device was unplugged or no longer works; the worker is about to exit."""

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
"""The messages between the extension, the server and the workers."""
