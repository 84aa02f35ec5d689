"""The descriptors of every simulated device, read with the parser for real devices."""

import struct

import pytest

from usbipd.protocol.constants import Speed
from usbipd.simulated.catalog import NAMES, create
from usbipd.simulated.descriptors import string_descriptors
from usbipd.simulated.device import Behaviour, Handshake, SimulatedDevice
from usbipd.usb.descriptors import parse_configuration


@pytest.fixture(params=NAMES)
def device(request: pytest.FixtureRequest) -> SimulatedDevice:
    return create(request.param, {})


def test_the_device_descriptor_is_complete(device: SimulatedDevice) -> None:
    raw = device.device_descriptor
    assert len(raw) == raw[0] == 18
    assert raw[1] == 1
    assert raw[17] == len(device.configurations)
    assert max(raw[14:17]) == len(device.strings)
    assert raw[7] in ((64,) if device.speed is Speed.HIGH else (8, 16, 32, 64))  # USB 2.0, 5.5.3


def test_the_configuration_counts_right(device: SimulatedDevice) -> None:
    for raw in device.configurations:
        parsed = parse_configuration(raw)
        assert int.from_bytes(raw[2:4], "little") == len(raw)
        assert raw[4] == len({i.bInterfaceNumber for i in parsed.interfaces})
        promised = {}
        at = 9
        while at < len(raw):
            if raw[at + 1] == 4:
                promised[raw[at + 2], raw[at + 3]] = raw[at + 4]
            at += raw[at]
        assert at == len(raw)
        for (interface, alternate), count in promised.items():
            found = [
                e
                for e in parsed.endpoints
                if (e.bInterfaceNumber, e.bAlternateSetting) == (interface, alternate)
            ]
            assert len(found) == count


def test_bulk_packets_have_the_size_that_the_speed_requires(device: SimulatedDevice) -> None:
    for raw in device.configurations:
        for endpoint in parse_configuration(raw).endpoints:
            if endpoint.bmAttributes & 3 == 2:
                assert device.speed is Speed.HIGH
                assert endpoint.wMaxPacketSize == 512  # USB 2.0, 5.8.3


def test_behaviours_name_endpoints_that_exist_in_the_right_direction(device: SimulatedDevice) -> None:
    addresses = {
        e.bEndpointAddress for raw in device.configurations for e in parse_configuration(raw).endpoints
    }
    for address, behaviour in device.behaviours.items():
        assert address in addresses
        if behaviour is Behaviour.LOOPBACK:
            assert address ^ 0x80 in addresses
        else:
            assert (behaviour is Behaviour.SOURCE) == bool(address & 0x80)


def test_no_two_kinds_look_alike() -> None:
    devices = [create(name, {}) for name in NAMES]
    assert len({d.device_descriptor[8:12] for d in devices}) == len(devices)
    assert len({d.strings[2] for d in devices}) == len(devices)
    assert {d.strings[0] for d in devices} == {"usbipd"}


def test_string_descriptors() -> None:
    languages, text = string_descriptors(("aé",))
    assert languages == bytes.fromhex("04 03 09 04")
    assert text == bytes.fromhex("06 03 61 00 e9 00")


def test_a_string_fills_its_descriptor_and_no_more() -> None:
    assert string_descriptors(("x" * 126,))[1][0] == 254
    with pytest.raises(ValueError, match="126 UTF-16 code units, not 127"):
        string_descriptors(("x" * 127,))


def test_setup_packets_are_refused_unless_a_device_knows_them(device: SimulatedDevice) -> None:
    vendor = struct.pack("<BBHHH", 0xC0, 0x77, 0, 0, 8)
    assert device.control_in(vendor, 8) is Handshake.STALL
