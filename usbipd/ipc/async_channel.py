"""The channel of the two asyncio processes, extension and server.

Reading never waits for handlers, and writing never waits at all.  Permissions are checked here, before any
handler sees a request; MORE is answered here, too.

# Descriptors in flight

A copy of each descriptor that we send stays open until the peer has answered: macOS may break a socket that
no process has open while it is in flight.

# Limits per peer

- At most `MAX_RUNNING` of its requests, or `max_running` of the channel, are in progress; until one of them
  is done, nothing more is read from it.
- Output that it does not read is queued, up to `MAX_QUEUED` bytes.  Beyond that, a local user's connection is
  closed.  Our own processes only slow each other down: we stop reading their requests until the queue is
  shorter.  It grows at most by the answers to the requests in progress, so it stays below `LONGEST_QUEUE`;
  only our own requests to a stopped peer can exceed that.  The two sides cannot deadlock: the requests of the
  server stay far below `MAX_QUEUED` (usbipd/server/extension.py), so it always reads.  Children have no long
  answers for the extension: no command sent to them is `is_long`.
- `SLICE` of its messages are handled before the other peers get their turn.
"""

import asyncio
import contextlib
import functools
import logging
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from usbipd.errors import IPCError, UsbipdError
from usbipd.hangup import closed_by_peer
from usbipd.ipc.conversation import (
    Conversation,
    Event,
    LongAnswer,
    Request,
    Response,
    Rest,
    Result,
    answer_frame,
    event_frame,
    request_frame,
    response_frame,
)
from usbipd.ipc.framing import receive_into, send_some
from usbipd.ipc.message import Message
from usbipd.ipc.messages import MAX_MESSAGE, Command, EventName, MoreParameters
from usbipd.ipc.roles import not_permitted_error
from usbipd.ipc.row import PROCESSES, Role, Table
from usbipd.log import LIMITED

_LOG: Final = logging.getLogger(__name__)

MAX_QUEUED: Final = 16 * MAX_MESSAGE
"""Bytes queued for a peer, not counting the message that exceeds the limit."""

MAX_RUNNING: Final = 256
"""Requests of one peer that may be in progress."""

LONGEST_QUEUE: Final = MAX_QUEUED + (MAX_RUNNING + 1) * MAX_MESSAGE
"""The same for the extension and its children, whose channels are closed only beyond this."""

SLICE: Final = 16
"""Messages of one peer handled at a time, so that a peer that sends thousands does not delay others."""

RequestHandler = Callable[[Request], Awaitable[Message]]
"""Answers a request; a `UsbipdError` that it raises becomes the answer.  The request's descriptor is closed
when it returns.  When the peer leaves, it is cancelled if the command's row says `ends_with_its_peer`, and
runs to completion otherwise."""

EventHandler = Callable[[Event], None]
CloseHandler = Callable[[IPCError | None], None]
"""Called once with the reason why the channel closed; None: closed by either side between two messages."""


