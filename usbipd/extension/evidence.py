"""What a worker shows of its device: checked before anybody else sees it.  Runs in the extension.

A worker talks to a device of unknown make; what it says of it goes to every client, and what it counts into
memory that we read.
"""

import _posixshmem  # type: ignore[import-not-found]  # of multiprocessing.shared_memory
import fcntl
import mmap
import os
import secrets
import struct
import sys

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
    """A page of zeros that a worker may map too, and its descriptor, which the caller closes.

    The descriptor is a worker's, which may be hostile: memory whose size changed would make us read behind
    its end, which is SIGBUS, or use up the memory of the host.  So its size is fixed for good: on Linux by
    seals, which only memfd_create(2) has; on macOS because the size of POSIX shared memory can be set once
    (ftruncate(2): EINVAL for an object that has one).  Raises `OSError`.
    """
    if sys.platform == "linux":
        descriptor = os.memfd_create("usbipd-counters", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        descriptor = shared_memory()
    try:
        os.ftruncate(descriptor, COUNTER_PAGE_SIZE)
        if sys.platform == "linux":
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        return mmap.mmap(descriptor, COUNTER_PAGE_SIZE, prot=mmap.PROT_READ), descriptor
    except OSError:
        os.close(descriptor)
        raise


def shared_memory() -> int:
    """POSIX shared memory without a name and still without a size.

    On macOS its descriptor has neither read(2) nor lseek(2).  Raises `OSError`.
    """
    name = f"/usbipd-{secrets.token_hex(8)}"  # shm_open(2) of macOS: at most 31 characters (PSHMNAMLEN)
    descriptor: int = _posixshmem.shm_open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    _posixshmem.shm_unlink(name)
    return descriptor
