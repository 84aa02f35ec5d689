"""The order in which replies leave, to a client that reads late: cython/sender.pxi."""

import itertools
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.worker.rig import (
    GET_DEVICE_DESCRIPTOR,
    INTERRUPT_IN,
    ISO_IN,
    LOOP_IN,
    LOOP_OUT,
    MODEL_IN,
    SINK,
    SOURCE,
    Rig,
    statuses,
)
from tests.urb import Command, Reply, RetSubmit, Submit, encode
from usbipd.protocol.constants import LINUX_ECONNRESET, LINUX_EPIPE, LINUX_ESHUTDOWN

KIB = 1024
OFFERED = 512 * KIB
"""Bytes of replies that have a place in the outbox (cython/pump.pxd)."""
PROMPT = 32 * KIB
OVERTAKING = 256 * KIB
TURN = 64 * KIB
SET_INTERFACE = bytes.fromhex("01 0b 0100 0100 0000")


@pytest.fixture
def rig(rig: Rig) -> Iterator[Rig]:
    """Its socket takes less than a reply of 64 KiB, and interface 1 has its isochronous endpoints."""
    assert rig.control(SET_INTERFACE.hex()).status == 0
    rig.narrow()
    yield rig
    assert rig.finish()


def submit_all(rig: Rig, *commands: Command) -> None:
    """Without reading a reply."""
    rig.send(b"".join(encode(command) for command in commands))


def flood(rig: Rig, count: int, size: int = 64 * KIB) -> list[Submit]:
    return [rig.submit(SOURCE, size) for _ in range(count)]


def order(replies: list[Reply]) -> list[int]:
    return [reply.seqnum for reply in replies]


# ---- urgent replies ------------------------------------------------------------------------------

URGENT: dict[str, Callable[[Rig], Submit]] = {
    "control": lambda rig: rig.submit(0x80, 18, setup=bytes.fromhex(GET_DEVICE_DESCRIPTOR)),
    "interrupt": lambda rig: rig.submit(INTERRUPT_IN, 8),
    "isochronous": lambda rig: rig.submit(ISO_IN, 192, packets=[(0, 192)]),
    "bulk OUT": lambda rig: rig.submit(SINK, data=b"data"),
}


@pytest.mark.parametrize("kind", URGENT)
def test_urgent_replies_leave_next_after_the_one_in_progress(rig: Rig, kind: str) -> None:
    bulk = flood(rig, 20)
    submit_all(rig, *bulk)
    rig.device.to_read[INTERRUPT_IN] = [b"one", b"two"]
    urgent = [URGENT[kind](rig), URGENT[kind](rig)]
    submit_all(rig, *urgent)
    replies = rig.rest()
    assert order(replies) == [each.seqnum for each in (bulk[0], *urgent, *bulk[1:])]
    data = bytes(number % 512 % 63 for number in range(64 * KIB))
    assert [isinstance(reply, RetSubmit) and reply.data == data for reply in replies] == [
        each in bulk for each in (bulk[0], *urgent, *bulk[1:])
    ]


def test_urgent_replies_keep_their_order_among_each_other(rig: Rig) -> None:
    bulk = flood(rig, 3)
    submit_all(rig, *bulk)
    rig.device.to_read[INTERRUPT_IN] = [b"key"] * 4
    urgent = [URGENT[kind](rig) for kind in ("interrupt", "control", "bulk OUT", "interrupt") * 2]
    for each in urgent:
        submit_all(rig, each)
    assert order(rig.rest()) == [each.seqnum for each in (bulk[0], *urgent, *bulk[1:])]


def test_urgent_replies_that_never_end_leave_some_room_for_bulk_data(rig: Rig) -> None:
    bulk = flood(rig, 3)
    submit_all(rig, *bulk)
    rig.device.to_read[INTERRUPT_IN] = [bytes(16 * KIB)] * 40
    submit_all(rig, *(rig.submit(INTERRUPT_IN, 16 * KIB) for _ in range(40)))
    overtaken = order(rig.rest()).index(bulk[1].seqnum) - 1
    assert 0 < overtaken * 16 * KIB <= OVERTAKING


# ---- one endpoint --------------------------------------------------------------------------------


@pytest.mark.rule("unlink-answered")
@pytest.mark.parametrize("which", [0, 1, 7, 12, 19])
def test_ret_unlink_leaves_behind_its_ret_submit(rig: Rig, which: int) -> None:
    """That is begun, has a place in the outbox, or waits for one."""
    bulk = flood(rig, 20)
    submit_all(rig, *bulk)
    unlinks = [rig.unlink(bulk[which]) for _ in range(2)]
    submit_all(rig, *unlinks)
    expected = [each.seqnum for each in bulk]
    expected[which + 1 : which + 1] = [unlink.seqnum for unlink in unlinks]
    assert order(rig.rest()) == expected


