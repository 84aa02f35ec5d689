"""What a worker shows of its device: checked before anybody else sees it.  Runs in the extension.

A worker talks to a device of unknown make; what it says of it goes to every client, and what it counts into
memory that we read.
"""

import fcntl
import mmap
import os
import struct
import sys
import tempfile

from usbipd.errors import ClaimError
from usbipd.protocol.op import UsbDevice, encode_devlist_reply
from usbipd.usb.discovery import DeviceRecord
from usbipd.worker.report import COUNTER_PAGE_SIZE


def check_claimed(record: DeviceRecord, device: UsbDevice) -> None:
    """Raises `ClaimError` unless `device` is the one that was to be claimed and fits the wire."""
    if (device.busid, device.busnum, device.devnum) != (record.busid, record.busnum, record.devnum):
        raise ClaimError(f"{record.busid}: the worker claimed {device.busid}", code="bad-message")
    try:
        encode_devlist_reply([device])
    except (ValueError, struct.error) as error:
        raise ClaimError(
            f"{record.busid} cannot be described to clients: {error}", code="bad-message"
        ) from error


def counter_page() -> tuple[mmap.mmap, int]:
    """A page of zeros that a worker may map too, and its descriptor, which the caller closes."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("usbipd-counters", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, COUNTER_PAGE_SIZE)
        # A worker that shrank it would make us read behind the end of a file, which is SIGBUS.
        fcntl.fcntl(
            descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        )
    else:
        with tempfile.TemporaryFile() as file:
            file.truncate(COUNTER_PAGE_SIZE)
            descriptor = os.dup(file.fileno())
    return mmap.mmap(descriptor, COUNTER_PAGE_SIZE, prot=mmap.PROT_READ), descriptor
