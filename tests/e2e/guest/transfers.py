"""Every transfer type, at each speed, with real and simulated devices.  Runs in the guest.

The devices return what they receive: the real ones are gadgets (function_fs.py) on dummy_hcd, which usbipd
claims through libusb.  The stock client attaches them, and a program there uses usbfs, which shows every
status, length and packet.  Each device is a separate chain.
"""

import errno
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

from tests.e2e.guest import client
from tests.e2e.guest.command import ask, wait_for_state
from tests.e2e.guest.function_fs import LoopFunction
from tests.e2e.guest.gadget import LOOPBACK, Gadget
from tests.e2e.guest.loop_device import VENDOR_IN, LoopDevice, some_bytes
from tests.e2e.guest.scenario import Action, Scenario, StepError, check
from tests.e2e.guest.server import Usbipd
from tests.e2e.guest.streams import check_same
from tests.e2e.guest.usbfs import ISO_ASAP, ISOCHRONOUS, SHORT_NOT_OK, Packet, Urb, control_urb
from usbipd.protocol.constants import Speed

KIB: Final = 1024
MIB: Final = 1024 * KIB

SPEEDS: Final = {"full": Speed.FULL, "high": Speed.HIGH, "super": Speed.SUPER}
PORTS: Final = {"full": 0, "high": 1, "super": 0}
"""Ports of dummy_hcd for the real devices: those on the same port are tested in sequence."""
HARDWARE_ID: Final = "1d6b:0a0b"

GET_DESCRIPTOR, GET_CONFIGURATION, SET_FEATURE = 6, 8, 3  # USB 2.0, table 9-4
DEVICE, STRING, BOS = 1, 3, 15  # bDescriptorType
ENGLISH: Final = 0x0409

SCENARIO: Final = Scenario()

DAEMON: Final = Usbipd("--real-devices", "--simulate", ",".join(f"loopback:speed={each}" for each in SPEEDS))
BUSIDS: Final[dict[str, str]] = {}
"""Busids of the simulated devices, by speed."""
GADGETS: Final[dict[str, tuple[Gadget, LoopFunction]]] = {}
OPEN: Final[dict[str, LoopDevice]] = {}
"""Attached devices by chain."""


@SCENARIO.step()
def daemon_starts() -> None:
    DAEMON.start()
    simulated = [device["busid"] for device in DAEMON.devices() if device["simulated"]]
    BUSIDS.update(zip(SPEEDS, simulated, strict=True))


# ---- control -----------------------------------------------------------------------------------------------


def control_transfers_of_every_length(device: LoopDevice) -> None:
    for length in (1, 2, 7, 8, 9, 63, 64, 65, 511, 512, 513, 4095, 4096):
        _write_and_read(device, length)
    nothing = device.write(b"")
    check((nothing.status, nothing.actual_length) == (0, 0), f"0 bytes: {nothing.status}")
    nothing = device.read(0)
    check((nothing.status, nothing.actual_length) == (0, 0), f"reading 0 bytes: {nothing.status}")


def control_transfers_up_to_64_kib(device: LoopDevice) -> None:
    """libusb accepts at most 4 KiB on Linux: longer ones to a real device must fail, and only those."""
    for length in (4097, 65535):
        if device.is_real:
            urb = device.write(some_bytes(length))
            check(urb.status == -errno.EINVAL, f"{length} bytes: {urb.status}, not {-errno.EINVAL}")
        else:
            _write_and_read(device, length)
    device.check_works()


def _write_and_read(device: LoopDevice, length: int) -> None:
    data = some_bytes(length)
    written = device.write(data)
    check((written.status, written.actual_length) == (0, length), f"{length} bytes: {written.status}")
    read = device.read(length)
    check(read.status == 0, f"{length} bytes: {read.status}")
    check_same(read.data, data)


def control_read_may_be_short(device: LoopDevice) -> None:
    device.write(b"few bytes")
    read = device.read(1000)
    check((read.status, read.data) == (0, b"few bytes"), f"{read.status}, {read.data!r}")


