"""The protocol of a channel, without its I/O.  Used by every process.

The blocking and the asynchronous channel each have one `Conversation`.  `Hello` is the first envelope in each
direction and is never repeated.

# Answers that are longer than a message

The length of a message is limited, so that no process can make another one hold more than that; but the
daemon's reports grow with the number of devices.  The answer to a command whose row says `is_long` is built
and encoded at once and, if it does not fit into a message, cut: the first part is sent at once, each other
part in answer to MORE.  So all parts describe the same moment, whatever happens to the devices meanwhile;
nothing is queued for a peer that does not read; and each side holds one such answer per channel, of at most
`LARGEST_ANSWER`.  A new long answer replaces one that was not fetched completely.
"""

import os
import time
from typing import Final, NamedTuple, TypeVar

import msgspec

import usbipd
from usbipd.errors import IPCError, UsbipdError
from usbipd.ipc.framing import Frame, FrameDecoder, encode_frame
from usbipd.ipc.message import Message
from usbipd.ipc.messages import (
    IPC_VERSION,
    LARGEST_ANSWER,
    LARGEST_PART,
    Command,
    ErrorInfo,
    EventName,
    Hello,
    IPCEvent,
    IPCRequest,
    IPCResponse,
    MoreParameters,
    Nothing,
    Part,
    decode_envelope,
    encode,
    pack,
)
from usbipd.ipc.row import Table
from usbipd.ipc.texts import LONGEST_TEXT, Value, clean_texts
from usbipd.text import readable

_NO_RESULT: Final = msgspec.Raw(encode(None))
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not the expected message; for bad UTF-8 it is not a DecodeError."""

Result = TypeVar("Result", bound=Message)


class Request(NamedTuple):
    """A request from the peer; `descriptor` is set if, and only if, the command carries one."""

    request_id: int
    command: Command
    parameters: Message
    descriptor: int | None
    client_id: str
    """The peer's own label; its identity is that of its channel."""
    timestamp: float
    """When the peer claims to have sent it, in seconds since the epoch."""

    def __str__(self) -> str:
        """For the log: the request, its sender, and its age."""
        age = time.time() - self.timestamp
        return f"{self.command}, request {self.request_id} of {self.client_id}, after {age:.3g} s"


class Response(NamedTuple):
    """The answer to our request: an encoded result, or an error.

    If `cut`, it is the first `Part` of a result.
    """

    request_id: int
    reply: msgspec.Raw | UsbipdError
    cut: bool = False


class Event(NamedTuple):
    """An event from the peer."""

    event: EventName
    parameters: Message


class Conversation:
    """The rules of a channel: hello first, strict types, descriptors only with the commands that carry one,
    and texts cleaned unless the peer is `trusted`."""

    def __init__(self, table: Table, *, trusted: bool = False) -> None:
        self.table = table
        self.decoder = FrameDecoder()
        self._trusted = trusted
        self._greeted = False

    def hello(self) -> bytes:
        """The frame that we send first."""
        return _frame(Hello(ipc_version=IPC_VERSION, software=f"usbipd {usbipd.__version__}"))

    def next_item(self) -> Request | Response | Event | None:
        """The next message from the bytes fed so far; None: more bytes are needed.

        Raises `IPCError` if the peer breaks the rules; a descriptor of that message is closed.
        """
        while (frame := self.decoder.next_frame()) is not None:
            try:
                item = self._decode(frame)
            except BaseException as error:
                if frame.descriptor is not None:
                    os.close(frame.descriptor)
                if isinstance(error, _UNREADABLE):
                    raise _unreadable("message", error) from error
                raise
            if item is not None:
                return item
        return None

    def _decode(self, frame: Frame) -> Request | Response | Event | None:
        envelope = self._cleaned(decode_envelope(frame.payload))
        row = None
        if isinstance(envelope, IPCRequest):
            row = self.table.commands.get(envelope.command)
            if (row is not None and row.carries_descriptor) == (frame.descriptor is None):
                raise IPCError(f"{envelope.command}: surplus or missing descriptor", code="bad-message")
        if not isinstance(envelope, IPCRequest) and frame.descriptor is not None:
            raise IPCError("a descriptor with a message that carries none", code="bad-message")
        if isinstance(envelope, Hello):
            if self._greeted:
                raise IPCError("a second hello", code="bad-message")
            if envelope.ipc_version != IPC_VERSION:
                raise IPCError(
                    f"{envelope.software} uses IPC version {envelope.ipc_version}, we use {IPC_VERSION}",
                    code="version",
                    advice="restart the daemon, so that all its processes run the same version",
                )
            self._greeted = True
            return None
        if not self._greeted:
            raise IPCError("a message before hello", code="bad-message")
        if isinstance(envelope, IPCResponse):
            return _response(envelope)
        if isinstance(envelope, IPCRequest):
            parameters: Message = Nothing()  # for a command that is not in the table
            if row is not None:
                parameters = msgspec.msgpack.decode(envelope.parameters, type=row.parameters)
            parameters = self._cleaned(parameters)
            sender = (envelope.client_id, envelope.timestamp)
            return Request(envelope.request_id, envelope.command, parameters, frame.descriptor, *sender)
        event = self.table.events.get(envelope.event)
        if event is None:
            raise IPCError(f"{envelope.event} is not allowed on this channel", code="not-permitted")
        parameters = self._cleaned(msgspec.msgpack.decode(envelope.parameters, type=event.parameters))
        return Event(envelope.event, parameters)

    def result(self, response: Response, kind: type[Result]) -> Result:
        """As `read_result`, with texts cleaned unless the peer is trusted."""
        return self._cleaned(read_result(response, kind))

    def _cleaned(self, message: Value) -> Value:
        return message if self._trusted else clean_texts(message)