@pytest.mark.rule("unlink-answered")
def test_ret_unlink_of_an_urgent_reply_leaves_behind_it(rig: Rig) -> None:
    bulk = flood(rig, 3)
    submit_all(rig, *bulk)
    control = URGENT["control"](rig)
    submit_all(rig, control)
    unlink = rig.unlink(control)
    submit_all(rig, unlink)
    assert order(rig.rest()) == [each.seqnum for each in (bulk[0], control, unlink, *bulk[1:])]


def test_a_cancelled_urb_keeps_its_place_among_those_of_its_endpoint(rig: Rig) -> None:
    rig.device.to_read[MODEL_IN] = [bytes(64 * KIB)] * 3
    done, waiting = [rig.submit(MODEL_IN, 64 * KIB) for _ in range(3)], rig.submit(MODEL_IN, 64)
    submit_all(rig, *done, waiting)
    unlinks = [rig.unlink(waiting), rig.unlink(waiting)]
    submit_all(rig, *unlinks)
    assert statuses(rig.rest()) == [
        *((each.seqnum, 0) for each in done),
        (unlinks[0].seqnum, -LINUX_ECONNRESET),
        (unlinks[1].seqnum, 0),
    ]


@pytest.mark.rule("set-interface")
def test_what_an_endpoint_is_changes_behind_its_replies(rig: Rig) -> None:
    bulk, waiting = flood(rig, 20), rig.submit(LOOP_IN, 64)
    submit_all(rig, *bulk, waiting)
    configure = rig.submit(0, setup=bytes.fromhex("00 09 0100 0000 0000"))
    submit_all(rig, configure)
    control = URGENT["control"](rig)
    submit_all(rig, control)
    replies = statuses(rig.rest())
    assert sorted(replies[:-2]) == [
        *((each.seqnum, 0) for each in bulk),
        (waiting.seqnum, -LINUX_ESHUTDOWN),
    ]
    assert replies[-2:] == [(configure.seqnum, 0), (control.seqnum, 0)]


@pytest.mark.rule("clear-halt")
def test_a_halt_is_cleared_behind_the_stalls_of_its_endpoint(rig: Rig) -> None:
    bulk = flood(rig, 5)
    submit_all(rig, *bulk)
    halt, clear = (
        rig.submit(0, setup=bytes.fromhex(f"02 {request} 0000 8300 0000")) for request in ("03", "01")
    )
    stalled = rig.submit(SOURCE, 64)
    submit_all(rig, halt, stalled, clear)
    assert statuses(rig.rest())[-2:] == [(stalled.seqnum, -LINUX_EPIPE), (clear.seqnum, 0)]


# ---- bulk endpoints take turns -------------------------------------------------------------------


def test_two_bulk_endpoints_alternate(rig: Rig) -> None:
    """One has many replies of a whole turn, then the other comes."""
    many = flood(rig, 30)
    submit_all(rig, *many)
    rig.device.to_read[MODEL_IN] = [bytes(64 * KIB)] * 4
    few = [rig.submit(MODEL_IN, 64 * KIB) for _ in range(4)]
    submit_all(rig, *few)
    mine = {each.seqnum for each in few}
    places = [place for place, seqnum in enumerate(order(rig.rest())) if seqnum in mine]
    assert places[0] <= OFFERED // TURN + 1
    assert [later - place for place, later in itertools.pairwise(places)] == [2, 2, 2]


def test_small_replies_share_a_turn(rig: Rig) -> None:
    many = flood(rig, 12, 1024 * KIB)
    submit_all(rig, *many)
    rig.device.to_read[MODEL_IN] = [bytes(4 * KIB)] * 24
    few = [rig.submit(MODEL_IN, 4 * KIB) for _ in range(24)]
    submit_all(rig, *few)
    mine = {each.seqnum for each in few}
    turns = [len(list(group)) for is_mine, group in itertools.groupby(order(rig.rest()), mine.__contains__)]
    assert turns == [1, 16, 1, 8, 10]  # of many, few, many, few, and the rest


# ---- what the kernel holds -----------------------------------------------------------------------


