"""Envelopes over a stream socket: the framing, the rules of a conversation, and the blocking channel.

`FrameDecoder` and `Conversation` do no I/O and are used by every process.  `BlockingChannel` serves the
worker and the CLI; the extension and the server use `async_channel.Channel` on the same two.

A frame is a header of five bytes, the length of the payload (4, big-endian) and flags (1), and the payload,
one encoded envelope.  Flag 1 says that exactly one descriptor comes with the first byte of this frame
(SCM_RIGHTS).
`Hello` is the first envelope in each direction and never comes again.

# Answers that are longer than a message

A message has a bound, so that nobody can make another process hold more than that; but what a daemon has to
tell grows with its devices.  The answer to one of `LONG_ANSWERS` is made and encoded at one moment, and if it
does not fit into a message, cut: the first part goes at once, each other one when MORE asks for it.  So all
parts are of that one moment, whatever happens to the devices meanwhile; nothing waits in a queue for who does
not read; and who asks and who answers hold one such answer per channel, of `LARGEST_ANSWER` at most.  Another
long answer takes the place of one that was not fetched to its end.
"""

import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeVar

import msgspec

import usbipd
from usbipd.errors import IPCError, UsbipdError
from usbipd.ipc.message import Message
from usbipd.ipc.messages import (
    CARRIES_DESCRIPTOR,
    IPC_VERSION,
    LARGEST_ANSWER,
    LARGEST_PART,
    LONG_ANSWERS,
    MAX_MESSAGE,
    Command,
    ErrorReport,
    EventName,
    Hello,
    IPCEvent,
    IPCRequest,
    IPCResponse,
    MoreParameters,
    Part,
    decode_envelope,
    encode,
    pack,
)
from usbipd.ipc.texts import LONGEST_TEXT, Value, clean_texts
from usbipd.text import readable

_HEADER: Final = struct.Struct(">IB")
_WITH_DESCRIPTOR: Final = 0x01
_ANCILLARY_SPACE: Final = socket.CMSG_LEN(struct.calcsize("i"))
"""Room for one descriptor.  CMSG_SPACE, with its padding, would have room for a second one on Linux and not
on macOS; so a second one is cut off on both (MSG_CTRUNC)."""
_CLOSE_ON_EXEC: Final[int] = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # Linux; elsewhere set right after
_NO_RESULT: Final = msgspec.Raw(encode(None))
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not the message asked for: for bad UTF-8 no DecodeError."""

Result = TypeVar("Result", bound=Message)


class Frame(NamedTuple):
    """One payload and the descriptor that came with it, which now belongs to whoever holds the frame."""

    payload: bytes
    descriptor: int | None


class FrameDecoder:
    """Bytes and descriptors in, frames out, in any chunking; what is only announced takes no memory."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()

    @property
    def wanted(self) -> int:
        """Bytes missing from the header, then from the frame: reading so many never reads too far."""
        if len(self._buffer) < _HEADER.size:
            return _HEADER.size - len(self._buffer)
        length, _flags = _HEADER.unpack_from(self._buffer)
        return _HEADER.size + int(length) - len(self._buffer)

    @property
    def in_frame(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._buffer)

    def feed(self, data: bytes, descriptors: Iterable[int] = ()) -> None:
        """Take what was received.  The descriptors are ours from now on."""
        self._buffer += data
        self._descriptors.extend(descriptors)

    def next_frame(self) -> Frame | None:
        """The next whole frame; None: more is needed.  Raises `IPCError` on a frame that breaks the rules."""
        if len(self._buffer) < _HEADER.size:
            if len(self._descriptors) > bool(self._buffer):
                raise IPCError("a descriptor that no frame announced", code="bad-frame")
            return None
        length, flags = _HEADER.unpack_from(self._buffer)
        if not 0 < length <= MAX_MESSAGE:
            raise IPCError(f"a frame of {length} bytes: 1 to {MAX_MESSAGE} are allowed", code="bad-frame")
        if flags not in (0, _WITH_DESCRIPTOR):
            raise IPCError(f"unknown frame flags {flags:#04x}", code="bad-frame")
        end = _HEADER.size + length
        if len(self._buffer) < end:
            if len(self._descriptors) > flags:
                raise IPCError("a descriptor that no frame announced", code="bad-frame")
            return None
        if flags and not self._descriptors:
            raise IPCError("a frame announced a descriptor and none came", code="bad-frame")
        payload = bytes(self._buffer[_HEADER.size : end])
        del self._buffer[:end]
        return Frame(payload, self._descriptors.popleft() if flags else None)

    def close(self) -> None:
        """Close the descriptors that no frame has taken."""
        while self._descriptors:
            os.close(self._descriptors.popleft())


