"""The rows of the two tables of commands and events.  Used by every process.

`PEOPLE`, the table of the control socket, stands at the end of `control_messages.py`; `CHILDREN`, that of the
channels between our processes, at the end of `children.py`.  A channel has one of them.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command, EventName


class Role(StrEnum):
    """What a peer is to us; `roles.py` finds it."""

    EXTENSION = "extension"
    SERVER = "server"
    WORKER = "worker"
    ROOT = "root"
    ADMIN = "admin"  # a member of the group that manages this host
    OWNER = "owner"  # in development: the user who runs the extension, unprivileged
    USER = "user"  # any other user of this host


PROCESSES: Final = frozenset({Role.EXTENSION, Role.SERVER, Role.WORKER})
"""Our own processes.  One that asks for what it may not ask is broken or taken over, and is dropped; a
person gets an answer."""


class CommandRow(NamedTuple):
    """One command."""

    parameters: type[Message]
    result: type[Message]
    senders: frozenset[Role]
    """Who may send it.  Enforced in `async_channel.Channel`."""
    is_long: bool = False
    """Whether the answer grows with the number of devices, so that it may come in parts."""
    carries_descriptor: bool = False
    """Whether exactly one file descriptor comes with it; else none does."""
    ends_with_its_peer: bool = False
    """Whether it is cancelled when the process that asked has left: it changes nothing, or only for that one.
    All others run to their end: half a bind is worse than an unread answer."""


class EventRow(NamedTuple):
    """One event."""

    parameters: type[Message]
    sender: Role
    """Who may push it."""


class Table(NamedTuple):
    """What may be said on a channel."""

    commands: Mapping[Command, CommandRow]
    events: Mapping[EventName, EventRow]
