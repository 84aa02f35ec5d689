"""Encodes the descriptors of simulated devices.  Runs in workers.

Source: USB 2.0, section 9.6.  Parameters keep the names of the specification; `usbipd.usb.descriptors` is the
decoder.
"""

import struct
from typing import Final

from usbipd.protocol.constants import (
    USB_CONFIG_ATT_ONE,
    USB_CONFIG_ATT_WAKEUP,
    USB_DT_BOS,
    USB_DT_CONFIG,
    USB_DT_CONFIG_SIZE,
    USB_DT_DEVICE,
    USB_DT_DEVICE_CAPABILITY,
    USB_DT_DEVICE_SIZE,
    USB_DT_ENDPOINT,
    USB_DT_ENDPOINT_SIZE,
    USB_DT_INTERFACE,
    USB_DT_INTERFACE_SIZE,
    USB_DT_SS_ENDPOINT_COMP,
    USB_DT_STRING,
)

ID_VENDOR: Final = 0x1D6B  # The Linux Foundation; products 01f0 to 01ff are in no list (usb.ids)

STRING_MANUFACTURER: Final = 1  # indexes into SimulatedDevice.strings, the same in every simulated device
STRING_PRODUCT: Final = 2
STRING_SERIAL: Final = 3

_LANGUAGE_ENGLISH: Final = 0x0409  # USB language identifiers 1.0: English (United States)
_MAX_STRING: Final = 126  # UTF-16 code units; bLength is one byte: USB 2.0, table 9-16
_BCD_DEVICE: Final = 0x0100
_MAX_POWER: Final = 50  # units of 2 mA: USB 2.0, table 9-10


def device_descriptor(
    idProduct: int,
    *,
    bcdUSB: int,
    bDeviceClass: int = 0,
    bDeviceSubClass: int = 0,
    bDeviceProtocol: int = 0,
    bMaxPacketSize0: int = 64,
    bNumConfigurations: int = 1,
) -> bytes:
    """The device descriptor of a simulated device (USB 2.0, table 9-8)."""
    return struct.pack(
        "<BBHBBBBHHHBBBB",
        USB_DT_DEVICE_SIZE,
        USB_DT_DEVICE,
        bcdUSB,
        bDeviceClass,
        bDeviceSubClass,
        bDeviceProtocol,
        bMaxPacketSize0,
        ID_VENDOR,
        idProduct,
        _BCD_DEVICE,
        STRING_MANUFACTURER,
        STRING_PRODUCT,
        STRING_SERIAL,
        bNumConfigurations,
    )


def interface_descriptor(
    bInterfaceNumber: int,
    bNumEndpoints: int,
    bInterfaceClass: int,
    bInterfaceSubClass: int = 0,
    bInterfaceProtocol: int = 0,
    *,
    bAlternateSetting: int = 0,
) -> bytes:
    """An interface descriptor (USB 2.0, table 9-12)."""
    return bytes(
        (
            USB_DT_INTERFACE_SIZE,
            USB_DT_INTERFACE,
            bInterfaceNumber,
            bAlternateSetting,
            bNumEndpoints,
            bInterfaceClass,
            bInterfaceSubClass,
            bInterfaceProtocol,
            0,
        )
    )


def endpoint_descriptor(
    bEndpointAddress: int, bmAttributes: int, wMaxPacketSize: int, bInterval: int, *, extra: bytes = b""
) -> bytes:
    """An endpoint descriptor (USB 2.0, table 9-13); `extra` holds the bytes that a class appends."""
    return (
        struct.pack(
            "<BBBBHB",
            USB_DT_ENDPOINT_SIZE + len(extra),
            USB_DT_ENDPOINT,
            bEndpointAddress,
            bmAttributes,
            wMaxPacketSize,
            bInterval,
        )
        + extra
    )


def companion_descriptor(wBytesPerInterval: int = 0) -> bytes:
    """The descriptor after each SuperSpeed endpoint descriptor: no bursts (USB 3.2, table 9-30).

    `wBytesPerInterval` is for interrupt and isochronous endpoints.
    """
    return struct.pack("<BBBBH", 6, USB_DT_SS_ENDPOINT_COMP, 0, 0, wBytesPerInterval)


def super_speed_bos() -> bytes:
    """The BOS of a SuperSpeed device that works at high and full speed too (USB 3.2, 9.6.2)."""
    usb2 = struct.pack("<BBBI", 7, USB_DT_DEVICE_CAPABILITY, 2, 0)  # table 9-14: no link power management
    # table 9-15: wSpeedsSupported full, high and super; bFunctionalitySupport full; no latencies
    super_speed = struct.pack("<BBBBHBBH", 10, USB_DT_DEVICE_CAPABILITY, 3, 0, 0b1110, 1, 0, 0)
    total = 5 + len(usb2) + len(super_speed)
    return struct.pack("<BBHB", 5, USB_DT_BOS, total, 2) + usb2 + super_speed


def configuration_descriptor(
    *parts: bytes, bConfigurationValue: int = 1, remote_wakeup: bool = False
) -> bytes:
    """A configuration of a bus-powered device; `parts` are the descriptors after the first, in order."""
    numbers = {part[2] for part in parts if part[1] == USB_DT_INTERFACE}
    body = b"".join(parts)
    return (
        struct.pack(
            "<BBHBBBBB",
            USB_DT_CONFIG_SIZE,
            USB_DT_CONFIG,
            USB_DT_CONFIG_SIZE + len(body),
            len(numbers),
            bConfigurationValue,
            0,
            USB_CONFIG_ATT_ONE | (USB_CONFIG_ATT_WAKEUP if remote_wakeup else 0),
            _MAX_POWER,
        )
        + body
    )


def string_descriptors(strings: tuple[str, ...]) -> tuple[bytes, ...]:
    """String descriptor 0, which lists the languages, then one for each of `strings` (USB 2.0, 9.6.7).

    Raises `ValueError` for a string of more than 126 UTF-16 code units.
    """
    descriptors = [struct.pack("<BBH", 4, USB_DT_STRING, _LANGUAGE_ENGLISH)]
    for text in strings:
        encoded = text.encode("utf-16-le")
        if len(encoded) > 2 * _MAX_STRING:
            raise ValueError(
                f"a string descriptor holds {_MAX_STRING} UTF-16 code units, not {len(encoded) // 2}"
            )
        descriptors.append(bytes((2 + len(encoded), USB_DT_STRING)) + encoded)
    return tuple(descriptors)