def encode_frame(payload: bytes, *, descriptor: bool) -> bytes:
    """`payload` framed; `descriptor` announces one, to be sent with the first byte.  Raises `IPCError`."""
    if len(payload) > MAX_MESSAGE:
        raise IPCError(f"a message of {len(payload)} bytes: {MAX_MESSAGE} are allowed", code="too-large")
    return _HEADER.pack(len(payload), _WITH_DESCRIPTOR if descriptor else 0) + payload


class Request(NamedTuple):
    """A command that the peer asks for; `descriptor` is there exactly if the command carries one."""

    request_id: int
    command: Command
    parameters: Message
    descriptor: int | None


class Response(NamedTuple):
    """The answer to a request of ours: its result still encoded, or an error.

    One that is `cut` is the first `Part` of a result.
    """

    request_id: int
    outcome: msgspec.Raw | UsbipdError
    cut: bool = False


class Event(NamedTuple):
    """What the peer tells unasked."""

    event: EventName
    parameters: Message


class Conversation:
    """The rules of a channel without its I/O: hello first, strict types, descriptors where they belong, and
    texts that are fit to be shown, unless the peer is `trusted`."""

    def __init__(self, *, trusted: bool = False) -> None:
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
        if isinstance(envelope, IPCRequest) and (envelope.command in CARRIES_DESCRIPTOR) == (
            frame.descriptor is None
        ):
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
        # Here: commands, which nobody asks anything, need none of these types.  Server and workers load them
        # with the first request, SERVE or CLAIM, while they can still read files.
        from usbipd.ipc.commands import COMMANDS, EVENTS

        if isinstance(envelope, IPCRequest):
            kind, _result = COMMANDS[envelope.command]
            parameters = self._cleaned(msgspec.msgpack.decode(envelope.parameters, type=kind))
            return Request(envelope.request_id, envelope.command, parameters, frame.descriptor)
        told = self._cleaned(msgspec.msgpack.decode(envelope.parameters, type=EVENTS[envelope.event]))
        return Event(envelope.event, told)

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
        report = envelope.error
        error = UsbipdError(report.message, code=report.code, advice=report.advice)
        return Response(envelope.request_id, error)
    raise IPCError("a response that is neither a result nor an error", code="bad-message")


def _frame(message: Message, *, descriptor: bool = False) -> bytes:
    return encode_frame(encode(message), descriptor=descriptor)


def request_frame(request_id: int, client_id: str, command: Command, parameters: Message) -> bytes:
    """A request as bytes; a descriptor goes with it if the command carries one."""
    return _frame(
        IPCRequest(
            request_id=request_id,
            client_id=client_id,
            command=command,
            parameters=pack(parameters),
            timestamp=time.time(),
        ),
        descriptor=command in CARRIES_DESCRIPTOR,
    )


def response_frame(request_id: int, outcome: Message | UsbipdError, *, cut: bool = False) -> bytes:
    """A result or an error as bytes; one that is `cut` is a `Part`."""
    if isinstance(outcome, UsbipdError):
        error = ErrorReport(code=outcome.code, message=outcome.message, advice=outcome.advice)
        return _response_frame(request_id, _NO_RESULT, error=error)
    return _response_frame(request_id, pack(outcome), cut=cut)


def _response_frame(
    request_id: int, result: msgspec.Raw, *, error: ErrorReport | None = None, cut: bool = False
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


def answer_frame(request: Request, outcome: Message | UsbipdError) -> tuple[bytes, Rest | None]:
    """The answer to `request` as bytes, or its first part, with the rest.

    Raises `IPCError` if it is too large even so.
    """
    if request.command not in LONG_ANSWERS or isinstance(outcome, UsbipdError):
        return response_frame(request.request_id, outcome), None
    result = encode(outcome)
    if len(result) <= LARGEST_PART:
        return _response_frame(request.request_id, msgspec.Raw(result)), None
    if len(result) > LARGEST_ANSWER:
        raise IPCError(f"an answer of {len(result)} bytes: {LARGEST_ANSWER} are allowed", code="too-large")
    part, rest = Rest(request.request_id, memoryview(result)).next_part()
    return response_frame(request.request_id, part, cut=True), rest


class LongAnswer:
    """A result whose first part is here: says what to ask for, and puts it together."""

    def __init__(self, command: Command, first: Response) -> None:
        """Raises `IPCError` if the answer to `command` may not be so long."""
        part = read_result(first, Part)
        self._request_id = first.request_id
        self._length = len(part.data) + part.left
        self._data = bytearray(part.data)
        if command not in LONG_ANSWERS or self._length > LARGEST_ANSWER:
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


def receive_into(decoder: FrameDecoder, connection: socket.socket, size: int) -> bool:
    """One recvmsg of at most `size` bytes into `decoder`; False at the end of the stream.

    Descriptors arrive close-on-exec.  Raises `OSError`, and `IPCError` if some were lost on the way
    (MSG_CTRUNC), having closed those that were not.
    """
    data, ancillary, flags, _address = connection.recvmsg(size, _ANCILLARY_SPACE, _CLOSE_ON_EXEC)
    descriptors: list[int] = []
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            count = len(content) // struct.calcsize("i")
            descriptors += struct.unpack_from(f"{count}i", content)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    decoder.feed(data, descriptors)
    if flags & socket.MSG_CTRUNC:
        decoder.close()
        raise IPCError("more descriptors than a message may carry", code="bad-frame")
    return bool(data)


def send_some(connection: socket.socket, data: bytes | memoryview, descriptor: int | None) -> int:
    """One sendmsg of a frame or of its rest; the bytes taken, and with the first the descriptor.

    Raises `OSError`.
    """
    ancillary = []
    if descriptor is not None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))]
    return connection.sendmsg([data], ancillary)


