"""What a peer is to us, and how a user without permission is refused.  Runs in extension and server.

A role never comes out of a message.  The extension's children have the role for which their socketpair was
made; on the control socket the kernel identifies the peer.
"""

from usbipd.errors import UsbipdError
from usbipd.ipc.messages import Command
from usbipd.ipc.row import Role
from usbipd.privileges import ADMIN_GROUP, Peer, RunAs


def not_permitted_error(command: Command) -> UsbipdError:
    """The error for a user who may not send `command`; its first word is the verb."""
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
