"""The simulated test device: speeds, vendor requests, loopbacks of each type, configuration 2."""

import pytest

from tests.unit.worker.rig import Rig
from tests.urb import RetSubmit, encode
from usbipd.errors import UsageError
from usbipd.protocol.constants import LINUX_EPIPE, Speed
from usbipd.simulated.catalog import create, parse_simulate
from usbipd.simulated.loopback import (
    INTERRUPT_IN,
    INTERRUPT_OUT,
    ISOCHRONOUS_IN,
    ISOCHRONOUS_OUT,
    LOOPBACK_IN,
    LOOPBACK_OUT,
    READ,
    SOURCE_IN,
    WRITE,
    Loopback,
)
from usbipd.usb.descriptors import parse_configuration

SPEEDS = {"full": (Speed.FULL, 64), "high": (Speed.HIGH, 512), "super": (Speed.SUPER, 1024)}


def loopback(speed: str) -> Loopback:
    device = create("loopback", {"speed": speed})
    assert isinstance(device, Loopback)
    return device


@pytest.mark.parametrize("speed", SPEEDS)
def test_each_speed_has_its_packet_sizes(speed: str) -> None:
    device = loopback(speed)
    number, size = SPEEDS[speed]
    assert device.speed is number
    (spec,) = parse_simulate(f"loopback:speed={speed}")
    assert Loopback.speed_with(spec.options) is number
    first, second = map(parse_configuration, device.configurations)
    sizes = {each.bEndpointAddress: each.wMaxPacketSize for each in first.endpoints}
    assert {sizes[LOOPBACK_IN], sizes[LOOPBACK_OUT], sizes[INTERRUPT_IN], sizes[INTERRUPT_OUT]} == {size}
    assert second.bConfigurationValue == 2
    assert device.device_descriptor[17] == len(device.configurations)


def test_only_super_speed_has_companions_and_a_bos() -> None:
    for speed in SPEEDS:
        device, is_super = loopback(speed), speed == "super"
        endpoints = len(parse_configuration(device.configurations[0]).endpoints)
        assert device.configurations[0].count(b"\x06\x30\x00") == (endpoints if is_super else 0)
        assert len(device.bos_descriptor) == int.from_bytes(device.bos_descriptor[2:4], "little")
        assert bool(device.bos_descriptor) == is_super


def test_an_unknown_speed() -> None:
    with pytest.raises(UsageError, match="speed 'low' is not one of full, high, super"):
        parse_simulate("loopback:speed=low")


def test_the_oldest_unread_packets_are_lost() -> None:
    device = loopback("full")
    for number in range(4096 + 2):
        device.iso_write(ISOCHRONOUS_OUT, memoryview(number.to_bytes(2, "big")))
    assert device.iso_read(ISOCHRONOUS_IN, 256) == b"\x00\x02"
    for _number in range(4094):
        device.iso_read(ISOCHRONOUS_IN, 256)
    assert device.iso_read(ISOCHRONOUS_IN, 256) == (4097).to_bytes(2, "big")
    assert device.iso_read(ISOCHRONOUS_IN, 256) == b""


@pytest.fixture
def rig() -> Rig:
    device = loopback("super")
    return Rig(device)  # type: ignore[arg-type]  # the rig only hands it on


def test_bos(rig: Rig) -> None:
    reply = rig.control("80 06 000f 0000 ff00")
    assert (reply.status, reply.data) == (0, loopback("super").bos_descriptor)
    rig.close()
    other = Rig(loopback("high"))  # type: ignore[arg-type]
    assert other.control("80 06 000f 0000 ff00").status == -LINUX_EPIPE
    other.close()


@pytest.mark.parametrize("length", [0, 1, 4096, 65535])
def test_vendor_requests_keep_what_is_written(rig: Rig, length: int) -> None:
    data = bytes(index % 251 for index in range(length))
    wanted = length.to_bytes(2, "little").hex()
    reply = rig.control(f"40 {WRITE:02x} 0000 0000 {wanted}", data)
    assert (reply.status, reply.actual_length) == (0, length)
    assert rig.control(f"c0 {READ:02x} 0000 0000 ffff").data == data
    assert rig.control(f"c0 {READ:02x} 0000 0000 0100").data == data[:1]
    rig.close()


def test_other_vendor_requests_stall(rig: Rig) -> None:
    for setup in (f"40 {READ:02x} 0000 0000 0000", f"c0 {WRITE:02x} 0000 0000 0100", "c0 01 0000 0000 0100"):
        assert rig.control(setup).status == -LINUX_EPIPE
    rig.close()


def test_interrupts_come_back(rig: Rig) -> None:
    reads = [rig.submit(INTERRUPT_IN, 1024) for _ in range(2)]
    replies = rig.exchange(
        *reads, rig.submit(INTERRUPT_OUT, data=b"one"), rig.submit(INTERRUPT_OUT, data=b"two")
    )
    assert [reply.data for reply in replies if reply.data] == [b"one", b"two"]
    rig.close()


def test_isochronous_packets_come_back_one_by_one(rig: Rig) -> None:
    rig.control("01 0b 0100 0300 0000")
    lengths, data = (3, 0, 1024), b"abc" + bytes(1024)
    offsets = (0, 3, 3)
    rig.send(
        b"".join(
            map(
                encode,
                (
                    rig.submit(ISOCHRONOUS_OUT, data=data, packets=list(zip(offsets, lengths, strict=True))),
                    rig.submit(ISOCHRONOUS_IN, 4096, packets=[(1024 * each, 1024) for each in range(4)]),
                ),
            )
        )
    )
    replies: list[RetSubmit] = []
    while len(replies) < 2:
        replies += [reply for reply in rig.awaited() if isinstance(reply, RetSubmit)]
    read = next(reply for reply in replies if reply.data)
    assert [packet.actual_length for packet in read.iso] == [3, 0, 1024, 0]
    assert read.data == data
    rig.close()


def test_configuration_2_has_the_source_only(rig: Rig) -> None:
    assert rig.control("00 09 0200 0000 0000").status == 0
    assert rig.control("80 08 0000 0000 0100").data == b"\x02"
    (source,) = rig.exchange(rig.submit(SOURCE_IN, 100))
    assert source.status == 0
    (refused,) = rig.exchange(rig.submit(LOOPBACK_OUT, data=b"x"))
    assert refused.status < 0
    rig.close()
