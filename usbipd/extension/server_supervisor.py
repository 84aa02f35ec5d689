"""Keeps a server process running and answers its requests.  Runs in the extension.

Attached clients do not depend on the server: when it dies, another one listens on the same addresses.
"""

import asyncio
import logging
import os
import socket
import stat
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from usbipd.errors import IPCError, UsbipdError
from usbipd.extension.event_recorder import EventRecorder
from usbipd.extension.reservations import Reservations
from usbipd.extension.supervisor import FIRST_DELAY, Backoff, Child, Spawner, wait_ended
from usbipd.ipc.children import (
    DevlistParameters,
    DevlistResult,
    LogParameters,
    ReservationParameters,
    ReserveParameters,
    ServeParameters,
    ServeResult,
)
from usbipd.ipc.control_messages import HistoryEvent
from usbipd.ipc.conversation import Request
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command
from usbipd.ipc.row import Role

_LOG: Final = logging.getLogger(__name__)

SERVE_TIMEOUT: Final = 60.0
"""Seconds from the start of a server until it listens."""
LAST_LINE_TIMEOUT: Final = 0.5
"""Seconds for a server to write its last log lines and exit."""

LONGEST_GAP: Final = 1.0
"""Seconds until the next server, at most, after one that listened: a client that can crash servers must not
lock out others for longer.  A server that cannot listen is restarted less often (`Backoff`)."""

LEAVING_TIME: Final = 5.0
"""Seconds for a server whose extension was killed to exit."""


class ServerSupervisor:
    """One server process, restarted whenever it dies."""

    def __init__(
        self,
        spawner: Spawner,
        parameters: ServeParameters,
        offers: Callable[[Sequence[str]], DevlistResult],
        reservations: Reservations,
        recorder: EventRecorder,
    ) -> None:
        """`offers` returns what clients at these addresses can import."""
        self._spawner = spawner
        self._parameters = parameters
        self._offers = offers
        self._reservations = reservations
        self._recorder = recorder
        self._task: asyncio.Task[None] | None = None
        self.child: Child | None = None

    @property
    def listening(self) -> list[str]:
        """Where the server listens; after `start`, with the actual ports."""
        return self._parameters.listen

    @property
    def allow(self) -> list[str]:
        """Addresses and networks of clients that may connect; empty: all."""
        return self._parameters.allow

    def set_log_level(self, level: str) -> None:
        """Set the log level of this server and of later ones."""
        self._parameters = msgspec.structs.replace(self._parameters, log_level=level)
        if self.child is not None:
            self.child.channel.tell(Command.LOG, LogParameters(level=level))

    async def start(self, *, after_a_kill: bool) -> None:
        """Start to listen.  Raises `UsbipdError` if that fails, for instance because an address is in use.

        `after_a_kill`: wait for the address, which the server of a killed extension may still use.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (LEAVING_TIME if after_a_kill else 0.0)
        while True:
            try:
                child = await self._serve()
                break
            except UsbipdError as error:
                if error.code != "address-in-use" or loop.time() >= deadline:
                    raise
                await asyncio.sleep(FIRST_DELAY)
        self._task = asyncio.create_task(self._supervise(child))

    async def stop(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self.child is not None:
            await self._end(self.child)

    async def _serve(self) -> Child:
        """Start a server.  Raises `UsbipdError`; none is left then."""
        try:
            child = self._spawner.spawn(Role.SERVER, None, self._answer, None)
        except OSError as error:
            raise UsbipdError(f"cannot start the server: {error}", code="spawn") from error
        if self._parameters.confinement is not None:
            child.run_as = self._parameters.confinement.run_as
        parameters = self._parameters
        try:
            result = await child.channel.request(
                Command.SERVE, parameters, ServeResult, timeout=SERVE_TIMEOUT
            )
        except BaseException:
            await self._end(child)
            raise
        child.user, child.lacks = result.user, result.lacks
        if child.lacks is not None:
            _LOG.warning("%s: confinement: %s", child.label, child.lacks)
        self.child = child
        level = self._parameters.log_level
        if parameters.log_level != level:  # changed meanwhile
            child.channel.tell(Command.LOG, LogParameters(level=level))
        # the next server gets the same ports, even if this one chose free ones
        self._parameters = msgspec.structs.replace(self._parameters, listen=result.listening)
        _LOG.info("%s listens on %s as %s", child.label, ", ".join(result.listening), child.user)
        return child

    async def _supervise(self, child: Child) -> None:
        ends = Backoff(LONGEST_GAP)
        ends.succeeded()
        while True:
            await child.ended.wait()
            self.child = None
            self._reservations.drop_all()
            self._recorder.record(HistoryEvent.FAILED, reason=f"the server ended with {child.exit}")
            last_reason = ""
            delay = ends.failed()
            failures = Backoff()
            while True:
                _LOG.warning("no server: restarting it in %.1f s", delay)
                await asyncio.sleep(delay)
                try:
                    child = await self._serve()
                except UsbipdError as error:
                    _LOG.error("the server cannot listen: %s", error)
                    if error.message != last_reason:  # record each reason once
                        last_reason = error.message
                        reason = f"the server cannot listen: {last_reason}"
                        self._recorder.record(HistoryEvent.FAILED, reason=reason)
                    delay = failures.failed()
                else:
                    ends.succeeded()
                    self._recorder.changed()
                    break

    async def _end(self, child: Child) -> None:
        """End a server; it has nothing to release, but gets time to write its last log lines."""
        child.ending = True
        child.channel.close()
        if not await wait_ended(child, LAST_LINE_TIMEOUT):
            self._spawner.kill(child)
            await wait_ended(child, 1.0)

    async def _answer(self, request: Request) -> Message:
        parameters = request.parameters
        match request.command:
            case Command.DEVLIST:
                assert isinstance(parameters, DevlistParameters)
                return self._offers(parameters.addresses)
            case Command.RESERVE:
                assert isinstance(parameters, ReserveParameters)
                return await self._reservations.reserve(parameters)
            case Command.HANDOVER:
                assert isinstance(parameters, ReservationParameters)
                assert request.descriptor is not None
                if not _is_tcp(request.descriptor):
                    broken = IPCError(
                        "HANDOVER with a descriptor that is not a TCP socket", code="bad-message"
                    )
                    if self.child is not None:
                        self.child.channel.close(broken)
                    raise broken
                return await self._reservations.hand_over(parameters.reservation, request.descriptor)
            case Command.ABANDON:
                assert isinstance(parameters, ReservationParameters)
                return self._reservations.abandon(parameters.reservation)
        raise UsbipdError(f"the server may not send {request.command}", code="not-permitted")


def _is_tcp(descriptor: int) -> bool:
    """Whether a worker can serve this descriptor: anything else would crash it and end its session."""
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return False
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        internet = connection.family in (socket.AF_INET, socket.AF_INET6)
        return internet and connection.type == socket.SOCK_STREAM