class Channel:
    """One peer.  Created inside a running event loop, which it reads from until `close`."""

    def __init__(
        self,
        connection: socket.socket,
        *,
        name: str,
        role: Role,
        table: Table,
        on_request: RequestHandler,
        on_event: EventHandler | None = None,
        on_close: CloseHandler | None = None,
        max_running: int = MAX_RUNNING,
    ) -> None:
        """Takes over `connection`, a connected Unix stream socket, and sends hello.

        `name` labels the peer in logs, `role` and `table` determine what it may send, `max_running` is the
        limit of its requests in progress.
        """
        self.name = name
        self._role = role
        self._client_id = f"{Role.SERVER if role is Role.EXTENSION else Role.EXTENSION} {os.getpid()}"
        self._table = table
        self._connection = connection
        self._on_request = on_request
        self._on_event = on_event
        self._on_close = on_close
        self._max_running = max_running
        self._loop = asyncio.get_running_loop()
        self._conversation = Conversation(table, trusted=role is Role.EXTENSION)
        self._outgoing: deque[tuple[memoryview, int | None]] = deque()
        self._queued = 0
        self._last_request = 0
        self._unwanted: set[int] = set()
        """Our requests whose answer is pending and will be ignored."""
        self._waiting: dict[int, asyncio.Future[Response]] = {}
        self._in_flight: dict[int, int] = {}
        """Copies of descriptors sent with our requests, until these are answered."""
        self._running: dict[asyncio.Task[None], Command] = {}
        self._is_reading = False
        self._rest: Rest | None = None
        """Of the last long answer to the peer."""
        self._asking_long = asyncio.Lock()
        """Held while the peer may keep the rest of an answer for us: it keeps only one."""
        self._open = True
        connection.setblocking(False)
        self._read_on()
        self._send(self._conversation.hello(), None)

    @property
    def is_open(self) -> bool:
        return self._open

    async def request(
        self,
        command: Command,
        parameters: Message,
        result: type[Result],
        *,
        timeout: float | None,  # noqa: ASYNC109 - callers want an IPCError, not a TimeoutError
        descriptor: int | None = None,
    ) -> Result:
        """Send a request and wait for the answer.  `descriptor` stays the caller's; a duplicate is sent.

        `timeout` is in seconds; None: as long as the channel is open.  It includes the wait for an earlier
        long answer.  Raises the `UsbipdError` that the peer answers, or `IPCError` (codes "timeout", "gone").
        """
        try:
            async with asyncio.timeout(timeout):
                if self._table.commands[command].is_long:
                    async with self._asking_long:
                        response = await self._ask_long(command, parameters, descriptor)
                else:
                    response = await self._ask(command, parameters, descriptor)
        except TimeoutError:
            raise IPCError(f"{self.name} did not answer {command}", code="timeout") from None
        return self._conversation.result(response, result)

    async def _ask_long(self, command: Command, parameters: Message, descriptor: int | None) -> Response:
        response = await self._ask(command, parameters, descriptor)
        if not response.cut:
            return response
        answer = LongAnswer(command, response, is_long=True)
        while (missing := answer.missing) is not None:
            answer.add(await self._ask(Command.MORE, missing, None))
        return answer.whole()

    async def _ask(self, command: Command, parameters: Message, descriptor: int | None) -> Response:
        if not self._open:
            raise IPCError(f"{self.name} is gone", code="gone")
        answer: asyncio.Future[Response] = self._loop.create_future()
        self._last_request += 1
        request_id = self._last_request
        self._waiting[request_id] = answer
        is_sent = False
        try:
            is_sent = self._send_request(request_id, command, parameters, descriptor)
            return await answer
        finally:
            is_answered = self._waiting.pop(request_id, None) is None
            if is_sent and not is_answered:
                self._unwanted.add(request_id)

    def _send_request(
        self, request_id: int, command: Command, parameters: Message, descriptor: int | None
    ) -> bool:
        frame = request_frame(
            request_id, self._client_id, command, parameters, descriptor=descriptor is not None
        )
        return self._send(frame, descriptor)

    def send_response(self, request: Request, reply: Message | UsbipdError) -> None:
        """Answer `request`, with an error if the answer is too large; lost if the channel is closed."""
        row = self._table.commands.get(request.command)
        try:
            frame, rest = answer_frame(request, reply, is_long=row is not None and row.is_long)
        except IPCError as error:
            _LOG.error("the answer to %s from %s: %s", request.command, self.name, error, extra=LIMITED)
            frame, rest = response_frame(request.request_id, error), None
        if rest is not None and self._open:
            self._rest = rest
        self._send(frame, None)
        _LOG.debug("answered %s: %s", self.name, request)

    def tell(self, command: Command, parameters: Message, descriptor: int | None = None) -> None:
        """Send a request and ignore its answer; lost if the channel is closed."""
        self._last_request += 1
        if self._send_request(self._last_request, command, parameters, descriptor):
            self._unwanted.add(self._last_request)

    def push(self, event: EventName, parameters: Message) -> None:
        """Send an event; lost if the channel is closed."""
        self._send(event_frame(event, parameters), None)

    def close(self, reason: IPCError | None = None) -> None:
        """Leave the loop, close the connection, and fail all pending requests.  Idempotent."""
        if not self._open:
            return
        self._open = False
        self._pause_reading()
        self._loop.remove_writer(self._connection)
        self._conversation.decoder.close()
        self._outgoing.clear()
        self._queued = 0
        self._rest = None
        self._connection.close()
        for task, command in self._running.items():
            if self._table.commands[command].ends_with_its_peer:
                task.cancel()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(IPCError(f"{self.name} is gone", code="gone"))
        self._waiting.clear()
        for descriptor in self._in_flight.values():
            _close(descriptor)
        self._in_flight.clear()
        if self._on_close is not None:
            self._on_close(reason)

    def close_if_left(self) -> None:
        """Close if the peer has left.  Needed because nothing is read while too many requests are in
        progress."""
        if self._open and closed_by_peer([self._connection]):
            self.close()

    # ---- reading -------------------------------------------------------------------------------------------

    @property
    def _is_held_up(self) -> bool:
        """Whether nothing is read from the peer until it has read answers or requests are done."""
        return len(self._running) >= self._max_running or self._queued > MAX_QUEUED

    def _read_on(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self._loop.add_reader(self._connection, self._readable)

    def _pause_reading(self) -> None:
        self._is_reading = False
        self._loop.remove_reader(self._connection)

    def _readable(self) -> None:
        try:
            more = receive_into(self._conversation.decoder, self._connection, MAX_MESSAGE)
            self._dispatch()
        except (BlockingIOError, InterruptedError):
            return
        except IPCError as error:
            self.close(error)
            return
        except OSError:
            more = False
        if not more:
            half = self._conversation.decoder.in_frame
            self.close(IPCError("the peer closed in the middle of a message", code="gone") if half else None)

    def _dispatch(self) -> None:
        for _message in range(SLICE):
            if not self._open:
                return
            if self._is_held_up:
                self._pause_reading()
                return
            item = self._conversation.next_item()
            if item is None:
                self._read_on()
                return
            if isinstance(item, Request):
                self._accept(item)
            elif isinstance(item, Response):
                self._answered(item)
            else:
                self._event(item)
        if self._open:
            self._pause_reading()
            self._loop.call_soon(self._resume)

    def _accept(self, request: Request) -> None:
        row = self._table.commands.get(request.command)
        if row is None or self._role not in row.senders:
            _close(request.descriptor)
            if self._role in PROCESSES:
                raise IPCError(f"{self._role} may not send {request.command}", code="not-permitted")
            self.send_response(request, not_permitted_error(request.command))
            return
        if isinstance(request.parameters, MoreParameters):
            self._send_more(request, request.parameters)
            return
        task = self._loop.create_task(self._run(request))
        self._running[task] = request.command
        task.add_done_callback(functools.partial(self._done, request))

    def _send_more(self, request: Request, parameters: MoreParameters) -> None:
        if self._rest is None or self._rest.request_id != parameters.request_id:
            expired = UsbipdError("the rest of that answer is no longer available", code="expired")
            self.send_response(request, expired)
            return
        part, self._rest = self._rest.next_part()
        self.send_response(request, part)

    async def _run(self, request: Request) -> None:
        reply: Message | UsbipdError
        try:
            reply = await self._on_request(request)
        except UsbipdError as error:
            reply = error
        except Exception:
            _LOG.exception("%s from %s failed", request.command, self.name, extra=LIMITED)
            reply = UsbipdError("internal error: see the log", code="internal")
        self.send_response(request, reply)

    def _done(self, request: Request, task: asyncio.Task[None]) -> None:
        _close(request.descriptor)
        was_held_up = self._is_held_up
        del self._running[task]
        if was_held_up and not self._is_held_up:
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        """Continue with messages that were read before."""
        try:
            self._dispatch()
        except IPCError as error:
            self.close(error)

    def _answered(self, response: Response) -> None:
        _close(self._in_flight.pop(response.request_id, None))
        answer = self._waiting.pop(response.request_id, None)
        if answer is not None:
            if not answer.done():  # else its task was cancelled, but has not run since
                answer.set_result(response)
        elif response.request_id in self._unwanted:
            self._unwanted.remove(response.request_id)
        else:
            # one answer per request, so that a peer cannot flood us with answers
            raise IPCError("unexpected or duplicate answer", code="bad-message")

    def _event(self, event: Event) -> None:
        if self._on_event is None or self._role is not self._table.events[event.event].sender:
            raise IPCError(f"{self._role} may not send {event.event}", code="not-permitted")
        self._on_event(event)

    # ---- writing -------------------------------------------------------------------------------------------

    def _send(self, frame: bytes, descriptor: int | None) -> bool:
        """Queue `frame`; returns False if it was dropped because the channel is closed or about to be.

        `descriptor` belongs to the last request.
        """
        longest = LONGEST_QUEUE if self._role in PROCESSES else MAX_QUEUED
        if not self._open or self._queued > longest:  # the latter: about to be closed
            return False
        if descriptor is not None:
            descriptor = self._in_flight[self._last_request] = os.dup(descriptor)
        self._outgoing.append((memoryview(frame), descriptor))
        self._queued += len(frame)
        if len(self._outgoing) == 1:
            self._writable()
        if self._queued > longest:
            # not at once: our callers still use the channel
            self._loop.call_soon(self.close, IPCError("the peer does not read its messages", code="slow"))
        return True

    def _writable(self) -> None:
        was_held_up = self._is_held_up
        while self._outgoing:
            rest, descriptor = self._outgoing[0]
            try:
                sent = send_some(self._connection, rest, descriptor)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                # The peer is gone; its last messages and end of file are still to be read.
                self._outgoing.clear()
                self._queued = 0
                break
            self._queued -= sent
            if sent == len(rest):
                self._outgoing.popleft()
            else:
                self._outgoing[0] = (rest[sent:], None)
        if self._outgoing:
            self._loop.add_writer(self._connection, self._writable)
        else:
            self._loop.remove_writer(self._connection)
        if was_held_up and not self._is_held_up:
            self._loop.call_soon(self._resume)


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.close(descriptor)
