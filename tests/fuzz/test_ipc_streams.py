"""Hostile peers of a channel between our processes, over real socketpairs, with real descriptors.

Invariant: any bytes in any pieces, with any descriptors at any of them, give messages or one `IPCError` that
closes the channel; buffered data is bounded; every descriptor that arrived is handed out with its
request or closed, once. A peer that follows the rules keeps its channel and gets one answer per request.
"""

import asyncio
import contextlib
import os
import socket
import struct
from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.ipc.tables import BOTH, table_of
from usbipd.errors import IPCError, UsbipdError
from usbipd.ipc.async_channel import MAX_QUEUED, MAX_RUNNING, Channel
from usbipd.ipc.blocking_channel import BlockingChannel
from usbipd.ipc.children import CHILDREN, AttachParameters, DetachedParameters, ReservationParameters
from usbipd.ipc.control_messages import UnbindParameters, UnbindResult
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
from usbipd.ipc.messages import LARGEST_ANSWER, MAX_MESSAGE, Command, EventName, MoreParameters, Nothing
from usbipd.ipc.row import Role

PARAMETERS: dict[Command, Message] = {
    Command.LIST: Nothing(),
    Command.WATCH: Nothing(),
    Command.UNBIND: UnbindParameters(busid="1-1"),
    Command.HANDOVER: ReservationParameters(reservation=7),
    Command.ABANDON: ReservationParameters(reservation=7),
    Command.ATTACH: AttachParameters(client="192.0.2.1:4000"),
    Command.RELEASE: Nothing(),
    Command.MORE: MoreParameters(request_id=1),
}
LONG_ANSWER = UnbindResult(bindings=[], busids=["1-1"] * 40_000)
"""Three parts."""
MOST_HELD = 5 + 2 * MAX_MESSAGE
"""Bytes: an incomplete frame, and the rest of one read."""

requests = st.builds(
    lambda command, number, descriptor: request_frame(
        number, "hostile", command, PARAMETERS[command], descriptor=descriptor
    ),
    st.sampled_from(sorted(PARAMETERS)),
    st.integers(0, 2**40),
    st.booleans(),
)
events = st.sampled_from(
    [
        event_frame(EventName.DETACHED, DetachedParameters(reason="it left")),
        event_frame(EventName.CHANGED, Nothing()),
    ]
)
responses = st.builds(response_frame, st.integers(-1, 3), st.just(Nothing()))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
payloads = st.builds(
    lambda value, flag: encode_frame(msgspec.msgpack.encode(value), descriptor=flag), values, st.booleans()
)
headers = st.builds(
    lambda length, flags: struct.pack(">IB", length, flags),
    st.sampled_from([0, 1, 100, MAX_MESSAGE, MAX_MESSAGE + 1, 2**32 - 1]),
    st.integers(0, 3),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A message with one byte changed."""
    frame = bytearray(draw(requests | events | responses))
    frame[draw(st.integers(0, len(frame) - 1))] = draw(st.integers(0, 255))
    return bytes(frame)


hostile = mutated() | payloads | headers | events | responses | st.binary(max_size=200)


class Descriptors:
    """Descriptors to send: for each, a pipe reports when its last copy is closed.

    A closed number is reused at once by a `canary`, which a second close would hit.
    """

    def __init__(self) -> None:
        self._pipes: list[int] = []
        self._canaries: list[int] = []

    def new(self) -> int:
        here, there = os.pipe()
        os.set_blocking(here, False)
        self._pipes.append(here)
        return there

    def take_over(self) -> None:
        self._canaries.append(os.open(os.devnull, os.O_RDONLY))

    def close(self) -> None:
        """Fails if a sent one is open, or if another one is closed."""
        for each in self._canaries:
            assert os.path.samestat(os.fstat(each), os.stat(os.devnull)), "closed twice"  # noqa: PTH116
            os.close(each)
        for each in self._pipes:
            with contextlib.suppress(BlockingIOError):
                assert os.read(each, 1) == b""
                os.close(each)
                continue
            raise AssertionError("a descriptor that arrived is still open")


def send(connection: socket.socket, data: bytes, descriptors: list[int]) -> None:
    """All of it if the other end takes it, and no descriptor stays here."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(descriptors)}i", *descriptors))]
    try:
        with contextlib.suppress(OSError):  # the channel is closed, or full
            sent = connection.sendmsg([data], rights if descriptors else [])
            while sent < len(data):
                sent += connection.send(data[sent:])
    finally:
        for each in descriptors:
            os.close(each)


