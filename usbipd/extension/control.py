"""The control socket, by which local people and their programs talk to the extension.  Runs in the extension.

Anybody may connect to root's daemon; the kernel says who it is, and `ipc/policy.py` what that one may ask.
"""

import asyncio
import fcntl
import logging
import os
import socket
from collections import Counter
from pathlib import Path
from typing import Final

from usbipd import privileges
from usbipd.errors import IPCError, UsbipdError
from usbipd.extension.manager import SystemExtensionManager
from usbipd.extension.monitor import StatusMonitor
from usbipd.ipc.async_channel import Channel
from usbipd.ipc.channel import Request
from usbipd.ipc.messages import (
    BindParameters,
    BindResult,
    Command,
    ListResult,
    Message,
    RunAs,
    UnbindParameters,
    UnbindResult,
)
from usbipd.ipc.policy import Role, role_of

_LOG: Final = logging.getLogger(__name__)

MAX_CONNECTIONS_PER_USER: Final = 32
"""One user's programs cannot keep another's out."""
ACCEPT_PAUSE: Final = 0.1
"""Seconds to wait when accept fails for want of descriptors or memory."""


class IPCHandler:
    """The listener, and the answers to what comes in."""

    def __init__(
        self, path: Path, manager: SystemExtensionManager, monitor: StatusMonitor, run_as: RunAs | None
    ) -> None:
        self._path = path
        self._manager = manager
        self._monitor = monitor
        self._run_as = run_as
        self._listener: socket.socket | None = None
        self._lock = -1
        """Descriptor of the socket's directory, locked while we listen."""
        self._channels: dict[Channel, int] = {}
        """With the uid of the peer."""

    def start_listener(self) -> None:
        """Accept from now on.

        Raises `UsbipdError` if another extension has its socket in this directory already, or the socket
        cannot be made.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        try:
            self._lock = _lock(self._path.parent)
            _remove_stale(self._path)
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

    def close(self) -> None:
        """Accept no more, remove the socket and leave everybody."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)
            self._unlock()  # last: from here on the path may be another extension's
        for channel in list(self._channels):
            channel.close()

    def authenticate_client(self, connection: socket.socket) -> tuple[privileges.Peer, Role]:
        """Who connected, as the kernel says it.  Raises `OSError` if that one is gone."""
        peer = privileges.peer_of(connection)
        role = role_of(peer, owner=os.geteuid(), admin_group=privileges.admin_group(), run_as=self._run_as)
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
            _LOG.error("cannot accept on the control socket: %s", error.strerror)
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener)  # who waits there would call us again at once
            loop.call_later(ACCEPT_PAUSE, self._listen)
            return
        try:
            peer, role = self.authenticate_client(connection)
        except OSError as error:
            _LOG.warning("a client of the control socket cannot be identified: %s", error)
            connection.close()
            return
        if Counter(self._channels.values())[peer.uid] >= MAX_CONNECTIONS_PER_USER:
            _LOG.warning("%s[%d] refused: this user has too many connections", peer.name, peer.pid)
            connection.close()
            return
        self._serve(connection, peer, role)

    def _serve(self, connection: socket.socket, peer: privileges.Peer, role: Role) -> None:
        who = f"{peer.name}[{peer.pid}]"

        def closed(reason: IPCError | None) -> None:
            del self._channels[channel]
            if reason is not None:
                _LOG.warning("%s dropped: %s", who, reason)

        async def answer(request: Request) -> Message:
            _LOG.debug("%s asks for %s", who, request.command)
            return await self._answer(request, who)

        channel = Channel(connection, name=who, role=role, on_request=answer, on_close=closed)
        self._channels[channel] = peer.uid

    async def _answer(self, request: Request, who: str) -> Message:
        parameters = request.parameters
        match request.command:
            case Command.LIST:
                return ListResult(devices=await self._manager.list_devices())
            case Command.STATUS:
                return await self._monitor.report()
            case Command.BIND:
                assert isinstance(parameters, BindParameters)
                device = await self._manager.bind(parameters.busid)
                _LOG.info("%s bound by %s", parameters.busid, who)
                return BindResult(device=device)
            case Command.UNBIND:
                assert isinstance(parameters, UnbindParameters)
                busids = await self._manager.unbind(parameters.busid)
                _LOG.info("%s unbound by %s", ", ".join(busids) or "nothing", who)
                return UnbindResult(busids=busids)
        raise UsbipdError(f"{request.command} is not for the control socket", code="not-permitted")


def _lock(directory: Path) -> int:
    """A descriptor of `directory` that no other extension can have while it is open.

    Without it two that start at one moment could each take the other's socket for a stale one.  Raises
    `OSError`, or `UsbipdError` if another extension has it.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise
        raise UsbipdError(
            f"an extension is running already: it has its socket in {directory}",
            code="already-running",
            advice="`usbipd-ext --status` shows it; end it first, or choose another directory with --socket",
        ) from error
    return descriptor


def _remove_stale(path: Path) -> None:
    """Remove the socket that a killed extension left.  Raises `OSError`, or `UsbipdError` if it is none."""
    if path.is_socket():
        path.unlink()
    elif os.path.lexists(path):
        raise UsbipdError(
            f"{path} is there already and is no socket",
            code="bad-path",
            advice="choose another path with --socket",
        )
