"""The claim and the libusb transfers on fake_libusb.c.  test_libusb.py runs it, in a separate process."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.worker.libusb_rig import (
    BULK_IN,
    BULK_OUT,
    CANCELLED,
    COMPLETED,
    INTERRUPT_IN,
    ISO_IN,
    ISO_OUT,
    STALL,
    VENDOR_IN,
    LibusbRig,
    fake,
    journal,
    submitted,
)
from tests.urb import Reply, RetSubmit
from usbipd import _pump
from usbipd._claim import Claim, libusb_runtime_version
from usbipd.errors import ClaimError
from usbipd.ipc.children import ClaimParameters
from usbipd.protocol.constants import (
    LINUX_ECONNRESET,
    LINUX_ENODEV,
    LINUX_ENOMEM,
    LINUX_EPIPE,
    LINUX_ESHUTDOWN,
    LINUX_EXDEV,
    URB_ZERO_PACKET,
)
from usbipd.simulated.descriptors import configuration_descriptor, device_descriptor, interface_descriptor
from usbipd.usb.descriptors import MAX_CONFIGURATIONS
from usbipd.worker import held_device
from usbipd.worker.held_device import HeldUsbDevice

ERROR_IO, ERROR_NOT_FOUND, ERROR_BUSY, ERROR_NO_MEM, ERROR_OTHER = -1, -5, -6, -11, -99  # enum libusb_error


@pytest.fixture(autouse=True)
def begin() -> Iterator[None]:
    fake.fake_begin()
    yield
    assert fake.fake_pending() == 0


@pytest.fixture
def rig() -> Iterator[LibusbRig]:
    rig = LibusbRig()
    journal()
    yield rig
    rig.close()


def summary(reply: Reply) -> tuple[int, int]:
    return reply.seqnum, reply.status


def test_this_is_the_fake() -> None:
    assert libusb_runtime_version() == (1, 0, 27)


# ---- transfers -----------------------------------------------------------------------------------


def test_in_carries_what_came(rig: LibusbRig) -> None:
    submit = rig.submit(BULK_IN, 1000)
    rig.waiting(submit)
    assert submitted(BULK_IN)[:3] == (2, 0, 1000)
    [reply] = rig.ended(BULK_IN, data=b"short")
    assert (reply.seqnum, reply.status, reply.data) == (submit.seqnum, 0, b"short")


def test_a_round_takes_all_that_is_complete(rig: LibusbRig) -> None:
    submits = [rig.submit(BULK_IN, 4) for _ in range(60)]
    rig.waiting(*submits)
    for _ in submits:
        assert fake.fake_complete(BULK_IN, COMPLETED, b"here", 4)
    rig.turn()
    assert [summary(reply) for reply in rig.received()] == [(submit.seqnum, 0) for submit in submits]


@pytest.mark.rule("zero-packet")
def test_out_carries_the_data_and_the_zero_packet(rig: LibusbRig) -> None:
    rig.waiting(rig.submit(BULK_OUT, data=b"hello", flags=URB_ZERO_PACKET))
    assert submitted(BULK_OUT) == (2, 8, 5, b"hello")  # LIBUSB_TRANSFER_ADD_ZERO_PACKET
    [reply] = rig.ended(BULK_OUT, data=b"hello")
    assert (reply.status, reply.actual_length, reply.data) == (0, 5, b"")


def test_control_goes_to_endpoint_0_with_its_setup(rig: LibusbRig) -> None:
    rig.waiting(rig.submit(0x80, 0x40, setup=VENDOR_IN))
    assert submitted(0)[:3] == (0, 0, 0x48)
    assert submitted(0)[3][:8] == VENDOR_IN
    [reply] = rig.ended(0, data=b"answer")
    assert reply.data == b"answer"


def test_no_reply_carries_the_bytes_of_another(rig: LibusbRig) -> None:
    rig.exchange(rig.submit(BULK_OUT, data=b"secret" * 1000))
    rig.ended(BULK_OUT, data=b"secret" * 1000)
    rig.waiting(rig.submit(BULK_IN, 6000))
    [reply] = rig.ended(BULK_IN, STALL)
    assert (reply.status, reply.actual_length, reply.data) == (-LINUX_EPIPE, 0, b"")


@pytest.mark.rule("iso-sum")
@pytest.mark.rule("iso-compacted")
def test_isochronous_both_ways(rig: LibusbRig) -> None:
    assert rig.control("01 0b 0100 0100 0000").status == 0
    packets = [(0, 100), (100, 100), (200, 100)]
    rig.waiting(
        rig.submit(ISO_IN, 300, packets=packets), rig.submit(ISO_OUT, data=bytes(300), packets=packets)
    )
    [reply] = rig.ended(ISO_IN, data=b"x" * 150)
    assert reply.data == b"x" * 150
    assert [(p.actual_length, p.status) for p in reply.iso] == [(100, 0), (50, 0), (0, -LINUX_EXDEV)]
    assert (reply.actual_length, reply.error_count) == (150, 1)
    [reply] = rig.ended(ISO_OUT, data=bytes(300))
    assert (reply.actual_length, reply.data) == (300, b"")


def test_a_packet_is_not_longer_than_it_was_asked_for(rig: LibusbRig) -> None:
    """Whatever the host's stack says: behind it lies what the client may not see."""
    assert rig.control("01 0b 0100 0100 0000").status == 0
    rig.waiting(rig.submit(ISO_IN, 200, packets=[(0, 100), (100, 100)]))
    fake.fake_overstate(50)
    [reply] = rig.ended(ISO_IN, data=b"x" * 150)
    assert [packet.actual_length for packet in reply.iso] == [100, 100]
    assert (reply.actual_length, len(reply.data)) == (200, 200)