def refused_request_stalls_and_the_next_one_works(device: LoopDevice) -> None:
    for _ in range(3):
        refused = device.file.control(VENDOR_IN, 0xEE, length=64)
        check(refused.status == -errno.EPIPE, f"an unsupported request ended with {refused.status}")
        _write_and_read(device, 64)


def descriptors_match_the_device(device: LoopDevice) -> None:
    read = device.file.control(0x80, GET_DESCRIPTOR, DEVICE << 8, length=18)
    check_same(read.data, device.device.descriptors[:18])
    languages = device.file.control(0x80, GET_DESCRIPTOR, STRING << 8, length=255)
    check_same(languages.data, b"\x04\x03" + ENGLISH.to_bytes(2, "little"))
    for index, name in ((14, "manufacturer"), (15, "product"), (16, "serial")):
        read = device.file.control(
            0x80, GET_DESCRIPTOR, STRING << 8 | device.device.descriptors[index], ENGLISH, length=255
        )
        text = device.device.string(name)
        check(text != "", f"the client has no {name}")
        check_same(read.data, bytes((2 + 2 * len(text), STRING)) + text.encode("utf-16-le"))
    refused = device.file.control(0x80, GET_DESCRIPTOR, STRING << 8 | 0xEE, ENGLISH, length=255)
    check(refused.status == -errno.EPIPE, f"a request for a missing string ended with {refused.status}")
    bos = device.file.control(0x80, GET_DESCRIPTOR, BOS << 8, length=255)
    if device.bcd_usb < 0x0201:  # USB 3.2, 9.2.6.6: no BOS before
        check(bos.status == -errno.EPIPE, f"a request for a missing BOS ended with {bos.status}")
    else:
        check((bos.status, bos.data[:2]) == (0, bytes((5, BOS))), f"BOS: {bos.status}, {bos.data.hex()}")
        check_same(bos.data[2:4], len(bos.data).to_bytes(2, "little"))


# ---- bulk --------------------------------------------------------------------------------------------------


def bulk_messages_of_every_size(device: LoopDevice) -> None:
    packet = device.max_packet
    sizes = (0, 1, 2, 3, packet - 1, packet, packet + 1, 2 * packet, 3 * packet - 1, 4096, 16 * KIB)
    device.loop([some_bytes(size) for size in sizes], 1)
    sizes = (16 * KIB + 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 256 * KIB, 300_001, MIB)
    device.loop([some_bytes(size) for size in sizes], 1)


def bulk_in_both_directions_at_every_depth(device: LoopDevice) -> None:
    sizes = random.Random(1)
    for depth, longest in ((2, 64 * KIB), (4, 32 * KIB), (16, 8 * KIB), (64, 2 * KIB)):
        messages = [some_bytes(sizes.randint(1, longest), depth) for _ in range(max(8, 2 * depth))]
        device.loop(messages, depth, room=longest + 1024)


def empty_packet_ends_a_message_of_whole_packets(device: LoopDevice) -> None:
    """Without it a real device waits for more, and treats later data as the same message."""
    whole = some_bytes(2 * device.max_packet)
    device.loop([whole], 1, room=8192)
    first, second = device.bulk_write(whole, flags=0), device.bulk_write(b"more", flags=0)
    device.file.submit(first, second)
    for expected in (first, second):
        urb = device.file.reap()
        check(urb is expected and urb.status == 0, f"an OUT ended with {urb.status}, or in the wrong order")
    received = b""
    while len(received) < len(whole) + 4:
        received += _reaped(device, device.bulk_read(8192)).data
        check(
            not device.is_real or len(received) == len(whole) + 4,
            f"a message ended after {len(received)} bytes without an empty packet",
        )
    check_same(received, whole + b"more")


def short_read_under_short_not_ok_is_an_error(device: LoopDevice) -> None:
    _reaped(device, device.bulk_write(b"short"))
    read = _reaped(device, device.bulk_read(4096, SHORT_NOT_OK), -errno.EREMOTEIO)
    check_same(read.data, b"short")


def _reaped(device: LoopDevice, urb: Urb, status: int = 0) -> Urb:
    device.file.run(urb)
    check(urb.status == status, f"endpoint {urb.endpoint:#04x}: {urb.status}, not {status}")
    return urb


