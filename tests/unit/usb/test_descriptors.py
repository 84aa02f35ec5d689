"""Descriptors as devices have them, and what Linux makes of each.

Invariant: any bytes give descriptors or a `DescriptorError`, and never more than Linux has room for.
"""

import sys
from typing import Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbipd.usb.descriptors import (
    MAX_CONFIGURATIONS,
    MAX_ENDPOINTS,
    MAX_INTERFACES,
    MAX_SETTINGS,
    Configuration,
    DescriptorError,
    Endpoint,
    Interface,
    parse_configuration,
    parse_descriptors,
    parse_device,
    split_descriptors,
)

HEADER = bytes.fromhex(
    "09 02"  # bLength, bDescriptorType
    "39 00"  # wTotalLength 57
    "02"  # bNumInterfaces
    "05"  # bConfigurationValue
    "00 80 32"  # iConfiguration, bmAttributes, bMaxPower
)
INTERFACE_0 = bytes.fromhex("09 04 00 00 01 03 01 02 00")
CLASS_SPECIFIC = bytes.fromhex("09 21 11 01 00 01 22 3f 00")
INTERRUPT_IN = bytes.fromhex("07 05 81 03 08 00 0a")
INTERFACE_1_0 = bytes.fromhex("09 04 01 00 00 01 02 00 00")
INTERFACE_1_1 = bytes.fromhex("09 04 01 01 01 01 02 00 00")
ISOCHRONOUS_OUT = bytes.fromhex("09 05 02 09 c0 13 01 00 00")  # audio class: two bytes more
WHOLE = HEADER + INTERFACE_0 + CLASS_SPECIFIC + INTERRUPT_IN + INTERFACE_1_0 + INTERFACE_1_1 + ISOCHRONOUS_OUT
WHOLE = WHOLE[:2] + len(WHOLE).to_bytes(2, "little") + WHOLE[4:]


def configuration(*parts: bytes) -> bytes:
    body = b"".join(parts)
    return HEADER[:2] + (9 + len(body)).to_bytes(2, "little") + HEADER[4:] + body


def test_interfaces_and_endpoints_with_their_settings() -> None:
    parsed = parse_configuration(WHOLE)
    assert parsed.bConfigurationValue == 5
    assert parsed.interfaces == (
        Interface(0, 0, 3, 1, 2),
        Interface(1, 0, 1, 2, 0),
        Interface(1, 1, 1, 2, 0),
    )
    assert parsed.endpoints == (
        Endpoint(5, 0, 0, 0x81, 0x03, 8, 10),
        Endpoint(5, 1, 1, 0x02, 0x09, 0x13C0, 1),
    )


def test_the_same_endpoint_may_stand_in_each_alternate_setting() -> None:
    raw = configuration(interface(1, 0, 1), INTERRUPT_IN, interface(1, 1, 1), INTERRUPT_IN)
    assert [e.bAlternateSetting for e in parse_configuration(raw).endpoints] == [0, 1]


# ---- odd devices, and what Linux makes of them -----------------------------------------------------------


def interface(number: int, alternate: int = 0, endpoints: int = 0, *, length: int = 9) -> bytes:
    return bytes((length, 4, number, alternate, endpoints, 0xFF, 0, 0, 0))[:length]


def endpoint(address: int, kind: int = 2, *, length: int = 7) -> bytes:
    """A bulk endpoint, unless it is said otherwise."""
    return bytes((length, 5, address, kind, 64, 0, 1, 0, 0))[:length]


def told(raw: bytes, total: int) -> bytes:
    """With another wTotalLength than the right one."""
    return raw[:2] + total.to_bytes(2, "little") + raw[4:]


class Shape(NamedTuple):
    """An odd configuration, and what drivers/usb/core/config.c makes of it."""

    name: str
    raw: bytes
    settings: list[tuple[int, int]]
    """bInterfaceNumber and bAlternateSetting."""
    endpoints: list[tuple[int, int, int]]
    """The same with bEndpointAddress."""


TWO: Final = (interface(0, 0, 2), endpoint(0x81), endpoint(0x02))
BOTH: Final = [(0, 0, 0x81), (0, 0, 0x02)]