def test_a_transfer_with_more_packets_than_its_urb_had_before(rig: LibusbRig) -> None:
    rig.control("01 0b 0100 0100 0000")
    for count in (1, 200, 3):
        rig.waiting(rig.submit(ISO_IN, count, packets=[(i, 1) for i in range(count)]))
        [reply] = rig.ended(ISO_IN, data=b"y" * count)
        assert reply.data == b"y" * count


def test_a_refused_submit_is_answered(rig: LibusbRig) -> None:
    fake.fake_fail(b"submit", ERROR_NO_MEM)
    submit = rig.submit(BULK_IN, 64)
    assert [summary(reply) for reply in rig.exchange(submit)] == [(submit.seqnum, -LINUX_ENOMEM)]
    assert rig.counters.in_flight == 0


# ---- UNLINK --------------------------------------------------------------------------------------


@pytest.mark.rule("unlink-pending")
def test_unlink_of_a_pending_urb(rig: LibusbRig) -> None:
    submit, other = rig.submit(BULK_IN, 64), rig.submit(BULK_IN, 64)
    rig.waiting(submit, other)
    unlink = rig.unlink(submit)
    assert [summary(reply) for reply in rig.exchange(unlink)] == [(unlink.seqnum, -LINUX_ECONNRESET)]
    assert rig.ended(BULK_IN, data=b"z")[0].seqnum == other.seqnum


@pytest.mark.rule("unlink-answered")
@pytest.mark.parametrize("cancelled", [False, True])
def test_every_unlink_is_answered_behind_the_urb(rig: LibusbRig, cancelled: bool) -> None:
    submit = rig.submit(BULK_IN, 64)
    unlinks = [rig.unlink(submit) for _ in range(3)]
    fake.fake_hold_cancels(1)  # the device takes its time
    assert rig.exchange(submit, *unlinks) == []
    fake.fake_hold_cancels(0)
    replies = rig.ended(BULK_IN, CANCELLED) if cancelled else rig.ended(BULK_IN, data=b"data")
    first = [(unlinks[0].seqnum, -LINUX_ECONNRESET)]
    if not cancelled:
        first = [(submit.seqnum, 0), (unlinks[0].seqnum, 0)]
    assert [summary(reply) for reply in replies[: len(first)]] == first
    assert {summary(reply) for reply in replies[len(first) :]} == {(each.seqnum, 0) for each in unlinks[1:]}


