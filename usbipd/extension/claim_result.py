"""Checks a worker's description of its device before clients get it.  Runs in the extension.

A worker may have been compromised by its device, so its answer is not trusted.
"""

import struct

from usbipd.errors import ClaimError
from usbipd.protocol.op import UsbDevice, encode_devlist_reply
from usbipd.usb.discovery import DeviceRecord


def check_claim_result(record: DeviceRecord, device: UsbDevice) -> None:
    """Raises `ClaimError` unless `device` is the one in `record` and can be encoded for the wire."""
    if (device.busid, device.busnum, device.devnum) != (record.busid, record.busnum, record.devnum):
        raise ClaimError(f"{record.busid}: the worker claimed {device.busid}", code="bad-message")
    try:
        encode_devlist_reply([device])
    except (ValueError, struct.error) as error:
        raise ClaimError(
            f"{record.busid} cannot be encoded for clients: {error}", code="bad-message"
        ) from error