SHAPES: Final = [
    Shape("cut endpoint", told(configuration(*TWO)[:-3], 32), [(0, 0)], BOTH[:1]),
    Shape("fewer bytes than wTotalLength", told(configuration(*TWO), 0xFFFF), [(0, 0)], BOTH),
    Shape("bytes behind wTotalLength", configuration(*TWO) + interface(1), [(0, 0)], BOTH),
    Shape("wTotalLength of an earlier end", told(configuration(*TWO), 25), [(0, 0)], BOTH[:1]),
    Shape("wTotalLength 0", told(configuration(*TWO), 0), [], []),
    Shape("a single byte at the end", configuration(*TWO, b"\x09"), [(0, 0)], BOTH),
    Shape("bLength 0", configuration(*TWO[:2], b"\0\0", TWO[2]), [(0, 0)], BOTH[:1]),
    Shape("bLength 1", configuration(*TWO[:2], b"\x01\x05", TWO[2]), [(0, 0)], BOTH[:1]),
    Shape("bLength beyond the end", configuration(*TWO, b"\xff\x04\x01"), [(0, 0)], BOTH),
    Shape("8 endpoints promised", configuration(interface(0, 0, 8), *TWO[1:]), [(0, 0)], BOTH),
    Shape("40 endpoints promised", configuration(interface(0, 0, 40), *TWO[1:]), [(0, 0)], BOTH),
    Shape("fewer endpoints promised", configuration(interface(0, 0, 1), *TWO[1:]), [(0, 0)], BOTH[:1]),
    Shape("no endpoint promised", configuration(interface(0), *TWO[1:]), [(0, 0)], []),
    Shape(
        "endpoint of 6 bytes",
        configuration(interface(0, 0, 2), endpoint(0x81, length=6), endpoint(0x02)),
        [(0, 0)],
        BOTH[1:],
    ),
    Shape(
        "a skipped endpoint takes no room",
        configuration(interface(0, 0, 1), endpoint(0x81, length=6), endpoint(0x80), endpoint(0x02)),
        [(0, 0)],
        BOTH[1:],
    ),
    Shape(
        "endpoint number 0",
        configuration(interface(0, 0, 5), endpoint(0x00), endpoint(0x80), endpoint(0x10), *TWO[1:]),
        [(0, 0)],
        BOTH,
    ),
    Shape(
        "reserved bits of an address",
        configuration(interface(0, 0, 3), endpoint(0xF1), endpoint(0x12), endpoint(0x02)),
        [(0, 0)],
        BOTH,
    ),
    Shape(
        "duplicate in a setting",
        configuration(interface(0, 0, 2), endpoint(0x81, 2), endpoint(0x81, 3)),
        [(0, 0)],
        BOTH[:1],
    ),
    Shape(
        "duplicate in another interface",
        configuration(interface(0, 0, 1), TWO[1], interface(1, 0, 2), endpoint(0x81, 3), endpoint(0x02)),
        [(0, 0), (1, 0)],
        [(0, 0, 0x81), (1, 0, 0x02)],
    ),
    Shape(
        "duplicate in a later setting of another interface",
        configuration(interface(0), interface(0, 1, 1), TWO[1], interface(1, 0, 1), TWO[1]),
        [(0, 0), (0, 1), (1, 0)],
        [(0, 1, 0x81)],
    ),
    Shape(
        "a control endpoint takes both directions",
        configuration(interface(0, 0, 3), endpoint(0x03, 0), endpoint(0x83), endpoint(0x84)),
        [(0, 0)],
        [(0, 0, 0x03), (0, 0, 0x84)],
    ),
    Shape(
        "a control endpoint needs both directions",
        configuration(interface(0, 0, 1), endpoint(0x83), interface(1, 0, 1), endpoint(0x03, 0)),
        [(0, 0), (1, 0)],
        [(0, 0, 0x83)],
    ),
    Shape(
        "a control endpoint of another interface",
        configuration(interface(0, 0, 1), endpoint(0x03, 0), interface(1, 0, 1), endpoint(0x83)),
        [(0, 0), (1, 0)],
        [(0, 0, 0x03)],
    ),
    Shape(
        "control endpoints of two settings",
        configuration(interface(0, 0, 1), endpoint(0x03, 0), interface(0, 1, 1), endpoint(0x83)),
        [(0, 0), (0, 1)],
        [(0, 0, 0x03), (0, 1, 0x83)],
    ),
    Shape(
        "bNumInterfaces too small",
        configuration(interface(0), interface(1), interface(2)),
        [(0, 0), (1, 0), (2, 0)],
        [],
    ),
    Shape("bNumInterfaces too large", configuration(interface(0)), [(0, 0)], []),
    Shape(
        "interface number 40",
        configuration(interface(40, 0, 2), *TWO[1:]),
        [(40, 0)],
        [(40, 0, 0x81), (40, 0, 2)],
    ),
    Shape(
        "no setting 0", configuration(interface(0, 2, 2), *TWO[1:]), [(0, 2)], [(0, 2, 0x81), (0, 2, 0x02)]
    ),
    Shape(
        "mixed settings",
        configuration(interface(0), interface(1), interface(0, 1, 1), TWO[1], interface(1, 1, 1), TWO[2]),
        [(0, 0), (1, 0), (0, 1), (1, 1)],
        [(0, 1, 0x81), (1, 1, 0x02)],
    ),
    Shape(
        "a setting twice",
        configuration(*TWO, interface(0, 0, 2), endpoint(0x83), interface(1, 0, 1), endpoint(0x84)),
        [(0, 0), (1, 0)],
        [*BOTH, (1, 0, 0x84)],
    ),
    Shape(
        "interface of 8 bytes",
        configuration(interface(0, 0, 1, length=8), TWO[1], interface(1, 0, 1), TWO[2]),
        [(1, 0)],
        [(1, 0, 0x02)],
    ),
    Shape(
        "interface of 8 bytes among endpoints",
        configuration(*TWO[:2], interface(1, 0, 1, length=8), TWO[2]),
        [(0, 0)],
        BOTH[:1],
    ),
    Shape("interface of 10 bytes", configuration(b"\x0a" + TWO[0][1:] + b"\0", *TWO[1:]), [(0, 0)], BOTH),
    Shape("endpoint before any interface", configuration(endpoint(0x83), *TWO), [(0, 0)], BOTH),
    Shape("a configuration within", configuration(*TWO[:2], HEADER, TWO[2]), [(0, 0)], BOTH),
    Shape("header of 12 bytes", b"\x0c" + told(configuration(b"\0\x04\0", *TWO), 35)[1:], [(0, 0)], BOTH),
    Shape(
        "33 interfaces",
        configuration(*(interface(number) for number in range(33)), interface(3, 1)),
        [*((number, 0) for number in range(MAX_INTERFACES)), (3, 1)],
        [],
    ),
    Shape(
        "129 settings",
        configuration(*(interface(7, number) for number in range(129)), interface(8)),
        [*((7, number) for number in range(MAX_SETTINGS)), (8, 0)],
        [],
    ),
]


