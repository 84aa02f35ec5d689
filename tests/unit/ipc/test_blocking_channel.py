"""The blocking channel of worker and CLI, over real socketpairs."""

import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.ipc.tables import BOTH
from usbipd.errors import IPCError, UsbipdError
from usbipd.ipc.blocking_channel import BlockingChannel
from usbipd.ipc.children import AttachParameters, DetachedParameters
from usbipd.ipc.control_messages import BindParameters, UnbindParameters, UnbindResult
from usbipd.ipc.conversation import Event, Request, event_frame, request_frame, response_frame
from usbipd.ipc.framing import encode_frame
from usbipd.ipc.messages import Command, EventName, Nothing


@pytest.fixture
def pair() -> Iterator[tuple[BlockingChannel, BlockingChannel]]:
    one, other = socket.socketpair()
    channels = BlockingChannel(one, "one", BOTH), BlockingChannel(other, "other", BOTH)
    yield channels
    for channel in channels:
        channel.close()


def raw_pair() -> tuple[BlockingChannel, socket.socket]:
    """A channel and its peer's bare socket, which has greeted."""
    ours, theirs = socket.socketpair()
    BlockingChannel(theirs.dup(), "peer", BOTH).close()
    return BlockingChannel(ours, "test", BOTH), theirs


def test_a_request_and_its_answer(pair: tuple[BlockingChannel, BlockingChannel]) -> None:
    asking, answering = pair

    def answer() -> None:
        request = answering.receive()
        assert isinstance(request, Request)
        assert request.parameters == UnbindParameters(busid=None)
        answering.respond(request, UnbindResult(bindings=[], busids=["3-1"]))

    thread = threading.Thread(target=answer)
    thread.start()
    result = asking.request(Command.UNBIND, UnbindParameters(busid=None), UnbindResult, timeout=5)
    thread.join()
    assert result.busids == ["3-1"]


def test_an_error_is_raised_as_it_was(pair: tuple[BlockingChannel, BlockingChannel]) -> None:
    asking, answering = pair

    def refuse() -> None:
        request = answering.receive()
        assert isinstance(request, Request)
        answering.respond(request, UsbipdError("in use", code="busy", advice="wait"))

    thread = threading.Thread(target=refuse)
    thread.start()
    with pytest.raises(UsbipdError, match="in use") as caught:
        asking.request(Command.BIND, BindParameters(busid="1-1"), Nothing, timeout=5)
    thread.join()
    assert (caught.value.code, caught.value.advice) == ("busy", "wait")


def test_the_descriptor_tells_whether_there_is_more(pair: tuple[BlockingChannel, BlockingChannel]) -> None:
    """A worker polls it: no message may stay in its buffer."""
    one, other = pair
    for number in range(3):
        one.push(EventName.DETACHED, DetachedParameters(reason=str(number)))
    for _number in range(3):
        assert select.select([other], [], [], 5)[0]
        assert other.receive() is not None
    assert not select.select([other], [], [], 0)[0]


def test_a_descriptor_arrives_closed_on_exec(pair: tuple[BlockingChannel, BlockingChannel]) -> None:
    one, other = pair
    read_end, write_end = os.pipe()
    with pytest.raises(IPCError, match="no answer in time") as caught:
        one.request(Command.ATTACH, AttachParameters(client="c"), Nothing, timeout=0.01, descriptor=write_end)
    assert caught.value.code == "timeout"
    os.close(write_end)
    request = other.receive()
    assert isinstance(request, Request)
    assert request.descriptor is not None
    assert not os.get_inheritable(request.descriptor)
    os.write(request.descriptor, b"through")
    os.close(request.descriptor)
    assert os.read(read_end, 100) == b"through"
    os.close(read_end)


def test_end_of_file(pair: tuple[BlockingChannel, BlockingChannel]) -> None:
    one, other = pair
    one.close()
    assert other.receive() is None
    with pytest.raises(IPCError, match="gone"):
        other.push(EventName.RESTORED, Nothing())


def test_end_of_file_within_a_message() -> None:
    channel, peer = raw_pair()
    peer.sendall(response_frame(1, Nothing())[:-1])
    peer.close()
    with pytest.raises(IPCError, match="in the middle"):
        channel.receive()
    channel.close()


def test_an_answer_to_another_request() -> None:
    channel, peer = raw_pair()
    peer.sendall(response_frame(99, Nothing()))
    with pytest.raises(IPCError, match="expected the answer to list"):
        channel.request(Command.LIST, Nothing(), Nothing, timeout=5)
    channel.close()
    peer.close()


def make_event(number: int) -> Event:
    return Event(EventName.DETACHED, DetachedParameters(reason=str(number)))


def test_events_before_an_answer_are_kept_in_their_order() -> None:
    channel, peer = raw_pair()
    for number in (1, 2):
        peer.sendall(event_frame(*make_event(number)))
    peer.sendall(response_frame(1, Nothing()) + event_frame(*make_event(3)))
    assert channel.request(Command.LIST, Nothing(), Nothing, timeout=5) == Nothing()
    assert [channel.receive(5) for _number in range(3)] == [make_event(1), make_event(2), make_event(3)]
    channel.close()
    peer.close()


def test_events_are_kept_if_the_request_times_out() -> None:
    channel, peer = raw_pair()
    peer.sendall(event_frame(*make_event(1)))
    with pytest.raises(IPCError) as caught:
        channel.request(Command.LIST, Nothing(), Nothing, timeout=0.01)
    assert caught.value.code == "timeout"
    peer.sendall(event_frame(*make_event(2)))
    assert [channel.receive(5), channel.receive(5)] == [make_event(1), make_event(2)]
    channel.close()
    peer.close()


def test_a_request_instead_of_an_answer() -> None:
    channel, peer = raw_pair()
    peer.sendall(request_frame(1, "peer", Command.LIST, Nothing()))
    with pytest.raises(IPCError, match="expected the answer to list"):
        channel.request(Command.LIST, Nothing(), Nothing, timeout=5)
    channel.close()
    peer.close()


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/dev/fd").iterdir()}


def test_surplus_descriptors_are_closed() -> None:
    channel, peer = raw_pair()
    sent = [os.open(os.devnull, os.O_RDONLY) for _number in range(5)]
    before = open_descriptors()
    frame = encode_frame(b"anything", descriptor=True)
    peer.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("5i", *sent))])
    with pytest.raises(IPCError, match="descriptor"):
        channel.receive()
    channel.close()
    assert open_descriptors() < before, "the channel's is closed and no other is open"
    peer.close()
    for descriptor in sent:
        os.close(descriptor)