# ---- interrupt ---------------------------------------------------------------------------------------------


def interrupts_of_every_size_and_depth(device: LoopDevice) -> None:
    packet = device.interrupt_in.wMaxPacketSize
    device.loop_interrupts([some_bytes(size) for size in (1, 2, packet - 1, packet)], 1)
    for depth in (4, 32):
        sizes = random.Random(depth)
        messages = [some_bytes(sizes.randint(1, packet), depth) for _ in range(2 * depth)]
        device.loop_interrupts(messages, depth)


# ---- isochronous -------------------------------------------------------------------------------------------


def isochronous_packets_each_with_status_and_content(device: LoopDevice) -> None:
    out, back = device.isochronous
    if out.bEndpointAddress & 0x80:
        out, back = back, out
    device.file.set_interface(out.bInterfaceNumber, out.bAlternateSetting)
    sizes = random.Random(2)
    sent = [some_bytes(sizes.randint(1, out.wMaxPacketSize), each) for each in range(160)]
    writes = [
        Urb(
            ISOCHRONOUS,
            out.bEndpointAddress,
            b"".join(sent[start : start + 32]),
            packets=[len(each) for each in sent[start : start + 32]],
            flags=ISO_ASAP,
        )
        for start in range(0, len(sent), 32)
    ]
    device.file.submit(*writes)
    for write in writes:
        urb = device.file.reap()
        check(urb is write and urb.status == 0, f"an OUT ended with {urb.status}, or in the wrong order")
        problems = [each for each in urb.packets if each.status != 0]
        check(not problems and urb.error_count == 0, f"OUT packets with errors: {problems}")
    for write, start in zip(writes, range(0, len(sent), 32), strict=True):
        taken = [each.length for each in write.packets]
        check(taken == [len(each) for each in sent[start : start + 32]], f"packets taken: {taken}")
    received = _isochronous_packets(device, back.bEndpointAddress, back.wMaxPacketSize)
    for number, expected in enumerate(sent):
        packet = next(received)
        check(packet.status == 0, f"IN packet {number}: {packet.status}")
        check_same(packet.data, expected)


def _isochronous_packets(device: LoopDevice, endpoint: int, size: int) -> Iterator[Packet]:
    """An endless stream of IN packets, from four URBs in flight."""
    pending = [Urb(ISOCHRONOUS, endpoint, packets=[size] * 16, flags=ISO_ASAP) for _ in range(4)]
    device.file.submit(*pending)
    try:
        while True:
            urb = device.file.reap()
            check(
                urb is pending.pop(0) and urb.status == 0, f"an IN ended with {urb.status}, or out of order"
            )
            pending.append(Urb(ISOCHRONOUS, endpoint, packets=[size] * 16, flags=ISO_ASAP))
            device.file.submit(pending[-1])
            yield from urb.packets
    finally:
        _discard_all(device, pending)


def set_interface_removes_and_restores_isochronous_endpoints(device: LoopDevice) -> None:
    endpoint = device.isochronous[0]
    for _ in range(3):
        device.file.set_interface(endpoint.bInterfaceNumber, 0)
        try:
            device.file.submit(Urb(ISOCHRONOUS, endpoint.bEndpointAddress, packets=[8]))
        except OSError as error:
            check(
                error.errno == errno.ENOENT, f"outside its alternate setting the endpoint fails with: {error}"
            )
        else:
            raise StepError("an endpoint of another alternate setting accepts URBs")
        device.file.set_interface(endpoint.bInterfaceNumber, endpoint.bAlternateSetting)
        urb = _reaped(device, Urb(ISOCHRONOUS, endpoint.bEndpointAddress, packets=[8] * 4, flags=ISO_ASAP))
        check(all(each.status == 0 for each in urb.packets), f"packets: {urb.packets}")
    device.file.set_interface(endpoint.bInterfaceNumber, 0)
    device.check_works()


# ---- requests that the server intercepts -------------------------------------------------------------------


