"""The pump without memory: each allocation in turn fails, alone, with the next, with all after it.
test_libusb.py runs it, in a process whose allocator is failing_memory.c.

Invariant: each SUBMIT and each UNLINK is answered once, the stream stays in step, the session lives, and when
memory is available again, everything works.
"""

import ctypes
import time
from collections.abc import Callable, Iterator
from socket import SO_SNDBUF, SOL_SOCKET

import pytest

from tests.unit.worker.libusb_rig import (
    BULK_IN,
    BULK_OUT,
    CANCELLED,
    INTERRUPT_IN,
    ISO_IN,
    ISO_OUT,
    VENDOR_IN,
    LibusbRig,
    fake,
)
from tests.unit.worker.rig import Rig
from tests.urb import Command, Reply, RetSubmit, Unlink, encode
from usbipd._pump import CHANNEL
from usbipd.protocol.constants import LINUX_ECONNRESET, LINUX_ENOMEM, MAX_TRANSFER_LENGTH

memory = ctypes.CDLL(None)
memory.memory_fails.argtypes = (ctypes.c_long, ctypes.c_long)
memory.memory_calls.restype = ctypes.c_long

FOR_GOOD = 1 << 40
ALL = (1, FOR_GOOD)
NONE = (1, 0)
LARGE = 64 << 10
RIGS: dict[str, Callable[[], Rig]] = {
    "simulated": Rig,
    "simulated as on macOS": lambda: Rig(as_on_macos=True),
    "libusb": LibusbRig,
    "libusb without device memory": lambda: LibusbRig(device_memory="off"),
}


@pytest.fixture(autouse=True)
def begin() -> Iterator[None]:
    fake.fake_begin()
    memory.memory_fails(*NONE)
    yield
    memory.memory_fails(*NONE)
    assert (fake.fake_pending(), fake.fake_allocated(), fake.fake_device_memory()) == (0, 0, 0)


@pytest.fixture(params=RIGS)
def make(request: pytest.FixtureRequest) -> Callable[[], Rig]:
    def made() -> Rig:
        rig = RIGS[request.param]()
        assert rig.control("01 0b 0100 0100 0000").status == 0
        return rig

    return made


def acted(rig: Rig) -> None:
    """The device completes all that it can, and the pump has its turn."""
    if isinstance(rig, LibusbRig):
        for endpoint in (0, BULK_OUT, BULK_IN, INTERRUPT_IN, ISO_OUT, ISO_IN):
            while fake.fake_complete(endpoint, 0, bytes(LARGE), 0):
                pass
    else:
        rig.device.control_data = b"answer"
        rig.device.to_read = {endpoint: [b"here"] * 8 for endpoint in (BULK_IN, INTERRUPT_IN)}
    assert rig.turn() == CHANNEL, rig.pump.problem


def exchanged(rig: Rig, *commands: Command) -> list[Reply]:
    """Sends commands; returns the replies, and fails if one is missing after ten seconds."""
    return answers_to(rig, *commands, rest=b"".join(encode(command) for command in commands))


def answers_to(rig: Rig, *commands: Command, rest: bytes = b"") -> list[Reply]:
    """The answers to commands that are sent, or have been but for `rest`."""
    replies: list[Reply] = []
    end = time.monotonic() + 10
    missing = {command.seqnum for command in commands}
    unlinked = {command.seqnum: command.unlink_seqnum for command in commands if isinstance(command, Unlink)}
    while missing:
        assert time.monotonic() < end, f"{missing} are unanswered"
        rest = rest[taken(rig, rest) :]
        acted(rig)
        got = rig.received()
        replies += got
        missing -= {reply.seqnum for reply in got}
        missing -= {unlinked[reply.seqnum] for reply in got if reply.status == -LINUX_ECONNRESET}
    return replies


def taken(rig: Rig, data: bytes) -> int:
    """Number of bytes of `data` that the client's socket takes now."""
    try:
        return rig.client.send(data) if data else 0
    except BlockingIOError:
        return 0


def summaries(replies: list[Reply]) -> list[tuple[int, int]]:
    return [(reply.seqnum, reply.status) for reply in replies]


