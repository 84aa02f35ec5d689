"""The table of permissions, row by row, and the roles of peers."""

import pytest

from tests.unit.ipc.tables import BOTH
from usbipd.ipc.children import CHILDREN
from usbipd.ipc.messages import Command, EventName
from usbipd.ipc.roles import not_permitted_error, role_of
from usbipd.ipc.row import Role
from usbipd.privileges import Peer, RunAs

EXPECTED: dict[Command | EventName, set[Role]] = {
    Command.LIST: {Role.ROOT, Role.ADMIN, Role.OWNER, Role.USER},
    Command.STATUS: {Role.ROOT, Role.ADMIN, Role.OWNER, Role.USER},
    Command.HISTORY: {Role.ROOT, Role.ADMIN, Role.OWNER, Role.USER},
    Command.HEALTH: {Role.ROOT, Role.ADMIN, Role.OWNER, Role.USER},
    Command.WATCH: {Role.ROOT, Role.ADMIN, Role.OWNER, Role.USER},
    Command.MORE: {Role.ROOT, Role.ADMIN, Role.OWNER, Role.USER, Role.SERVER},
    Command.BIND: {Role.ROOT, Role.ADMIN, Role.OWNER},
    Command.DETACH: {Role.ROOT, Role.ADMIN, Role.OWNER},
    Command.UNBIND: {Role.ROOT, Role.ADMIN, Role.OWNER},
    Command.RELEASE_DEVICE: {Role.ROOT, Role.ADMIN, Role.OWNER},
    Command.DEVLIST: {Role.SERVER},
    Command.RESERVE: {Role.SERVER},
    Command.HANDOVER: {Role.SERVER},
    Command.ABANDON: {Role.SERVER},
    Command.SERVE: {Role.EXTENSION},
    Command.CLAIM: {Role.EXTENSION},
    Command.ATTACH: {Role.EXTENSION},
    Command.RELEASE: {Role.EXTENSION},
    Command.PING: {Role.EXTENSION},
    Command.LOG: {Role.EXTENSION},
    Command.LOG_FILE: {Role.EXTENSION},
    Command.DISCONNECT: {Role.EXTENSION},
    EventName.DETACHED: {Role.WORKER},
    EventName.RESTORED: {Role.WORKER},
    EventName.DEVICE_GONE: {Role.WORKER},
    EventName.CHANGED: {Role.EXTENSION},
}


def test_every_command_and_event_has_its_row() -> None:
    assert set(BOTH.commands) == set(Command)
    assert set(BOTH.events) == set(EventName)
    assert set(EXPECTED) == {*Command, *EventName}


@pytest.mark.parametrize("what", EXPECTED, ids=str)
def test_row(what: Command | EventName) -> None:
    senders = BOTH.commands[what].senders if isinstance(what, Command) else {BOTH.events[what].sender}
    assert senders == EXPECTED[what]


def test_children_have_no_long_answers() -> None:
    """With a long answer of a child, both sides could wait for each other (async_channel.py)."""
    asked_of_children = [row for row in CHILDREN.commands.values() if Role.EXTENSION in row.senders]
    assert asked_of_children
    assert not any(row.is_long for row in asked_of_children)


def test_the_error_names_who_has_permission() -> None:
    assert "permission denied: unbind " in not_permitted_error(Command.UNBIND).message
    assert not_permitted_error(Command.UNBIND).advice
    assert "permission denied: release " in not_permitted_error(Command.RELEASE_DEVICE).message


OWNER, ADMINS, CHILD, WORKERS = 1000, 60, 61, range(65537, 65540)


@pytest.mark.parametrize(
    ("peer", "owner", "role"),
    [
        (Peer(0, 1, frozenset({0})), 0, Role.ROOT),
        (Peer(0, 1, frozenset({0})), OWNER, Role.ROOT),
        (Peer(OWNER, 1, frozenset({OWNER})), OWNER, Role.OWNER),
        (Peer(1001, 1, frozenset({1001, ADMINS})), 0, Role.ADMIN),
        (Peer(1001, 1, frozenset({1001})), 0, Role.USER),
        (Peer(OWNER, 1, frozenset({OWNER})), 0, Role.USER),
        (Peer(CHILD, 1, frozenset({ADMINS})), 0, Role.USER),
        (Peer(WORKERS[0], 1, frozenset({ADMINS})), 0, Role.USER),
        (Peer(WORKERS[-1], 1, frozenset({ADMINS})), 0, Role.USER),
        (Peer(WORKERS[-1] + 1, 1, frozenset({ADMINS})), 0, Role.ADMIN),
    ],
    ids=[
        "root",
        "root, a user's daemon",
        "owner",
        "admin",
        "user",
        "user, root's daemon",
        "our server's user",
        "the first worker's",
        "the last worker's",
        "the uid after the last worker's",
    ],
)
def test_role(peer: Peer, owner: int, role: Role) -> None:
    run_as = RunAs(user="usbipd", uid=CHILD, gid=ADMINS)
    assert role_of(peer, owner=owner, admin_group=ADMINS, run_as=run_as, worker_uids=WORKERS) is role


def test_a_host_without_the_group_has_no_administrators() -> None:
    peer = Peer(1001, 1, frozenset({1001}))
    assert role_of(peer, owner=0, admin_group=None, run_as=None, worker_uids=WORKERS) is Role.USER
