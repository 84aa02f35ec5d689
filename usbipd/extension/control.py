"""The control socket, where local users' commands reach the extension.  Runs in the extension.

Any local user can connect to root's daemon.  The kernel identifies the peer, `ipc/roles.py` determines its
role, and the table in `ipc/control_messages.py` lists what each role can send.

# Limits per user

A user has at most `MAX_CONNECTIONS_PER_USER` connections, each with at most `MAX_RUNNING_PER_CONNECTION`
requests in progress or waiting.  Requests that only read are limited to `READING_PER_USER` at the same time,
and those that describe all devices to one; the others wait, users in turn (usbipd/fair_slots.py).  So a user
who sends too many requests delays other users by a few answers only.  A request whose peer has left ends, at
the latest when its turn comes.  Requests that change something (BIND, UNBIND, DETACH, RELEASE_DEVICE) do not
wait here: only administrators can send them.
"""

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from usbipd import paths, privileges
from usbipd.control_socket import has_listener
from usbipd.errors import IPCError, UsbipdError
from usbipd.extension.event_recorder import EventRecorder
from usbipd.extension.manager import SystemExtensionManager
from usbipd.extension.status_monitor import StatusMonitor
from usbipd.fair_slots import FairSlots
from usbipd.ipc.async_channel import Channel
from usbipd.ipc.control_messages import (
    PEOPLE,
    BindingInfo,
    BindParameters,
    DetachParameters,
    DetachResult,
    HistoryParameters,
    HistoryResult,
    ReleaseParameters,
    ReleaseResult,
    UnbindParameters,
)
from usbipd.ipc.conversation import Request
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command, EventName, Nothing
from usbipd.ipc.roles import role_of
from usbipd.ipc.row import Role
from usbipd.log import LIMITED
from usbipd.privileges import RunAs
from usbipd.usb.identity import DeviceRule

_LOG: Final = logging.getLogger(__name__)

MAX_CONNECTIONS_PER_USER: Final = 32
"""So that one user's programs cannot lock out another's."""
ACCEPT_PAUSE: Final = 0.1
"""Seconds to wait when accept fails for lack of descriptors or memory."""

MOST_LOGGED: Final = 8
"""Bindings named in one line of the log, at most."""

MAX_RUNNING_PER_CONNECTION: Final = 8
"""Requests in progress; our own commands send one at a time."""
READING: Final = 16
"""Requests in progress that only read, of all users."""
READING_PER_USER: Final = 4

NOTIFY_DELAY: Final = 0.1
"""Seconds between a change and the notification of watchers: changes come in bursts."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers the requests on the control socket."""

    manager: SystemExtensionManager
    status_monitor: StatusMonitor
    recorder: EventRecorder
    reading: FairSlots[int] = field(
        default_factory=lambda: FairSlots(total=READING, per_owner=READING_PER_USER)
    )
    """By uid."""
    describing: FairSlots[int] = field(default_factory=lambda: FairSlots(total=1, per_owner=1))
    """Held while all devices are described: so only one such answer is in memory at a time."""

    async def answer(self, request: Request, peer: privileges.Peer, channel: Channel) -> Message:
        """The result of `request`, which the table lets `peer` send.  Raises `UsbipdError`."""
        if request.command is Command.WATCH:
            return Nothing()
        if not PEOPLE.commands[request.command].ends_with_its_peer:
            return await self._change(request, peer.name)
        async with self.reading.hold(peer.uid):
            await _end_if_left(channel)
            if request.command not in (Command.LIST, Command.STATUS):
                return await self._read(request)
            async with self.describing.hold(peer.uid):
                await _end_if_left(channel)
                return await self._read(request)

    async def _read(self, request: Request) -> Message:
        parameters = request.parameters
        match request.command:
            case Command.LIST:
                return await self.manager.survey()
            case Command.STATUS:
                return await self.status_monitor.get_full_status()
            case Command.HISTORY:
                assert isinstance(parameters, HistoryParameters)
                entries = await self.status_monitor.get_claim_history(parameters.limit, parameters.before)
                return HistoryResult(entries=entries)
            case Command.HEALTH:
                return await self.status_monitor.perform_health_check()
        raise _unknown(request.command)

    async def _change(self, request: Request, user: str) -> Message:
        manager, parameters = self.manager, request.parameters
        match request.command:
            case Command.BIND:
                assert isinstance(parameters, BindParameters)
                bound = await manager.bind(parameters, user)
                _LOG.info("%s bound by %s", _rules([bound.binding]), user)
                return bound
            case Command.UNBIND:
                assert isinstance(parameters, UnbindParameters)
                unbound = await manager.unbind(parameters, user)
                _LOG.info("%s unbound by %s", _rules(unbound.bindings), user)
                return unbound
            case Command.DETACH:
                assert isinstance(parameters, DetachParameters)
                client = await manager.detach(parameters.busid, user)
                _LOG.info("%s detached from %s by %s", client, parameters.busid, user)
                return DetachResult(client=client)
            case Command.RELEASE_DEVICE:
                assert isinstance(parameters, ReleaseParameters)
                drivers = await manager.release(parameters.busid)
                _LOG.info("%s released by %s", parameters.busid, user)
                return ReleaseResult(drivers=drivers)
        raise _unknown(request.command)


def _rules(bindings: Sequence[BindingInfo]) -> str:
    """The bindings for the log, by port and hardware id: the first `MOST_LOGGED` and the number of others."""
    rules = [
        str(DeviceRule(each.vendor_id, each.product_id, None if each.busid else each.serial, each.busid))
        for each in bindings[:MOST_LOGGED]
    ]
    more = [f"{len(bindings) - MOST_LOGGED} more"] if len(bindings) > MOST_LOGGED else []
    return ", ".join(rules + more) or "nothing"


