# The URBs in flight, and how each of them ends.  Runs in workers.

# ---- the in-flight table ------------------------------------------------------------------------------------

cdef Urb *inflight_find(Core *core, uint32_t seqnum) noexcept nogil:
    cdef Urb *urb = core.session.in_flight[seqnum % BUCKETS]
    while urb != NULL and urb.seqnum != seqnum:
        urb = urb.hash_next
    return urb


cdef void inflight_add(Core *core, Urb *urb) noexcept nogil:
    cdef Session *session = &core.session
    urb.hash_next = session.in_flight[urb.seqnum % BUCKETS]
    session.in_flight[urb.seqnum % BUCKETS] = urb
    urb.state = URB_PENDING
    session.pending += 1
    core.counters.in_flight = session.pending


cdef void inflight_remove(Core *core, Urb *urb) noexcept nogil:
    cdef Session *session = &core.session
    cdef Urb **link = &session.in_flight[urb.seqnum % BUCKETS]
    while link[0] != urb:
        link = &link[0].hash_next
    link[0] = urb.hash_next
    urb.state = URB_DONE
    session.pending -= 1
    core.counters.in_flight = session.pending


# ---- into the table, or not ----------------------------------------------------------------------------------

cdef void inflight_answer(Core *core, Urb *urb, int32_t status) noexcept nogil:
    """RET_SUBMIT for an URB that never reached the device."""
    urb.status = status
    urb.actual_length = 0
    core.counters.urbs += 1
    if status != 0:
        core.counters.errors += 1
    urb_encode_ret_submit(urb)
    urb.state = URB_DONE
    sender_add(core, urb)


cdef void inflight_answer_unlink(Core *core, Urb *reply) noexcept nogil:
    """RET_UNLINK for an UNLINK that names no URB in flight."""
    urb_encode_ret_unlink(reply, 0)
    reply.type = CONTROL  # it carries no bulk data
    sender_add_behind(core, reply)


cdef void inflight_submit(Core *core, Urb *urb) noexcept nogil:
    """To the backend with the URB."""
    cdef bint is_control = urb.type == CONTROL
    cdef int result
    inflight_add(core, urb)
    core.session.controls += is_control
    result = core.backend.submit(core.backend, urb)
    if core.pool.device_kept and (result == -LINUX_ENOMEM or result == -LINUX_EPROTO):
        # What we keep may be what the host's stack lacks.  Of isochronous and control transfers libusb calls that an
        # error of I/O (linux_usbfs.c).
        pool_return_device_memory(&core.pool)
        core.pool.device_memory_ends = True
        result = core.backend.submit(core.backend, urb)
    if result != 0:
        core.session.controls -= is_control
        inflight_remove(core, urb)
        inflight_answer(core, urb, result)


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
#   The URB is not in the table: it was answered, or there never was one.  RET_UNLINK with 0; a RET_SUBMIT
#   that is still waiting to be sent leaves first (sender_add_behind; stub_rx.c, stub_recv_cmd_unlink).
#   The SUBMIT is still to come.  Linux sends SUBMITs and UNLINKs from two queues, and an UNLINK can overtake
#   (vhci_tx_loop in vhci_tx.c).  Answered with 0, the client would give the URB back, and hang up when the RET_SUBMIT
#   comes.  So an UNLINK of a seqnum between that of the last SUBMIT and its own waits; the SUBMIT is then not carried
#   out, and the RET_UNLINK goes out with -ECONNRESET.  If a later SUBMIT comes first, or none in EARLY_TIME, there
#   never was one: RET_UNLINK with 0.
#   A second UNLINK for the same URB waits with the first, and gets 0 behind the answer to that: the client must
#   not learn that the URB is answered while it is not.
#
# So every SUBMIT ends in exactly one RET_SUBMIT or one winning RET_UNLINK as long as the connection lives.

cdef inline bint inflight_is_newer(uint32_t seqnum, uint32_t other) noexcept nogil:
    """Clients count up by one, and over."""
    return <int32_t>(seqnum - other) > 0


cdef void inflight_settle_early(Core *core, Urb *urb) noexcept nogil:
    """`urb` has come: hangs the UNLINKs that waited for it on it, and answers those that wait in vain."""
    cdef Session *session = &core.session
    cdef Urb *reply = session.early
    cdef Urb *following
    cdef Urb *last = NULL
    session.early = NULL
    while reply != NULL:
        following = reply.next
        if reply.names == urb.seqnum:
            urb_append(&urb.unlink_reply, &last, reply)
        elif inflight_is_newer(urb.seqnum, reply.names):
            inflight_answer_unlink(core, reply)
        else:
            urb_append(&session.early, &session.early_last, reply)
        reply = following


