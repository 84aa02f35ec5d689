"""What is said over a channel, as frames: the rules of a conversation.  Used by every process.

`Conversation` does no I/O; the blocking and the asynchronous channel have one each.  `Hello` is the first
envelope in each direction and never comes again.

# Answers that are longer than a message

A message has a bound, so that no process can make another one hold more than that; but what a daemon reports
grows with its devices.  The answer to a command whose row says `is_long` is made and encoded at one
moment, and if it does not fit into a message, cut: the first part goes at once, each other one when MORE asks
for it.  So all parts are of that one moment, whatever happens to the devices meanwhile; nothing waits in a
queue for who does not read; and who asks and who answers hold one such answer per channel, of
`LARGEST_ANSWER` at most.  Another long answer takes the place of one that was not fetched to its end.
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
"""What msgspec raises for bytes that are not the message asked for: for bad UTF-8 no DecodeError."""

Result = TypeVar("Result", bound=Message)


class Request(NamedTuple):
    """A command that the peer asks for; `descriptor` is there exactly if the command carries one."""

    request_id: int
    command: Command
    parameters: Message
    descriptor: int | None
    client_id: str
    """What the peer calls itself; who it is, its channel says."""
    timestamp: float
    """Seconds since the epoch: when the peer sent it, as it says."""

    def __str__(self) -> str:
        """For the log: who asked what, and how old it is now."""
        age = time.time() - self.timestamp
        return f"{self.command}, request {self.request_id} of {self.client_id}, after {age:.3g} s"


class Response(NamedTuple):
    """The answer to our request: its result still encoded, or an error.

    One that is `cut` is the first `Part` of a result.
    """

    request_id: int
    reply: msgspec.Raw | UsbipdError
    cut: bool = False


class Event(NamedTuple):
    """What the peer reports unasked."""

    event: EventName
    parameters: Message


class Conversation:
    """The rules of a channel without its I/O: hello first, strict types, descriptors where they belong, and
    texts that are fit to be shown, unless the peer is `trusted`."""

    def __init__(self, table: Table, *, trusted: bool = False) -> None:
        self.table = table
        self.decoder = FrameDecoder()
        self._trusted = trusted
        self._greeted = False

    def hello(self) -> bytes:
        """The frame that we send first."""
        return _frame(Hello(ipc_version=IPC_VERSION, software=f"usbipd {usbipd.__version__}"))

    def next_item(self) -> Request | Response | Event | None:
        """What the bytes fed so far say next; None: more is needed.

        Raises `IPCError` when the peer breaks the rules; what came with that message is closed.
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
                    f"{envelope.software} speaks IPC version {envelope.ipc_version}, we speak {IPC_VERSION}",
                    code="version",
                    advice="restart the daemon, so that all its parts are of one version",
                )
            self._greeted = True
            return None
        if not self._greeted:
            raise IPCError("a message before hello", code="bad-message")
        if isinstance(envelope, IPCResponse):
            return _response(envelope)
        if isinstance(envelope, IPCRequest):
            parameters: Message = Nothing()  # of a command that is not for this channel
            if row is not None:
                parameters = msgspec.msgpack.decode(envelope.parameters, type=row.parameters)
            parameters = self._cleaned(parameters)
            sender = (envelope.client_id, envelope.timestamp)
            return Request(envelope.request_id, envelope.command, parameters, frame.descriptor, *sender)
        event = self.table.events.get(envelope.event)
        if event is None:
            raise IPCError(f"{envelope.event} is not for this channel", code="not-permitted")
        parameters = self._cleaned(msgspec.msgpack.decode(envelope.parameters, type=event.parameters))
        return Event(envelope.event, parameters)

    def result(self, response: Response, kind: type[Result]) -> Result:
        """As `read_result`, with texts as in all that the peer sends."""
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
    """A request as bytes; `descriptor` announces one."""
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
    """A result or an error as bytes; one that is `cut` is a `Part`."""
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
    """What of an answer is still to be asked for."""

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
    """The answer to `request` as bytes, or, if it may be long, its first part, with the rest.

    Raises `IPCError` if it is too large even so.
    """
    if not is_long or isinstance(reply, UsbipdError):
        return response_frame(request.request_id, reply), None
    result = encode(reply)
    if len(result) <= LARGEST_PART:
        return _response_frame(request.request_id, msgspec.Raw(result)), None
    if len(result) > LARGEST_ANSWER:
        raise IPCError(f"an answer of {len(result)} bytes: {LARGEST_ANSWER} are allowed", code="too-large")
    part, rest = Rest(request.request_id, memoryview(result)).next_part()
    return response_frame(request.request_id, part, cut=True), rest


class LongAnswer:
    """A result whose first part is here: says what to ask for, and puts it together."""

    def __init__(self, command: Command, first: Response, *, is_long: bool) -> None:
        """Raises `IPCError` if the answer to `command` may not be so long."""
        part = read_result(first, Part)
        self._request_id = first.request_id
        self._length = len(part.data) + part.left
        self._data = bytearray(part.data)
        if not is_long or self._length > LARGEST_ANSWER:
            raise IPCError(f"{self._length} bytes in answer to {command}", code="bad-message")

    @property
    def missing(self) -> MoreParameters | None:
        """What MORE is to ask for; None: nothing."""
        return None if len(self._data) == self._length else MoreParameters(request_id=self._request_id)

    def add(self, response: Response) -> None:
        """Take what MORE was answered with.  Raises the error that it is, or `IPCError`: it does not fit."""
        part = read_result(response, Part)
        self._data += part.data
        if not part.data or len(self._data) + part.left != self._length:
            raise IPCError("a part that does not fit to those before", code="bad-message")

    def whole(self) -> Response:
        """The answer, as if it had come in one message."""
        return Response(self._request_id, msgspec.Raw(bytes(self._data)))


def event_frame(event: EventName, parameters: Message) -> bytes:
    """An event as bytes."""
    return _frame(IPCEvent(event=event, parameters=pack(parameters), timestamp=time.time()))


def read_result(response: Response, kind: type[Result]) -> Result:
    """The result in `response`.  Raises the error that it carries, or `IPCError` if it is of another kind."""
    if isinstance(response.reply, UsbipdError):
        raise response.reply
    try:
        return msgspec.msgpack.decode(response.reply, type=kind)
    except _UNREADABLE as error:
        raise _unreadable("result", error) from error


def _unreadable(what: str, error: BaseException) -> IPCError:
    """msgspec says what is wrong with the words of the peer."""
    return IPCError(f"a {what} that cannot be read: {readable(str(error), LONGEST_TEXT)}", code="bad-message")
