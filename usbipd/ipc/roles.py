"""Roles of peers, and the error for users without permission.  Runs in extension and server.

A role is never taken from a message.  A child has the role for which its socketpair was created; on the
control socket the kernel identifies the peer.
"""

from usbipd.errors import UsbipdError
from usbipd.ipc.messages import Command
from usbipd.ipc.row import Role
from usbipd.privileges import ADMIN_GROUP, Peer, RunAs


def not_permitted_error(command: Command) -> UsbipdError:
    """The error for a user without permission for `command`, whose first word is the verb."""
    verb = command.partition("-")[0]
    return UsbipdError(
        f"permission denied: {verb} requires root or membership in the group {ADMIN_GROUP}",
        code="not-permitted",
        advice="try again with sudo",
    )


def role_of(
    peer: Peer, *, owner: int, admin_group: int | None, run_as: RunAs | None, worker_uids: range
) -> Role:
    """The role of a local process on the control socket.

    `owner` is the uid of the extension, `run_as` the user of its server, `worker_uids` those of its workers.
    Server and workers are never administrators, although on Linux the server's group is that of the
    administrators: a compromised child has no rights there.
    """
    if peer.uid == 0:
        return Role.ROOT
    if peer.uid == owner:
        return Role.OWNER
    is_child = peer.uid in worker_uids or (run_as is not None and peer.uid == run_as.uid)
    if admin_group in peer.groups and not is_child:
        return Role.ADMIN
    return Role.USER
