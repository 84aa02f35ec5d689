# From the completed URB to the client's socket.  Runs in workers.
#
# The replies of a round leave in one sendmsg.  Each is one piece, since header, data and isochronous descriptors lie
# together in the URB's buffer; or two, if the backend has lent the data.
#
# URGENT REPLIES FIRST
#
# All endpoints of a device share one connection.  A disk fills it with bulk data, and keys and sound of the same device
# would wait behind all of that.  On a bus they do not: it serves interrupt and isochronous endpoints first (USB 2.0,
# 5.6.4 and 5.7.4).  So two kinds of replies race for the socket:
#
#   Bulk data     RET_SUBMITs of bulk IN.  They wait in a queue for each endpoint.
#   All others    are urgent: they overtake.  Those of bulk OUT are among them: they carry no data, and what a device
#                 answers to an OUT must not arrive before the end of that OUT.
#
# The outbox is the order in which replies leave; bulk data get a place in it as far as the socket may be offered them
# at once.  An urgent reply takes its place before them, behind the urgent ones before it.  A reply of which the socket
# has a part is finished first: TCP is one stream.
#
# What never changes places:
#
#   Replies of one endpoint.  All of them go through the same queue.  SET_CONFIGURATION, SET_INTERFACE and a reset
#   decide what an endpoint is.  A stall from before CLEAR_FEATURE(ENDPOINT_HALT) that arrives after it looks like a
#   new one.  So before one of these four requests is answered, all that waits gets its place in the outbox.
#   RET_UNLINK and the replies before it about the same URB.  It counts as a reply of the URB's endpoint.  Of an URB
#   that is not in flight the endpoint is not known, so these are searched for in all that waits: MAX_URBS at most.
#
# What waits is bounded:
#
#   Bulk endpoints take turns.  A turn ends with the reply that reaches TURN bytes, so small replies go several at a
#   time and a large one alone.  The oldest reply of an endpoint waits for the rest of the outbox, OFFERED bytes and a
#   reply at most, and for one turn of each other endpoint.
#   A network can be slower than the isochronous endpoints of the device.  Urgent replies would then leave nothing to
#   the bulk data, while a bus leaves them a fifth (USB 2.0, 5.6.4).  So when OVERTAKING bytes have overtaken, one bulk
#   reply becomes urgent.
#
# None of this helps where the kernel has taken the bulk data already: it holds megabytes.  With TCP_NOTSENT_LOWAT poll
# finds the socket writable only while it holds less than PROMPT bytes that could not be sent yet.  Linux then takes no
# more than that (tcp_stream_memory_free in net/ipv4/tcp.c).  On macOS it limits poll alone (sowriteable in
# bsd/kern/uipc_socket2.c), so when the socket has taken PROMPT bytes, poll has to find it writable before the next.
# At most PROMPT bytes are offered at once, so it takes less than twice as many between.  All that costs system calls,
# so it begins with the first interrupt or isochronous URB: sessions of disks have none.


cdef inline bint sender_is_bulk_data(Urb *urb) noexcept nogil:
    """A RET_UNLINK of an URB that is not in flight is not, wherever it waits."""
    return urb.type == BULK and urb.wire_in


cdef void sender_be_prompt(Core *core) noexcept nogil:
    """From now on the kernel holds little.  A socket that is not TCP's has no such option, and is served as well."""
    cdef int most = PROMPT
    core.session.most = PROMPT
    setsockopt(core.session.client, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &most, sizeof(most))


cdef Urb *sender_take_bulk(Session *session) noexcept nogil:
    """Gives the next bulk reply its place at the end of the outbox; NULL: none waits."""
    cdef Queue *queue
    cdef Urb *urb
    if session.bulk_waits == 0:
        return NULL
    if session.turn_taken >= TURN or not session.bulk_waits & <uint32_t>1 << session.turn:
        session.turn_taken = 0
        session.turn = (session.turn + 1) % 16
        while not session.bulk_waits & <uint32_t>1 << session.turn:
            session.turn = (session.turn + 1) % 16
    queue = &session.bulk[session.turn]
    urb = queue.first
    queue.first = urb.next
    if queue.first == NULL:
        session.bulk_waits &= ~(<uint32_t>1 << session.turn)
    session.turn_taken += urb.reply_length
    if sender_is_bulk_data(urb):
        session.bulk_placed += urb.reply_length
    urb_append(&session.outbox, &session.outbox_last, urb)
    return urb


cdef void sender_add_urgent(Session *session, Urb *urb) noexcept nogil:
    cdef Urb *before = session.urgent_last
    cdef Urb *bulk
    if before == NULL and session.sent:
        before = session.outbox
    session.overtaking += urb.reply_length
    if session.overtaking > OVERTAKING:
        session.overtaking = 0
        bulk = session.outbox if before == NULL else before.next
        if bulk == NULL:
            bulk = sender_take_bulk(session)
        if bulk != NULL:
            before = bulk
    if before == NULL:
        urb.next = session.outbox
        session.outbox = urb
    else:
        urb.next = before.next
        before.next = urb
    if urb.next == NULL:
        session.outbox_last = urb
    session.urgent_last = urb


