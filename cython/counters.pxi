# The counter page: what a worker has moved, in memory that the extension maps.  Runs in workers; the layout is
# described once more, for the reader, in usbipd/counters.py, and a test holds the two together.
# Only the pump writes, each word with one store: reading costs the pump nothing.

cdef extern from *:
    int leading_zeros "__builtin_clzll"(unsigned long long) nogil


cdef inline void counters_take_snapshot(Counters *counters, int64_t now) noexcept nogil:
    """Keeps what the counters say as a round begins, if the newest snapshot is a second old.

    A round counts only after that.  So what was counted since a snapshot is younger than it, and between a second
    after a snapshot and the next one nothing was counted: from this the reader makes rates.  No timer runs for
    them, and an URB pays nothing.
    """
    if now - counters.newest.taken < WINDOW:
        return
    counters.previous = counters.newest
    counters.newest.urbs = counters.urbs
    counters.newest.bytes_in = counters.bytes_in
    counters.newest.bytes_out = counters.bytes_out
    counters.newest.taken = now


cdef inline void counters_add_latency(Counters *counters, int64_t microseconds) noexcept nogil:
    """Bucket b has those below 2**b that are in no bucket before it."""
    cdef int bucket = 0
    if microseconds > 0:
        bucket = min(LATENCY_BUCKETS - 1, 64 - leading_zeros(<unsigned long long>microseconds))
    counters.latency[bucket] += 1


cdef inline void counters_add_completion(Counters *counters, Urb *urb, int64_t now) noexcept nogil:
    counters.urbs += 1
    if urb.wire_in:
        counters.bytes_in += urb.actual_length
    else:
        counters.bytes_out += urb.actual_length
    if urb.status not in (0, -LINUX_EREMOTEIO, -LINUX_ECONNRESET):
        counters.errors += 1
    counters_add_latency(counters, now - urb.submitted)
