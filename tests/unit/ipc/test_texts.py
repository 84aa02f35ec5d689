"""Texts of a peer are cleaned in every message."""

import types
import typing
from collections.abc import Iterator
from enum import Enum

import msgspec
import pytest

from tests.unit.ipc.tables import BOTH
from usbipd.errors import IPCError, UsbipdError
from usbipd.ipc.children import (
    CHILDREN,
    ClaimResult,
    Confinement,
    DetachedParameters,
    ReserveParameters,
    ServeParameters,
)
from usbipd.ipc.control_messages import HistoryEntry, HistoryEvent, StatusResult
from usbipd.ipc.conversation import (
    Conversation,
    Event,
    Request,
    Response,
    event_frame,
    request_frame,
    response_frame,
)
from usbipd.ipc.framing import encode_frame
from usbipd.ipc.message import Message
from usbipd.ipc.messages import IPC_VERSION, Command, ErrorInfo, EventName, Hello, IPCEvent, encode
from usbipd.ipc.texts import LONGEST_TEXT, clean_texts

HOSTILE = "\x1b]0;owned\x07\r\nfake \u202e\u2028\x9b31m"
CLEAN = r"\x1b]0;owned\x07\r\nfake \u202e\u2028\x9b31m"
LONG = "\n" * 60_000

MESSAGES = sorted(
    {kind for row in BOTH.commands.values() for kind in (row.parameters, row.result)}
    | {row.parameters for row in BOTH.events.values()}
    | {Hello, ErrorInfo},
    key=lambda kind: kind.__name__,
)


def hostile(kind: typing.Any) -> typing.Any:
    """A value of this type with `HOSTILE` in the place of each text."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return hostile(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return hostile(next(each for each in arguments if each is not type(None)))
    if origin is typing.Literal:
        return arguments[0]
    if origin in (list, tuple):
        return origin([hostile(arguments[0])])
    if origin is dict:
        return {hostile(arguments[0]): hostile(arguments[1])}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind, include_extras=True)
        return kind(**{name: hostile(hints[name]) for name in kind.__struct_fields__})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next(iter(kind))
    return HOSTILE if kind is str else kind(1)


def texts(value: object) -> Iterator[str]:
    """Every text of a message, without those of enumerations."""
    if type(value) is str:
        yield value
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from texts(getattr(value, name))
    elif isinstance(value, list | tuple | dict):
        for each in value:
            yield from texts(each)
        if isinstance(value, dict):
            yield from texts(list(value.values()))


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_every_text_of_every_message_is_clean(kind: type[Message]) -> None:
    cleaned = clean_texts(hostile(kind))
    assert all(text.isprintable() and len(text) <= LONGEST_TEXT for text in texts(cleaned))
    assert clean_texts(cleaned) is cleaned or cleaned == clean_texts(cleaned)


def test_the_messages_have_texts_to_clean() -> None:
    """Without texts, the test above would always pass."""
    assert list(texts(hostile(StatusResult))).count(HOSTILE) > 20


def test_clean_messages_are_unchanged() -> None:
    entry = HistoryEntry(id=1, time=1.0, event=HistoryEvent.BOUND, product="Müller's stick")
    assert clean_texts(entry) is entry
    assert clean_texts(entry).event is HistoryEvent.BOUND


def test_a_long_text_is_cut() -> None:
    [text] = texts(clean_texts(DetachedParameters(reason=LONG)))
    assert len(text) == LONGEST_TEXT
    assert text.endswith("…")


def greeted(*, trusted: bool = False) -> Conversation:
    conversation = Conversation(CHILDREN, trusted=trusted)
    conversation.decoder.feed(Conversation(CHILDREN).hello())
    return conversation


def test_received_messages_are_cleaned() -> None:
    conversation = greeted()
    feed = conversation.decoder.feed
    feed(event_frame(EventName.DETACHED, DetachedParameters(reason=HOSTILE)))
    event = conversation.next_item()
    assert isinstance(event, Event)
    assert event.parameters == DetachedParameters(reason=CLEAN)
    feed(request_frame(1, HOSTILE, Command.RESERVE, hostile(ReserveParameters)))
    request = conversation.next_item()
    assert isinstance(request, Request)
    assert request.parameters == ReserveParameters(
        reservation=1, busid=CLEAN, client=CLEAN, address=CLEAN, wait=True
    )
    feed(response_frame(1, UsbipdError(HOSTILE, code=HOSTILE, advice=HOSTILE)))
    refused = conversation.next_item()
    assert isinstance(refused, Response)
    assert isinstance(refused.reply, UsbipdError)
    assert [refused.reply.message, refused.reply.code, refused.reply.advice] == [CLEAN, CLEAN, CLEAN]
    feed(response_frame(1, hostile(ClaimResult)))
    claimed = conversation.next_item()
    assert isinstance(claimed, Response)
    assert set(texts(conversation.result(claimed, ClaimResult))) == {CLEAN}


def test_messages_of_a_trusted_peer_are_unchanged() -> None:
    """A path may contain any character but NUL."""
    conversation = greeted(trusted=True)
    order = msgspec.structs.replace(
        hostile(ServeParameters), confinement=Confinement(run_as=None, root="/tmp/a\nb")
    )
    conversation.decoder.feed(request_frame(1, "extension", Command.SERVE, order))
    request = conversation.next_item()
    assert isinstance(request, Request)
    assert request.parameters == order


@pytest.mark.parametrize("trusted", [True, False])
def test_errors_do_not_quote_malformed_text_raw(trusted: bool) -> None:
    """msgspec quotes an unknown field unchanged."""
    conversation = greeted(trusted=trusted)
    odd = msgspec.Raw(encode({"reason": "x", HOSTILE: 1}))
    conversation.decoder.feed(
        encode_frame(
            encode(IPCEvent(event=EventName.DETACHED, parameters=odd, timestamp=0.0)), descriptor=False
        )
    )
    with pytest.raises(IPCError) as caught:
        conversation.next_item()
    assert CLEAN in caught.value.message
    assert caught.value.message.isprintable()


def test_the_name_of_another_version_is_cleaned() -> None:
    conversation = Conversation(CHILDREN)
    hello = Hello(ipc_version=IPC_VERSION + 1, software=HOSTILE)
    conversation.decoder.feed(encode_frame(encode(hello), descriptor=False))
    with pytest.raises(IPCError, match="uses IPC version") as caught:
        conversation.next_item()
    assert caught.value.message.isprintable()
