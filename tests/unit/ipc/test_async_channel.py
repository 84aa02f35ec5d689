"""The channel of extension and server, over real socketpairs."""

import asyncio
import contextlib
import os
import re
import select
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest

from tests.unit.ipc.tables import BOTH
from usbipd.errors import IPCError, UsbipdError
from usbipd.ipc.async_channel import LONGEST_QUEUE, MAX_QUEUED, MAX_RUNNING, Channel
from usbipd.ipc.blocking_channel import BlockingChannel
from usbipd.ipc.children import DetachedParameters, LogParameters, ReservationParameters
from usbipd.ipc.control_messages import (
    BindParameters,
    DetachParameters,
    DetachResult,
    ListResult,
    UnbindParameters,
)
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
from usbipd.ipc.messages import MAX_MESSAGE, Command, EventName, Nothing
from usbipd.ipc.row import Role

PATIENCE = 5.0


async def refuse(request: Request) -> Message:
    raise UsbipdError(f"no {request.command}", code="refused", advice="ask something else")


class End:
    """A channel that can be awaited until it closes."""

    def __init__(
        self,
        connection: socket.socket,
        role: Role,
        on_request: Callable[[Request], Awaitable[Message]] = refuse,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.closed: asyncio.Future[IPCError | None] = asyncio.get_running_loop().create_future()
        self.channel = Channel(
            connection,
            name=f"the {role}",
            role=role,
            table=BOTH,
            on_request=on_request,
            on_event=on_event,
            on_close=self.closed.set_result,
        )

    async def reason(self) -> IPCError | None:
        async with asyncio.timeout(PATIENCE):
            return await self.closed


async def is_last(read_end: int) -> bool:
    """Whether the pipe has no writing end, now or within `PATIENCE`."""
    ready, _, _ = await asyncio.to_thread(select.select, [read_end], [], [], PATIENCE)
    return bool(ready) and os.read(read_end, 1) == b""


async def test_requests_are_logged_at_level_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "usbipd.ipc.async_channel")
    one, other = socket.socketpair()
    asking, answering = End(one, Role.EXTENSION), End(other, Role.ROOT)
    with pytest.raises(UsbipdError, match="no detach"):
        await asking.channel.request(
            Command.DETACH, DetachParameters(busid="1-1"), DetachResult, timeout=PATIENCE
        )
    asking.channel.close()
    await answering.reason()
    [line] = caplog.messages
    pattern = rf"answered the root: detach, request 1 of server {os.getpid()}, after [-0-9.e]+ s"
    assert re.fullmatch(pattern, line)


async def test_answers_match_their_requests_in_any_order() -> None:
    first_may_go = asyncio.Event()

    async def answer(request: Request) -> Message:
        assert isinstance(request.parameters, DetachParameters)
        if request.parameters.busid == "1-1":
            await first_may_go.wait()
        else:
            first_may_go.set()
        return DetachResult(client=request.parameters.busid)

    one, other = socket.socketpair()
    asking, answering = End(one, Role.EXTENSION), End(other, Role.ROOT, answer)
    results = await asyncio.gather(
        *(
            asking.channel.request(
                Command.DETACH, DetachParameters(busid=busid), DetachResult, timeout=PATIENCE
            )
            for busid in ("1-1", "2-2")
        )
    )
    assert [result.client for result in results] == ["1-1", "2-2"]
    asking.channel.close()
    assert await answering.reason() is None


async def test_an_error_is_an_answer() -> None:
    one, other = socket.socketpair()
    asking, answering = End(one, Role.EXTENSION), End(other, Role.ROOT)
    with pytest.raises(UsbipdError, match="no list") as caught:
        await asking.channel.request(Command.LIST, Nothing(), ListResult, timeout=PATIENCE)
    assert (caught.value.code, caught.value.advice) == ("refused", "ask something else")
    assert answering.channel.is_open
    asking.channel.close()
    answering.channel.close()