@pytest.mark.parametrize("shape", SHAPES, ids=[shape.name for shape in SHAPES])
def test_odd_configuration(shape: Shape) -> None:
    parsed = parse_configuration(shape.raw)
    assert [(each.bInterfaceNumber, each.bAlternateSetting) for each in parsed.interfaces] == shape.settings
    found = [
        (each.bInterfaceNumber, each.bAlternateSetting, each.bEndpointAddress) for each in parsed.endpoints
    ]
    assert found == shape.endpoints


def test_the_first_of_duplicate_endpoints_wins() -> None:
    raw = configuration(interface(0, 0, 2), endpoint(0x81, 2), endpoint(0x81, 3))
    assert [each.bmAttributes for each in parse_configuration(raw).endpoints] == [2]


def test_interfaces_begin_with_setting_0_or_the_first_one() -> None:
    """usb_set_configuration in drivers/usb/core/message.c."""
    raw = configuration(interface(5, 1), interface(0, 2), interface(5, 0), interface(0, 1))
    initial = parse_configuration(raw).initial
    assert [(each.bInterfaceNumber, each.bAlternateSetting) for each in initial] == [(5, 0), (0, 2)]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "at least 9 bytes, not 0"),
        (HEADER[:8], "at least 9 bytes, not 8"),
        (b"\x09\x04" + HEADER[2:], "bDescriptorType 0x04"),
        (b"\x08" + configuration()[1:], "bLength 8"),
        (b"\x0a" + configuration()[1:], "bLength 10 .*9 to 9"),
    ],
)
def test_what_is_no_configuration_is_named(raw: bytes, message: str) -> None:
    with pytest.raises(DescriptorError, match=message):
        parse_configuration(raw)


