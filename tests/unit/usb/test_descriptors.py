"""Configuration descriptors: any bytes give a Configuration or a DescriptorError."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbipd.usb.descriptors import DescriptorError, Endpoint, Interface, parse_configuration, parse_device

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


def test_bytes_behind_the_total_length_do_not_count() -> None:
    assert parse_configuration(WHOLE + b"\x00\xff") == parse_configuration(WHOLE)


def test_a_device_that_promises_more_than_it_has_is_accepted() -> None:
    longer = WHOLE[:2] + b"\xff\xff" + WHOLE[4:]
    assert parse_configuration(longer) == parse_configuration(WHOLE)


def test_the_same_endpoint_may_stand_in_each_alternate_setting() -> None:
    raw = configuration(INTERFACE_1_0, INTERRUPT_IN, INTERFACE_1_1, INTERRUPT_IN)
    assert [e.bAlternateSetting for e in parse_configuration(raw).endpoints] == [0, 1]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "at least 9 bytes, not 0"),
        (HEADER[:8], "at least 9 bytes, not 8"),
        (b"\x09\x04" + HEADER[2:], "bDescriptorType 0x04"),
        (b"\x08\x02" + HEADER[2:], "bLength 8"),
        (configuration(b"\x00\x04"), "byte 9 has bLength 0"),
        (configuration(b"\x01"), "ends in the middle of a descriptor at byte 9"),
        (configuration(INTERFACE_0[:-1]), "byte 9 has bLength 9; 2 to 8 is possible"),
        (configuration(b"\x08" + INTERFACE_0[1:-1]), "interface descriptor at byte 9 has bLength 8"),
        (
            configuration(INTERFACE_0, b"\x06" + INTERRUPT_IN[1:-1]),
            "endpoint descriptor at byte 18 has bLength 6",
        ),
        (configuration(INTERRUPT_IN), "before any interface"),
        (configuration(INTERFACE_0, INTERRUPT_IN, INTERRUPT_IN), "endpoint 0x81 stands twice"),
        (configuration(INTERFACE_0, b"\x07\x05\x80" + INTERRUPT_IN[3:]), "bEndpointAddress 0x80"),
        (configuration(INTERFACE_0, b"\x07\x05\x91" + INTERRUPT_IN[3:]), "bEndpointAddress 0x91"),
    ],
)
def test_nonsense_is_named(raw: bytes, message: str) -> None:
    with pytest.raises(DescriptorError, match=message):
        parse_configuration(raw)


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


@pytest.mark.parametrize("raw", [b"", DEVICE[:17], b"\x11" + DEVICE[1:], b"\x12\x02" + DEVICE[2:]])
def test_what_is_no_device_descriptor(raw: bytes) -> None:
    with pytest.raises(DescriptorError, match="is no device descriptor"):
        parse_device(raw)


@given(st.binary(max_size=80) | st.binary(max_size=80).map(lambda tail: configuration(INTERFACE_0, tail)))
def test_any_bytes_give_a_configuration_or_an_error(raw: bytes) -> None:
    try:
        parsed = parse_configuration(raw)
    except DescriptorError:
        return
    assert len(parsed.interfaces) * 9 + len(parsed.endpoints) * 7 + 9 <= len(raw)
