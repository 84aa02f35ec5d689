# The core of the pump: one client, its URBs in flight, and how each of them ends.  Runs in workers.

cdef enum:
    BUCKETS = 4096           # clients count seqnum up by one, so chains stay short; at most MAX_URBS URBs in all
    INBOX_SIZE = 64 << 10
    GATHER = 512             # pieces of replies that leave in one sendmsg, at most; IOV_MAX is 1024
    OFFERED = 512 << 10      # bytes of replies, after which no more are gathered: sockets seldom take so much
    PROBLEM_SIZE = 200
    EARLY_TIME = 1000000     # microseconds that an UNLINK waits for its SUBMIT

cdef enum Wake:              # why the pump went back to Python
    RUNNING = 0
    WAKE_CHANNEL = 1         # the extension has something to say
    WAKE_CLIENT_CLOSED = 2   # the client closed the connection
    WAKE_CLIENT_FAILED = 3   # the connection broke, or the client broke the protocol: see `problem`
    WAKE_DEVICE_GONE = 4
    WAKE_SIGNAL = 5
    WAKE_CLAIM_LOST = 6      # see Backend.unclaimed

cdef struct Core:
    Backend *backend
    EndpointMap endpoints
    Pool pool
    Counters *counters
    uint32_t devid
    int client               # the client's socket; -1: nobody is attached
    int64_t now              # of this round
    int64_t heard            # of the last round that has read something from the client
    Wake wake
    char problem[PROBLEM_SIZE]
    bint closing             # URBs that end are not answered any more

    Urb *in_flight[BUCKETS]  # by seqnum
    int pending
    int controls             # control URBs that the backend has
    Urb *held                # control URBs that wait for those, oldest first: see requests.pxi
    Urb *held_last
    Urb *early               # UNLINKs that came before their SUBMIT, oldest first: see the UNLINK strategy
    Urb *early_last
    uint32_t newest          # seqnum of the last SUBMIT; 0: there was none

    uint8_t *inbox           # bytes at..end are received and not parsed
    size_t at
    size_t end
    Urb *incoming            # the URB whose payload is on its way
    size_t expected          # bytes of that payload
    size_t received
    size_t discard           # bytes of a payload that nobody wants
    bint stalled             # the client holds its whole budget: its socket is not read

    Urb *outbox              # replies to be sent, oldest first
    Urb *outbox_last
    size_t sent              # bytes of the oldest that the socket has taken
    bint blocked             # the socket takes no more for now
    iovec gather[GATHER]


# ---- the in-flight table ------------------------------------------------------------------------------------

cdef Urb *inflight_find(Core *core, uint32_t seqnum) noexcept nogil:
    cdef Urb *urb = core.in_flight[seqnum % BUCKETS]
    while urb != NULL and urb.seqnum != seqnum:
        urb = urb.hash_next
    return urb


cdef void inflight_add(Core *core, Urb *urb) noexcept nogil:
    urb.hash_next = core.in_flight[urb.seqnum % BUCKETS]
    core.in_flight[urb.seqnum % BUCKETS] = urb
    urb.state = URB_PENDING
    core.pending += 1
    core.counters.in_flight = core.pending


cdef void held_remove(Core *core, Urb *urb) noexcept nogil:
    cdef Urb *other = core.held
    cdef Urb *following
    core.held = NULL
    while other != NULL:
        following = other.next
        if other != urb:
            list_append(&core.held, &core.held_last, other)
        other = following


cdef void inflight_remove(Core *core, Urb *urb) noexcept nogil:
    cdef Urb **link = &core.in_flight[urb.seqnum % BUCKETS]
    while link[0] != urb:
        link = &link[0].hash_next
    link[0] = urb.hash_next
    urb.state = URB_DONE
    core.pending -= 1
    core.counters.in_flight = core.pending


# ---- the outbox ---------------------------------------------------------------------------------------------

cdef void outbox_add(Core *core, Urb *urb) noexcept nogil:
    list_append(&core.outbox, &core.outbox_last, urb)


