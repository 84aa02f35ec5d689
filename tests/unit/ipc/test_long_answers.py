"""Answers that are longer than a message: sent in parts of the same moment, at most one kept."""

import asyncio
import functools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from usbipd.errors import IPCError, UsbipdError
from usbipd.ipc.async_channel import MAX_QUEUED, Channel
from usbipd.ipc.blocking_channel import BlockingChannel
from usbipd.ipc.control_messages import PEOPLE, DetachParameters, DetachResult, UnbindParameters, UnbindResult
from usbipd.ipc.conversation import Event, Request, answer_frame, event_frame, request_frame, response_frame
from usbipd.ipc.message import Message
from usbipd.ipc.messages import (
    LARGEST_ANSWER,
    LARGEST_PART,
    MAX_MESSAGE,
    Command,
    EventName,
    MoreParameters,
    Nothing,
    Part,
    encode,
)
from usbipd.ipc.row import Role

PATIENCE = 10.0
ALL = UnbindParameters()


def answer_of(size: int) -> UnbindResult:
    """An answer of `size` bytes to a command that is long."""
    longer = UnbindResult(bindings=[], busids=["x" * size])
    return UnbindResult(bindings=[], busids=["x" * (2 * size - len(encode(longer)))])


class Ends:
    """A peer that asks, in the role of a server, and an extension that returns `answer()`."""

    def __init__(self, answer: Callable[[], Message]) -> None:
        async def handle(request: Request) -> Message:
            self.handled.append(request.command)
            return answer()

        async def refuse(request: Request) -> Message:
            raise UsbipdError("not here")

        self.handled: list[Command] = []
        one, other = socket.socketpair()
        self.asking = Channel(one, name="asked", role=Role.EXTENSION, table=PEOPLE, on_request=refuse)
        self.answering = Channel(other, name="asking", role=Role.ROOT, table=PEOPLE, on_request=handle)

    async def ask(self, command: Command = Command.UNBIND, parameters: Message = ALL) -> UnbindResult:
        return await self.asking.request(command, parameters, UnbindResult, timeout=PATIENCE)

    def close(self) -> None:
        self.asking.close()
        self.answering.close()


@pytest.mark.parametrize(
    "size", [LARGEST_PART, LARGEST_PART + 1, 2 * LARGEST_PART, 2 * LARGEST_PART + 1, LARGEST_ANSWER]
)
async def test_a_long_answer_is_reassembled(size: int) -> None:
    expected = answer_of(size)
    ends = Ends(lambda: expected)
    assert len(encode(expected)) == size
    assert await ends.ask() == expected
    assert ends.handled == [Command.UNBIND], "built once, however many parts it has"
    assert ends.answering._rest is None
    ends.close()


