"""The rows of the two tables of commands and events.  Used by every process.

`PEOPLE`, the table of the control socket, is at the end of `control_messages.py`; `CHILDREN`, the table of
the channels between our processes, at the end of `children.py`.  Each channel uses one of them.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command, EventName


class Role(StrEnum):
    """The role of a peer; `roles.py` determines it."""

    EXTENSION = "extension"
    SERVER = "server"
    WORKER = "worker"
    ROOT = "root"
    ADMIN = "admin"  # a member of the group that manages this host
    OWNER = "owner"  # in development: the user who runs the extension, unprivileged
    USER = "user"  # any other user of this host


PROCESSES: Final = frozenset({Role.EXTENSION, Role.SERVER, Role.WORKER})
"""Our own processes.  One that sends what it may not send is buggy or compromised, and is dropped; a user
gets an error."""


class CommandRow(NamedTuple):
    """One command."""

    parameters: type[Message]
    result: type[Message]
    senders: frozenset[Role]
    """The roles that may send it.  Enforced in `async_channel.Channel`."""
    is_long: bool = False
    """Whether the answer grows with the number of devices, so that it may be sent in parts."""
    carries_descriptor: bool = False
    """Whether exactly one file descriptor is sent with it; else none is."""
    ends_with_its_peer: bool = False
    """Whether it is cancelled when its sender leaves, because it changes nothing for others.  All other
    requests run to completion: half a bind is worse than an unread answer."""


class EventRow(NamedTuple):
    """One event."""

    parameters: type[Message]
    sender: Role
    """The role that may send it."""


class Table(NamedTuple):
    """The commands and events of a channel."""

    commands: Mapping[Command, CommandRow]
    events: Mapping[EventName, EventRow]
