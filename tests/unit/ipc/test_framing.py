"""Framing and the rules of a conversation, without I/O.

Invariant: any bytes give frames or IPCError, and every descriptor that was fed is handed out or closed.
"""

import os
import socket
import struct
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.ipc.tables import BOTH
from usbipd.errors import IPCError, UsbipdError
from usbipd.ipc.children import DetachedParameters
from usbipd.ipc.control_messages import BindParameters, UnbindResult
from usbipd.ipc.conversation import (
    Conversation,
    Event,
    Request,
    Response,
    event_frame,
    read_result,
    request_frame,
    response_frame,
)
from usbipd.ipc.framing import Frame, FrameDecoder, encode_frame, receive_into
from usbipd.ipc.messages import (
    IPC_VERSION,
    MAX_MESSAGE,
    Command,
    EventName,
    Hello,
    IPCRequest,
    IPCResponse,
    Nothing,
    encode,
    pack,
)


def frames(decoder: FrameDecoder) -> list[Frame]:
    found = []
    while (frame := decoder.next_frame()) is not None:
        found.append(frame)
    return found


def greeted() -> Conversation:
    conversation = Conversation(BOTH)
    conversation.decoder.feed(Conversation(BOTH).hello())
    assert conversation.next_item() is None
    return conversation


def framed(message: msgspec.Struct) -> bytes:
    return encode_frame(encode(message), descriptor=False)


@pytest.fixture
def descriptor() -> int:
    """A descriptor to hand over; whether it is open shows its owner."""
    return os.open(os.devnull, os.O_RDONLY)


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


STREAM = b"".join(encode_frame(payload, descriptor=False) for payload in (b"a", b"bc" * 300, b"d"))
PAYLOADS = [b"a", b"bc" * 300, b"d"]


@pytest.mark.parametrize("size", [1, 2, 7, len(STREAM)])
def test_frames_arrive_in_any_chunking(size: int) -> None:
    decoder = FrameDecoder()
    found = []
    for start in range(0, len(STREAM), size):
        decoder.feed(STREAM[start : start + size])
        found += frames(decoder)
    assert [frame.payload for frame in found] == PAYLOADS
    assert not decoder.in_frame


def test_reading_what_is_wanted_never_reads_into_the_next_frame() -> None:
    decoder = FrameDecoder()
    left = STREAM
    found = []
    while left:
        wanted = decoder.wanted
        decoder.feed(left[:wanted])
        left = left[wanted:]
        found.append(decoder.next_frame())
        assert not (found[-1] and decoder.in_frame)
    assert [frame.payload for frame in found if frame] == PAYLOADS


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"\xff\xff\xff\xff\x00", "4294967295 bytes"),
        ((MAX_MESSAGE + 1).to_bytes(4, "big") + b"\x00", f"{MAX_MESSAGE + 1} bytes"),
        (b"\x00\x00\x00\x00\x00", "0 bytes"),
        (b"\x00\x00\x00\x01\x02", "flags 0x02"),
    ],
)
def test_a_wrong_header_is_refused_before_its_payload(header: bytes, reason: str) -> None:
    decoder = FrameDecoder()
    decoder.feed(header)
    with pytest.raises(IPCError, match=reason):
        decoder.next_frame()


def test_a_frame_too_large_is_not_sent() -> None:
    with pytest.raises(IPCError, match="65537 bytes"):
        encode_frame(bytes(MAX_MESSAGE + 1), descriptor=False)


def test_a_descriptor_goes_to_the_frame_that_announces_it(descriptor: int) -> None:
    decoder = FrameDecoder()
    stream = encode_frame(b"plain", descriptor=False) + encode_frame(b"with", descriptor=True)
    decoder.feed(stream, [descriptor])
    assert frames(decoder) == [Frame(b"plain", None), Frame(b"with", descriptor)]
    decoder.close()
    assert is_open(descriptor), "the decoder no longer owns it"
    os.close(descriptor)


def test_an_announced_descriptor_is_missing() -> None:
    decoder = FrameDecoder()
    decoder.feed(encode_frame(b"x", descriptor=True))
    with pytest.raises(IPCError, match="without the descriptor"):
        decoder.next_frame()