async def test_a_handler_that_fails_is_an_internal_error(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(request: Request) -> Message:
        raise ZeroDivisionError

    one, other = socket.socketpair()
    asking, answering = End(one, Role.EXTENSION), End(other, Role.ROOT, fail)
    with pytest.raises(UsbipdError, match="see the log"):
        await asking.channel.request(Command.LIST, Nothing(), ListResult, timeout=PATIENCE)
    asking.channel.close()
    answering.channel.close()
    assert "ZeroDivisionError" in caplog.text


async def test_an_answer_that_is_too_large_is_an_error() -> None:
    async def overdo(request: Request) -> Message:
        return DetachResult(client="1" * MAX_MESSAGE)

    one, other = socket.socketpair()
    asking, answering = End(one, Role.EXTENSION), End(other, Role.ROOT, overdo)
    with pytest.raises(UsbipdError, match="the limit is 65536"):
        await asking.channel.request(
            Command.DETACH, DetachParameters(busid="1-1"), DetachResult, timeout=PATIENCE
        )
    asking.channel.close()
    answering.channel.close()


async def test_a_request_times_out_and_its_late_answer_is_ignored() -> None:
    late = asyncio.Event()

    async def answer(request: Request) -> Message:
        await late.wait()
        return ListResult(devices=[], bindings=[])

    one, other = socket.socketpair()
    asking, answering = End(one, Role.EXTENSION), End(other, Role.ROOT, answer)
    with pytest.raises(IPCError, match="did not answer list") as caught:
        await asking.channel.request(Command.LIST, Nothing(), ListResult, timeout=0.01)
    assert caught.value.code == "timeout"
    late.set()
    await asking.channel.request(Command.LIST, Nothing(), ListResult, timeout=PATIENCE)
    asking.channel.close()
    answering.channel.close()


async def test_an_answer_for_a_cancelled_task_that_has_not_run_yet() -> None:
    one, other = socket.socketpair()
    asking = End(one, Role.WORKER)
    waiting = asyncio.create_task(
        asking.channel.request(Command.LIST, Nothing(), ListResult, timeout=PATIENCE)
    )
    await asyncio.sleep(0)
    # in the iteration of the loop that reads the answer, before that; the task runs after both
    asyncio.get_running_loop().call_soon(waiting.cancel)
    other.sendall(HELLO + response_frame(1, ListResult(devices=[], bindings=[])))
    await asyncio.wait({waiting})
    assert asking.channel.is_open
    other.sendall(response_frame(1, ListResult(devices=[], bindings=[])))
    reason = await asking.reason()
    assert reason is not None
    assert reason.code == "bad-message"
    other.close()


@pytest.mark.parametrize("way", ["request", "tell"])
async def test_a_request_that_was_not_sent_expects_no_answer(way: str) -> None:
    one, other = socket.socketpair()
    asking = End(one, Role.WORKER)
    too_long = DetachParameters(busid="1" * MAX_MESSAGE)

    async def ask() -> None:
        if way == "tell":
            asking.channel.tell(Command.DETACH, too_long)
        else:
            await asking.channel.request(Command.DETACH, too_long, DetachResult, timeout=PATIENCE)

    with pytest.raises(IPCError, match="the limit is 65536"):
        await ask()
    other.sendall(HELLO + response_frame(1, DetachResult(client="x")))
    reason = await asking.reason()
    assert reason is not None
    assert reason.code == "bad-message"
    other.close()


async def test_pending_requests_fail_when_the_peer_dies() -> None:
    one, other = socket.socketpair()
    asking = End(one, Role.WORKER)
    waiting = asyncio.create_task(
        asking.channel.request(Command.LIST, Nothing(), ListResult, timeout=PATIENCE)
    )
    await asyncio.sleep(0)
    other.close()
    with pytest.raises(IPCError, match="gone"):
        await waiting
    await asking.reason()
    with pytest.raises(IPCError, match="gone"):
        await asking.channel.request(Command.LIST, Nothing(), ListResult, timeout=PATIENCE)


async def test_a_descriptor_is_duplicated_for_the_peer() -> None:
    inheritable: list[bool] = []

    async def use(request: Request) -> Message:
        assert request.descriptor is not None
        inheritable.append(os.get_inheritable(request.descriptor))
        os.write(request.descriptor, b"through")
        return Nothing()

    one, other = socket.socketpair()
    asking, answering = End(one, Role.EXTENSION), End(other, Role.SERVER, use)
    read_end, write_end = os.pipe()
    await asking.channel.request(
        Command.HANDOVER,
        ReservationParameters(reservation=1),
        Nothing,
        timeout=PATIENCE,
        descriptor=write_end,
    )
    os.close(write_end)
    assert os.read(read_end, 100) == b"through"
    assert await is_last(read_end)
    os.close(read_end)
    assert inheritable == [False]
    asking.channel.close()
    answering.channel.close()


async def test_events_arrive_in_order_before_end_of_file() -> None:
    received: list[Message] = []
    one, other = socket.socketpair()
    worker = End(one, Role.EXTENSION)
    extension = End(other, Role.WORKER, on_event=lambda event: received.append(event.parameters))
    expected = [DetachedParameters(reason=str(number)) for number in range(20)]
    for parameters in expected:
        worker.channel.push(EventName.DETACHED, parameters)
    worker.channel.close()
    assert await extension.reason() is None
    assert received == expected


HELLO = Conversation(BOTH).hello()


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"\xff\xff\xff\xff\x00", "4294967295 bytes"),
        (encode_frame(b"\xc1 rubbish", descriptor=False), "malformed"),
        (response_frame(1, Nothing()), "before hello"),
        (HELLO + HELLO, "second hello"),
        (HELLO + response_frame(1, Nothing()), "unexpected or duplicate answer"),
        (HELLO + response_frame(0, Nothing()), "unexpected or duplicate answer"),
        (HELLO + request_frame(1, "x", Command.CLAIM, Nothing(), descriptor=True), "without the descriptor"),
        (HELLO + request_frame(1, "x", Command.STATUS, Nothing()), "server may not send status"),
        (HELLO + event_frame(EventName.RESTORED, Nothing()), "server may not send restored"),
        (HELLO[:-1], "in the middle of a message"),
    ],
    ids=[
        *("4 GiB", "rubbish", "no hello", "two hellos", "answer", "answer to 0", "no descriptor", "command"),
        *("event", "cut"),
    ],
)
async def test_a_process_that_breaks_the_rules_is_dropped(sent: bytes, reason: str) -> None:
    one, other = socket.socketpair()
    extension = End(one, Role.SERVER)
    other.sendall(sent)
    other.shutdown(socket.SHUT_WR)
    error = await extension.reason()
    assert error is not None
    assert reason in error.message
    other.close()


