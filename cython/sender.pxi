# From the outbox to the client's socket.  Runs in workers.
#
# The replies of a round leave in one sendmsg.  Each is one piece, since header, data and isochronous descriptors lie
# together in the URB's buffer; or two, if the backend has lent the data.


cdef void sender_add(Core *core, Urb *urb) noexcept nogil:
    urb_append(&core.session.outbox, &core.session.outbox_last, urb)


cdef void sender_send(Core *core) noexcept nogil:
    """Sends what the socket takes; the rest waits until it is writable (`session.blocked`)."""
    cdef Session *session = &core.session
    cdef msghdr message
    cdef Urb *urb
    cdef ssize_t sent
    cdef size_t left, skip, offered
    cdef int pieces, first
    memset(&message, 0, sizeof(message))
    session.blocked = False
    while session.outbox != NULL:
        pieces = first = 0
        offered = 0
        urb = session.outbox
        while urb != NULL and pieces < GATHER - 1 and offered < OFFERED:
            core.gather[pieces].iov_base = urb.data - USBIP_HEADER_SIZE
            core.gather[pieces].iov_len = urb.reply_length
            offered += urb.reply_length
            pieces += 1
            if urb.lent != NULL:
                core.gather[pieces - 1].iov_len = USBIP_HEADER_SIZE
                core.gather[pieces].iov_base = <uint8_t *>urb.lent
                core.gather[pieces].iov_len = urb.reply_length - USBIP_HEADER_SIZE
                pieces += 1
            urb = urb.next
        skip = session.sent
        offered -= skip
        while skip >= core.gather[first].iov_len:
            skip -= core.gather[first].iov_len
            first += 1
        core.gather[first].iov_base = <uint8_t *>core.gather[first].iov_base + skip
        core.gather[first].iov_len -= skip
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
        left = <size_t>sent
        while session.outbox != NULL and left >= session.outbox.reply_length - session.sent:
            urb = session.outbox
            left -= urb.reply_length - session.sent
            session.sent = 0
            session.outbox = urb.next
            pool_give(&core.pool, urb)
        session.sent += left
        if <size_t>sent < offered:  # it is full: to ask again would cost a call that says so
            session.blocked = True
            return