def _response(envelope: IPCResponse) -> Response:
    if envelope.success and envelope.error is None:
        return Response(envelope.request_id, envelope.result, envelope.cut)
    if (
        not envelope.success
        and envelope.error is not None
        and envelope.result == _NO_RESULT
        and not envelope.cut
    ):
        info = envelope.error
        error = UsbipdError(info.message, code=info.code, advice=info.advice)
        return Response(envelope.request_id, error)
    raise IPCError("a response that is neither a result nor an error", code="bad-message")


def _frame(message: Message, *, descriptor: bool = False) -> bytes:
    return encode_frame(encode(message), descriptor=descriptor)


def request_frame(
    request_id: int, client_id: str, command: Command, parameters: Message, *, descriptor: bool = False
) -> bytes:
    """Encode a request; `descriptor` announces one."""
    return _frame(
        IPCRequest(
            request_id=request_id,
            client_id=client_id,
            command=command,
            parameters=pack(parameters),
            timestamp=time.time(),
        ),
        descriptor=descriptor,
    )


def response_frame(request_id: int, reply: Message | UsbipdError, *, cut: bool = False) -> bytes:
    """Encode a result or an error; if `cut`, it is a `Part`."""
    if isinstance(reply, UsbipdError):
        error = ErrorInfo(code=reply.code, message=reply.message, advice=reply.advice)
        return _response_frame(request_id, _NO_RESULT, error=error)
    return _response_frame(request_id, pack(reply), cut=cut)


def _response_frame(
    request_id: int, result: msgspec.Raw, *, error: ErrorInfo | None = None, cut: bool = False
) -> bytes:
    return _frame(
        IPCResponse(
            request_id=request_id,
            success=error is None,
            result=result,
            error=error,
            timestamp=time.time(),
            cut=cut,
        )
    )


class Rest(NamedTuple):
    """The parts of an answer that have not been fetched yet."""

    request_id: int
    data: memoryview

    def next_part(self) -> tuple[Part, "Rest | None"]:
        """The next part, and the rest after it."""
        left = self.data[LARGEST_PART:]
        part = Part(data=bytes(self.data[:LARGEST_PART]), left=len(left))
        return part, Rest(self.request_id, left) if left else None


def answer_frame(
    request: Request, reply: Message | UsbipdError, *, is_long: bool
) -> tuple[bytes, Rest | None]:
    """Encode the answer to `request`, or the first part of a long one; returns it and the rest.

    Raises `IPCError` if the answer is too large.
    """
    if not is_long or isinstance(reply, UsbipdError):
        return response_frame(request.request_id, reply), None
    result = encode(reply)
    if len(result) <= LARGEST_PART:
        return _response_frame(request.request_id, msgspec.Raw(result)), None
    if len(result) > LARGEST_ANSWER:
        raise IPCError(f"answer of {len(result)} bytes: the limit is {LARGEST_ANSWER}", code="too-large")
    part, rest = Rest(request.request_id, memoryview(result)).next_part()
    return response_frame(request.request_id, part, cut=True), rest


class LongAnswer:
    """Assembles a result from its parts."""

    def __init__(self, command: Command, first: Response, *, is_long: bool) -> None:
        """`first` is the first part.  Raises `IPCError` if the answer to `command` is too long."""
        part = read_result(first, Part)
        self._request_id = first.request_id
        self._length = len(part.data) + part.left
        self._data = bytearray(part.data)
        if not is_long or self._length > LARGEST_ANSWER:
            raise IPCError(f"answer to {command} too long: {self._length} bytes", code="bad-message")

    @property
    def missing(self) -> MoreParameters | None:
        """The parameters of the next MORE; None: the result is complete."""
        return None if len(self._data) == self._length else MoreParameters(request_id=self._request_id)

    def add(self, response: Response) -> None:
        """Add the answer to MORE.  Raises the error that it contains, or `IPCError` if it does not fit."""
        part = read_result(response, Part)
        self._data += part.data
        if not part.data or len(self._data) + part.left != self._length:
            raise IPCError("a part that does not match those before", code="bad-message")

    def whole(self) -> Response:
        """The complete answer, as if it had come in one message."""
        return Response(self._request_id, msgspec.Raw(bytes(self._data)))


def event_frame(event: EventName, parameters: Message) -> bytes:
    """Encode an event."""
    return _frame(IPCEvent(event=event, parameters=pack(parameters), timestamp=time.time()))


def read_result(response: Response, kind: type[Result]) -> Result:
    """The result in `response`.  Raises the error that it carries, or `IPCError` if it is not a `kind`."""
    if isinstance(response.reply, UsbipdError):
        raise response.reply
    try:
        return msgspec.msgpack.decode(response.reply, type=kind)
    except _UNREADABLE as error:
        raise _unreadable("result", error) from error


def _unreadable(what: str, error: BaseException) -> IPCError:
    """The error for a malformed message; msgspec's text may quote the peer, so it is cleaned."""
    return IPCError(f"malformed {what}: {readable(str(error), LONGEST_TEXT)}", code="bad-message")
