"""Descriptors: bytes become interfaces and endpoints.  Used by the extension and by workers.

Devices break the rules of USB 2.0, sections 9.5 and 9.6, and work anyway, because hosts are lenient.  This
reader makes of any bytes what Linux makes of them; the names in parentheses are functions of
drivers/usb/core/config.c, unless another file is named.  What is present counts: bNumEndpoints and
wTotalLength are upper limits, and bNumInterfaces is not read.  Fields keep the names of the specification.
"""

import struct
from collections.abc import Iterator, Sequence
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
    USB_ENDPOINT_XFER_CONTROL,
    USB_ENDPOINT_XFERTYPE_MASK,
)

MAX_CONFIGURATIONS: Final = 8  # USB_MAXCONFIG in drivers/usb/core/config.c
MAX_INTERFACES: Final = 32  # USB_MAXINTERFACES in include/linux/usb.h
MAX_SETTINGS: Final = 128  # USB_MAXALTSETTING in drivers/usb/core/config.c
MAX_ENDPOINTS: Final = 30  # USB_MAXENDPOINTS in include/linux/usb.h

_HEADER: Final = struct.Struct("<BB")  # bLength, bDescriptorType: USB 2.0, 9.5
_DEVICE: Final = struct.Struct("<4xBBBxHHH3xB")  # USB 2.0, table 9-8
_CONFIGURATION: Final = struct.Struct("<2xHxB")  # wTotalLength, bConfigurationValue: USB 2.0, table 9-10
_INTERFACE: Final = struct.Struct("<2xBBxBBB")  # USB 2.0, table 9-12, without bNumEndpoints
_NUM_ENDPOINTS: Final = 4  # where that is
_ENDPOINT: Final = struct.Struct("<2xBBHB")  # USB 2.0, table 9-13


class DescriptorError(UsbipdError):
    """The bytes are not what they are said to be: there is nothing to be read from them."""


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
    """Every setting of every interface; those of two interfaces may be mixed."""
    endpoints: tuple[Endpoint, ...]

    @property
    def initial(self) -> tuple[Interface, ...]:
        """Each interface once, with the setting that it has when the configuration is set.

        That is setting 0, and the first one of an interface that has no setting 0 (usb_set_configuration in
        drivers/usb/core/message.c).
        """
        chosen: dict[int, Interface] = {}
        for each in self.interfaces:
            if each.bInterfaceNumber not in chosen or each.bAlternateSetting == 0:
                chosen[each.bInterfaceNumber] = each
        return tuple(chosen.values())


class DeviceDescriptors(msgspec.Struct, frozen=True):
    """All that a device says of itself."""

    fields: dict[str, int]
    """As `parse_device` returns them."""
    configurations: tuple[Configuration, ...]
    """Those that could be read, in their order, each bConfigurationValue once; at least one."""

    def configuration(self, value: int) -> Configuration | None:
        """The one with this bConfigurationValue."""
        return next((each for each in self.configurations if each.bConfigurationValue == value), None)


def parse_descriptors(device: bytes, configurations: Sequence[bytes]) -> DeviceDescriptors:
    """A device descriptor, and each configuration descriptor with all that belongs to it.

    One that cannot be read hides no other, and no more than `MAX_CONFIGURATIONS` are read
    (usb_get_configuration).  Of those with the same bConfigurationValue only the first can be set
    (usb_set_configuration in drivers/usb/core/message.c): the others are left out.  Raises
    `DescriptorError` for no device descriptor, and if no configuration can be read.
    """
    fields = parse_device(device)
    found: list[Configuration] = []
    problem: str | None = None
    for index, raw in enumerate(configurations[:MAX_CONFIGURATIONS]):
        try:
            parsed = parse_configuration(raw)
        except DescriptorError as error:
            problem = problem or f"configuration {index}: {error.message}"
            continue
        if all(each.bConfigurationValue != parsed.bConfigurationValue for each in found):
            found.append(parsed)
    if not found:
        raise DescriptorError(problem or "there is no configuration descriptor")
    return DeviceDescriptors(fields, tuple(found))