@pytest.mark.parametrize(
    "data",
    [b"", encode_frame(b"x", descriptor=False), encode_frame(b"xyz", descriptor=False)[:6]],
    ids=["nothing", "a whole frame", "a part of one"],
)
def test_a_descriptor_that_no_frame_announces(data: bytes, descriptor: int) -> None:
    decoder = FrameDecoder()
    decoder.feed(data, [descriptor])
    with pytest.raises(IPCError, match="no frame announced"):
        frames(decoder)
    decoder.close()
    assert not is_open(descriptor)


def test_two_descriptors_for_one_frame(descriptor: int) -> None:
    decoder = FrameDecoder()
    second = os.dup(descriptor)
    decoder.feed(encode_frame(b"xyz", descriptor=True)[:6], [descriptor, second])
    with pytest.raises(IPCError, match="no frame announced"):
        decoder.next_frame()
    decoder.close()
    assert not is_open(descriptor)
    assert not is_open(second)


@pytest.mark.parametrize("number", [2, 3, 10])
def test_several_descriptors_in_a_message_are_refused(number: int) -> None:
    """Announced as one and cut to one by the kernel, only MSG_CTRUNC reveals them."""
    decoder = FrameDecoder()
    ours, theirs = socket.socketpair()
    read_end, write_end = os.pipe()
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{number}i", *[write_end] * number))]
    with ours, theirs:
        theirs.sendmsg([encode_frame(b"x", descriptor=True)], ancillary)
        os.close(write_end)
        with pytest.raises(IPCError, match="more than one descriptor in a message"):
            receive_into(decoder, ours, MAX_MESSAGE)
        assert os.read(read_end, 1) == b"", "the received ones are closed"
    os.close(read_end)


def test_one_descriptor_is_received_whole() -> None:
    decoder = FrameDecoder()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", theirs.fileno()))]
        theirs.sendmsg([encode_frame(b"x", descriptor=True)], ancillary)
        assert receive_into(decoder, ours, MAX_MESSAGE)
        frame = decoder.next_frame()
        assert frame is not None
        assert frame.descriptor is not None
        assert not os.get_inheritable(frame.descriptor)
        os.close(frame.descriptor)


def test_every_kind_of_message_arrives() -> None:
    conversation = greeted()
    conversation.decoder.feed(
        request_frame(7, "test", Command.BIND, BindParameters(busid="1-2"))
        + response_frame(8, UnbindResult(bindings=[], busids=["1-2"]))
        + response_frame(9, UsbipdError("no", code="some-code", advice="do this"))
        + event_frame(EventName.DETACHED, DetachedParameters(reason="bye"))
    )
    request = conversation.next_item()
    assert isinstance(request, Request)
    assert time.time() - 60 < request.timestamp <= time.time()
    assert request[:-1] == (7, Command.BIND, BindParameters(busid="1-2"), None, "test")
    good, bad = conversation.next_item(), conversation.next_item()
    assert isinstance(good, Response)
    assert good.request_id == 8
    assert read_result(good, UnbindResult) == UnbindResult(bindings=[], busids=["1-2"])
    assert isinstance(bad, Response)
    with pytest.raises(UsbipdError, match="no") as caught:
        read_result(bad, UnbindResult)
    assert (caught.value.code, caught.value.advice) == ("some-code", "do this")
    assert conversation.next_item() == Event(EventName.DETACHED, DetachedParameters(reason="bye"))
    assert conversation.next_item() is None


def test_neither_a_result_nor_an_error() -> None:
    conversation = greeted()
    nothing = IPCResponse(request_id=1, success=False, result=pack(Nothing()), error=None, timestamp=0.0)
    conversation.decoder.feed(framed(nothing))
    with pytest.raises(IPCError, match="neither a result nor an error"):
        conversation.next_item()


def test_a_result_of_another_kind_is_refused() -> None:
    conversation = greeted()
    conversation.decoder.feed(response_frame(1, Nothing()))
    item = conversation.next_item()
    assert isinstance(item, Response)
    with pytest.raises(IPCError, match="bindings"):
        read_result(item, UnbindResult)