@pytest.mark.rule("unlink-partial")
@pytest.mark.parametrize(("endpoint", "data"), [(BULK_IN, b"half"), (BULK_OUT, b"")])
def test_unlink_keeps_what_had_moved(rig: LibusbRig, endpoint: int, data: bytes) -> None:
    """The device had given or taken four bytes when it was stopped."""
    submit = rig.submit(endpoint, 64) if endpoint == BULK_IN else rig.submit(endpoint, data=bytes(64))
    unlink = rig.unlink(submit)
    fake.fake_hold_cancels(1)
    assert rig.exchange(submit, unlink) == []
    answer, late = rig.ended(endpoint, CANCELLED, b"half")
    assert isinstance(answer, RetSubmit)
    assert (summary(answer), answer.actual_length) == ((submit.seqnum, -LINUX_ECONNRESET), 4)
    assert (answer.data, summary(late)) == (data, (unlink.seqnum, 0))
    assert rig.counters.errors == 0


@pytest.mark.rule("unlink-partial")
def test_an_interrupt_overtakes_bulk_data_and_a_ret_unlink_does_not(rig: LibusbRig) -> None:
    """The client reads late; its last bulk URB has moved a part."""
    rig.narrow()
    bulk, key = [rig.submit(BULK_IN, LARGE) for _ in range(3)], rig.submit(INTERRUPT_IN, 8)
    unlink = rig.unlink(bulk[2])
    fake.fake_hold_cancels(1)
    rig.waiting(*bulk, key, unlink)
    fake.fake_hold_cancels(0)
    for endpoint, status, data in (
        (BULK_IN, COMPLETED, bytes(LARGE)),
        (BULK_IN, COMPLETED, bytes(LARGE)),
        (BULK_IN, CANCELLED, bytes(1000)),
        (INTERRUPT_IN, COMPLETED, b"key"),
    ):
        assert fake.fake_complete(endpoint, status, data, len(data))
        rig.turn()
    replies = rig.rest()
    assert [summary(reply) for reply in replies] == [
        (bulk[0].seqnum, 0),
        (key.seqnum, 0),
        (bulk[1].seqnum, 0),
        (bulk[2].seqnum, -LINUX_ECONNRESET),
        (unlink.seqnum, 0),
    ]
    assert replies[3].data == bytes(1000)


@pytest.mark.rule("lost-client")
def test_the_next_client_finds_nothing_of_the_last(rig: LibusbRig) -> None:
    urbs = [rig.submit(endpoint, 64) for endpoint in (BULK_IN, BULK_IN, INTERRUPT_IN)]
    rig.waiting(*urbs, rig.submit(0x80, 0x40, setup=VENDOR_IN))
    assert rig.finish()
    assert (fake.fake_pending(), rig.counters.in_flight) == (0, 0)
    assert rig.pump.restore() == 0
    rig.attach()
    rig.waiting(rig.submit(BULK_IN, 64))
    assert rig.ended(BULK_IN, data=b"new")[0].data == b"new"


@pytest.mark.slow
def test_a_device_that_keeps_a_cancelled_urb_is_told() -> None:
    rig = LibusbRig()
    rig.waiting(rig.submit(BULK_IN, 64))
    fake.fake_hold_cancels(1)
    assert not rig.pump.finish()
    fake.fake_hold_cancels(0)
    assert rig.pump.finish()
    rig.close()


# ---- requests that the host's stack has to know of -----------------------------------------------


@pytest.mark.rule("set-interface")
def test_set_interface_ends_the_urbs_of_that_interface_only(rig: LibusbRig) -> None:
    rig.control("01 0b 0100 0100 0000")
    stream, other = rig.submit(ISO_IN, 4, packets=[(0, 4)]), rig.submit(BULK_IN, 64)
    rig.waiting(stream, other)
    request = rig.submit(0, setup=bytes.fromhex("01 0b 0000 0100 0000"))
    replies = rig.exchange(request)
    assert [summary(reply) for reply in replies] == [(stream.seqnum, -LINUX_ESHUTDOWN), (request.seqnum, 0)]
    assert journal()[-1] == "set_interface 1 0"
    assert rig.ended(BULK_IN, data=b"lives")[0].data == b"lives"


