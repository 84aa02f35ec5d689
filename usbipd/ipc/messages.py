"""The envelopes of the messages that the processes exchange.  Used by every process.

An envelope is an `IPCRequest`, an `IPCResponse` or an `IPCEvent`; a `Hello` opens every channel in both
directions.  What people ask and get stands in `control_messages.py`, the rest in `children.py`; each ends
with a table that has a row for each command: what goes with it, and who may send it.  Decoding is strict:
unknown fields, commands and trailing bytes are refused (msgspec).  How messages become bytes stands in
`conversation.py`.
"""

from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec

from usbipd.ipc.message import Message

IPC_VERSION: Final = 4
"""Raised whenever a message changes its form.  Both ends must agree; they come from one executable."""

MAX_MESSAGE: Final = 64 * 1024
"""Bytes of one encoded envelope, at most."""
LARGEST_PART: Final = MAX_MESSAGE - 1024
"""Bytes of a result in one envelope; what is left is for the envelope itself."""
LARGEST_ANSWER: Final = 8 << 20
"""Bytes of one encoded result that comes in parts: 8 KiB for each of 1,000 devices.  One with its binding and
its worker takes less than 1, and some 4 if all that it says is as long as it may be."""


class Hello(Message, frozen=True, tag="hello"):
    """The first message in each direction."""

    ipc_version: int
    software: str


class Command(StrEnum):
    """Everything that one process may ask of another."""

    # the CLI asks the extension
    LIST = "list"
    BIND = "bind"
    UNBIND = "unbind"
    DETACH = "detach"
    RELEASE_DEVICE = "release-device"
    STATUS = "status"
    HISTORY = "history"
    HEALTH = "health"
    WATCH = "watch"
    # the CLI or the server asks the extension
    MORE = "more"
    # the server asks the extension
    DEVLIST = "devlist"
    RESERVE = "reserve"
    HANDOVER = "handover"
    ABANDON = "abandon"
    # the extension asks the server
    SERVE = "serve"
    # the extension asks the server or a worker
    PING = "ping"
    LOG = "log"
    LOG_FILE = "log-file"
    # the extension asks a worker
    CLAIM = "claim"
    ATTACH = "attach"
    DISCONNECT = "disconnect"
    RELEASE = "release"


class IPCRequest(Message, frozen=True, tag="request"):
    """A command.  `client_id` is a label for logs; who the peer is, the kernel says."""

    request_id: int
    client_id: str
    command: Command
    parameters: msgspec.Raw
    timestamp: float


class ErrorInfo(Message, frozen=True):
    """A `UsbipdError` on its way to another process."""

    code: str
    message: str
    advice: str | None = None


class IPCResponse(Message, frozen=True, tag="response"):
    """The answer to the request of the same `request_id`: `result` if `success`, else `error`."""

    request_id: int
    success: bool
    result: msgspec.Raw
    """An encoded None without success."""
    error: ErrorInfo | None
    timestamp: float
    cut: bool = False
    """Whether `result` is only the first `Part` of the result; the others are to be asked for by MORE."""


class EventName(StrEnum):
    """Everything that a process tells another without being asked."""

    # a worker tells the extension
    DETACHED = "detached"
    RESTORED = "restored"
    DEVICE_GONE = "device-gone"
    # the extension tells a command that asked for it by WATCH
    CHANGED = "changed"


class IPCEvent(Message, frozen=True, tag="event"):
    """A fact that nobody asked for."""

    event: EventName
    parameters: msgspec.Raw
    timestamp: float


Envelope = Hello | IPCRequest | IPCResponse | IPCEvent


class Nothing(Message, frozen=True):
    """No parameters, or no result."""


class MoreParameters(Message, frozen=True):
    """The next part of the answer to the request `request_id`, which came before on this channel."""

    request_id: int


class Part(Message, frozen=True):
    """Some bytes of an encoded result that is too long for one message."""

    data: bytes
    left: Annotated[int, msgspec.Meta(ge=0)]
    """Bytes of it behind these."""


_ENCODER: Final = msgspec.msgpack.Encoder()
_ENVELOPE_DECODER: Final[msgspec.msgpack.Decoder[Envelope]] = msgspec.msgpack.Decoder(Envelope)


def encode(message: Any) -> bytes:
    """Any message as bytes."""
    return _ENCODER.encode(message)


def decode_envelope(data: bytes | bytearray | memoryview) -> Envelope:
    """The envelope in `data`; raises `msgspec.DecodeError` unless it is exactly one, whole and strict,
    and `UnicodeDecodeError` for text that is none."""
    return _ENVELOPE_DECODER.decode(data)


def pack(message: Message) -> msgspec.Raw:
    """Parameters or a result, ready to be put into an envelope."""
    return msgspec.Raw(encode(message))