def messages(rig: Rig) -> list[Command]:
    """One allocation of each kind: the URB, its data, its descriptors, in each direction."""
    few, many = ([(10 * number, 10) for number in range(count)] for count in (3, 200))
    commands: list[Command] = [
        rig.submit(0x80, 0x40, setup=VENDOR_IN),
        rig.submit(BULK_IN, 64),
        rig.submit(BULK_OUT, data=b"out" * 20),
        rig.submit(BULK_OUT, data=b"large out" * 1000),
        rig.submit(BULK_OUT, data=bytes(LARGE)),
        rig.submit(BULK_IN, 1000),
        rig.submit(BULK_IN, LARGE),
        rig.submit(ISO_OUT, data=bytes(range(30)), packets=few),
        rig.submit(ISO_OUT, data=bytes(2000), packets=many),
        rig.submit(ISO_IN, 2000, packets=many),
    ]
    unlinked = rig.submit(INTERRUPT_IN, 64)
    return [*commands, unlinked, rig.unlink(unlinked), rig.submit(BULK_IN, 64)]


def test_a_failed_allocation_does_not_affect_the_rest_of_the_session(make: Callable[[], Rig]) -> None:
    for many in (1, 2, FOR_GOOD):  # one is retried after cached memory is freed
        number = failed = 0
        calls = 1
        while number < calls or number == 0:
            number += 1
            rig = make()
            memory.memory_fails(number, many)
            replies = exchanged(rig, *messages(rig))
            calls = memory.memory_calls()
            memory.memory_fails(*NONE)
            submits = [reply for reply in replies if isinstance(reply, RetSubmit)]
            assert {reply.status for reply in submits} <= {0, -LINUX_ENOMEM}
            failed += any(reply.status for reply in submits)
            assert {reply.status for reply in exchanged(rig, *messages(rig))} <= {0, -LINUX_ECONNRESET}
            assert rig.counters.in_flight == 0
            assert rig.finish()
            rig.close()
        assert number > 5
        assert failed > 0 or many == 1


def test_an_urb_without_memory_is_answered_at_once_and_its_data_is_dropped(make: Callable[[], Rig]) -> None:
    rig = make()
    memory.memory_fails(*ALL)
    packets = [(number, 1) for number in range(1024)]
    submits = [
        rig.submit(BULK_OUT, data=b"x" * 500_000),
        rig.submit(ISO_OUT, data=b"y" * 200_000, packets=packets),  # in several reads
        rig.submit(BULK_IN, 8 << 20),
        rig.submit(BULK_OUT, data=b"z" * 321),
    ]
    rig.send(b"".join(encode(submit) for submit in submits))
    replies = rig.received()
    assert summaries(replies) == [(submit.seqnum, -LINUX_ENOMEM) for submit in submits]
    assert [reply.actual_length for reply in replies if isinstance(reply, RetSubmit)] == [0] * 4
    memory.memory_fails(*NONE)
    assert summaries(exchanged(rig, submit := rig.submit(BULK_OUT, data=b"after"))) == [(submit.seqnum, 0)]
    rig.finish()
    rig.close()


def test_failed_allocations_do_not_count(make: Callable[[], Rig]) -> None:
    """The budget has room for two of the largest, however many allocations failed."""
    rig = make()
    memory.memory_fails(*ALL)
    lost = [rig.submit(BULK_IN, MAX_TRANSFER_LENGTH) for _ in range(50)]
    assert summaries(exchanged(rig, *lost)) == [(submit.seqnum, -LINUX_ENOMEM) for submit in lost]
    memory.memory_fails(*NONE)
    both = [rig.submit(BULK_IN, MAX_TRANSFER_LENGTH) for _ in range(2)]
    if not isinstance(rig, LibusbRig):
        rig.device.to_read = {}
    assert rig.exchange(*both) == []
    assert rig.counters.in_flight == 2
    control = rig.submit(0x80, 0x40, setup=VENDOR_IN)  # behind it the simulated device looks again
    replies = answers_to(rig, *both, control, rest=encode(control))
    assert {reply.status for reply in replies} == {0}
    rig.finish()
    rig.close()


