"""The counter page: memory in which a worker counts its traffic and the extension reads it.

The pump (cython/counters.pxi) writes in the worker; the extension maps the same page and reads it, at no cost
for the pump.  Each word is written atomically; the words of one reading may be some microseconds apart.  A
compromised worker may write anything: the readers then return nonsense, but never raise.
"""

import _posixshmem  # type: ignore[import-not-found]  # of multiprocessing.shared_memory
import fcntl
import itertools
import mmap
import os
import struct
import sys
import time
from typing import Final

from usbipd.ipc.control_messages import Counters, Latency, Rate

LATENCY_BUCKETS: Final = 24
# struct Counters of cython/pump.pxd; it ends with the start of a blocking call, in microseconds, and two
# snapshots: microseconds, URBs, bytes in and out
_LAYOUT: Final = struct.Struct(f"=6Q{LATENCY_BUCKETS}Qq4Q4Q")
_COUNTED: Final = 6 + LATENCY_BUCKETS

COUNTER_WORDS: Final = _LAYOUT.size // 8
COUNTER_PAGE_SIZE: Final = mmap.PAGESIZE
"""Size of the memory that CLAIM carries, in bytes."""


def counter_page() -> tuple[mmap.mmap, int]:
    """A page of zeros that a worker can map too, and its descriptor, which the caller closes.

    The descriptor goes to a worker, which may be hostile.  If it could resize the memory, our reads could go
    past the end (SIGBUS), or the memory of the host could run out.  So the size is fixed: on Linux by seals,
    which only memfd_create(2) supports; on macOS because the size of POSIX shared memory can be set only once
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
    """POSIX shared memory without a name, of size 0.

    On macOS its descriptor has neither read(2) nor lseek(2).  Raises `OSError`.
    """
    name = f"/usbipd-{os.urandom(8).hex()}"  # shm_open(2) of macOS: at most 31 characters (PSHMNAMLEN)
    descriptor: int = _posixshmem.shm_open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    _posixshmem.shm_unlink(name)
    return descriptor


def read_counters(page: mmap.mmap) -> Counters:
    """The current counters."""
    urbs, bytes_in, bytes_out, errors, unlinks, in_flight, *latency = _LAYOUT.unpack_from(page)[:_COUNTED]
    return Counters(
        urbs=urbs,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        errors=errors,
        unlinks=unlinks,
        in_flight=in_flight,
        latency_us=latency,
    )


def read_rate(page: mmap.mmap) -> Rate:
    """URBs and bytes per second, over the last one to two seconds.

    The pump takes a snapshot at most once a second, before it counts anything that comes a second or more
    after the last one (`take_snapshot`).  So if a snapshot is more than two seconds old, all traffic of the
    last second came after a newer one.
    """
    words = _LAYOUT.unpack_from(page)
    now = _now()  # after the page, so that no snapshot is later than now
    counted, previous, newest = words[:3], words[-8:-4], words[-4:]
    for taken, *before in (previous, newest):
        seconds = (now - taken) / 1_000_000
        if seconds <= 2.0:
            # The traffic after a snapshot that is less than a second old counts as that of one second.  Below
            # zero: a word was read before the pump wrote it, and its snapshot after.
            urbs, bytes_in, bytes_out = (
                max(0, count - old) / max(1.0, seconds) for count, old in zip(counted, before, strict=True)
            )
            return Rate(urbs=urbs, bytes_in=bytes_in, bytes_out=bytes_out)
    return Rate(urbs=0.0, bytes_in=0.0, bytes_out=0.0)


def read_blocked(page: mmap.mmap) -> float | None:
    """Seconds for which a call to the device has blocked the worker; None if none does."""
    since = _LAYOUT.unpack_from(page)[_COUNTED]
    now = _now()  # after the page, so that no call has begun after now
    return (now - since) / 1_000_000 if 0 < since <= now else None


def latency_of(counters: Counters) -> Latency | None:
    """Latency of URBs from submit to completion; None if none has completed.

    `p50_us` is the upper end of the histogram bucket with the median: at least half of all URBs took less.
    It is a power of two and up to twice the true value; so is `p99_us`.  The histogram has no finer data.
    The last bucket has no upper end: 2**23 microseconds (8.4 s) stands for all URBs that took 2**22 (4.2 s)
    or longer.
    """
    total = sum(counters.latency_us)
    if not total:
        return None
    return Latency(
        p50_us=_percentile(counters.latency_us, total, 50), p99_us=_percentile(counters.latency_us, total, 99)
    )


def _percentile(buckets: list[int], total: int, percent: int) -> int:
    """The upper end of the first bucket that, with those before it, holds `percent` of all."""
    sums = itertools.accumulate(buckets)
    return 1 << next(n for n, below in enumerate(sums) if below * 100 >= total * percent)


def _now() -> int:
    """Microseconds of the pump's clock, which on macOS is not that of `time.monotonic`."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