class BlockingChannel:
    """A channel for a process that waits by itself.

    It reads exactly one message at a time, so `fileno()` is readable whenever there is more to receive, but
    for events that `request` met on its way: who asks and is told things has to call `receive` for them.
    Every method raises `IPCError` when the peer broke the rules, or is gone while we send.
    """

    def __init__(self, connection: socket.socket, client_id: str, *, trusted: bool = False) -> None:
        """Takes over `connection`, a connected stream socket, and says hello.

        Texts of a `trusted` peer are taken as they come.
        """
        self._connection = connection
        self._client_id = client_id
        self._conversation = Conversation(trusted=trusted)
        self._last_request = 0
        self._told: deque[Event] = deque()
        """Events that came before the answer to a request of ours."""
        connection.setblocking(True)
        self._send(self._conversation.hello(), None)

    def fileno(self) -> int:
        return self._connection.fileno()

    def receive(self, timeout: float | None = None) -> Request | Response | Event | None:
        """The next message, waited for; None when the peer has closed.

        Raises `IPCError`, with code "timeout" if none has come whole after `timeout` seconds.
        """
        if self._told:
            return self._told.popleft()
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
        """Ask and wait for the answer.  `descriptor` stays the caller's.

        Events that come before it are kept for `receive`.  Raises the `UsbipdError` that the peer answers, or
        `IPCError` (codes "timeout", "gone").
        """
        deadline = time.monotonic() + timeout
        response = self._ask(command, parameters, descriptor, deadline)
        if response.cut:
            answer = LongAnswer(command, response)
            while (missing := answer.missing) is not None:
                answer.add(self._ask(Command.MORE, missing, None, deadline))
            response = answer.whole()
        return self._conversation.result(response, result)

    def _ask(
        self, command: Command, parameters: Message, descriptor: int | None, deadline: float
    ) -> Response:
        self._last_request += 1
        self._send(request_frame(self._last_request, self._client_id, command, parameters), descriptor)
        while isinstance(item := self._receive(deadline), Event):
            self._told.append(item)
        if item is None:
            raise IPCError("the peer closed the channel", code="gone")
        if not isinstance(item, Response) or item.request_id != self._last_request:
            raise IPCError(f"something else than the answer to {command}", code="bad-message")
        return item

    def respond(self, request: Request, outcome: Message | UsbipdError) -> None:
        """Answer `request` with its result or an error."""
        self._send(response_frame(request.request_id, outcome), None)

    def push(self, event: EventName, parameters: Message) -> None:
        """Tell the peer what it did not ask."""
        self._send(event_frame(event, parameters), None)

    def close(self) -> None:
        """Close the connection and what arrived unread."""
        self._conversation.decoder.close()
        self._connection.close()

    def _wait(self, deadline: float | None) -> None:
        if deadline is None:
            return
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise IPCError("no answer in time", code="timeout")

    def _send(self, frame: bytes, descriptor: int | None) -> None:
        rest = memoryview(frame)
        try:
            while rest:
                rest = rest[send_some(self._connection, rest, descriptor) :]
                descriptor = None
        except OSError as error:
            raise IPCError(f"the peer is gone: {error.strerror}", code="gone") from error


def read_result(response: Response, kind: type[Result]) -> Result:
    """The result in `response`.  Raises the error that it carries, or `IPCError` if it is of another kind."""
    if isinstance(response.outcome, UsbipdError):
        raise response.outcome
    try:
        return msgspec.msgpack.decode(response.outcome, type=kind)
    except _UNREADABLE as error:
        raise _unreadable("result", error) from error


def _unreadable(what: str, error: BaseException) -> IPCError:
    """msgspec says what is wrong with the words of the peer."""
    return IPCError(f"a {what} that cannot be read: {readable(str(error), LONGEST_TEXT)}", code="bad-message")
