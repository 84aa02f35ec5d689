"""A blocking channel, for processes without an event loop.  Used by the worker and by commands."""

import select
import socket
import time
from collections import deque
from collections.abc import Callable

from usbipd.errors import IPCError, UsbipdError
from usbipd.ipc.conversation import (
    Conversation,
    Event,
    LongAnswer,
    Request,
    Response,
    Result,
    event_frame,
    request_frame,
    response_frame,
)
from usbipd.ipc.framing import receive_into, send_some
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command, EventName
from usbipd.ipc.row import Table

Wait = Callable[[int, float], bool]
"""Waits for a descriptor, at most so many seconds; returns whether it is readable."""


def wait_readable(descriptor: int, seconds: float) -> bool:
    """The default `Wait`."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


class BlockingChannel:
    """A blocking channel.

    It reads exactly one message at a time, so `fileno()` is readable whenever a message is pending, except
    for events that `request` has queued: a caller that expects events calls `receive`.  Every method raises
    `IPCError` if the peer breaks the rules, or is gone while we send.
    """

    def __init__(
        self, connection: socket.socket, client_id: str, table: Table, *, trusted: bool = False
    ) -> None:
        """Takes over `connection`, a connected stream socket, and sends hello.

        Texts of a `trusted` peer are not cleaned.
        """
        self._connection = connection
        self._client_id = client_id
        self._conversation = Conversation(table, trusted=trusted)
        self._last_request = 0
        self.wait: Wait = wait_readable
        """Used if a time limit applies; its exceptions propagate."""
        self._events: deque[Event] = deque()
        """Events that came before the answer to our request."""
        connection.setblocking(True)
        self._send(self._conversation.hello(), None)

    def fileno(self) -> int:
        return self._connection.fileno()

    def receive(self, timeout: float | None = None) -> Request | Response | Event | None:
        """Wait for the next message; None: the peer has closed.

        Raises `IPCError`, with code "timeout" if no whole message has arrived after `timeout` seconds.
        """
        if self._events:
            return self._events.popleft()
        return self._receive(None if timeout is None else time.monotonic() + timeout)

    def _receive(self, deadline: float | None) -> Request | Response | Event | None:
        decoder = self._conversation.decoder
        while True:
            item = self._conversation.next_item()
            if item is not None:
                return item
            self._wait(deadline)
            try:
                more = receive_into(decoder, self._connection, decoder.wanted)
            except ConnectionError:
                more = False
            if not more:
                if decoder.in_frame:
                    raise IPCError("the peer closed in the middle of a message", code="gone")
                return None

    def request(
        self,
        command: Command,
        parameters: Message,
        result: type[Result],
        *,
        timeout: float,
        descriptor: int | None = None,
    ) -> Result:
        """Send a request and wait at most `timeout` seconds for the answer.  `descriptor` stays the caller's.

        Events that arrive before the answer are queued for `receive`.  Raises the `UsbipdError` that the peer
        answers, or `IPCError` (codes "timeout", "gone").
        """
        deadline = time.monotonic() + timeout
        response = self._ask(command, parameters, descriptor, deadline)
        if response.cut:
            is_long = self._conversation.table.commands[command].is_long
            answer = LongAnswer(command, response, is_long=is_long)
            while (missing := answer.missing) is not None:
                answer.add(self._ask(Command.MORE, missing, None, deadline))
            response = answer.whole()
        return self._conversation.result(response, result)

    def _ask(
        self, command: Command, parameters: Message, descriptor: int | None, deadline: float
    ) -> Response:
        self._last_request += 1
        frame = request_frame(
            self._last_request, self._client_id, command, parameters, descriptor=descriptor is not None
        )
        self._send(frame, descriptor)
        while isinstance(item := self._receive(deadline), Event):
            self._events.append(item)
        if item is None:
            raise IPCError("the peer closed the channel", code="gone")
        if not isinstance(item, Response) or item.request_id != self._last_request:
            raise IPCError(f"expected the answer to {command}", code="bad-message")
        return item

    def respond(self, request: Request, reply: Message | UsbipdError) -> None:
        """Answer `request` with its result or an error."""
        self._send(response_frame(request.request_id, reply), None)

    def push(self, event: EventName, parameters: Message) -> None:
        """Send an event."""
        self._send(event_frame(event, parameters), None)

    def close(self) -> None:
        """Close the connection and the descriptors received with unread messages."""
        self._conversation.decoder.close()
        self._connection.close()

    def _wait(self, deadline: float | None) -> None:
        if deadline is not None and not self.wait(self.fileno(), deadline - time.monotonic()):
            raise IPCError("no answer in time", code="timeout")

    def _send(self, frame: bytes, descriptor: int | None) -> None:
        rest = memoryview(frame)
        try:
            while rest:
                rest = rest[send_some(self._connection, rest, descriptor) :]
                descriptor = None
        except OSError as error:
            raise IPCError(f"the peer is gone: {error.strerror}", code="gone") from error