def test_cached_memory_is_freed_before_an_urb_fails() -> None:
    rig = Rig()
    exchanged(rig, *(rig.submit(BULK_IN, 1 << 20) for _ in range(3)))
    memory.memory_fails_until_freed()
    assert summaries(exchanged(rig, larger := rig.submit(BULK_IN, 4 << 20))) == [(larger.seqnum, 0)]
    rig.finish()
    rig.close()


def test_answers_without_memory_wait_for_a_client_that_does_not_read(make: Callable[[], Rig]) -> None:
    rig = make()
    for each in (rig.client, rig._pumps_client):
        each.setsockopt(SOL_SOCKET, SO_SNDBUF, 4096)
    memory.memory_fails(*ALL)
    submits = [rig.submit(BULK_IN, 1000) for _ in range(3000)]
    rest = b"".join(encode(submit) for submit in submits)
    while sent := taken(rig, rest):
        rest = rest[sent:]
        rig.turn()
    assert rest, "the pump holds more answers than it has memory for"
    assert summaries(answers_to(rig, *submits, rest=rest)) == [
        (submit.seqnum, -LINUX_ENOMEM) for submit in submits
    ]
    rig.finish()
    rig.close()


def test_unlinks_without_memory_wait_for_the_device() -> None:
    rig = LibusbRig()
    submit = rig.submit(BULK_IN, 64)
    rig.waiting(submit)
    memory.memory_fails(*ALL)
    fake.fake_hold_cancels(1)
    unlinks = [rig.unlink(submit) for _ in range(3)]
    later = rig.submit(BULK_IN, 1000)
    rig.waiting(*unlinks, later)
    fake.fake_hold_cancels(0)
    assert summaries(rig.ended(BULK_IN, CANCELLED)) == [
        (unlinks[0].seqnum, -LINUX_ECONNRESET),
        (unlinks[1].seqnum, 0),
        (unlinks[2].seqnum, 0),
        (later.seqnum, -LINUX_ENOMEM),
    ]
    rig.finish()
    rig.close()


def test_an_unlink_that_overtakes_a_submit_without_memory() -> None:
    rig = LibusbRig()
    rig.waiting(first := rig.submit(BULK_IN, 64))
    memory.memory_fails(*ALL)
    overtaken = rig.submit(BULK_IN, 2000)
    unlink = rig.unlink(overtaken)
    rig.waiting(unlink)
    assert summaries(rig.exchange(overtaken)) == [(unlink.seqnum, -LINUX_ECONNRESET)]
    later = rig.submit(BULK_IN, 2000)
    assert summaries(rig.exchange(later)) == [(later.seqnum, -LINUX_ENOMEM)]
    assert summaries(rig.ended(BULK_IN)) == [(first.seqnum, 0)]
    rig.finish()
    rig.close()


def test_a_client_that_leaves_within_a_message_that_has_no_memory() -> None:
    rig = LibusbRig()
    assert rig.control("01 0b 0100 0100 0000").status == 0
    memory.memory_fails(*ALL)
    packets = [(number, 1) for number in range(64)]
    whole = encode(rig.submit(ISO_OUT, data=bytes(64), packets=packets))
    rig.send(whole[:-20])
    assert rig.finish()
    rig.attach()
    again = rig.submit(BULK_IN, 1000)
    assert summaries(rig.exchange(again)) == [(again.seqnum, -LINUX_ENOMEM)]
    rig.finish()
    rig.close()


def test_a_pump_that_cannot_be_created() -> None:
    number = 0
    while True:
        number += 1
        memory.memory_fails(number, FOR_GOOD)
        try:
            rig = Rig()
        except MemoryError:
            continue
        finally:
            memory.memory_fails(*NONE)
        rig.close()
        break
    assert number > 5


def test_descriptors_are_requested_again_if_libusb_lacked_memory() -> None:
    fake.fake_hide_descriptors(3)
    rig = LibusbRig()
    submit = rig.submit(BULK_IN, 64)
    rig.waiting(submit)
    assert summaries(rig.ended(BULK_IN)) == [(submit.seqnum, 0)]
    rig.close()


def test_the_failing_allocator_is_loaded() -> None:
    memory.memory_fails(*NONE)
    rig = Rig()
    assert memory.memory_calls() > 0
    rig.close()