@pytest.mark.parametrize("is_wanted", [False, True], ids=["unwanted", "late"])
async def test_an_answer_comes_once(is_wanted: bool) -> None:
    """Even if no task waits for it: repeated answers would keep this process busy."""
    one, other = socket.socketpair()
    extension = End(one, Role.WORKER)
    if not is_wanted:
        extension.channel.tell(Command.LOG, LogParameters(level="info"))
    else:
        with pytest.raises(IPCError, match="did not answer"):
            await extension.channel.request(Command.PING, Nothing(), Nothing, timeout=0.0)
    other.sendall(HELLO + response_frame(1, Nothing()))
    asking = asyncio.create_task(
        extension.channel.request(Command.PING, Nothing(), Nothing, timeout=PATIENCE)
    )
    await asyncio.sleep(0)
    other.sendall(response_frame(2, Nothing()))
    await asking  # the late answer has been read before
    other.sendall(response_frame(1, Nothing()))
    reason = await extension.reason()
    assert reason is not None
    assert "duplicate answer" in reason.message
    other.close()


async def test_the_second_answer_in_one_piece_with_the_first() -> None:
    one, other = socket.socketpair()
    extension = End(one, Role.WORKER)
    asking = asyncio.create_task(
        extension.channel.request(Command.PING, Nothing(), Nothing, timeout=PATIENCE)
    )
    await asyncio.sleep(0)
    other.sendall(HELLO + response_frame(1, Nothing()) * 2)
    reason = await extension.reason()
    assert reason is not None
    assert "duplicate answer" in reason.message
    assert await asking == Nothing()
    other.close()