def test_each_part_fits_into_a_message() -> None:
    request = Request(1, Command.UNBIND, ALL, None, "test", 0.0)
    frame, rest = answer_frame(request, answer_of(LARGEST_ANSWER), is_long=True)
    data, parts = bytearray(), 1
    while rest is not None:
        part, rest = rest.next_part()
        frame = response_frame(2**63, part)  # raises if it does not
        data += part.data
        parts += 1
    assert parts == -(-LARGEST_ANSWER // LARGEST_PART)
    assert LARGEST_PART + len(data) == LARGEST_ANSWER
    assert frame


async def test_changes_between_the_parts_are_not_in_the_answer() -> None:
    devices = [f"1-{number}" for number in range(50_000)]
    ends = Ends(lambda: UnbindResult(bindings=[], busids=list(devices)))
    expected = list(devices)
    asking = asyncio.create_task(ends.ask())
    while ends.answering._rest is None:  # noqa: ASYNC110 - no event exists for this
        await asyncio.sleep(0)
    devices.clear()
    assert (await asking).busids == expected
    ends.close()


async def test_an_answer_that_is_too_long_is_an_error() -> None:
    ends = Ends(lambda: answer_of(LARGEST_ANSWER + 1))
    with pytest.raises(UsbipdError, match=f"the limit is {LARGEST_ANSWER}") as caught:
        await ends.ask()
    assert caught.value.code == "too-large"
    assert ends.answering._rest is None
    ends.close()


async def test_concurrent_long_answers() -> None:
    numbers = iter(range(8))
    ends = Ends(lambda: UnbindResult(bindings=[], busids=[str(next(numbers))] * 100_000))
    answers = await asyncio.gather(*(ends.ask() for _ in range(8)))
    assert [answer.busids[0] for answer in answers] == [str(number) for number in range(8)]
    assert {len(set(answer.busids)) for answer in answers} == {1}
    ends.close()


async def test_an_unfetched_answer_is_replaced_by_the_next() -> None:
    ends = Ends(lambda: answer_of(3 * LARGEST_PART))
    ends.asking.tell(Command.UNBIND, ALL)  # its answer is request 1's
    await ends.ask()
    with pytest.raises(UsbipdError, match="no longer available") as caught:
        await ends.asking.request(Command.MORE, MoreParameters(request_id=1), Part, timeout=PATIENCE)
    assert caught.value.code == "expired"
    ends.close()


async def test_a_closed_channel_keeps_nothing() -> None:
    ends = Ends(lambda: answer_of(LARGEST_ANSWER))
    ends.asking.tell(Command.UNBIND, ALL)
    while ends.answering._rest is None:  # noqa: ASYNC110 - no event exists for this
        await asyncio.sleep(0)
    ends.close()
    assert ends.answering._rest is None


async def test_a_peer_that_sends_more_and_reads_nothing_is_dropped() -> None:
    made = asyncio.Event()
    silent, theirs = socket.socketpair()
    closed: asyncio.Future[IPCError | None] = asyncio.get_running_loop().create_future()

    async def handle(request: Request) -> Message:
        made.set()
        return answer_of(LARGEST_ANSWER)

    channel = Channel(
        theirs, name="silent", role=Role.USER, table=PEOPLE, on_request=handle, on_close=closed.set_result
    )
    BlockingChannel(silent.dup(), "silent", PEOPLE).close()
    silent.sendall(request_frame(1, "", Command.LIST, Nothing()))
    await made.wait()
    more = request_frame(2, "", Command.MORE, MoreParameters(request_id=1))
    silent.sendall(more * (LARGEST_ANSWER // LARGEST_PART))
    while not closed.done():
        assert channel._queued <= MAX_QUEUED + MAX_MESSAGE
        await asyncio.sleep(0)
    reason = await closed
    assert reason is not None
    assert reason.code == "slow"
    silent.close()


def test_only_long_answers_are_cut() -> None:
    """All others are bounded anyway, and the extension accepts no long answer from a child."""
    is_long = PEOPLE.commands[Command.DETACH].is_long
    assert not is_long
    with pytest.raises(IPCError, match=f"the limit is {MAX_MESSAGE}"):
        answer_frame(
            Request(1, Command.DETACH, DetachParameters(busid="1-1"), None, "test", 0.0),
            DetachResult(client="x" * MAX_MESSAGE),
            is_long=is_long,
        )


# ---- a command, and a scripted extension -------------------------------------------------------------------


@contextmanager
def scripted(*answers: Callable[[Request], bytes]) -> Iterator[BlockingChannel]:
    """A channel whose peer answers the requests with `answers`, in order."""
    ours, theirs = socket.socketpair()
    peer = BlockingChannel(theirs, "peer", PEOPLE)

    def play() -> None:
        for answer in answers:
            request = peer.receive(PATIENCE)
            assert isinstance(request, Request)
            theirs.sendall(answer(request))

    thread = threading.Thread(target=play)
    thread.start()
    channel = BlockingChannel(ours, "test", PEOPLE)
    yield channel
    thread.join(PATIENCE)
    channel.close()
    peer.close()


def part(data: bytes, left: int, *, first: bool, request: Request) -> bytes:
    return response_frame(request.request_id, Part(data=data, left=left), cut=first)


DATA = encode(UnbindResult(bindings=[], busids=["1-1", "1-2"]))
FIRST = functools.partial(part, DATA[:4], len(DATA) - 4, first=True)


def more(data: bytes, left: int) -> Callable[[Request], bytes]:
    def answer(request: Request) -> bytes:
        assert request.parameters == MoreParameters(request_id=1)
        return part(data, left, first=False, request=request)

    return answer


def first(request: Request) -> bytes:
    return FIRST(request=request)


def ask(channel: BlockingChannel) -> UnbindResult:
    return channel.request(Command.UNBIND, ALL, UnbindResult, timeout=PATIENCE)


def test_a_command_assembles_the_parts() -> None:
    with scripted(first, more(DATA[4:9], len(DATA) - 9), more(DATA[9:], 0)) as channel:
        assert ask(channel).busids == ["1-1", "1-2"]


def test_events_between_the_parts_are_kept() -> None:
    def reply(request: Request) -> bytes:
        return event_frame(EventName.CHANGED, Nothing()) + more(DATA[4:], 0)(request)

    with scripted(first, reply) as channel:
        assert ask(channel).busids == ["1-1", "1-2"]
        event = channel.receive(0)
        assert isinstance(event, Event)
        assert event.event is EventName.CHANGED


@pytest.mark.parametrize(
    "second",
    [
        more(b"", len(DATA) - 4),
        more(DATA[4:] + b"\0", 0),
        more(DATA[4:9], len(DATA) - 4),
        more(DATA[4:9], 0),
    ],
    ids=["empty", "too long", "too much left", "too little left"],
)
def test_parts_that_do_not_match(second: Callable[[Request], bytes]) -> None:
    with (
        scripted(first, second) as channel,
        pytest.raises(IPCError, match="does not match") as caught,
    ):
        ask(channel)
    assert caught.value.code == "bad-message"


def test_an_error_in_place_of_a_part() -> None:
    def expired(request: Request) -> bytes:
        return response_frame(request.request_id, UsbipdError("it is gone", code="expired"))

    with scripted(first, expired) as channel, pytest.raises(UsbipdError, match="it is gone"):
        ask(channel)


def test_an_announced_length_beyond_the_limit() -> None:
    def huge(request: Request) -> bytes:
        return part(b"x", LARGEST_ANSWER, first=True, request=request)

    what = f"answer to unbind too long: {LARGEST_ANSWER + 1} bytes"
    with scripted(huge) as channel, pytest.raises(IPCError, match=what):
        ask(channel)


def test_parts_of_an_answer_that_may_not_be_long() -> None:
    def cut(request: Request) -> bytes:
        return part(b"x", 1, first=True, request=request)

    with scripted(cut) as channel, pytest.raises(IPCError, match=r"answer to detach too long: 2 bytes"):
        channel.request(Command.DETACH, DetachParameters(busid="1-1"), DetachResult, timeout=PATIENCE)


def test_the_timeout_covers_all_parts() -> None:
    with scripted(first) as channel, pytest.raises(IPCError, match="no answer in time"):
        channel.request(Command.UNBIND, ALL, UnbindResult, timeout=0.05)