def set_configuration_changes_the_endpoints(device: LoopDevice) -> None:
    device.file.release()
    for value in (2, 0, 1, 2, 1):
        device.file.set_configuration(value)
        read = device.file.control(0x80, GET_CONFIGURATION, length=1)
        check(read.data == bytes((value,)), f"GET_CONFIGURATION after {value}: {read.data!r}")
    device.file.claim()
    device.check_works()


def set_interface_resets_its_endpoints(device: LoopDevice) -> None:
    device.file.set_interface(device.bulk_in.bInterfaceNumber, 0)
    device.check_works()


def halted_endpoint_stalls_until_it_is_cleared(device: LoopDevice) -> None:
    for refused in (device.bulk_read(512), device.bulk_write(b"refused")):
        halt = device.file.run(_halt(refused.endpoint))
        check(halt.status == 0, f"SET_FEATURE(ENDPOINT_HALT) ended with {halt.status}")
        _reaped(device, refused, -errno.EPIPE)
        device.file.clear_halt(refused.endpoint)
        device.check_works()


def pending_urb_stalls_when_its_endpoint_halts(device: LoopDevice) -> None:
    waiting = device.bulk_read(512)
    halt = _halt(waiting.endpoint)
    device.file.submit(waiting, halt)
    ended = {device.file.reap(), device.file.reap()}
    check(ended == {waiting, halt} and halt.status == 0, f"SET_FEATURE(ENDPOINT_HALT): {halt.status}")
    check(waiting.status == -errno.EPIPE, f"the pending URB ended with {waiting.status}")
    device.file.clear_halt(waiting.endpoint)
    device.check_works()


def _halt(endpoint: int) -> Urb:
    return control_urb(0x02, SET_FEATURE, index=endpoint)  # ENDPOINT_HALT is 0: USB 2.0, table 9-6


def device_works_after_a_reset(device: LoopDevice) -> None:
    for _ in range(2):
        device.file.reset()
        device.check_works()


# ---- UNLINK ------------------------------------------------------------------------------------------------


def unlinking_one_of_many_urbs_keeps_the_order_of_the_others(device: LoopDevice) -> None:
    reads = [device.bulk_read(4096) for _ in range(8)]
    device.file.submit(*reads)
    for victim in (reads.pop(3), reads.pop(5)):
        check(device.file.discard(victim), "a pending URB was reported as complete")
        urb = device.file.reap()
        check(urb is victim and urb.status == -errno.ENOENT, f"an unlinked URB ended with {urb.status}")
    messages = [some_bytes(100 + each) for each in range(len(reads))]
    writes = [device.bulk_write(message) for message in messages]
    device.file.submit(*writes)
    ended = [device.file.reap() for _ in range(len(reads) + len(writes))]
    check([urb for urb in ended if urb in reads] == reads, "the others ended out of order")
    for read, message in zip(reads, messages, strict=True):
        check(read.status == 0, f"after an UNLINK another URB of the endpoint ended with {read.status}")
        check_same(read.data, message)


def all_pending_urbs_are_unlinked(device: LoopDevice) -> None:
    reads = [device.bulk_read(4096) for _ in range(32)]
    interrupts = [device.interrupt_read() for _ in range(8)]
    device.file.submit(*reads, *interrupts)
    _discard_all(device, reads + interrupts)
    device.check_works()


def _discard_all(device: LoopDevice, urbs: list[Urb]) -> None:
    for urb in reversed(urbs):
        device.file.discard(urb)
    ended = {device.file.reap() for _ in urbs}
    check(ended == set(urbs), "URBs ended that were not discarded")
    problems = {urb.status for urb in urbs} - {-errno.ENOENT, 0}
    check(not problems, f"discarded URBs ended with {problems}")


def unlink_during_completion_loses_nothing(device: LoopDevice) -> None:
    """Either the URB has the message, or it is empty and the next one gets it.

    Its status is that of unlinking once an unlink was tried: `__usb_hcd_giveback_urb`.
    """
    choices = random.Random(3)
    faster = 0
    for number in range(60):
        message = some_bytes(50, number)
        read, write = device.bulk_read(512), device.bulk_write(message)
        device.file.submit(read, write)
        for _ in range(choices.randint(0, 3000)):  # from before the OUT is sent until the IN is complete
            pass
        device.file.discard(read)
        ended = {device.file.reap(), device.file.reap()}
        check(ended == {read, write} and write.status == 0, f"the OUT ended with {write.status}")
        check(read.status in (0, -errno.ENOENT), f"the IN ended with {read.status}")
        faster += bool(read.data)
        check_same(read.data or _reaped(device, device.bulk_read(512)).data, message)
    print(f"the device was faster {faster} times of 60")