async def test_an_event_handler_can_close_the_channel() -> None:
    def object_(event: Event) -> None:
        raise IPCError("not now", code="bad-message")

    one, other = socket.socketpair()
    extension = End(one, Role.WORKER, on_event=object_)
    other.sendall(HELLO + event_frame(EventName.RESTORED, Nothing()))
    error = await extension.reason()
    assert error is not None
    assert error.message == "not now"
    other.close()


async def test_a_user_without_permission_gets_an_error() -> None:
    one, other = socket.socketpair()
    asking, extension = End(one, Role.EXTENSION), End(other, Role.USER)
    with pytest.raises(UsbipdError, match="permission denied: bind") as caught:
        await asking.channel.request(Command.BIND, BindParameters(busid="1-1"), Nothing, timeout=PATIENCE)
    assert caught.value.code == "not-permitted"
    assert extension.channel.is_open
    asking.channel.close()
    extension.channel.close()


@pytest.mark.parametrize("kind", ["a request", "a request that is cancelled", "an order"])
async def test_a_copy_of_a_descriptor_stays_open_until_the_peer_has_answered(kind: str) -> None:
    one, other = socket.socketpair()
    asking = End(one, Role.WORKER)
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    if kind == "an order":
        asking.channel.tell(Command.LOG_FILE, Nothing(), write_end)
        request = None
    else:
        request = asyncio.create_task(
            asking.channel.request(
                Command.LOG_FILE, Nothing(), Nothing, timeout=PATIENCE, descriptor=write_end
            )
        )
        await asyncio.sleep(0)
        if kind == "a request that is cancelled":
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
    os.close(write_end)
    peer = BlockingChannel(other, "worker", BOTH, trusted=True)
    asked = peer.receive(PATIENCE)
    assert isinstance(asked, Request)
    assert asked.descriptor is not None
    os.close(asked.descriptor)
    with pytest.raises(BlockingIOError):  # a writing end is still open
        os.read(read_end, 1)
    peer.respond(asked, Nothing())
    assert await is_last(read_end)
    if kind == "a request":
        assert request is not None
        await request
    os.close(read_end)
    asking.channel.close()
    peer.close()


async def test_an_unexpected_descriptor_is_closed() -> None:
    one, other = socket.socketpair()
    extension = End(one, Role.USER)
    read_end, write_end = os.pipe()
    parameters = ReservationParameters(reservation=1)
    frame = request_frame(1, "x", Command.HANDOVER, parameters, descriptor=True)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", write_end))]
    other.sendall(HELLO)
    other.sendmsg([frame], ancillary)
    os.close(write_end)
    assert await is_last(read_end)
    os.close(read_end)
    assert extension.channel.is_open
    extension.channel.close()
    other.close()