# ---- the whole device --------------------------------------------------------------------------------------


DEVICE = bytes.fromhex(
    "12 01"  # bLength, bDescriptorType
    "00 02"  # bcdUSB
    "ef 02 01"  # bDeviceClass, bDeviceSubClass, bDeviceProtocol
    "40"  # bMaxPacketSize0
    "34 12 78 56"  # idVendor, idProduct
    "10 03"  # bcdDevice
    "01 02 03"  # iManufacturer, iProduct, iSerialNumber
    "04"  # bNumConfigurations
)


def test_device_descriptor() -> None:
    assert parse_device(DEVICE) == {
        "bDeviceClass": 0xEF,
        "bDeviceSubClass": 0x02,
        "bDeviceProtocol": 0x01,
        "idVendor": 0x1234,
        "idProduct": 0x5678,
        "bcdDevice": 0x0310,
        "bNumConfigurations": 4,
    }


@pytest.mark.parametrize("raw", [b"", DEVICE[:17], b"\x12\x02" + DEVICE[2:]])
def test_what_is_no_device_descriptor(raw: bytes) -> None:
    with pytest.raises(DescriptorError, match="is no device descriptor"):
        parse_device(raw)


def test_the_length_of_a_device_descriptor_does_not_matter() -> None:
    assert parse_device(b"\0" + DEVICE[1:]) == parse_device(DEVICE)


def numbered(value: int, *parts: bytes) -> bytes:
    raw = configuration(*parts)
    return raw[:5] + bytes((value,)) + raw[6:]


def values(configurations: tuple[Configuration, ...]) -> list[int]:
    return [each.bConfigurationValue for each in configurations]


@pytest.mark.parametrize("broken", [b"", b"\x09\x04" + HEADER[2:], HEADER[:4]])
def test_a_broken_configuration_hides_no_other(broken: bytes) -> None:
    raw = [numbered(1, *TWO), broken, numbered(3, interface(2))]
    found = parse_descriptors(DEVICE, raw)
    assert values(found.configurations) == [1, 3]
    assert found.configuration(3) == parse_configuration(raw[2])
    assert found.configuration(2) is None


def test_of_two_configurations_with_one_number_the_first_counts() -> None:
    found = parse_descriptors(DEVICE, [numbered(1, *TWO), numbered(1, interface(7)), numbered(2)])
    assert found.configuration(1) == parse_configuration(numbered(1, *TWO))
    assert values(found.configurations) == [1, 2], "no request reaches the second one"


@pytest.mark.parametrize(
    ("raw", "message"), [([], "no configuration descriptor"), ([b"\x09"], "configuration 0: .* not 1")]
)
def test_a_device_without_any_configuration_is_named(raw: list[bytes], message: str) -> None:
    with pytest.raises(DescriptorError, match=message):
        parse_descriptors(DEVICE, raw)


def test_no_more_configurations_are_read_than_linux_reads() -> None:
    many = [numbered(number) for number in range(20)]
    assert values(parse_descriptors(DEVICE, many).configurations) == list(range(MAX_CONFIGURATIONS))


def shown(*configurations: bytes) -> bytes:
    """The attribute `descriptors` in sysfs."""
    return DEVICE[:17] + bytes((len(configurations),)) + b"".join(configurations)


FIRST, SECOND, THIRD = numbered(1, *TWO), numbered(2), numbered(3, interface(0))