@pytest.mark.rule("order-per-endpoint")
@pytest.mark.parametrize(
    ("call", "setup"),
    [
        ("set_interface 1 1", "01 0b 0100 0100 0000"),
        ("set_configuration 2", "00 09 0200 0000 0000"),
        ("clear_halt 129", "02 01 0000 8100 0000"),
    ],
)
def test_no_request_overtakes_a_control_transfer(rig: LibusbRig, call: str, setup: str) -> None:
    first, request, second = (
        rig.submit(0x80, 0x40, setup=VENDOR_IN),
        rig.submit(0, setup=bytes.fromhex(setup)),
        rig.submit(0x80, 0x40, setup=VENDOR_IN),
    )
    rig.waiting(first, request, second)
    assert [line for line in journal() if not line.startswith("submit")] == []
    replies = rig.ended(0, data=b"first")
    assert [summary(reply) for reply in replies] == [(first.seqnum, 0), (request.seqnum, 0)]
    assert call in journal()
    [reply] = rig.ended(0, data=b"second")
    assert (reply.seqnum, reply.data) == (second.seqnum, b"second")


@pytest.mark.rule("clear-halt")
def test_the_halt_of_endpoint_0_is_cleared_by_the_device(rig: LibusbRig) -> None:
    request = rig.submit(0, setup=bytes.fromhex("02 01 0000 0000 0000"))
    rig.waiting(request)
    assert submitted(0)[3] == bytes.fromhex("02 01 0000 0000 0000")
    assert [summary(reply) for reply in rig.ended(0)] == [(request.seqnum, 0)]
    assert not any(line.startswith("clear_halt") for line in journal())


@pytest.mark.rule("unlink-pending")
def test_unlink_of_a_control_transfer_that_waits(rig: LibusbRig) -> None:
    first, request, second = (
        rig.submit(0x80, 0x40, setup=VENDOR_IN),
        rig.submit(0, setup=bytes.fromhex("02 01 0000 8100 0000")),
        rig.submit(0x80, 0x40, setup=VENDOR_IN),
    )
    rig.waiting(first, request, second)
    unlink = rig.unlink(request)
    assert [summary(reply) for reply in rig.exchange(unlink)] == [(unlink.seqnum, -LINUX_ECONNRESET)]
    assert [summary(reply) for reply in rig.ended(0)] == [(first.seqnum, 0)]
    assert [summary(reply) for reply in rig.ended(0)] == [(second.seqnum, 0)]
    assert not any(line.startswith("clear_halt") for line in journal())


@pytest.mark.rule("lost-client")
def test_control_transfers_that_wait_go_with_their_client(rig: LibusbRig) -> None:
    request = bytes.fromhex("02 01 0000 8100 0000")
    rig.waiting(rig.submit(0x80, 0x40, setup=VENDOR_IN), rig.submit(0, setup=request))
    assert rig.finish()
    assert (fake.fake_pending(), rig.counters.in_flight) == (0, 0)
    assert not any(line.startswith("clear_halt") for line in journal())
    rig.attach()
    assert rig.control(request.hex()).status == 0


@pytest.mark.rule("port-reset")
def test_reset_ends_all_urbs_and_the_device_is_still_there(rig: LibusbRig) -> None:
    bulk, control = rig.submit(BULK_IN, 64), rig.submit(0x80, 0x40, setup=VENDOR_IN)
    behind = rig.submit(0, setup=bytes.fromhex("02 01 0000 8100 0000"))
    rig.waiting(bulk, control, behind)
    request = rig.submit(0, setup=bytes.fromhex("23 03 0400 0100 0000"))
    replies = rig.exchange(request)
    assert [summary(reply) for reply in replies] == [
        (control.seqnum, -LINUX_ESHUTDOWN),
        (behind.seqnum, -LINUX_ESHUTDOWN),
        (bulk.seqnum, -LINUX_ESHUTDOWN),
        (request.seqnum, 0),
    ]
    assert not rig.pump.gone