async def _end_if_left(channel: Channel) -> None:
    """Cancels the request that calls it if its peer has left meanwhile."""
    channel.close_if_left()
    await asyncio.sleep(0)  # where the cancellation takes effect


def _unknown(command: Command) -> UsbipdError:
    return UsbipdError(f"{command} cannot be sent to the control socket", code="not-permitted")


class IPCHandler:
    """Listens on the control socket and serves its connections."""

    def __init__(self, path: Path, run_as: RunAs | None, worker_uids: range) -> None:
        self._path = path
        self._run_as = run_as
        self._worker_uids = worker_uids
        self._notification: asyncio.TimerHandle | None = None
        self._answers: Answers | None = None
        self._ready = asyncio.Event()
        self._listener: socket.socket | None = None
        self._lock = -1
        """Descriptor of the socket's directory, locked while we listen."""
        self._channels: dict[Channel, int] = {}
        """The uid of each channel's peer."""
        self._watching: dict[Channel, bool] = {}
        """Channels that have sent WATCH; True: notified of a change, and no request since."""

    def start_listener(self) -> bool:
        """Accept connections; requests wait for `serve`.  Returns whether a previous extension was killed.

        Raises `UsbipdError` if another extension has its socket in this directory already, or the socket
        cannot be created.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        try:
            self._lock = paths.RuntimeFiles(self._path).lock()
            was_killed = _remove_stale(self._path)
            listener.bind(os.fspath(self._path))
            self._path.chmod(0o666 if os.geteuid() == 0 else 0o600)
            listener.listen(socket.SOMAXCONN)
        except OSError as error:
            listener.close()
            self._unlock()
            raise UsbipdError(f"{self._path}: {error.strerror}", code="bad-path") from error
        except UsbipdError:
            listener.close()
            self._unlock()
            raise
        self._listener = listener
        self._listen()
        return was_killed

    def serve(self, answers: Answers) -> None:
        """Start to answer requests."""
        answers.recorder.watch(self._changed)
        self._answers = answers
        self._ready.set()

    def close(self) -> None:
        """Stop listening, remove the socket and close all connections."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)
            self._unlock()  # last: from here on the path may be another extension's
        for channel in list(self._channels):
            channel.close()

    def authenticate_client(self, connection: socket.socket) -> tuple[privileges.Peer, Role]:
        """The peer as the kernel identifies it, and its role.  Raises `OSError` if it has left."""
        peer = privileges.peer_of(connection)
        role = role_of(
            peer,
            owner=os.geteuid(),
            admin_group=privileges.admin_group(),
            run_as=self._run_as,
            worker_uids=self._worker_uids,
        )
        return peer, role

    def _listen(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _address = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            _LOG.error("cannot accept on the control socket: %s", error.strerror, extra=LIMITED)
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener)  # else it would be called again at once
            loop.call_later(ACCEPT_PAUSE, self._listen)
            return
        try:
            peer, role = self.authenticate_client(connection)
        except OSError as error:
            _LOG.warning("cannot identify a client of the control socket: %s", error, extra=LIMITED)
            connection.close()
            return
        if Counter(self._channels.values())[peer.uid] >= MAX_CONNECTIONS_PER_USER:
            _LOG.warning(
                "%s[%d] refused: too many connections of this user", peer.name, peer.pid, extra=LIMITED
            )
            connection.close()
            return
        self._serve(connection, peer, role)

    def _serve(self, connection: socket.socket, peer: privileges.Peer, role: Role) -> None:
        who = f"{peer.name}[{peer.pid}]"

        def closed(reason: IPCError | None) -> None:
            del self._channels[channel]
            self._watching.pop(channel, None)
            if reason is not None:
                _LOG.warning("%s dropped: %s", who, reason, extra=LIMITED)

        async def answer(request: Request) -> Message:
            _LOG.debug("%s requests %s", who, request.command)
            # a message after WATCH may have closed the channel, and `closed` is called once
            if channel.is_open and (request.command is Command.WATCH or channel in self._watching):
                self._watching[channel] = False
            await self._ready.wait()
            assert self._answers is not None
            return await self._answers.answer(request, peer, channel)

        channel = Channel(
            connection,
            name=who,
            role=role,
            table=PEOPLE,
            on_request=answer,
            on_close=closed,
            max_running=MAX_RUNNING_PER_CONNECTION,
        )
        self._channels[channel] = peer.uid

    def _changed(self) -> None:
        if self._watching and self._notification is None:
            self._notification = asyncio.get_running_loop().call_later(NOTIFY_DELAY, self._notify)

    def _notify(self) -> None:
        """Notify each watcher once until its next request: no queue builds up for a slow one."""
        self._notification = None
        for channel, is_notified in self._watching.items():
            if not is_notified:
                self._watching[channel] = True
                channel.push(EventName.CHANGED, Nothing())


def _remove_stale(path: Path) -> bool:
    """Remove the socket of a killed extension; returns whether there was one.

    Raises `OSError`, or `UsbipdError` if it is not a socket or a program listens on it: only an extension
    locks the directory, but any program may have created the socket.
    """
    if path.is_socket():
        if has_listener(os.fspath(path)):
            raise UsbipdError(
                f"another program listens on {path}",
                code="bad-path",
                advice="choose another path with --socket",
            )
        path.unlink(missing_ok=True)
        return True
    if os.path.lexists(path):
        raise UsbipdError(
            f"{path} exists and is not a socket",
            code="bad-path",
            advice="choose another path with --socket",
        )
    return False
