"""The counter page: what a worker has moved, in memory that the extension reads while the pump writes.

The pump (cython/counters.pxi) writes in the worker, the extension maps the same page and reads: asking for
the status costs the pump nothing.  Each word is written whole; words of one reading may be some microseconds
apart.
"""

import mmap
import struct
from typing import Final

from usbipd.ipc.messages import Counters

LATENCY_BUCKETS: Final = 24
_LAYOUT: Final = struct.Struct(f"=6Q{LATENCY_BUCKETS}Q")  # struct Counters of cython/counters.pxi

COUNTER_WORDS: Final = _LAYOUT.size // 8
COUNTER_PAGE_SIZE: Final = mmap.PAGESIZE
"""Bytes of the file that CLAIM carries."""


def read_counters(page: mmap.mmap) -> Counters:
    """The counters as they stand now."""
    urbs, bytes_in, bytes_out, errors, unlinks, in_flight, *latency = _LAYOUT.unpack_from(page)
    return Counters(
        urbs=urbs,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        errors=errors,
        unlinks=unlinks,
        in_flight=in_flight,
        latency_us=latency,
    )