@pytest.mark.rule("set-configuration")
def test_set_configuration_with_pending_urbs(rig: LibusbRig) -> None:
    pending = rig.submit(BULK_IN, 64)
    rig.waiting(pending)
    request = rig.submit(0, setup=bytes.fromhex("00 09 0200 0000 0000"))
    replies = rig.exchange(request)
    assert [summary(reply) for reply in replies] == [(pending.seqnum, -LINUX_ESHUTDOWN), (request.seqnum, 0)]
    expected = ["release 1", "release 0", "set_configuration 2", "detach 0", "claim 0"]
    assert [line for line in journal() if not line.startswith("submit")] == expected
    assert rig.exchange(rig.submit(BULK_IN, 64, number_of_packets=0))[0].status == -LINUX_EPIPE
    assert rig.pump.restore() == 0
    assert rig.claim.configuration == 1
    rig.waiting(rig.submit(BULK_IN, 64))


@pytest.mark.rule("set-configuration")
def test_the_active_configuration_again_resets_the_settings(rig: LibusbRig) -> None:
    rig.control("01 0b 0100 0100 0000")
    journal()
    assert rig.control("00 09 0100 0000 0000").status == 0
    assert journal() == ["release 1", "release 0", "set_configuration 1", "claim 0", "claim 1"]
    assert rig.exchange(rig.submit(ISO_IN, 4, number_of_packets=0))[0].status == -LINUX_EPIPE


def test_a_confined_worker_changes_the_configuration(rig: LibusbRig) -> None:
    """Without sysfs libusb does not know which one is active."""
    fake.fake_confine()
    for value, held in ((2, [0]), (2, [0]), (1, [0, 1])):
        assert rig.control(f"00 09 0{value}00 0000 0000").status == 0
        assert (rig.claim.configuration, rig.claim.held) == (value, held)
    rig.waiting(rig.submit(BULK_IN, 64))


@pytest.mark.parametrize(
    ("function", "setup"),
    [
        (b"set_interface", "01 0b 0100 0100 0000"),
        (b"set_configuration", "00 09 0100 0000 0000"),
        (b"clear_halt", "02 01 0000 8100 0000"),
    ],
)
def test_a_failed_request_changes_nothing(rig: LibusbRig, function: bytes, setup: str) -> None:
    fake.fake_fail(function, ERROR_OTHER)
    assert rig.control(setup).status == -LINUX_EPIPE
    rig.waiting(rig.submit(BULK_IN, 64))
    assert rig.exchange(rig.submit(ISO_IN, 4, number_of_packets=0))[0].status == -LINUX_EPIPE


# ---- the device goes -----------------------------------------------------------------------------


@pytest.mark.rule("unplug-closes")
def test_unplug(rig: LibusbRig) -> None:
    submit = rig.submit(BULK_IN, 64)
    rig.waiting(submit)
    fake.fake_unplug()
    assert rig.turn() == _pump.DEVICE_GONE
    assert [summary(reply) for reply in rig.received()] == [(submit.seqnum, -LINUX_ENODEV)]
    assert rig.pump.gone


def test_reset_that_the_device_does_not_survive(rig: LibusbRig) -> None:
    fake.fake_fail(b"reset", ERROR_NOT_FOUND)  # it came back as another
    assert rig.pump.restore() < 0
    assert rig.pump.gone


def test_a_descriptor_that_appears_while_they_are_listed_is_asked_for_next() -> None:
    """A thread of libusb's adds it, and tells us before the list without it is ours."""
    fake.fake_appear()
    rig = LibusbRig()
    for lists in (1, 2, 2):
        rig.turn()
        assert fake.fake_lists() == lists
    rig.close()


# ---- device memory -------------------------------------------------------------------------------

