"""The kernel of a software Mac alone: documented behaviour, and each value of each switch."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mac.kernel import errors
from tests.mac.kernel.errors import CallError
from tests.mac.kernel.wire import Call, text, u32, u64
from tests.mac.mac import Device, OwnMac
from tests.mac.process import CAPTURE, Process

PIPE_OUT, PIPE_IN, PIPE_INTERRUPT = 1, 2, 4
OUT, IN, INTERRUPT_IN = 0x01, 0x81, 0x82
Plug = Callable[..., Device]


@pytest.fixture
def process(kernel: OwnMac) -> Iterator[Process]:
    process = Process(kernel)
    yield process
    process.die()


@pytest.fixture
def other(kernel: OwnMac) -> Iterator[Process]:
    process = Process(kernel)
    yield process
    process.die()


def refused(code: int, work: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(CallError) as raised:
        work(*arguments)
    assert raised.value.code == code


def test_both_sides_agree_on_the_call_numbers() -> None:
    header = (Path(__file__).parent / "iokit" / "wire.h").read_text()
    numbers = {name: int(number) for name, number in re.findall(r"^    (\w+) = (\d+),", header, re.MULTILINE)}
    assert numbers == {each.name: each.value for each in Call if each != Call.CONTROL}


# ---- hotplug -------------------------------------------------------------------------------------


def test_a_notification_is_sent_once_until_its_iterator_is_exhausted(plug: Plug, process: Process) -> None:
    arrivals = process.subscribe("IOServiceFirstMatch", "IOUSBDevice")
    assert process.all_of(arrivals) == []
    first, _ = plug(), plug(location=0x14300000, port=3)
    assert process.event(Call.NOTIFICATION).u64() == arrivals
    assert len(process.all_of(arrivals)) == 2
    departures = process.subscribe("IOServiceTerminate", "IOUSBDevice")
    assert process.all_of(departures) == []
    session = first.session
    first.unplug()
    assert process.event(Call.NOTIFICATION).u64() == departures
    [gone] = process.all_of(departures)
    assert process.property(gone, "sessionID") == session


def test_an_iterator_ends_when_its_entries_change(kernel: OwnMac, plug: Plug, process: Process) -> None:
    device = plug()
    iterator = process.call(Call.CHILDREN, u64(device.registry_id), text("IOService")).u64()
    assert process.call(Call.ITERATOR_NEXT, u64(iterator)).u64() != 0
    kernel.call("add_entry", device.registry_id, "IOSomething")
    assert process.call(Call.ITERATOR_NEXT, u64(iterator)).u64() == 0
    assert process.call(Call.ITERATOR_VALID, u64(iterator)).u32() == 0


@pytest.mark.parametrize("changes", [True, False])
def test_re_enumeration_changes_the_session(
    changes: bool, kernel: OwnMac, plug: Plug, process: Process
) -> None:
    kernel.switch(reenumeration_changes_address=changes)
    device = plug()
    client = process.open_device(device)
    session, address = device.session, device.address
    process.call(Call.RE_ENUMERATE, u64(client), u32(0))
    device.until("counters", {"opens": 1, "reenumerations": 1})
    device.until("present", True)
    assert device.session != session
    assert (device.address != address) == changes
    refused(errors.NO_DEVICE, process.call, Call.DEVICE_OPEN, u64(client))


def test_re_enumeration_takes_its_time(kernel: OwnMac, plug: Plug, process: Process) -> None:
    kernel.switch(reenumeration_seconds=0.05, driver_seconds=0.05)
    device = plug(drivers={1: "hid"})
    device.until("drivers", [1])
    process.call(Call.RE_ENUMERATE, u64(process.open_device(device)), u32(0))
    device.until("present", False)
    device.until("drivers", [1])
    assert device.present


@pytest.mark.parametrize("code", [errors.NOT_RESPONDING, errors.ABORTED, errors.NO_DEVICE])
def test_transfers_end_when_the_device_is_unplugged(
    code: int, kernel: OwnMac, plug: Plug, process: Process
) -> None:
    kernel.switch(unplug_code=code)
    device = plug()
    process.read(process.open_interface(device), PIPE_INTERRUPT, 7, 8)
    device.unplug()
    completion = process.completion()
    assert (completion.number, completion.code) == (7, code)


def test_devices_behind_a_hub_leave_with_it(plug: Plug, process: Process) -> None:
    hub = plug("hub", location=0x14200000, port=2)
    stick = plug(location=0x14210000, port=1, hub=hub)
    [entry] = process.find("IOUSBHostDevice", stick)
    above = process.call(Call.PARENT, u64(entry), text("IOUSB")).u64()
    assert process.property(above, "sessionID") == hub.session
    hub.unplug()
    assert not stick.present
    hub.replug()
    stick.replug()
    assert stick.present


# ---- captures ------------------------------------------------------------------------------------


def test_only_root_captures(plug: Plug, process: Process) -> None:
    device = plug(drivers={0: "hid"})
    process.euid = 501
    client = process.open_device(device)
    refused(errors.NOT_PRIVILEGED, process.call, Call.RE_ENUMERATE, u64(client), u32(CAPTURE))
    refused(errors.EXCLUSIVE_ACCESS, process.open_interface, device)
    process.open_interface(device, 1)


@pytest.mark.parametrize("unconfigures", [True, False])
def test_a_capture_removes_the_drivers(
    unconfigures: bool, kernel: OwnMac, plug: Plug, process: Process
) -> None:
    kernel.switch(capture_unconfigures=unconfigures)
    device = plug(drivers={0: "storage"})
    assert device.drivers == [0]
    client = process.open_device(device)
    process.call(Call.RE_ENUMERATE, u64(client), u32(CAPTURE))
    assert device.captured
    assert device.drivers == []
    assert device.configuration == (0 if unconfigures else 1)
    refused(errors.NOT_OPEN, process.call, Call.SET_CONFIGURATION, u64(client), u32(1))
    process.call(Call.DEVICE_OPEN, u64(client))
    process.call(Call.SET_CONFIGURATION, u64(client), u32(1))
    process.open_interface(device)


@pytest.mark.parametrize("survives", [True, False])
def test_the_owner_of_a_capture_dies(survives: bool, kernel: OwnMac, plug: Plug, process: Process) -> None:
    kernel.switch(capture_survives_owner=survives)
    device = plug(drivers={0: "hid"})
    owner = Process(kernel)
    owner.capture(device)
    session = device.session
    owner.die()
    device.until("captor", 0)
    kernel.call("until_journal", "orphaned 14200000")
    device.until("captured", survives)
    device.until("drivers", [] if survives else [0])
    assert (device.session == session) == survives


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("mask", [0, 1 << 29])
def test_re_enumeration_of_an_orphaned_capture(
    ends: bool, mask: int, kernel: OwnMac, plug: Plug, process: Process
) -> None:
    kernel.switch(capture_survives_owner=True, plain_reenumeration_ends_capture=ends)
    device = plug(drivers={0: "hid"})
    owner = Process(kernel)
    owner.capture(device)
    owner.die()
    kernel.call("until_journal", "orphaned 14200000")
    client = process.open_device(device)
    process.call(Call.RE_ENUMERATE, u64(client), u32(mask))
    device.until("counters", {**device.counters, "reenumerations": 1})
    device.until("present", True)
    assert device.captured == (not ends and mask == 0)
    assert device.drivers == ([] if device.captured else [0])


def test_two_processes_cannot_open_one_interface(plug: Plug, process: Process, other: Process) -> None:
    device = plug()
    client = process.open_interface(device)
    refused(errors.EXCLUSIVE_ACCESS, other.open_interface, device)
    process.call(Call.SERVICE_CLOSE, u64(client))
    other.open_interface(device)


@pytest.mark.parametrize("needs_root", [True, False])
def test_who_may_open(needs_root: bool, kernel: OwnMac, plug: Plug, process: Process) -> None:
    kernel.switch(open_needs_root=needs_root)
    process.euid = 501
    if needs_root:
        refused(errors.NOT_PERMITTED, process.open_interface, plug())
    else:
        process.open_interface(plug())


# ---- transfers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reports", [True, False])
@pytest.mark.parametrize("reverse", [True, False])
def test_an_abort_keeps_the_moved_bytes(
    reports: bool, reverse: bool, kernel: OwnMac, plug: Plug, process: Process
) -> None:
    kernel.switch(abort_reports_bytes=reports, abort_reversed=reverse)
    device = plug()
    interface = process.open_interface(device)
    process.read(interface, PIPE_IN, 1, 4096)
    process.read(interface, PIPE_IN, 2, 4096)
    device.give(IN, b"x" * 1024)
    process.call(Call.ABORT_PIPE, u64(interface), u32(PIPE_IN))
    found = [process.completion(), process.completion()]
    assert [each.number for each in found] == ([2, 1] if reverse else [1, 2])
    first = next(each for each in found if each.number == 1)
    assert (first.code, first.arg0, first.data) == (errors.ABORTED, 1024 if reports else 0, b"x" * 1024)


def test_an_aborted_write_reports_its_bytes(plug: Plug, process: Process) -> None:
    device = plug()
    interface = process.open_interface(device)
    device.credit(OUT, 2)
    process.write(interface, PIPE_OUT, 1, b"y" * 2000)
    process.call(Call.ABORT_PIPE, u64(interface), u32(PIPE_OUT))
    assert process.completion().arg0 == 1024
    assert device.taken(OUT) == b"y" * 1024


@pytest.mark.parametrize("code", [errors.TRANSACTION_RETURNED, errors.ABORTED, None])
def test_clearing_a_stall_with_transfers_behind_it(
    code: int | None, kernel: OwnMac, plug: Plug, process: Process
) -> None:
    kernel.switch(clear_stall_code=code)
    device = plug()
    interface = process.open_interface(device)
    for number in (1, 2):
        process.read(interface, PIPE_IN, number, 64)
    device.stall(IN)
    assert process.completion().code == errors.PIPE_STALLED
    process.call(Call.CLEAR_STALL, u64(interface), u32(PIPE_IN))
    device.give(IN, b"again")
    completion = process.completion()
    assert (completion.number, completion.code) == (2, errors.SUCCESS if code is None else code)


@pytest.mark.parametrize("ends", [True, False])
def test_a_stall_and_the_transfers_behind_it(
    ends: bool, kernel: OwnMac, plug: Plug, process: Process
) -> None:
    kernel.switch(stall_ends_queue=ends)
    device = plug()
    interface = process.open_interface(device)
    for number in (1, 2):
        process.read(interface, PIPE_IN, number, 64)
    device.stall(IN)
    assert process.completion().number == 1
    device.until("waiting", {} if ends else {IN: 1})


@pytest.mark.parametrize("refuses", [True, False])
def test_a_stalled_pipe(refuses: bool, kernel: OwnMac, plug: Plug, process: Process) -> None:
    kernel.switch(stalled_pipe_refuses=refuses)
    device = plug()
    interface = process.open_interface(device)
    device.stall(IN)
    process.read(interface, PIPE_IN, 1, 64)
    assert process.completion().code == errors.PIPE_STALLED
    if refuses:
        refused(errors.PIPE_STALLED, process.read, interface, PIPE_IN, 2, 64)
    else:
        process.read(interface, PIPE_IN, 2, 64)
        assert process.completion().code == errors.PIPE_STALLED


@pytest.mark.parametrize("halted", [True, False])
def test_endpoints_at_first_use(halted: bool, kernel: OwnMac, plug: Plug, process: Process) -> None:
    kernel.switch(halted_at_first_use=halted)
    device = plug(drivers={0: "hid"})
    process.capture(device)
    interface = process.open_interface(device)
    device.give(IN, b"data")
    process.read(interface, PIPE_IN, 1, 64)
    assert process.completion().code == (errors.PIPE_STALLED if halted else errors.SUCCESS)
    if halted:
        process.call(Call.CLEAR_STALL, u64(interface), u32(PIPE_IN))
        process.read(interface, PIPE_IN, 2, 64)
        assert process.completion().data == b"data"


def test_a_transfer_with_a_timeout(plug: Plug, process: Process) -> None:
    process.read(process.open_interface(plug()), PIPE_IN, 1, 64, timeout=10)
    assert process.completion().code == errors.TRANSACTION_TIMEOUT


def test_babble(plug: Plug, process: Process) -> None:
    device = plug()
    process.read(process.open_interface(device), PIPE_IN, 1, 100)
    device.give(IN, b"z" * 512)
    completion = process.completion()
    assert (completion.code, completion.data) == (errors.OVERRUN, b"z" * 100)


# ---- power ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [True, False])
def test_sleep_and_wake(ends: bool, kernel: OwnMac, plug: Plug, process: Process) -> None:
    kernel.switch(sleep_ends_transfers=ends)
    device = plug()
    process.read(process.open_interface(device), PIPE_INTERRUPT, 1, 8)
    assert kernel.sleep()
    kernel.wake()
    assert device.waiting == ({} if ends else {INTERRUPT_IN: 1})


@pytest.mark.parametrize("again", [True, False])
def test_a_captured_device_after_sleep(again: bool, kernel: OwnMac, plug: Plug, process: Process) -> None:
    kernel.switch(wake_enumerates_again=again)
    device = plug(drivers={0: "hid"})
    process.capture(device)
    session = device.session
    assert kernel.sleep()
    kernel.wake()
    assert (device.session != session) == again
    assert device.captured == (not again)
    assert device.drivers == ([0] if again else [])


@pytest.mark.parametrize("stays", [True, False])
def test_the_driver_of_a_disk_at_a_capture(stays: bool, kernel: OwnMac, plug: Plug, process: Process) -> None:
    kernel.switch(storage_driver_stays=stays)
    device = plug(drivers={0: "storage", 1: "hid"})
    client = process.open_device(device)
    process.call(Call.RE_ENUMERATE, u64(client), u32(CAPTURE))
    assert device.captured
    assert device.drivers == ([0] if stays else [])
    if stays:
        refused(errors.EXCLUSIVE_ACCESS, process.open_interface, device)


@pytest.mark.parametrize("has_port_number", [True, False])
def test_location_of_the_port_number(
    has_port_number: bool, kernel: OwnMac, plug: Plug, process: Process
) -> None:
    kernel.switch(has_port_number=has_port_number)
    [entry] = process.find("IOUSBHostDevice", plug(port=5))
    assert process.property(entry, "PortNum") == (5 if has_port_number else None)
    above = process.call(Call.PARENT, u64(entry), text("IOService")).u64()
    assert process.property(above, "port") == b"\x05\0\0\0"