def test_the_socket_is_offered_little_once_a_client_has_interrupt_urbs(rig: Rig) -> None:
    rig.finish()
    rig.attach()
    submit_all(rig, rig.submit(INTERRUPT_IN, 8), *flood(rig, 3, 16 * KIB))
    assert len(rig.read()) == PROMPT
    rig.turn()
    assert len(rig.read()) == 3 * (48 + 16 * KIB) - PROMPT
    submit_all(rig, *flood(rig, 1, 16 * KIB))
    assert len(rig.read()) == 48 + 16 * KIB


def test_the_kernel_takes_little_of_many_small_replies_too(rig: Rig) -> None:
    """Like TCP on macOS, this socket takes more than poll lets it hold: on Linux four times as much."""
    rig.finish()
    rig.attach()
    rig.device.to_read[INTERRUPT_IN] = [b"key"]
    urbs = [rig.submit(INTERRUPT_IN, 8), *flood(rig, 9, 16 * KIB)]
    for each in urbs:
        submit_all(rig, each)
    replies = rig.received()
    assert 0 < len(replies) < len(urbs)
    rig.turn()
    assert order(replies + rig.rest()) == [each.seqnum for each in urbs]


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="Python does not name the option here")
@pytest.mark.parametrize("kind", ["interrupt", "isochronous"])
def test_the_kernel_holds_little_from_the_first_interrupt_or_isochronous_urb_on(rig: Rig, kind: str) -> None:
    rig.finish()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        rig.attach((listener.accept()[0], client))

    def holds() -> int:
        return rig.pumps_client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)

    before = holds()
    rig.replies.expect(control := rig.submit(0, setup=SET_INTERFACE))
    submit_all(rig, control, *flood(rig, 2))
    assert holds() == before
    submit_all(rig, URGENT[kind](rig))
    assert holds() == PROMPT


# ---- anything ------------------------------------------------------------------------------------


@given(st.data(), st.booleans())
def test_each_urb_ends_once_and_in_order(data: st.DataObject, as_on_macos: bool) -> None:
    """`ReplyReader` raises for a reply too many, and for a RET_UNLINK that does not fit those before it."""
    rig = Rig(as_on_macos=as_on_macos)
    rig.narrow()
    sizes = st.sampled_from([1, 500, 5000, 40 * KIB, 200 * KIB])
    submits: list[Submit] = []
    commands: dict[int, Command] = {}
    replies: list[Reply] = []

    def urb() -> Submit:
        match data.draw(st.sampled_from(["source", "model", "interrupt", "sink", "loop", "control"])):
            case "source":
                return rig.submit(SOURCE, data.draw(sizes))
            case "model":
                rig.device.to_read.setdefault(MODEL_IN, []).append(bytes(data.draw(sizes)))
                return rig.submit(MODEL_IN, 200 * KIB)
            case "interrupt":
                rig.device.to_read.setdefault(INTERRUPT_IN, []).append(bytes(8))
                return rig.submit(INTERRUPT_IN, 8)
            case "sink":
                return rig.submit(SINK, data=bytes(data.draw(sizes)))
            case "loop":
                return rig.submit(LOOP_IN, 64)
        return rig.submit(0x80, 18, setup=bytes.fromhex(GET_DEVICE_DESCRIPTOR))

    for _ in range(data.draw(st.integers(1, 40))):
        command: Command
        match data.draw(st.sampled_from(["urb", "urb", "urb", "unlink", "echo", "read"])):
            case "unlink" if submits:
                command = rig.unlink(data.draw(st.sampled_from(submits)))
            case "echo":
                submits.append(command := rig.submit(LOOP_OUT, data=b"x"))
            case "read":
                replies += rig.replies.feed(rig.read(data.draw(st.integers(1, 100 * KIB))))
                rig.turn()
                continue
            case _:
                submits.append(command := urb())
        commands[command.seqnum] = command
        submit_all(rig, command)
    last = [rig.unlink(submit) for submit in submits]
    for each in last:
        commands[each.seqnum] = each
        submit_all(rig, each)
    replies += rig.rest()
    seqnums = order(replies)
    assert len(set(seqnums)) == len(seqnums)
    cancelled = {
        commands[reply.seqnum].unlink_seqnum  # type: ignore[union-attr]
        for reply in replies
        if reply.status == -LINUX_ECONNRESET and not isinstance(reply, RetSubmit)
    }
    assert set(seqnums) | cancelled == set(commands)
    by_endpoint: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for reply in replies:
        command = commands[reply.seqnum]
        if isinstance(command, Submit) and reply.status == 0:
            by_endpoint[command.direction, command.ep].append(reply.seqnum)
    assert all(ended == sorted(ended) for ended in by_endpoint.values())
    assert rig.finish()
    rig.close()