class Peer(RuleBasedStateMachine):
    """The acts of a peer; the subclasses are the two kinds of channel."""

    def __init__(self) -> None:
        super().__init__()
        self.descriptors = Descriptors()
        self.peer, self.end = socket.socketpair()
        self.peer.setblocking(False)
        self.honest = True
        """Whether all sent bytes follow the rules."""
        self.asked = 0
        self.asked_more = 0
        """Those of them that no handler sees."""

    def allowed(self, command: Command) -> bool:
        return True

    def write(self, data: bytes, descriptors: int = 0) -> None:
        send(self.peer, data, [self.descriptors.new() for _ in range(descriptors)])
        self.step()
        self.descriptors.take_over()

    def step(self) -> None:
        """The channel receives the sent bytes."""
        raise NotImplementedError

    @precondition(lambda self: self.honest)
    @rule(command=st.sampled_from(sorted(PARAMETERS)), cut=st.integers(0, 60))
    def right(self, command: Command, cut: int) -> None:
        """A valid request in two pieces: its descriptor comes with the first byte."""
        if not self.allowed(command):
            return
        self.asked += 1
        self.asked_more += command is Command.MORE
        carried = BOTH.commands[command].carries_descriptor
        frame = request_frame(self.asked, "peer", command, PARAMETERS[command], descriptor=carried)
        cut = max(1, min(cut, len(frame) - 1))
        self.write(frame[:cut], int(carried))
        self.write(frame[cut:])

    @rule(data=hostile, cut=st.integers(0, 40), first=st.integers(0, 2), second=st.integers(0, 3))
    def wrong(self, data: bytes, cut: int, first: int, second: int) -> None:
        """Anything, with descriptors at either piece."""
        self.honest = False
        for piece, number in ((data[:cut], first), (data[cut:], second)):
            if piece:
                self.write(piece, number)

    @rule(data=requests, number=st.integers(0, 2))
    def wrong_descriptors(self, data: bytes, number: int) -> None:
        self.honest = False
        self.write(data, number)

    @rule(size=st.integers(0, 2 * MAX_MESSAGE))
    def announced(self, size: int) -> None:
        """Many bytes of a frame that never ends, or of several at once."""
        self.honest = False
        self.write(struct.pack(">IB", MAX_MESSAGE, 0) + bytes(size))

    @rule()
    def half_close(self) -> None:
        self.honest = False
        with contextlib.suppress(OSError):
            self.peer.shutdown(socket.SHUT_WR)
        self.step()


class AsyncPeer(Peer):
    """The channel of extension and server."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.problems: list[dict[str, Any]] = []
        self.runner.get_loop().set_exception_handler(lambda _loop, context: self.problems.append(context))
        self.reasons: list[IPCError | None] = []
        self.handled = 0
        self.answers = Conversation(BOTH)
        self.answered = 0

    @initialize(role=st.sampled_from(sorted(Role)), greets=st.booleans())
    def begin(self, role: Role, greets: bool) -> None:
        self.role = role

        async def make() -> Channel:
            return Channel(
                self.end,
                name="the hostile one",
                role=role,
                table=table_of(role),
                on_request=self.handle,
                on_event=lambda _event: None,
                on_close=self.reasons.append,
            )

        self.channel = self.runner.run(make())
        self.honest = greets
        if greets:
            self.write(Conversation(CHILDREN).hello())

    def allowed(self, command: Command) -> bool:
        row = table_of(self.role).commands.get(command)
        return row is not None and self.role in row.senders

    async def handle(self, request: Request) -> Message:
        """Holds the descriptor while it runs."""
        self.handled += 1
        if request.descriptor is not None:
            os.fstat(request.descriptor)
            await asyncio.sleep(0)
            os.fstat(request.descriptor)
        if request.request_id % 3 == 0:
            raise UsbipdError("not now", code="refused")
        return LONG_ANSWER if request.command is Command.LIST else Nothing()

    def step(self) -> None:
        async def turns() -> None:
            for _ in range(12):
                await asyncio.sleep(0)

        self.runner.run(turns())

    @rule(number=st.integers(2, 2 * MAX_RUNNING), command=st.sampled_from([Command.LIST, Command.ABANDON]))
    def flood(self, number: int, command: Command) -> None:
        """Many requests in one write; the peer reads no answers for now."""
        self.honest = False
        self.write(
            b"".join(request_frame(each, "peer", command, PARAMETERS[command]) for each in range(number))
        )

    @invariant()
    def bounded(self) -> None:
        if not hasattr(self, "channel"):
            return
        assert not self.problems
        assert len(self.channel._conversation.decoder._buffer) <= MOST_HELD
        assert self.channel._queued <= MAX_QUEUED + MAX_MESSAGE
        assert len(self.channel._running) <= MAX_RUNNING
        assert self.channel._rest is None or len(self.channel._rest.data) <= LARGEST_ANSWER
        assert self.channel.is_open == (not self.reasons)
        assert len(self.reasons) <= 1
        if self.honest:
            self.take_answers()
            assert self.channel.is_open, self.reasons
            assert self.answered == self.handled + self.asked_more == self.asked

    def take_answers(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := self.peer.recv(65536):
                self.answers.decoder.feed(data)
        while (item := self.answers.next_item()) is not None:
            assert isinstance(item, Response)
            self.answered += 1

    def teardown(self) -> None:
        self.peer.close()
        if hasattr(self, "channel"):
            self.step()
            self.channel.close()
            self.step()
        else:
            self.end.close()
        self.runner.close()
        assert not self.problems
        self.descriptors.close()


class BlockingPeer(Peer):
    """The channel of a worker or a command."""

    def __init__(self) -> None:
        super().__init__()
        self.channel: BlockingChannel | None = BlockingChannel(self.end, "the hostile one", BOTH)
        self.received = 0

    @initialize(greets=st.booleans())
    def begin(self, greets: bool) -> None:
        self.honest = greets
        if greets:
            self.write(Conversation(CHILDREN).hello())

    def step(self) -> None:
        while self.channel is not None:
            try:
                item = self.channel.receive(timeout=0)
            except IPCError as error:
                if error.code == "timeout":
                    assert len(self.channel._conversation.decoder._buffer) <= MOST_HELD
                    return
                item = None
            if item is None:  # the end, or a reason to make it so
                self.channel.close()
                self.channel = None
            elif isinstance(item, Request):
                self.received += 1
                if item.descriptor is not None:
                    os.close(item.descriptor)
            else:
                assert isinstance(item, Response | Event)

    @invariant()
    def honest_peers_are_heard(self) -> None:
        if self.honest:
            assert self.channel is not None
            assert self.received == self.asked

    def teardown(self) -> None:
        self.peer.close()
        self.step()
        assert self.channel is None
        self.descriptors.close()


TestAsyncPeer = AsyncPeer.TestCase
TestBlockingPeer = BlockingPeer.TestCase