cdef void answer(Core *core, Urb *urb, int32_t status) noexcept nogil:
    """RET_SUBMIT for an URB that never reached the device."""
    urb.status = status
    urb.actual_length = 0
    core.counters.urbs += 1
    if status != 0:
        core.counters.errors += 1
    encode_ret_submit(urb)
    urb.state = URB_DONE
    outbox_add(core, urb)


cdef void answer_unlink(Core *core, Urb *reply, int32_t status) noexcept nogil:
    """RET_UNLINK."""
    encode_ret_unlink(reply, status)
    outbox_add(core, reply)


cdef void submit(Core *core, Urb *urb) noexcept nogil:
    """To the backend with the URB."""
    cdef bint is_control = urb.type == CONTROL
    cdef int result
    inflight_add(core, urb)
    core.controls += is_control
    result = core.backend.submit(core.backend, urb)
    if core.pool.device_kept and (result == -LINUX_ENOMEM or result == -LINUX_EPROTO):
        # What we keep may be what the host's stack lacks.  Of isochronous and control transfers libusb calls that an
        # error of I/O (linux_usbfs.c).
        pool_return_device_memory(&core.pool)
        core.pool.device_memory_ends = True
        result = core.backend.submit(core.backend, urb)
    if result != 0:
        core.controls -= is_control
        inflight_remove(core, urb)
        answer(core, urb, result)


# ---- UNLINK strategy ----------------------------------------------------------------------------------------
#
# An UNLINK races with the completion of the URB that it names.  Three parties could decide: the device, the
# backend, the socket.  Here the in-flight table does, on one thread, so there is one answer:
#
#   The URB is in the table.  The RET_UNLINK is made at once, hung on the URB, and the backend is asked to cancel.
#   When the URB completes, its status says who won:
#     cancelled   the RET_UNLINK goes out with -ECONNRESET, and no RET_SUBMIT ever does;
#     otherwise   the device was faster: RET_SUBMIT with all its data, then RET_UNLINK with 0.  The client's
#                 vhci_hcd takes the data and finds nothing left to unlink.
#     both        cancelled when some bytes had moved: RET_SUBMIT with -ECONNRESET, their number and those of an IN,
#                 then RET_UNLINK with 0.  A host controller of the client would hand them to the driver, too.
#   (Linux's own stub answers with RET_UNLINK alone in all three, and loses what an IN URB had read.)
#   The URB is not in the table: it was answered, or there never was one.  RET_UNLINK with 0; the outbox keeps
#   order, so a RET_SUBMIT that is still waiting there leaves first (stub_rx.c, stub_recv_cmd_unlink).
#   The SUBMIT is still to come.  Linux sends SUBMITs and UNLINKs from two queues, and an UNLINK can overtake
#   (vhci_tx_loop in vhci_tx.c).  Answered with 0, the client would give the URB back, and hang up when the RET_SUBMIT
#   comes.  So an UNLINK of a seqnum between that of the last SUBMIT and its own waits; the SUBMIT is then not carried
#   out, and the RET_UNLINK goes out with -ECONNRESET.  If a later SUBMIT comes first, or none in EARLY_TIME, there
#   never was one: RET_UNLINK with 0.
#   A second UNLINK for the same URB waits with the first, and gets 0 behind the answer to that: the client must
#   not learn that the URB is answered while it is not.
#
# So every SUBMIT ends in exactly one RET_SUBMIT or one winning RET_UNLINK as long as the connection lives.

cdef inline bint is_newer(uint32_t seqnum, uint32_t other) noexcept nogil:
    """Clients count up by one, and over."""
    return <int32_t>(seqnum - other) > 0