async def test_an_unsent_descriptor_is_closed() -> None:
    one, other = socket.socketpair()
    extension = End(one, Role.SERVER)
    read_end, write_end = os.pipe()
    for _number in range(MAX_QUEUED // 2 // 60_000):  # more than fits into the socket
        extension.channel.push(EventName.CHANGED, DetachedParameters(reason="x" * 60_000))
    extension.channel.tell(Command.HANDOVER, ReservationParameters(reservation=1), write_end)
    os.close(write_end)
    extension.channel.close()
    assert await is_last(read_end)
    os.close(read_end)
    other.close()


async def test_a_slow_reader_is_dropped_and_blocks_no_other() -> None:
    one, other = socket.socketpair()
    extension = End(one, Role.USER)
    parameters = DetachedParameters(reason="x" * 60_000)
    for _number in range(2 * MAX_QUEUED // 60_000):
        extension.channel.push(EventName.DETACHED, parameters)
    error = await extension.reason()
    assert error is not None
    assert error.code == "slow"
    other.close()


async def test_a_queued_message_is_sent_later() -> None:
    received: list[Message] = []
    one, other = socket.socketpair()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    worker = End(one, Role.EXTENSION)
    expected = [DetachedParameters(reason=f"{number:02}" * 500) for number in range(99)]
    for parameters in expected:
        worker.channel.push(EventName.DETACHED, parameters)
    extension = End(other, Role.WORKER, on_event=lambda event: received.append(event.parameters))
    read_end, write_end = os.pipe()
    with pytest.raises(UsbipdError, match=r"may not|gone"):
        # after all that, a descriptor; a worker may not send one, so this ends the channel
        await worker.channel.request(
            Command.HANDOVER,
            ReservationParameters(reservation=1),
            Nothing,
            timeout=PATIENCE,
            descriptor=write_end,
        )
    assert await extension.reason() is not None
    assert received == expected
    os.close(write_end)
    assert await is_last(read_end)
    os.close(read_end)


async def test_requests_beyond_the_limit_wait() -> None:
    running = 0
    most = 0
    full, go = asyncio.Event(), asyncio.Event()

    async def answer(request: Request) -> Message:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == MAX_RUNNING:
            full.set()
        await go.wait()
        running -= 1
        return Nothing()

    one, other = socket.socketpair()
    asking, answering = End(one, Role.EXTENSION), End(other, Role.SERVER, answer)
    parameters = ReservationParameters(reservation=1)
    requests = [
        asyncio.create_task(asking.channel.request(Command.ABANDON, parameters, Nothing, timeout=PATIENCE))
        for _number in range(2 * MAX_RUNNING)
    ]
    await full.wait()
    go.set()
    await asyncio.gather(*requests)
    assert most == MAX_RUNNING
    asking.channel.close()
    answering.channel.close()


async def test_a_process_that_reads_slowly_is_throttled_but_not_dropped() -> None:
    """Nothing more is read from it until it reads its answers, and nothing is lost."""
    handled = 0

    async def answer(request: Request) -> Message:
        nonlocal handled
        handled += 1
        return DetachResult(client="x" * 60_000)

    one, other = socket.socketpair()
    extension = End(one, Role.SERVER, answer)
    requests = [
        request_frame(number, "x", Command.ABANDON, ReservationParameters(reservation=number))
        for number in range(1, 1001)
    ]
    sending = asyncio.create_task(asyncio.to_thread(other.sendall, HELLO + b"".join(requests)))
    while extension.channel._queued <= MAX_QUEUED:  # noqa: ASYNC110 - no event exists for this
        await asyncio.sleep(0.001)
    for _turn in range(1000):
        await asyncio.sleep(0)
    assert handled < 2 * MAX_QUEUED // 60_000
    assert extension.channel._queued < LONGEST_QUEUE
    assert extension.channel.is_open

    def read() -> list[int]:
        peer, answered = Conversation(BOTH), []
        while len(answered) < 1000:
            peer.decoder.feed(other.recv(1 << 20))
            while (item := peer.next_item()) is not None:
                assert isinstance(item, Response)
                answered.append(item.request_id)
        return answered

    assert await asyncio.to_thread(read) == list(range(1, 1001))
    await sending
    other.close()
    assert await extension.reason() is None


async def test_a_process_that_never_reads_our_requests_is_dropped() -> None:
    one, other = socket.socketpair()
    extension = End(one, Role.SERVER)
    parameters = DetachedParameters(reason="x" * 60_000)
    for number in range(2 * LONGEST_QUEUE // 60_000):
        extension.channel.push(EventName.DETACHED, parameters)
        if number * 60_000 < LONGEST_QUEUE - 60_000:
            await asyncio.sleep(0)
            assert extension.channel.is_open
    error = await extension.reason()
    assert error is not None
    assert error.code == "slow"
    other.close()


async def test_a_flood_from_one_peer_hardly_delays_another() -> None:
    served = asyncio.Event()

    async def answer(request: Request) -> Message:
        served.set()
        return ListResult(devices=[], bindings=[])

    pairs = [socket.socketpair() for _number in range(2)]
    flooder, other = (theirs for _ours, theirs in pairs)
    refused = request_frame(1, "x", Command.BIND, BindParameters(busid="1-1"))
    flooder.sendall(HELLO + refused * 500)
    other.sendall(HELLO + request_frame(1, "x", Command.LIST, Nothing()))
    channels = [End(ours, Role.USER, answer).channel for ours, _theirs in pairs]
    await served.wait()
    flooder.setblocking(False)
    answers, peer = 0, Conversation(BOTH)
    with contextlib.suppress(BlockingIOError):
        while True:
            peer.decoder.feed(flooder.recv(1 << 20))
    while peer.next_item() is not None:
        answers += 1
    assert 0 < answers < 200
    for channel, (_ours, theirs) in zip(channels, pairs, strict=True):
        channel.close()
        theirs.close()


@pytest.mark.parametrize("ends", [True, False], ids=["a list", "an unbind"])
async def test_requests_that_only_read_end_with_their_peer(ends: bool) -> None:
    begun, go = asyncio.Event(), asyncio.Event()
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def answer(request: Request) -> Message:
        begun.set()
        try:
            await go.wait()
        except asyncio.CancelledError:
            future.set_result("cancelled")
            raise
        future.set_result("done")
        return Nothing()

    one, other = socket.socketpair()
    extension = End(one, Role.ROOT, answer)
    frame = (
        request_frame(1, "x", Command.LIST, Nothing())
        if ends
        else request_frame(1, "x", Command.UNBIND, UnbindParameters())
    )
    other.sendall(HELLO + frame)
    await begun.wait()
    other.close()
    await extension.reason()
    for _turn in range(5):
        await asyncio.sleep(0)
    go.set()
    async with asyncio.timeout(PATIENCE):
        assert await future == ("cancelled" if ends else "done")


async def test_a_departed_peer_is_noticed_while_nothing_is_read() -> None:
    go = asyncio.Event()

    async def answer(request: Request) -> Message:
        await go.wait()
        return Nothing()

    one, other = socket.socketpair()
    closed: asyncio.Future[IPCError | None] = asyncio.get_running_loop().create_future()
    channel = Channel(
        one,
        name="x",
        role=Role.ROOT,
        table=BOTH,
        on_request=answer,
        on_close=closed.set_result,
        max_running=2,
    )
    other.sendall(HELLO + request_frame(1, "x", Command.LIST, Nothing()) * 3)
    while len(channel._running) < 2:  # noqa: ASYNC110 - no event exists for this
        await asyncio.sleep(0)
    channel.close_if_left()
    assert channel.is_open
    other.close()
    for _turn in range(20):
        await asyncio.sleep(0)
    assert channel.is_open, "two are in progress: end of file is not read"
    channel.close_if_left()
    assert await closed is None


async def test_a_bind_completes_although_its_client_has_left() -> None:
    begun, go, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def answer(request: Request) -> Message:
        begun.set()
        await go.wait()
        ended.set()
        return Nothing()

    one, other = socket.socketpair()
    extension = End(one, Role.ROOT, answer)
    other.sendall(HELLO + request_frame(1, "x", Command.BIND, BindParameters(busid="1-1")))
    await begun.wait()
    other.close()
    await extension.reason()
    go.set()
    async with asyncio.timeout(PATIENCE):
        await ended.wait()