def request(command: str = "bind", parameters: object = None, **more: object) -> dict[str, object]:
    content = {"busid": "1-2"} if parameters is None else parameters
    return {
        "type": "request",
        "request_id": 1,
        "client_id": "test",
        "command": command,
        "parameters": content,
        "timestamp": 0.0,
    } | more


@pytest.mark.parametrize(
    "message",
    [
        request("format-disk"),
        request(parameters={"busid": 12}),
        request(parameters={"busid": "1-2", "color": "red"}),
        request(parameters={"busid": "1" * 32}),
        request("detach", parameters={}),
        request(surprise=1),
        request(request_id="1"),
        {"type": "response", "request_id": 1, "success": True, "result": None, "error": None},
        {"type": "response", "request_id": 1, "success": 0, "result": None, "error": None, "timestamp": 0.0},
        {"type": "event", "event": "party", "parameters": {}, "timestamp": 0.0},
        {"type": "nonsense"},
        [],
        None,
    ],
    ids=str,
)
def test_malformed_messages_are_refused(message: object) -> None:
    conversation = greeted()
    conversation.decoder.feed(encode_frame(encode(message), descriptor=False))
    with pytest.raises(IPCError):
        conversation.next_item()


def test_trailing_bytes_are_refused() -> None:
    conversation = greeted()
    payload = request_frame(1, "test", Command.LIST, Nothing())[5:]
    conversation.decoder.feed(encode_frame(payload + b"\x00", descriptor=False))
    with pytest.raises(IPCError, match="malformed"):
        conversation.next_item()


@pytest.mark.parametrize("place", [b"list", b"cli"], ids=["a name", "a text"])
def test_invalid_utf8_is_refused(place: bytes) -> None:
    conversation = greeted()
    frame = request_frame(1, "cli", Command.LIST, Nothing())
    conversation.decoder.feed(frame.replace(place, b"\x80" + place[1:]))
    with pytest.raises(IPCError, match="malformed"):
        conversation.next_item()


def test_a_result_with_invalid_utf8_is_refused() -> None:
    result = encode(UnbindResult(bindings=[], busids=["1-1"])).replace(b"1-1", b"\x80-1")
    with pytest.raises(IPCError, match="malformed result"):
        read_result(Response(1, msgspec.Raw(result)), UnbindResult)


def test_hello_comes_first() -> None:
    conversation = Conversation(BOTH)
    conversation.decoder.feed(response_frame(1, Nothing()))
    with pytest.raises(IPCError, match="before hello"):
        conversation.next_item()


def test_hello_comes_once() -> None:
    conversation = greeted()
    conversation.decoder.feed(conversation.hello())
    with pytest.raises(IPCError, match="second hello"):
        conversation.next_item()


def test_another_version_is_refused_by_name() -> None:
    conversation = Conversation(BOTH)
    conversation.decoder.feed(framed(Hello(ipc_version=IPC_VERSION + 1, software="usbipd 99")))
    with pytest.raises(IPCError, match=f"usbipd 99 uses IPC version {IPC_VERSION + 1}") as caught:
        conversation.next_item()
    assert caught.value.code == "version"


@pytest.mark.parametrize("command", [Command.LIST, Command.HANDOVER])
def test_descriptors_come_with_the_commands_that_carry_one_and_no_other(
    command: Command, descriptor: int
) -> None:
    conversation = greeted()
    carries = command is Command.HANDOVER
    message = IPCRequest(
        request_id=1, client_id="test", command=command, parameters=pack(Nothing()), timestamp=0.0
    )
    frame = encode_frame(encode(message), descriptor=not carries)
    conversation.decoder.feed(frame, [] if carries else [descriptor])
    with pytest.raises(IPCError, match="surplus or missing descriptor"):
        conversation.next_item()
    assert is_open(descriptor) is carries
    if carries:
        os.close(descriptor)


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_any_bytes_give_messages_or_an_error(chunks: list[bytes]) -> None:
    conversation = greeted()
    try:
        for chunk in chunks:
            conversation.decoder.feed(chunk)
            while conversation.next_item() is not None:
                pass
            assert 0 < conversation.decoder.wanted <= MAX_MESSAGE + 5
    except IPCError:
        pass
