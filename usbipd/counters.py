"""The counter page: what a worker has moved, in memory that the extension reads while the pump writes.

The pump (cython/counters.pxi) writes in the worker, the extension maps the same page and reads: that costs
the pump nothing.  Each word is written whole; words of one reading may be some microseconds
apart.  A worker that was broken into may write anything: the readers give nonsense then, and never raise.
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
# struct Counters of cython/pump.pxd; at its end since when a call blocks, in microseconds, and two
# snapshots: microseconds, URBs, bytes in and out
_LAYOUT: Final = struct.Struct(f"=6Q{LATENCY_BUCKETS}Qq4Q4Q")
_COUNTED: Final = 6 + LATENCY_BUCKETS

COUNTER_WORDS: Final = _LAYOUT.size // 8
COUNTER_PAGE_SIZE: Final = mmap.PAGESIZE
"""Bytes of the memory that CLAIM carries."""


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
    name = f"/usbipd-{os.urandom(8).hex()}"  # shm_open(2) of macOS: at most 31 characters (PSHMNAMLEN)
    descriptor: int = _posixshmem.shm_open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    _posixshmem.shm_unlink(name)
    return descriptor


def read_counters(page: mmap.mmap) -> Counters:
    """The counters as they stand now."""
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
    """URBs and bytes per second, over a time that ends now and is one to two seconds long.

    The pump takes a snapshot no more often than each second, and counts nothing from a second after one until
    the next (`take_snapshot`).  So a snapshot of more than two seconds ago says that nothing has moved in the
    last second but what a newer one tells.
    """
    words = _LAYOUT.unpack_from(page)
    now = _now()  # after the page, so that no snapshot is younger than now
    counted, previous, newest = words[:3], words[-8:-4], words[-4:]
    for taken, *before in (previous, newest):
        seconds = (now - taken) / 1_000_000
        if seconds <= 2.0:
            # What a snapshot leaves out has been counted after it: when that is less than a second ago, in a
            # second.  Below zero: a word was read before, and its snapshot after, the pump wrote them.
            urbs, bytes_in, bytes_out = (
                max(0, count - old) / max(1.0, seconds) for count, old in zip(counted, before, strict=True)
            )
            return Rate(urbs=urbs, bytes_in=bytes_in, bytes_out=bytes_out)
    return Rate(urbs=0.0, bytes_in=0.0, bytes_out=0.0)


def read_blocked(page: mmap.mmap) -> float | None:
    """Seconds for which a call to the device has blocked the worker; None: none does."""
    since = _LAYOUT.unpack_from(page)[_COUNTED]
    now = _now()  # after the page, so that no call has begun after now
    return (now - since) / 1_000_000 if 0 < since <= now else None


def latency_of(counters: Counters) -> Latency | None:
    """How long URBs took from submit to completion; None: none has been completed.

    `p50_us` is the upper end of the bucket of the histogram in which the median lies: at least half of all
    URBs took less.  It is a power of two, and up to twice the true value; so is `p99_us`.  Nothing finer is
    known, since a bucket does not say where in it its URBs lie.  The last bucket has no upper end: 2**23
    microseconds (8.4 s) stand for all that took 2**22 (4.2 s) or longer.
    """
    total = sum(counters.latency_us)
    if not total:
        return None
    return Latency(
        p50_us=_percentile(counters.latency_us, total, 50), p99_us=_percentile(counters.latency_us, total, 99)
    )


def _percentile(buckets: list[int], total: int, percent: int) -> int:
    """The upper end of the first bucket up to which that many of 100 lie."""
    sums = itertools.accumulate(buckets)
    return 1 << next(n for n, below in enumerate(sums) if below * 100 >= total * percent)


def _now() -> int:
    """Microseconds of the pump's clock, which on macOS is not that of `time.monotonic`."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
