# From the outbox to the client's socket.  Runs in workers.
#
# The replies of a round leave in one sendmsg, each as one piece: header, data and isochronous descriptors lie
# together in the URB's buffer.

from libc.errno cimport EAGAIN, EINTR, ENOBUFS, errno
from libc.string cimport memset


cdef void send_replies(Core *core) noexcept nogil:
    """Sends what the socket takes; the rest waits until it is writable (`core.blocked`)."""
    cdef msghdr message
    cdef Urb *urb
    cdef ssize_t sent
    cdef size_t left
    cdef int pieces
    memset(&message, 0, sizeof(message))
    message.msg_iov = core.gather
    core.blocked = False
    while core.outbox != NULL:
        pieces = 0
        urb = core.outbox
        while urb != NULL and pieces < GATHER:
            core.gather[pieces].iov_base = urb.data - USBIP_HEADER_SIZE
            core.gather[pieces].iov_len = urb.reply_length
            pieces += 1
            urb = urb.next
        core.gather[0].iov_base = <uint8_t *>core.gather[0].iov_base + core.sent
        core.gather[0].iov_len -= core.sent
        message.msg_iovlen = pieces
        sent = sendmsg(core.client, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN or errno == ENOBUFS:
                core.blocked = True
            elif core.wake == RUNNING:
                fail(core, strerror(errno))
            return
        left = <size_t>sent
        while core.outbox != NULL and left >= core.outbox.reply_length - core.sent:
            urb = core.outbox
            left -= urb.reply_length - core.sent
            core.sent = 0
            core.outbox = urb.next
            pool_give(&core.pool, urb)
        core.sent += left
