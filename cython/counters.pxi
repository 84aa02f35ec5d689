# The counter page: a worker's traffic, in memory that the extension maps.  Runs in workers; usbipd/counters.py
# describes the same layout for the reader, and a test compares the two.
# Only the pump writes, each word with one store: reading costs the pump nothing.

cdef extern from *:
    int leading_zeros "__builtin_clzll"(unsigned long long) nogil


cdef inline void counters_take_snapshot(Counters *counters, int64_t now) noexcept nogil:
    """Saves the counters at the start of a round, if the newest snapshot is at least a second old.

    A round counts only after that.  So everything counted since a snapshot is newer than it, and nothing is counted
    between one second after a snapshot and the next one: the reader computes rates from this.  It needs no timer
    and costs no time per URB.
    """
    if now - counters.newest.taken < WINDOW:
        return
    counters.previous = counters.newest
    counters.newest.urbs = counters.urbs
    counters.newest.bytes_in = counters.bytes_in
    counters.newest.bytes_out = counters.bytes_out
    counters.newest.taken = now


cdef inline void counters_add_latency(Counters *counters, int64_t microseconds) noexcept nogil:
    """Bucket b counts latencies below 2**b that are in no lower bucket."""
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
