"""The server's main: receives SERVE, listens, drops its rights, then serves the network.

It reads OP_* messages from strangers and holds only sockets.  All imports happen at start: after SERVE its
root directory is empty.
"""

import asyncio
import logging
import resource
import socket
from typing import Final

from usbipd import confinement, log
from usbipd.access import AccessList
from usbipd.errors import IPCError, UsbipdError
from usbipd.ipc import CHANNEL_DESCRIPTOR
from usbipd.ipc.async_channel import Channel
from usbipd.ipc.children import CHILDREN, LogParameters, ServeParameters, ServeResult
from usbipd.ipc.conversation import Request
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command, Nothing
from usbipd.ipc.row import Role
from usbipd.server.coordinator import ServerCoordinator

_LOG: Final = logging.getLogger(__name__)

_OWN_DESCRIPTORS: Final = 48
"""Descriptors besides connections: standard ones, channel, event loop, at most 16 listeners and, for each of
these, one client that waits for a free slot."""


def main(arguments: list[str]) -> int:
    """`@server`, started by the extension; exits when the extension does."""
    log.configure("server")
    return asyncio.run(_Server().run())


class _Server:
    def __init__(self) -> None:
        self._coordinator: ServerCoordinator | None = None
        self._ended = asyncio.Event()
        self._exit_code = 0

    async def run(self) -> int:
        log.use_timer(asyncio.get_running_loop())
        self._channel = Channel(
            socket.socket(fileno=CHANNEL_DESCRIPTOR),
            name="extension",
            role=Role.EXTENSION,
            table=CHILDREN,
            on_request=self._answer,
            on_close=self._closed,
        )
        await self._ended.wait()
        return self._exit_code

    def _failed(self) -> None:
        """Exit: the extension starts a new server, with all listeners."""
        self._exit_code = 1
        self._ended.set()

    def _closed(self, reason: IPCError | None) -> None:
        if reason is not None:
            _LOG.error("the extension: %s", reason)
            self._exit_code = 1
        self._ended.set()

    async def _answer(self, request: Request) -> Message:
        match request.parameters:
            case ServeParameters() as parameters if self._coordinator is None:
                return self._serve(parameters)
            case LogParameters(level=level) if self._coordinator is not None:
                log.set_level(level)
                return Nothing()
            case Nothing() if request.command is Command.PING:
                return Nothing()
            case Nothing() if request.command is Command.LOG_FILE and request.descriptor is not None:
                log.take_over(request.descriptor)
                return Nothing()
        raise UsbipdError(f"the server does not accept {request.command} now", code="not-permitted")

    def _serve(self, parameters: ServeParameters) -> ServeResult:
        """Raises `UsbipdError`."""
        log.set_level(parameters.log_level)
        self._coordinator = ServerCoordinator(
            self._channel,
            AccessList(parameters.allow),
            max_connections=_allow_connections(parameters.max_connections),
            max_connections_per_address=parameters.max_connections_per_address,
            handshake_timeout=parameters.handshake_timeout,
            lost_client_timeout=parameters.lost_client_timeout,
            send_buffer=parameters.send_buffer,
        )
        listening = self._coordinator.bind(parameters.listen)
        if parameters.confinement is not None:
            confinement.leave_network()  # the listening sockets stay in the host's namespace
        # Before the root is empty, for the path of /dev/log; after the host's network is left, so that the
        # socket cannot reach its abstract addresses.
        log.send_to(parameters.log_to)
        confined = confinement.confine(parameters.confinement, open_files=None, accepts=True)
        self._coordinator.start(self._failed)
        return ServeResult(listening=listening, user=confined.user, lacks=confined.lacks)


def _allow_connections(wanted: int) -> int:
    """Raise the limit of open files to fit `wanted` connections; returns how many fit.

    If accept failed for lack of descriptors, no connection would be displaced and new clients would wait.
    """
    needed = wanted + _OWN_DESCRIPTORS
    # "unlimited" is 2**63 - 1 on macOS, and impossible on Linux (do_prlimit in kernel/sys.c)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed:
        return wanted
    possible = min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    if possible < needed:
        _LOG.warning(
            "max_connections is %d, but the limit of open files (ulimit -Hn) is %d", wanted, possible
        )
    return max(1, possible - _OWN_DESCRIPTORS)