cdef void sender_add(Core *core, Urb *urb) noexcept nogil:
    cdef Session *session = &core.session
    cdef int number
    if not sender_is_bulk_data(urb):
        sender_add_urgent(session, urb)
    elif session.bulk_waits == 0 and session.bulk_placed < session.most:
        session.bulk_placed += urb.reply_length
        urb_append(&session.outbox, &session.outbox_last, urb)
    else:
        number = urb.endpoint & 0x0f
        session.bulk_waits |= <uint32_t>1 << number
        urb_append(&session.bulk[number].first, &session.bulk[number].last, urb)


cdef bint sender_insert_behind(Urb *urb, Urb **last, Urb *reply) noexcept nogil:
    """Puts the RET_UNLINK behind the newest reply of the list about the same URB; False: there is none."""
    cdef Urb *before = NULL
    while urb != NULL:
        if urb.names == reply.names:
            before = urb
        urb = urb.next
    if before == NULL:
        return False
    reply.next = before.next
    before.next = reply
    if reply.next == NULL:
        last[0] = reply
    return True


cdef void sender_add_behind(Core *core, Urb *reply) noexcept nogil:
    """A RET_UNLINK whose URB is not in flight."""
    cdef Session *session = &core.session
    cdef int i
    for i in range(16):
        if sender_insert_behind(session.bulk[i].first, &session.bulk[i].last, reply):
            return
    if not sender_insert_behind(session.outbox, &session.outbox_last, reply):
        sender_add_urgent(session, reply)


cdef void sender_settle(Core *core) noexcept nogil:
    """From now on nothing overtakes what waits."""
    cdef Session *session = &core.session
    while sender_take_bulk(session) != NULL:
        pass
    session.urgent_last = session.outbox_last if session.outbox != NULL else NULL


cdef int sender_gather(Core *core, size_t most, size_t *offered) noexcept nogil:
    """Lays out replies, `most` bytes and a reply at most, the first one from its beginning; how many pieces."""
    cdef Session *session = &core.session
    cdef Urb *urb = session.outbox
    cdef int pieces = 0
    offered[0] = 0
    while pieces < GATHER - 1 and offered[0] < most:
        if urb == NULL:
            urb = sender_take_bulk(session)
            if urb == NULL:
                break
        core.gather[pieces].iov_base = urb.data - USBIP_HEADER_SIZE
        core.gather[pieces].iov_len = urb.reply_length
        offered[0] += urb.reply_length
        pieces += 1
        if urb.lent != NULL:
            core.gather[pieces - 1].iov_len = USBIP_HEADER_SIZE
            core.gather[pieces].iov_base = <uint8_t *>urb.lent
            core.gather[pieces].iov_len = urb.reply_length - USBIP_HEADER_SIZE
            pieces += 1
        urb = urb.next
    return pieces


cdef void sender_leave(Core *core, size_t left) noexcept nogil:
    """The socket has taken so many bytes more."""
    cdef Session *session = &core.session
    cdef Urb *urb = session.outbox
    cdef Urb *following
    cdef size_t bulk = 0
    left += session.sent
    while urb != NULL and left >= urb.reply_length:
        left -= urb.reply_length
        if urb == session.urgent_last:
            session.urgent_last = NULL
        if sender_is_bulk_data(urb):
            bulk += urb.reply_length
        following = urb.next
        pool_give(&core.pool, urb)
        urb = following
    session.outbox = urb
    session.sent = left
    if bulk:
        session.bulk_placed -= bulk
        session.overtaking = 0


cdef void sender_send(Core *core) noexcept nogil:
    """Sends what the socket takes; the rest waits until it is writable (`session.blocked`)."""
    cdef Session *session = &core.session
    cdef msghdr message
    cdef ssize_t sent
    cdef size_t skip, offered, most
    cdef int pieces, first
    memset(&message, 0, sizeof(message))
    session.blocked = False
    while session.outbox != NULL or session.bulk_waits:
        most = session.most
        pieces = sender_gather(core, session.sent + most, &offered)
        skip = session.sent
        offered -= skip
        first = 0
        while skip >= core.gather[first].iov_len:
            skip -= core.gather[first].iov_len
            first += 1
        core.gather[first].iov_base = <uint8_t *>core.gather[first].iov_base + skip
        core.gather[first].iov_len -= skip
        if most == PROMPT:
            while offered >= most + core.gather[pieces - 1].iov_len:
                pieces -= 1
                offered -= core.gather[pieces].iov_len
            if offered > most:
                core.gather[pieces - 1].iov_len -= offered - most
                offered = most
        message.msg_iov = core.gather + first
        message.msg_iovlen = pieces - first
        sent = sendmsg(session.client, &message, MSG_NOSIGNAL)
        if sent < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN or errno == ENOBUFS:
                session.blocked = True
            elif session.wake == RUNNING:
                session_fail(core, strerror(errno))
            return
        sender_leave(core, <size_t>sent)
        if <size_t>sent < offered:  # it is full: to ask again would cost a call that says so
            session.blocked = True
            return
        if most == PROMPT:
            session.unasked += <size_t>sent
            session.blocked = session.unasked >= PROMPT or session.outbox != NULL or session.bulk_waits != 0
            return
