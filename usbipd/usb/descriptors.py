"""Descriptors: bytes become interfaces and endpoints.  Used by the extension and by workers.

Source: USB 2.0, sections 9.5 and 9.6.  Fields keep the names of the specification.
"""

import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from usbipd.errors import UsbipdError
from usbipd.protocol.constants import (
    USB_DIR_IN,
    USB_DT_CONFIG,
    USB_DT_CONFIG_SIZE,
    USB_DT_DEVICE,
    USB_DT_DEVICE_SIZE,
    USB_DT_ENDPOINT,
    USB_DT_ENDPOINT_SIZE,
    USB_DT_INTERFACE,
    USB_DT_INTERFACE_SIZE,
    USB_ENDPOINT_NUMBER_MASK,
)

_HEADER: Final = struct.Struct("<BB")  # bLength, bDescriptorType: USB 2.0, 9.5
_DEVICE: Final = struct.Struct("<4xBBBxHHH3xB")  # USB 2.0, table 9-8
_CONFIGURATION: Final = struct.Struct("<2xHxB")  # wTotalLength, bConfigurationValue: USB 2.0, table 9-10
_INTERFACE: Final = struct.Struct("<2xBBxBBB")  # USB 2.0, table 9-12, without bNumEndpoints
_ENDPOINT: Final = struct.Struct("<2xBBHB")  # USB 2.0, table 9-13


class DescriptorError(UsbipdError):
    """The device's descriptors contradict the USB specification."""


class Interface(msgspec.Struct, frozen=True):
    """One alternate setting of an interface (USB 2.0, table 9-12)."""

    bInterfaceNumber: int
    bAlternateSetting: int
    bInterfaceClass: int
    bInterfaceSubClass: int
    bInterfaceProtocol: int


class Endpoint(msgspec.Struct, frozen=True):
    """One endpoint of an alternate setting (USB 2.0, table 9-13), with the setting that it belongs to."""

    bConfigurationValue: int
    bInterfaceNumber: int
    bAlternateSetting: int
    bEndpointAddress: int
    bmAttributes: int
    wMaxPacketSize: int
    bInterval: int


class Configuration(msgspec.Struct, frozen=True):
    """A configuration with everything in it, in the order of the descriptors."""

    bConfigurationValue: int
    interfaces: tuple[Interface, ...]
    endpoints: tuple[Endpoint, ...]


def parse_device(raw: bytes) -> dict[str, int]:
    """The fields of a device descriptor (18 bytes) that OP_REP_IMPORT carries.  Raises `DescriptorError`."""
    if len(raw) < USB_DT_DEVICE_SIZE or raw[0] < USB_DT_DEVICE_SIZE or raw[1] != USB_DT_DEVICE:
        raise DescriptorError(f"{raw[:2].hex(' ')} with {len(raw)} bytes is no device descriptor")
    names = "bDeviceClass bDeviceSubClass bDeviceProtocol idVendor idProduct bcdDevice bNumConfigurations"
    return dict(zip(names.split(), _DEVICE.unpack_from(raw), strict=True))


def parse_configuration(raw: bytes) -> Configuration:
    """The configuration whose descriptor, with all that belongs to it, is `raw`.

    Bytes behind wTotalLength do not count.  Fewer bytes than wTotalLength are accepted, as
    drivers/usb/core/config.c does: there are devices that promise more than they have.  Descriptors of other
    types (class-specific, associations, SuperSpeed companions) are passed over.

    Raises `DescriptorError` if `raw` is no configuration descriptor, the chain of descriptors is broken, an
    interface or endpoint descriptor is too short, or an endpoint is outside an interface, has number 0 or
    stands twice in one setting.
    """
    if len(raw) < USB_DT_CONFIG_SIZE:
        raise DescriptorError(
            f"a configuration descriptor has at least {USB_DT_CONFIG_SIZE} bytes, not {len(raw)}"
        )
    if raw[0] < USB_DT_CONFIG_SIZE or raw[1] != USB_DT_CONFIG:
        raise DescriptorError(
            f"bLength {raw[0]} and bDescriptorType {raw[1]:#04x} are not those of a configuration descriptor "
            f"({USB_DT_CONFIG_SIZE} and {USB_DT_CONFIG:#04x})"
        )
    total, value = _CONFIGURATION.unpack_from(raw)
    interfaces: list[Interface] = []
    endpoints: dict[tuple[int, int, int], Endpoint] = {}
    current: Interface | None = None
    for at, kind, length in _chain(raw, raw[0], min(total, len(raw))):
        if kind == USB_DT_INTERFACE:
            _check_length(at, "interface", length, USB_DT_INTERFACE_SIZE)
            current = Interface(*_INTERFACE.unpack_from(raw, at))
            interfaces.append(current)
        elif kind == USB_DT_ENDPOINT:
            _check_length(at, "endpoint", length, USB_DT_ENDPOINT_SIZE)
            if current is None:
                raise DescriptorError(f"the endpoint descriptor at byte {at} comes before any interface")
            endpoint = Endpoint(
                value, current.bInterfaceNumber, current.bAlternateSetting, *_ENDPOINT.unpack_from(raw, at)
            )
            _add(endpoints, endpoint, at)
    return Configuration(value, tuple(interfaces), tuple(endpoints.values()))


def _chain(raw: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Offset, bDescriptorType and bLength of each descriptor between `begin` and `end`."""
    at = begin
    while at < end:
        if end - at < _HEADER.size:
            raise DescriptorError(f"the configuration ends in the middle of a descriptor at byte {at}")
        length, kind = _HEADER.unpack_from(raw, at)
        if not _HEADER.size <= length <= end - at:
            raise DescriptorError(
                f"the descriptor at byte {at} has bLength {length}; {_HEADER.size} to {end - at} is possible"
            )
        yield at, kind, length
        at += length


def _check_length(at: int, what: str, length: int, least: int) -> None:
    if length < least:
        raise DescriptorError(f"the {what} descriptor at byte {at} has bLength {length}, less than {least}")


def _add(endpoints: dict[tuple[int, int, int], Endpoint], endpoint: Endpoint, at: int) -> None:
    address = endpoint.bEndpointAddress
    if address & ~(USB_DIR_IN | USB_ENDPOINT_NUMBER_MASK) or not address & USB_ENDPOINT_NUMBER_MASK:
        raise DescriptorError(
            f"the endpoint descriptor at byte {at} has bEndpointAddress {address:#04x}; "
            "0x01 to 0x0f and 0x81 to 0x8f are possible"
        )
    key = endpoint.bInterfaceNumber, endpoint.bAlternateSetting, address
    if key in endpoints:
        raise DescriptorError(
            f"endpoint {address:#04x} stands twice in interface {endpoint.bInterfaceNumber}, "
            f"alternate setting {endpoint.bAlternateSetting}"
        )
    endpoints[key] = endpoint