def split_descriptors(raw: bytes) -> tuple[bytes, list[bytes]]:
    """The device descriptor and the configurations in what Linux shows as `descriptors` in sysfs.

    They follow each other there, each with its own wTotalLength and cut where its chain of descriptors ends
    (descriptors_read in drivers/usb/core/sysfs.c): a configuration ends where the next configuration
    descriptor begins.  One inside of a configuration, which the kernel skips, is recognized only if
    wTotalLength is right.  Raises nothing: what is missing is missing in the result.
    """
    device, at = raw[:USB_DT_DEVICE_SIZE], USB_DT_DEVICE_SIZE
    count = min(device[-1], MAX_CONFIGURATIONS) if len(device) == USB_DT_DEVICE_SIZE else 0
    begins = [begin for begin, kind, _length in _chain(raw, at, len(raw)) if kind == USB_DT_CONFIG]
    configurations: list[bytes] = []
    while len(configurations) < count and at < len(raw):
        end = len(raw)
        if len(configurations) < count - 1:
            promised = at + int.from_bytes(raw[at + 2 : at + 4], "little")
            later = [begin for begin in begins if begin > at]
            end = promised if promised in later else next(iter(later), end)
        configurations.append(raw[at:end])
        at = end
    return device, configurations


def parse_device(raw: bytes) -> dict[str, int]:
    """The fields of a device descriptor (18 bytes) that OP_REP_IMPORT carries.

    bLength is not read (usb_get_device_descriptor in drivers/usb/core/message.c).  Raises `DescriptorError`.
    """
    if len(raw) < USB_DT_DEVICE_SIZE or raw[1] != USB_DT_DEVICE:
        raise DescriptorError(f"{raw[:2].hex(' ')} with {len(raw)} bytes is no device descriptor")
    names = "bDeviceClass bDeviceSubClass bDeviceProtocol idVendor idProduct bcdDevice bNumConfigurations"
    return dict(zip(names.split(), _DEVICE.unpack_from(raw), strict=True))


def parse_configuration(raw: bytes) -> Configuration:
    """The configuration whose descriptor, with all that belongs to it, is `raw`.

    - Bytes behind wTotalLength do not count; fewer bytes are no fault (usb_get_configuration).
    - The configuration ends before a descriptor that is longer than what is left, or shorter than its header
      (usb_parse_configuration).
    - Whatever has an interface descriptor is an interface, regardless of bNumInterfaces and of its number.
      There are at most `MAX_INTERFACES`, with `MAX_SETTINGS` each (usb_parse_configuration).  The settings of
      an interface need not follow each other.
    - An interface descriptor that is too short, or repeats a setting, is skipped with its endpoints
      (usb_parse_interface).
    - An endpoint descriptor is skipped if it is too short, has number 0, exceeds bNumEndpoints or
      `MAX_ENDPOINTS`, comes before any interface, or if this setting or another interface already has the
      endpoint.  Reserved bits of bEndpointAddress are cleared (usb_parse_endpoint in Linux 6.12).
    - Descriptors of other types are skipped (find_next_descriptor).

    The values of an endpoint are the device's own: Linux corrects bInterval and wMaxPacketSize for its host
    controllers, which apply them whatever is read here.

    Raises `DescriptorError` if `raw` does not begin with a whole configuration descriptor.
    """
    if len(raw) < USB_DT_CONFIG_SIZE:
        raise DescriptorError(
            f"a configuration descriptor has at least {USB_DT_CONFIG_SIZE} bytes, not {len(raw)}"
        )
    total, value = _CONFIGURATION.unpack_from(raw)
    end = min(max(total, USB_DT_CONFIG_SIZE), len(raw))
    if not USB_DT_CONFIG_SIZE <= raw[0] <= end or raw[1] != USB_DT_CONFIG:
        raise DescriptorError(
            f"bLength {raw[0]} and bDescriptorType {raw[1]:#04x} are not those of a configuration descriptor "
            f"({USB_DT_CONFIG_SIZE} to {end}, and {USB_DT_CONFIG:#04x})"
        )
    reader = _ConfigurationReader(value)
    for at, kind, length in _chain(raw, raw[0], end):
        if kind == USB_DT_INTERFACE:
            reader.interface(raw, at, length)
        elif kind == USB_DT_ENDPOINT:
            reader.endpoint(raw, at, length)
    return Configuration(value, tuple(reader.interfaces), tuple(reader.endpoints))