ACTIONS: Final[tuple[Callable[[LoopDevice], None], ...]] = (
    control_transfers_of_every_length,
    control_transfers_up_to_64_kib,
    control_read_may_be_short,
    refused_request_stalls_and_the_next_one_works,
    descriptors_match_the_device,
    bulk_messages_of_every_size,
    bulk_in_both_directions_at_every_depth,
    empty_packet_ends_a_message_of_whole_packets,
    short_read_under_short_not_ok_is_an_error,
    interrupts_of_every_size_and_depth,
    set_configuration_changes_the_endpoints,
    set_interface_resets_its_endpoints,
    halted_endpoint_stalls_until_it_is_cleared,
    pending_urb_stalls_when_its_endpoint_halts,
    device_works_after_a_reset,
    unlinking_one_of_many_urbs_keeps_the_order_of_the_others,
    all_pending_urbs_are_unlinked,
    unlink_during_completion_loses_nothing,
)
ISOCHRONOUS_ACTIONS: Final = (
    isochronous_packets_each_with_status_and_content,
    set_interface_removes_and_restores_isochronous_endpoints,
)


# ---- the devices -------------------------------------------------------------------------------------------


def _attach_simulated(speed: str) -> None:
    _open(f"simulated-{speed}", BUSIDS[speed], is_real=False)


def _attach_real(speed: str) -> None:
    loop = LoopFunction(speed, SPEEDS[speed])
    gadget = Gadget(
        loop.function,
        port=PORTS[speed],
        hardware_id=HARDWARE_ID,
        product="Loop",
        serial=f"LOOP{speed.upper()}",
        speed=f"{speed}-speed",
        second=LOOPBACK,
    )
    loop.start()
    gadget.plug()
    GADGETS[speed] = gadget, loop
    busid = gadget.wait_until_plugged().busid
    ask("bind", "--busid", busid)
    _open(f"real-{speed}", busid, is_real=True)


def _open(chain: str, busid: str, *, is_real: bool) -> None:
    wait_for_state(busid, "shared")
    OPEN[chain] = LoopDevice(client.attach(busid), is_real=is_real)
    expected = chain.partition("-")[2]
    found = {"12": "full", "480": "high", "5000": "super"}.get(OPEN[chain].device.string("speed"))
    check(found == expected, f"the client has a {found}-speed device, not {expected}")


def _detach(chain: str) -> None:
    device = OPEN.pop(chain)
    device.close()
    client.detach(device.device)


def _remove(speed: str) -> None:
    _detach(f"real-{speed}")
    gadget, loop = GADGETS.pop(speed)
    ask("unbind", "--all")
    gadget.unplug()
    gadget.wait_until_unplugged()
    gadget.remove()
    loop.stop()


def _add_chain(
    chain: str, attach: Action, actions: Iterable[Callable[[LoopDevice], None]], detach: Action
) -> None:
    SCENARIO.add(f"{chain}: attach", chain, attach)
    for action in actions:
        SCENARIO.add(f"{chain}: {action.__name__}", chain, lambda action=action: action(OPEN[chain]))
    SCENARIO.add(f"{chain}: detach", chain, detach)


for _speed in SPEEDS:
    _add_chain(
        f"simulated-{_speed}",
        partial(_attach_simulated, _speed),
        (*ACTIONS, *ISOCHRONOUS_ACTIONS),
        partial(_detach, f"simulated-{_speed}"),
    )
for _speed in SPEEDS:
    _add_chain(f"real-{_speed}", partial(_attach_real, _speed), ACTIONS, partial(_remove, _speed))


@SCENARIO.step("end")
def daemon_stops_and_leaves_nothing() -> None:
    DAEMON.stop()


if __name__ == "__main__":
    sys.exit(SCENARIO.run())
