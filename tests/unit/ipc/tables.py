"""Both tables of commands and events merged, for tests of all channels."""

from typing import Final

from usbipd.ipc.children import CHILDREN
from usbipd.ipc.control_messages import PEOPLE
from usbipd.ipc.messages import Command
from usbipd.ipc.row import PROCESSES, Role, Table

_MORE = PEOPLE.commands[Command.MORE]
BOTH: Final = Table(
    {
        **PEOPLE.commands,
        **CHILDREN.commands,
        Command.MORE: _MORE._replace(senders=_MORE.senders | CHILDREN.commands[Command.MORE].senders),
    },
    {**PEOPLE.events, **CHILDREN.events},
)


def table_of(role: Role) -> Table:
    """The table of a channel to a peer in `role`."""
    return CHILDREN if role in PROCESSES else PEOPLE