cdef void inflight_expire_early(Core *core) noexcept nogil:
    """Answers the UNLINKs whose SUBMIT has not come in time."""
    cdef Session *session = &core.session
    cdef Urb *reply
    while session.early != NULL and core.now - session.early.submitted >= EARLY_TIME:
        reply = session.early
        session.early = reply.next
        inflight_answer_unlink(core, reply)


cdef void inflight_unlink(Core *core, uint32_t seqnum, Urb *reply) noexcept nogil:
    """`reply` is an empty URB that carries the seqnum of the UNLINK."""
    cdef Session *session = &core.session
    cdef Urb *urb = inflight_find(core, seqnum)
    core.counters.unlinks += 1
    reply.state = URB_DONE
    reply.names = seqnum
    if (urb == NULL and session.newest and inflight_is_newer(seqnum, session.newest)
            and inflight_is_newer(reply.seqnum, seqnum)):
        reply.submitted = core.now
        urb_append(&session.early, &session.early_last, reply)
    elif urb == NULL:
        inflight_answer_unlink(core, reply)
    elif urb.unlink_reply != NULL:
        reply.next = urb.unlink_reply.next
        urb.unlink_reply.next = reply
    else:
        urb.unlink_reply = reply
        if urb.state == URB_HELD:
            requests_remove_held(core, urb)
            inflight_withdraw(core, urb)
        else:
            core.backend.cancel(core.backend, urb)


cdef void inflight_withdraw(Core *core, Urb *urb) noexcept nogil:
    """Ends an URB that the backend has not got, as cancelled."""
    urb.status = -LINUX_ECONNRESET
    urb.actual_length = 0
    inflight_completed(core.backend, urb)


cdef bint inflight_overtaken(Core *core, Urb *urb) noexcept nogil:
    """Notes that the SUBMIT has come, whatever becomes of it; True: an UNLINK came before, and it has ended."""
    core.session.newest = urb.seqnum
    if core.session.early == NULL:
        return False
    inflight_settle_early(core, urb)
    if urb.unlink_reply == NULL:
        return False
    inflight_add(core, urb)
    urb.state = URB_HELD
    inflight_withdraw(core, urb)
    return True


cdef void inflight_completed(Backend *backend, Urb *urb) noexcept nogil:
    """The backend gives an URB back: `Backend.complete`."""
    cdef Core *core = <Core *>backend.owner
    cdef Session *session = &core.session
    cdef Urb *reply = urb.unlink_reply
    cdef Urb *following
    cdef bint cancelled = urb.status == -LINUX_ECONNRESET
    cdef bint moved = urb.type != ISOCHRONOUS and urb.actual_length != 0
    cdef int32_t verdict = 0
    session.controls -= urb.type == CONTROL and urb.state == URB_PENDING
    inflight_remove(core, urb)
    urb.unlink_reply = NULL
    following = reply
    while following != NULL:  # it leaves behind the others of this endpoint
        following.type = urb.type
        following.endpoint = urb.endpoint
        following.wire_in = urb.wire_in
        following = following.next
    if session.closing:
        pool_give(&core.pool, urb)
    elif cancelled and reply != NULL and not moved:
        pool_give(&core.pool, urb)
        verdict = -LINUX_ECONNRESET
    else:
        if cancelled and reply == NULL:  # its endpoint was switched off, as usb_hcd_flush_endpoint says it
            urb.status = -LINUX_ESHUTDOWN
        if urb.type == CONTROL and urb.wire_in:
            requests_mask_remote_wakeup(urb)
        urb_encode_ret_submit(urb)
        counters_add_completion(core.counters, urb, core.now)
        sender_add(core, urb)
    while reply != NULL:
        following = reply.next
        if session.closing:
            pool_give(&core.pool, reply)
        else:
            urb_encode_ret_unlink(reply, verdict)
            sender_add(core, reply)
        verdict = 0
        reply = following


cdef int inflight_cancel(Core *core, int interface) noexcept nogil:
    """Asks the URBs of one interface to end, -1: all; how many of them are still to come back.

    Cancelling may complete others, which stay readable, to be sent or in the pool.
    """
    cdef int i, left = 0
    cdef Urb *urb
    cdef Urb *following
    cdef bint named
    for i in range(BUCKETS):
        urb = core.session.in_flight[i]
        while urb != NULL:
            following = urb.hash_next
            named = interface < 0 or endpoints_interface_of(&core.endpoints, urb) == interface
            if urb.state == URB_PENDING and named:
                core.backend.cancel(core.backend, urb)
                left += urb.state == URB_PENDING
            urb = following
    return left


cdef bint inflight_drain(Core *core, int interface) noexcept nogil:
    """Ends the URBs of one interface, -1: all, and waits for the backend to give them back; False: it does not."""
    cdef int64_t end = monotonic_us() + DRAIN_TIME
    while inflight_cancel(core, interface):
        if monotonic_us() > end:
            return False
        transfer_wait(core.backend)
    return True
