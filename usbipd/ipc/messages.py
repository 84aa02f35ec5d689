"""The envelopes of the messages between the processes.  Used by every process.

An envelope is an `IPCRequest`, an `IPCResponse` or an `IPCEvent`; a `Hello` opens every channel in both
directions.  The messages of the control socket are in `control_messages.py`, all others in `children.py`;
each ends with a table that has one row per command: its parameters and result, and who may send it.  Decoding
is strict: unknown fields, commands and trailing bytes are refused (msgspec).  `conversation.py` encodes
messages.
"""

from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec

from usbipd.ipc.message import Message

IPC_VERSION: Final = 4
"""Incremented whenever the format of a message changes.  Both ends must agree: they are one executable."""

MAX_MESSAGE: Final = 64 * 1024
"""Bytes of one encoded envelope, at most."""
LARGEST_PART: Final = MAX_MESSAGE - 1024
"""Bytes of a result in one envelope; the rest is for the envelope itself."""
LARGEST_ANSWER: Final = 8 << 20
"""Bytes of one encoded result that is sent in parts: 8 KiB for each of 1,000 devices.  A device with its
binding and worker takes less than 1 KiB, and some 4 KiB if all its texts have their maximum length."""


class Hello(Message, frozen=True, tag="hello"):
    """The first message in each direction."""

    ipc_version: int
    software: str


class Command(StrEnum):
    """The requests between processes."""

    # from the CLI to the extension
    LIST = "list"
    BIND = "bind"
    UNBIND = "unbind"
    DETACH = "detach"
    RELEASE_DEVICE = "release-device"
    STATUS = "status"
    HISTORY = "history"
    HEALTH = "health"
    WATCH = "watch"
    # from the CLI or the server to the extension
    MORE = "more"
    # from the server to the extension
    DEVLIST = "devlist"
    RESERVE = "reserve"
    HANDOVER = "handover"
    ABANDON = "abandon"
    # from the extension to the server
    SERVE = "serve"
    # from the extension to the server or a worker
    PING = "ping"
    LOG = "log"
    LOG_FILE = "log-file"
    # from the extension to a worker
    CLAIM = "claim"
    ATTACH = "attach"
    DISCONNECT = "disconnect"
    RELEASE = "release"


class IPCRequest(Message, frozen=True, tag="request"):
    """A command.  `client_id` is a label for logs; the kernel identifies the peer."""

    request_id: int
    client_id: str
    command: Command
    parameters: msgspec.Raw
    timestamp: float


class ErrorInfo(Message, frozen=True):
    """A `UsbipdError` sent to another process."""

    code: str
    message: str
    advice: str | None = None


class IPCResponse(Message, frozen=True, tag="response"):
    """The answer to the request with the same `request_id`: `result` if `success`, else `error`."""

    request_id: int
    success: bool
    result: msgspec.Raw
    """If not `success`, an encoded None."""
    error: ErrorInfo | None
    timestamp: float
    cut: bool = False
    """Whether `result` is only the first `Part` of the result; the others are fetched with MORE."""


class EventName(StrEnum):
    """The events that a process sends to another."""

    # from a worker to the extension
    DETACHED = "detached"
    RESTORED = "restored"
    DEVICE_GONE = "device-gone"
    # from the extension to a command that has sent WATCH
    CHANGED = "changed"


class IPCEvent(Message, frozen=True, tag="event"):
    """A message that is not an answer, and gets none."""

    event: EventName
    parameters: msgspec.Raw
    timestamp: float


Envelope = Hello | IPCRequest | IPCResponse | IPCEvent


class Nothing(Message, frozen=True):
    """No parameters, or no result."""


class MoreParameters(Message, frozen=True):
    """Fetch the next part of the answer to the earlier request `request_id` on this channel."""

    request_id: int


class Part(Message, frozen=True):
    """Some bytes of an encoded result that is too long for one message."""

    data: bytes
    left: Annotated[int, msgspec.Meta(ge=0)]
    """Bytes of the result after these."""


_ENCODER: Final = msgspec.msgpack.Encoder()
_ENVELOPE_DECODER: Final[msgspec.msgpack.Decoder[Envelope]] = msgspec.msgpack.Decoder(Envelope)


def encode(message: Any) -> bytes:
    """Encode any message."""
    return _ENCODER.encode(message)


def decode_envelope(data: bytes | bytearray | memoryview) -> Envelope:
    """The envelope in `data`; raises `msgspec.DecodeError` unless it is exactly one valid envelope, and
    `UnicodeDecodeError` for text that is not UTF-8."""
    return _ENVELOPE_DECODER.decode(data)


def pack(message: Message) -> msgspec.Raw:
    """Encode parameters or a result for an envelope."""
    return msgspec.Raw(encode(message))
