"""All transfer types through the pump on libusb's darwin backend.  test_worker.py runs it, in a separate
process.
"""

from collections.abc import Iterator

import pytest

from tests.mac.mac import Device
from tests.mac.rig import MacRig, mac
from tests.urb import encode
from usbipd import _pump
from usbipd.protocol.constants import LINUX_ECONNRESET, LINUX_EPIPE

BULK_OUT, BULK_IN, INTERRUPT_OUT, INTERRUPT_IN, ISO_OUT, ISO_IN = 0x01, 0x81, 0x02, 0x82, 0x03, 0x83


@pytest.fixture
def device() -> Iterator[Device]:
    device = mac().plug()
    yield device
    if device.present:
        device.unplug()


@pytest.fixture
def rig(device: Device) -> Iterator[MacRig]:
    rig = MacRig(device)
    yield rig
    rig.close()


def test_control_in_both_directions(rig: MacRig, device: Device) -> None:
    assert rig.control("80 06 0001 0000 1200").data[:4] == bytes.fromhex("12 01 00 02")
    device.requests()
    assert rig.control("40 05 0100 0000 0300", b"abc").status == 0
    assert device.requests() == [(bytes.fromhex("40 05 01 00 00 00 03 00"), b"abc")]
    device.answer(7, None)
    assert rig.control("c0 07 0000 0000 0400").status == -LINUX_EPIPE


def test_bulk_in_ends_with_a_short_packet(rig: MacRig, device: Device) -> None:
    device.give(BULK_IN, b"x" * 1030)
    assert rig.reply(rig.submit(BULK_IN, 4096)).data == b"x" * 1030


def test_bulk_out_waits_for_the_device(rig: MacRig, device: Device) -> None:
    device.credit(BULK_OUT, 1)
    assert rig.exchange(rig.submit(BULK_OUT, data=b"y" * 1000)) == []
    device.until_waiting(BULK_OUT, 1)
    assert device.taken(BULK_OUT) == b"y" * 512
    device.credit(BULK_OUT, None)
    reply = rig.reply()
    assert (reply.status, reply.actual_length) == (0, 1000)
    assert device.taken(BULK_OUT) == b"y" * 488


def test_interrupt_in_both_directions(rig: MacRig, device: Device) -> None:
    assert rig.exchange(rig.submit(INTERRUPT_IN, 8)) == []
    device.give(INTERRUPT_IN, b"pressed")
    assert rig.reply().data == b"pressed"
    assert rig.reply(rig.submit(INTERRUPT_OUT, data=b"leds")).status == 0
    assert device.taken(INTERRUPT_OUT) == b"leds"


def test_isochronous_in_both_directions(rig: MacRig, device: Device) -> None:
    assert rig.control("01 0b 0100 0000 0000").status == 0
    packets = [(192 * n, 192) for n in range(8)]
    device.give_packets(ISO_IN, *(bytes([n]) * (100 + n) for n in range(8)))
    reply = rig.reply(rig.submit(ISO_IN, 192 * 8, packets=packets))
    assert [packet.actual_length for packet in reply.iso] == [100 + n for n in range(8)]
    assert reply.data == b"".join(bytes([n]) * (100 + n) for n in range(8))
    data = bytes(range(256)) * 6
    assert rig.reply(rig.submit(ISO_OUT, data=data, packets=packets)).status == 0
    assert device.taken(ISO_OUT) == data


def test_a_stall_is_cleared(rig: MacRig, device: Device) -> None:
    device.stall(BULK_IN)
    assert rig.reply(rig.submit(BULK_IN, 64)).status == -LINUX_EPIPE
    assert rig.control("02 01 0000 8100 0000").status == 0
    device.give(BULK_IN, b"again")
    assert rig.reply(rig.submit(BULK_IN, 64)).data == b"again"


def test_a_pending_urb_is_unlinked(rig: MacRig, device: Device) -> None:
    urb = rig.submit(INTERRUPT_IN, 8)
    rig.exchange(urb)
    device.until_waiting(INTERRUPT_IN, 1)
    [reply] = rig.wait(1, rig.unlink(urb))
    assert reply.status == -LINUX_ECONNRESET
    assert device.waiting == {}


def test_the_device_is_unplugged(rig: MacRig, device: Device) -> None:
    rig.exchange(rig.submit(INTERRUPT_IN, 8))
    device.until_waiting(INTERRUPT_IN, 1)
    device.unplug()
    rig.wait(1)
    wake = rig.send(encode(rig.submit(INTERRUPT_IN, 8)))
    assert wake in (_pump.CHANNEL, _pump.DEVICE_GONE)
    rig.wait(0)
    assert rig.pump.gone or wake == _pump.DEVICE_GONE