def _chain(raw: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Offset, bDescriptorType and bLength of each whole descriptor from `begin` on, up to one that is not."""
    at = begin
    while end - at >= _HEADER.size:
        length, kind = _HEADER.unpack_from(raw, at)
        if not _HEADER.size <= length <= end - at:
            return
        yield at, kind, length
        at += length


class _ConfigurationReader:
    """What has been found so far."""

    def __init__(self, value: int) -> None:
        self._value = value
        self.interfaces: list[Interface] = []
        self.endpoints: list[Endpoint] = []
        self._settings: dict[int, set[int]] = {}
        """By bInterfaceNumber: each bAlternateSetting."""
        self._current: Interface | None = None
        """None: what follows belongs to no interface."""
        self._room = 0
        """Endpoints that the current setting may still have."""
        self._here: dict[int, bool] = {}
        """By bEndpointAddress, for the current setting: whether it is a control endpoint."""
        self._owners: dict[int, int] = {}
        """By bEndpointAddress: the interface that has it in one of its settings.  No other one can get it."""
        self._controls: set[int] = set()
        """Those of them that are a control endpoint in one of the settings."""

    def interface(self, raw: bytes, at: int, length: int) -> None:
        self._current = None
        if length < USB_DT_INTERFACE_SIZE:
            return
        found = Interface(*_INTERFACE.unpack_from(raw, at))
        if found.bInterfaceNumber not in self._settings and len(self._settings) == MAX_INTERFACES:
            return
        settings = self._settings.setdefault(found.bInterfaceNumber, set())
        if found.bAlternateSetting in settings or len(settings) == MAX_SETTINGS:
            return
        settings.add(found.bAlternateSetting)
        self.interfaces.append(found)
        self._current = found
        self._room = min(raw[at + _NUM_ENDPOINTS], MAX_ENDPOINTS)
        self._here = {}

    def endpoint(self, raw: bytes, at: int, length: int) -> None:
        current = self._current
        if current is None or length < USB_DT_ENDPOINT_SIZE or self._room == 0:
            return
        address, attributes, size, interval = _ENDPOINT.unpack_from(raw, at)
        address &= USB_DIR_IN | USB_ENDPOINT_NUMBER_MASK
        is_control = attributes & USB_ENDPOINT_XFERTYPE_MASK == USB_ENDPOINT_XFER_CONTROL
        if not address & USB_ENDPOINT_NUMBER_MASK or self._has(current.bInterfaceNumber, address, is_control):
            return
        self._room -= 1
        self._here[address] = is_control
        self._owners.setdefault(address, current.bInterfaceNumber)
        if is_control:
            self._controls.add(address)
        self.endpoints.append(
            Endpoint(
                self._value,
                current.bInterfaceNumber,
                current.bAlternateSetting,
                address,
                attributes,
                size,
                interval,
            )
        )

    def _has(self, interface: int, address: int, is_control: bool) -> bool:
        """Whether this endpoint exists already (config_endpoint_is_duplicate).  A control endpoint takes both
        directions of its number (endpoint_is_duplicate)."""
        opposite = address ^ USB_DIR_IN
        here, there = (
            self._here,
            [each for each in (address, opposite) if self._owners.get(each, interface) != interface],
        )
        return (
            address in here
            or address in there
            or (opposite in here and (is_control or here[opposite]))
            or (opposite in there and (is_control or opposite in self._controls))
        )