@pytest.mark.parametrize(
    "configurations",
    [
        [FIRST],
        [FIRST, SECOND],
        [FIRST, SECOND, THIRD],
        [told(FIRST, 0x1000), told(SECOND, 0x1000), told(THIRD, 3)],  # each was cut by the kernel
        [numbered(1, *TWO, SECOND)],  # one within another one is no other one
        [numbered(1, *TWO, SECOND), THIRD],
    ],
)
def test_configurations_in_sysfs_are_told_apart(configurations: list[bytes]) -> None:
    device, found = split_descriptors(shown(*configurations))
    assert device[:17] == DEVICE[:17]
    assert found == configurations


def test_what_is_missing_in_sysfs_is_missing() -> None:
    assert split_descriptors(b"") == (b"", [])
    assert split_descriptors(DEVICE[:10]) == (DEVICE[:10], [])
    assert split_descriptors(DEVICE) == (DEVICE, [])
    assert split_descriptors(DEVICE + FIRST + b"\0") == (DEVICE, [FIRST + b"\0"])


def test_configurations_are_told_apart_in_one_pass() -> None:
    """A device may consist of configuration descriptors of two bytes, which the kernel skips."""
    raw = told(FIRST, 0) + b"\x02\x02" * 10_000
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"  # also of a generator that goes on

    sys.setprofile(count)
    try:
        _device, found = split_descriptors(DEVICE[:17] + bytes((MAX_CONFIGURATIONS,)) + raw)
    finally:
        sys.setprofile(None)
    assert len(found) == MAX_CONFIGURATIONS
    assert calls < 2 * 10_000


# ---- any bytes ---------------------------------------------------------------------------------------------

PIECES: Final = st.one_of(
    st.binary(max_size=12),
    st.builds(interface, st.integers(0, 5), st.integers(0, 3), st.integers(0, 255), length=st.integers(7, 9)),
    st.builds(endpoint, st.integers(0, 255), st.integers(0, 255), length=st.integers(5, 9)),
    st.just(HEADER),
)
RAW: Final = st.binary(max_size=80) | st.builds(
    told, st.lists(PIECES, max_size=60).map(lambda parts: configuration(*parts)), st.integers(0, 0xFFFF)
)


@given(RAW)
def test_any_bytes_give_a_configuration_or_an_error(raw: bytes) -> None:
    try:
        parsed = parse_configuration(raw)
    except DescriptorError:
        return
    assert len(parsed.interfaces) * 9 + len(parsed.endpoints) * 7 + 9 <= len(raw)
    settings = [(each.bInterfaceNumber, each.bAlternateSetting) for each in parsed.interfaces]
    assert len(set(settings)) == len(settings)
    assert {each.bInterfaceNumber for each in parsed.initial} == {number for number, _ in settings}
    places: dict[int, int] = {}
    for each in parsed.endpoints:
        assert (each.bInterfaceNumber, each.bAlternateSetting) in settings
        assert 0 < each.bEndpointAddress & 0x7F < 16
        assert places.setdefault(each.bEndpointAddress, each.bInterfaceNumber) == each.bInterfaceNumber
    for number, alternate in settings:
        here = [
            e for e in parsed.endpoints if (e.bInterfaceNumber, e.bAlternateSetting) == (number, alternate)
        ]
        assert len({e.bEndpointAddress for e in here}) == len(here) <= MAX_ENDPOINTS


@given(RAW, st.lists(RAW, max_size=9))
def test_any_bytes_give_a_device_or_an_error(raw: bytes, more: list[bytes]) -> None:
    device, configurations = split_descriptors(DEVICE[:17] + raw + b"".join(more))
    assert len(device) + sum(map(len, configurations)) <= 17 + len(raw) + sum(map(len, more))
    for each in (configurations, [raw, *more]):
        try:
            assert 1 <= len(parse_descriptors(device, each).configurations) <= MAX_CONFIGURATIONS
        except DescriptorError:
            continue


def test_the_longest_configuration_is_read_in_one_pass() -> None:
    """65,535 bytes of endpoints: each is looked up, none is compared with all others."""
    raw = told(configuration(interface(0, 0, 255), *(endpoint(0x81, 3) for _ in range(9359))), 0xFFFF)
    assert len(parse_configuration(raw).endpoints) == 1
