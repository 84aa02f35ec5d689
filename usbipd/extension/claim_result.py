"""Checks what a worker reports of its device before it is passed on.  Runs in the extension.

A worker talks to a device of unknown make; what it says of it goes to every client.
"""

import struct

from usbipd.errors import ClaimError
from usbipd.protocol.op import UsbDevice, encode_devlist_reply
from usbipd.usb.discovery import DeviceRecord


def check_claim_result(record: DeviceRecord, device: UsbDevice) -> None:
    """Raises `ClaimError` unless `device` is the one that was to be claimed and fits the wire."""
    if (device.busid, device.busnum, device.devnum) != (record.busid, record.busnum, record.devnum):
        raise ClaimError(f"{record.busid}: the worker claimed {device.busid}", code="bad-message")
    try:
        encode_devlist_reply([device])
    except (ValueError, struct.error) as error:
        raise ClaimError(
            f"{record.busid} cannot be described to clients: {error}", code="bad-message"
        ) from error