cdef void settle_early(Core *core, Urb *urb) noexcept nogil:
    """`urb` has come: hangs the UNLINKs that waited for it on it, and answers those that wait in vain."""
    cdef Urb *reply = core.early
    cdef Urb *following
    cdef Urb *last = NULL
    core.early = NULL
    while reply != NULL:
        following = reply.next
        if reply.unlinks == urb.seqnum:
            list_append(&urb.unlink_reply, &last, reply)
        elif is_newer(urb.seqnum, reply.unlinks):
            answer_unlink(core, reply, 0)
        else:
            list_append(&core.early, &core.early_last, reply)
        reply = following


cdef void expire_early(Core *core) noexcept nogil:
    """Answers the UNLINKs whose SUBMIT has not come in time."""
    cdef Urb *reply
    while core.early != NULL and core.now - core.early.submitted >= EARLY_TIME:
        reply = core.early
        core.early = reply.next
        answer_unlink(core, reply, 0)


cdef void unlink(Core *core, uint32_t seqnum, Urb *reply) noexcept nogil:
    """`reply` is an empty URB that carries the seqnum of the UNLINK."""
    cdef Urb *urb = inflight_find(core, seqnum)
    core.counters.unlinks += 1
    reply.state = URB_DONE
    if urb == NULL and core.newest and is_newer(seqnum, core.newest) and is_newer(reply.seqnum, seqnum):
        reply.unlinks = seqnum
        reply.submitted = core.now
        list_append(&core.early, &core.early_last, reply)
    elif urb == NULL:
        answer_unlink(core, reply, 0)
    elif urb.unlink_reply != NULL:
        reply.next = urb.unlink_reply.next
        urb.unlink_reply.next = reply
    else:
        urb.unlink_reply = reply
        if urb.state == URB_HELD:
            held_remove(core, urb)
            withdraw(core, urb)
        else:
            core.backend.cancel(core.backend, urb)


cdef void withdraw(Core *core, Urb *urb) noexcept nogil:
    """Ends an URB that the backend has not got, as cancelled."""
    urb.status = -LINUX_ECONNRESET
    urb.actual_length = 0
    completed(core.backend, urb)


cdef bint overtaken(Core *core, Urb *urb) noexcept nogil:
    """Notes that the SUBMIT has come, whatever becomes of it; True: an UNLINK came before, and it has ended."""
    core.newest = urb.seqnum
    if core.early == NULL:
        return False
    settle_early(core, urb)
    if urb.unlink_reply == NULL:
        return False
    inflight_add(core, urb)
    urb.state = URB_HELD
    withdraw(core, urb)
    return True


cdef void withdraw_held(Core *core) noexcept nogil:
    cdef Urb *urb
    while core.held != NULL:
        urb = core.held
        core.held = urb.next
        withdraw(core, urb)


cdef void completed(Backend *backend, Urb *urb) noexcept nogil:
    """The backend gives an URB back: `Backend.complete`."""
    cdef Core *core = <Core *>backend.owner
    cdef Urb *reply = urb.unlink_reply
    cdef Urb *following
    cdef bint cancelled = urb.status == -LINUX_ECONNRESET
    cdef bint moved = urb.type != ISOCHRONOUS and urb.actual_length != 0
    cdef int32_t verdict = 0
    core.controls -= urb.type == CONTROL and urb.state == URB_PENDING
    inflight_remove(core, urb)
    urb.unlink_reply = NULL
    if core.closing:
        pool_give(&core.pool, urb)
    elif cancelled and reply != NULL and not moved:
        pool_give(&core.pool, urb)
        verdict = -LINUX_ECONNRESET
    else:
        if cancelled and reply == NULL:  # its endpoint was switched off, as usb_hcd_flush_endpoint says it
            urb.status = -LINUX_ESHUTDOWN
        if urb.type == CONTROL and urb.wire_in:
            mask_remote_wakeup(urb)
        encode_ret_submit(urb)
        count_completion(core.counters, urb, core.now)
        outbox_add(core, urb)
    while reply != NULL:
        following = reply.next
        if core.closing:
            pool_give(&core.pool, reply)
        else:
            answer_unlink(core, reply, verdict)
        verdict = 0
        reply = following