LARGE = 16 << 10
MOST_DEVICE_MEMORY = 1 << 20  # DEVICE_MEMORY in pump.pxd


def moved_through(rig: LibusbRig, depth: int, size: int) -> None:
    """`depth` URBs of `size` each way, at once, end with their own data."""
    outs = [rig.submit(BULK_OUT, data=bytes([number]) * size) for number in range(depth)]
    ins = [rig.submit(BULK_IN, size) for _ in range(depth)]
    rig.waiting(*outs, *ins)
    for number, submit in enumerate(outs):
        assert submitted(BULK_OUT)[2:] == (size, bytes([number]) * 64)
        assert [summary(reply) for reply in rig.ended(BULK_OUT, data=bytes(size))] == [(submit.seqnum, 0)]
    for number, submit in enumerate(ins):
        [reply] = rig.ended(BULK_IN, data=bytes([number]) * size)
        assert (reply.seqnum, reply.data) == (submit.seqnum, bytes([number]) * size)


def test_large_transfers_take_memory_of_the_device_and_give_it_back(rig: LibusbRig) -> None:
    moved_through(rig, 1, LARGE // 4)
    assert fake.fake_device_memory() == 0
    moved_through(rig, 4, LARGE)
    used = fake.fake_device_memory()
    assert used > 8 * LARGE
    moved_through(rig, 4, LARGE)
    assert fake.fake_device_memory() == used
    assert rig.pump.finish()
    assert fake.fake_device_memory() == 0


def test_other_programs_are_left_their_part_of_the_memory_of_devices(rig: LibusbRig) -> None:
    moved_through(rig, 20, 4 * LARGE)
    assert MOST_DEVICE_MEMORY // 2 < fake.fake_device_memory() <= MOST_DEVICE_MEMORY


@pytest.mark.parametrize("error", [ERROR_NO_MEM, ERROR_IO])  # libusb says either, by the type of the transfer
def test_memory_of_the_device_that_is_kept_goes_back_when_the_host_has_none(
    rig: LibusbRig, error: int
) -> None:
    moved_through(rig, 2, LARGE)
    fake.fake_fail(b"submit", error)
    submit = rig.submit(INTERRUPT_IN, 64)
    rig.waiting(submit)
    assert fake.fake_device_memory() == 0
    assert [summary(reply) for reply in rig.ended(INTERRUPT_IN)] == [(submit.seqnum, 0)]


def test_memory_of_the_device_that_is_kept_goes_back_when_the_client_is_silent(rig: LibusbRig) -> None:
    moved_through(rig, 2, LARGE)
    end = time.monotonic() + 5
    while fake.fake_device_memory():
        assert time.monotonic() < end
        rig.turn()
    moved_through(rig, 2, LARGE)
    assert fake.fake_device_memory()


def test_large_transfers_work_without_memory_of_the_device(rig: LibusbRig) -> None:
    fake.fake_limit_device_memory(0)
    moved_through(rig, 4, LARGE)
    assert fake.fake_device_memory() == 0


def test_memory_of_the_device_is_left_alone_where_the_configuration_says_so() -> None:
    rig = LibusbRig(device_memory="off")
    moved_through(rig, 4, LARGE)
    assert fake.fake_device_memory() == 0
    rig.close()


def test_what_memory_of_the_device_there_is_is_used(rig: LibusbRig) -> None:
    fake.fake_limit_device_memory(3 * LARGE)
    moved_through(rig, 4, LARGE)


# ---- the claim -----------------------------------------------------------------------------------


def held_drivers() -> list[str]:
    return [line for line in journal() if line.split()[0] in ("detach", "attach")]


def test_drivers_leave_and_come_back() -> None:
    claim = Claim(1, 2)
    claim.take()
    assert claim.held == [0, 1]
    assert claim.give_back() == []
    assert held_drivers() == ["detach 0", "detach 1", "attach 0", "attach 1"]
    del claim
    assert journal() == [], "what libusb has open is closed by the end of the process"


def test_a_driver_that_takes_the_other_interfaces_by_itself_has_come_back() -> None:
    fake.fake_siblings(1)
    claim = Claim(1, 2)
    claim.take()
    assert fake.fake_drivers() == 0
    assert claim.give_back() == []
    assert fake.fake_drivers() == 0b11


def test_a_driver_that_fails_at_first_and_is_taken_along_by_another_one_has_come_back() -> None:
    fake.fake_siblings(1)
    claim = Claim(1, 2)
    claim.take()
    fake.fake_fail(b"attach", ERROR_IO)
    assert claim.give_back() == []
    assert fake.fake_drivers() == 0b11


@pytest.mark.parametrize("error", [ERROR_BUSY, ERROR_IO, ERROR_NOT_FOUND])
def test_a_driver_that_does_not_come_back_is_named_by_its_interface(error: int) -> None:
    claim = Claim(1, 2)
    claim.take()
    fake.fake_fail(b"attach", error)  # busy: with a program that was faster; not found: its probe has failed
    [problem] = claim.give_back()
    assert problem.startswith("the kernel driver could not be reattached to interface 0 (LIBUSB_ERROR")
    assert fake.fake_drivers() == 0b10


def test_an_interface_that_had_no_driver_gets_none() -> None:
    fake.fake_without_driver(2)
    claim = Claim(1, 2)
    claim.take()
    assert claim.detached == [0]
    assert claim.give_back() == []
    assert fake.fake_drivers() == 0b01


@pytest.mark.parametrize(("sent", "interfaces", "endpoints"), [(68, [0, 1], 4), (22, [0], 0), (12, [], 0)])
def test_a_device_that_sends_less_than_it_promises(sent: int, interfaces: list[int], endpoints: int) -> None:
    """The last descriptor is cut; what comes before it counts."""
    fake.fake_send(sent)
    claim = Claim(1, 2)
    claim.take()
    assert claim.held == interfaces
    assert len(claim.descriptors.configurations[0].endpoints) == endpoints
    assert claim.give_back() == []


def test_a_device_is_asked_for_as_many_configurations_as_linux_reads() -> None:
    """Each request may take `DESCRIPTOR_TIME`, and up to 64 KiB."""
    fake.fake_promise(255)
    claim = Claim(1, 2)
    assert [each.bConfigurationValue for each in claim.descriptors.configurations] == [1, 2]
    assert fake.fake_asked() == 1 + 2 * MAX_CONFIGURATIONS


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PermissionError(errno.EACCES, ""), "LIBUSB_ERROR_ACCESS"),
        (FileNotFoundError(), "LIBUSB_ERROR_NO_DEVICE"),
    ],
)
def test_a_device_that_libusb_does_not_list_and_that_cannot_be_opened(
    error: OSError, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> int:
        raise error

    monkeypatch.setattr(os, "open", fails)
    with pytest.raises(ClaimError, match="device 3 of bus 1 cannot be opened") as raised:
        Claim(1, 3)
    assert raised.value.code == code


def test_what_usbfs_keeps_of_a_removed_device_is_no_problem() -> None:
    """Interfaces that libusb does not know go through its file, which it then watches no more."""
    claim = Claim(1, 2)
    claim.held.append(40)
    claim.detached.append(40)
    fake.fake_unplug()
    assert claim.give_back() == []


def test_a_driver_that_does_not_come_back_from_a_failed_claim_is_named() -> None:
    fake.fake_occupy(0b10)
    fake.fake_fail(b"attach", ERROR_IO)
    with pytest.raises(
        ClaimError, match=r"interface 1 cannot be claimed.*reattached to interface 0"
    ) as raised:
        Claim(1, 2).take()
    assert raised.value.code == "LIBUSB_ERROR_BUSY"


def test_a_device_that_does_not_tell_what_it_is() -> None:
    fake.fake_fail(b"control", ERROR_IO)
    with pytest.raises(ClaimError, match="device descriptor cannot be read"):
        Claim(1, 2)


def parameters(directory: Path) -> ClaimParameters:
    """Device 2 of bus 1 as sysfs shows it in `directory`."""
    return ClaimParameters(
        busid="1-1",
        path=str(directory),
        busnum=1,
        devnum=2,
        simulated=None,
        confinement=None,
        log_level="info",
        log_to="stderr",
        transfer_budget=_pump.SMALLEST_BUDGET,
        device_memory="auto",
    )


def plug(directory: Path, *interfaces: int, sysfs: tuple[int, ...], devnum: int = 2) -> Path:
    """A device with these interfaces in its descriptors and in sysfs; its directory."""
    device = directory / "1-1"
    for number in sysfs:
        (device / f"1-1:1.{number}").mkdir(parents=True)
    parts = [interface_descriptor(number, 0, 0xFF) for number in interfaces]
    raw = device_descriptor(0x01F0, bcdUSB=0x0200) + configuration_descriptor(*parts)
    (device / "descriptors").write_bytes(raw)
    (device / "devnum").write_text(f"{devnum}\n")
    (device / "bConfigurationValue").write_text("1\n")
    return device


def test_all_interfaces_of_sysfs_are_held(tmp_path: Path) -> None:
    held = HeldUsbDevice(parameters(plug(tmp_path, 0, 1, sysfs=(0, 1))))
    assert held.device().bConfigurationValue == 1
    assert len(held.device().interfaces) == 2
    assert held_drivers() == ["detach 0", "detach 1"]


def test_a_device_of_which_a_driver_would_keep_a_part_is_given_back(tmp_path: Path) -> None:
    with pytest.raises(ClaimError, match="interfaces that the descriptors do not show: 1"):
        HeldUsbDevice(parameters(plug(tmp_path, 0, sysfs=(0, 1))))
    assert held_drivers() == ["detach 0", "attach 0"]


def test_a_driver_that_does_not_come_back_to_the_rest_of_a_device_is_named(tmp_path: Path) -> None:
    fake.fake_fail(b"attach", ERROR_IO)
    with pytest.raises(ClaimError, match=r"do not show: 1; .*reattached to interface 0"):
        HeldUsbDevice(parameters(plug(tmp_path, 0, sysfs=(0, 1))))


def test_a_device_that_is_configured_by_another_program_meanwhile_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As usbmuxd and usb_modeswitch do to devices that have just been plugged in."""
    device = plug(tmp_path, 0, sysfs=(0,))

    class Overtaken(Claim):
        def take(self) -> None:
            (device / "bConfigurationValue").write_text("2\n")
            super().take()

    monkeypatch.setattr(held_device, "Claim", Overtaken)
    with pytest.raises(ClaimError, match="configuration 1 was expected, and 2 is active") as raised:
        HeldUsbDevice(parameters(device))
    assert raised.value.code == "LIBUSB_ERROR_NOT_FOUND"
    assert held_drivers() == ["detach 0", "attach 0"]


def test_no_driver_stays_away_from_a_device_that_cannot_be_read(tmp_path: Path) -> None:
    device = plug(tmp_path, 0, sysfs=(0,))
    (device / "descriptors").write_bytes(b"\x12\x01")
    with pytest.raises(ClaimError, match="descriptors cannot be read"):
        HeldUsbDevice(parameters(device))
    assert held_drivers() == []


def test_another_device_at_the_same_port_is_not_claimed(tmp_path: Path) -> None:
    for device in (plug(tmp_path, 0, sysfs=(0,), devnum=3), tmp_path / "1-2"):
        with pytest.raises(ClaimError, match="device 2 of bus 1 is gone") as raised:
            HeldUsbDevice(parameters(device))
        assert raised.value.code == "LIBUSB_ERROR_NO_DEVICE"
    assert held_drivers() == []


def test_a_transfer_lives_no_longer_than_its_pump() -> None:
    rig = LibusbRig()
    rig.waiting(rig.submit(BULK_IN, 64))
    assert fake.fake_pending() == 1
    rig.close()
    assert fake.fake_pending() == 0
