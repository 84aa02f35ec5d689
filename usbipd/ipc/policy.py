"""Who may ask what: the privilege boundary, in one table.  Enforced in `async_channel.Channel`.

A role never comes out of a message.  The extension's children have the role for which their socketpair was
made; who connects to the control socket is what the kernel says of the connection.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from usbipd.errors import UsbipdError
from usbipd.ipc.children import RunAs
from usbipd.ipc.messages import Command, EventName
from usbipd.privileges import ADMIN_GROUP, Peer


class Role(StrEnum):
    """What a peer is to us."""

    EXTENSION = "extension"
    SERVER = "server"
    WORKER = "worker"
    ROOT = "root"
    ADMIN = "admin"  # a member of the group that manages this host
    OWNER = "owner"  # in development: the user who runs the extension, unprivileged
    USER = "user"  # everybody else on this host


PROCESSES: Final = frozenset({Role.EXTENSION, Role.SERVER, Role.WORKER})
"""Our own processes.  One that asks for what it may not ask is broken or taken over, and is dropped; a
person gets an answer."""


def _allow(*roles: Role) -> frozenset[Role]:
    return frozenset(roles)


COMMAND_POLICY: Final[Mapping[Command, frozenset[Role]]] = {
    Command.LIST: _allow(Role.ROOT, Role.ADMIN, Role.OWNER, Role.USER),
    Command.STATUS: _allow(Role.ROOT, Role.ADMIN, Role.OWNER, Role.USER),
    Command.HISTORY: _allow(Role.ROOT, Role.ADMIN, Role.OWNER, Role.USER),
    Command.HEALTH: _allow(Role.ROOT, Role.ADMIN, Role.OWNER, Role.USER),
    Command.WATCH: _allow(Role.ROOT, Role.ADMIN, Role.OWNER, Role.USER),
    Command.MORE: _allow(Role.ROOT, Role.ADMIN, Role.OWNER, Role.USER, Role.SERVER),
    Command.BIND: _allow(Role.ROOT, Role.ADMIN, Role.OWNER),
    Command.UNBIND: _allow(Role.ROOT, Role.ADMIN, Role.OWNER),
    Command.DETACH: _allow(Role.ROOT, Role.ADMIN, Role.OWNER),
    Command.RELEASE_DEVICE: _allow(Role.ROOT, Role.ADMIN, Role.OWNER),
    Command.DEVLIST: _allow(Role.SERVER),
    Command.RESERVE: _allow(Role.SERVER),
    Command.HANDOVER: _allow(Role.SERVER),
    Command.ABANDON: _allow(Role.SERVER),
    Command.SERVE: _allow(Role.EXTENSION),
    Command.PING: _allow(Role.EXTENSION),
    Command.LOG: _allow(Role.EXTENSION),
    Command.LOG_FILE: _allow(Role.EXTENSION),
    Command.CLAIM: _allow(Role.EXTENSION),
    Command.ATTACH: _allow(Role.EXTENSION),
    Command.DISCONNECT: _allow(Role.EXTENSION),
    Command.RELEASE: _allow(Role.EXTENSION),
}
"""The roles that may send each command."""

EVENT_POLICY: Final[Mapping[EventName, frozenset[Role]]] = {
    EventName.DETACHED: _allow(Role.WORKER),
    EventName.RESTORED: _allow(Role.WORKER),
    EventName.DEVICE_GONE: _allow(Role.WORKER),
    EventName.CHANGED: _allow(Role.EXTENSION),
}
"""The roles that may push each event."""


def may(role: Role, what: Command | EventName) -> bool:
    """Whether a peer in `role` may send `what`."""
    return role in (COMMAND_POLICY[what] if isinstance(what, Command) else EVENT_POLICY[what])


def refusal(command: Command) -> UsbipdError:
    """What a person hears who may not send `command`; its first word is the verb."""
    return UsbipdError(
        f"you may not {command.partition('-')[0]}: that takes root or a member of the group {ADMIN_GROUP}",
        code="not-permitted",
        advice="try again with sudo",
    )


def role_of(
    peer: Peer, *, owner: int, admin_group: int | None, run_as: RunAs | None, worker_uids: range
) -> Role:
    """The role of a local process on the control socket.

    `owner` is the uid of the extension; `run_as` the user that its server becomes, `worker_uids` its
    workers.  None of these is ever an administrator: on Linux the server's group bears the administrators'
    name, and they are what a broken into child has.
    """
    if peer.uid == 0:
        return Role.ROOT
    if peer.uid == owner:
        return Role.OWNER
    is_child = peer.uid in worker_uids or (run_as is not None and peer.uid == run_as.uid)
    if admin_group in peer.groups and not is_child:
        return Role.ADMIN
    return Role.USER
