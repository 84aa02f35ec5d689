# From the client's socket to the backend: CMD_SUBMIT and CMD_UNLINK.  Runs in workers.
#
# One recvmsg brings as many headers as there are; the rest of a large OUT payload goes straight into its URB's
# buffer, with what follows it behind.  Every number of the header is checked before it is used.


cdef bint receiver_read_unlink(Core *core, const uint8_t *header) noexcept nogil:
    cdef Urb *reply = pool_take(&core.pool, 0)
    if reply == NULL and core.pool.lacks_memory:
        reply = pool_take_spare(&core.pool, FOR_UNLINK)
    if reply == NULL:
        return False
    reply.seqnum = urb_get32(header + AT_SEQNUM)
    inflight_unlink(core, urb_get32(header + AT_UNLINK_SEQNUM), reply)
    return True


cdef bint receiver_read_submit(Core *core, const uint8_t *header) noexcept nogil:
    """Begins an URB.  False: the client has used up its budget, or the spare URB, and the header has to wait."""
    cdef Session *session = &core.session
    cdef uint32_t seqnum = urb_get32(header + AT_SEQNUM)
    cdef uint32_t direction = urb_get32(header + AT_DIRECTION)
    cdef uint32_t ep = urb_get32(header + AT_EP)
    cdef uint32_t length = urb_get32(header + AT_TRANSFER_BUFFER_LENGTH)
    cdef uint32_t count = urb_get32(header + AT_NUMBER_OF_PACKETS)
    cdef bint is_in = direction == USBIP_DIR_IN
    cdef uint8_t address = <uint8_t>(ep | (DIRECTION_IN if is_in else 0))
    cdef uint32_t packets = 0
    cdef TransferType type = CONTROL
    cdef Endpoint *endpoint = NULL
    cdef int refusal = 0
    cdef size_t room
    cdef Urb *urb

    if direction > USBIP_DIR_IN or ep > 15:
        snprintf(session.problem, PROBLEM_SIZE,
                 "CMD_SUBMIT seqnum %u: direction %u, ep %u: ep is 0 to 15, direction 0 or 1", seqnum, direction, ep)
        session.wake = WAKE_CLIENT_FAILED
        return True
    if length > MAX_TRANSFER_LENGTH:
        snprintf(session.problem, PROBLEM_SIZE, "CMD_SUBMIT seqnum %u: transfer_buffer_length %u is above %d",
                 seqnum, length, <int>MAX_TRANSFER_LENGTH)
        session.wake = WAKE_CLIENT_FAILED
        return True
    if ep != 0:
        endpoint = endpoints_find(&core.endpoints, address)
        if endpoint == NULL:
            # Whether isochronous descriptors follow, only the endpoint could say.
            if count != 0 and count != NO_PACKETS:
                snprintf(session.problem, PROBLEM_SIZE,
                         "CMD_SUBMIT seqnum %u: no endpoint %u %s in the active setting, and number_of_packets %u",
                         seqnum, ep, <const char *>(b"IN" if is_in else b"OUT"), count)
                session.wake = WAKE_CLIENT_FAILED
                return True
            refusal = -LINUX_EPIPE  # the kernel's own server leaves it unanswered: get_pipe in stub_rx.c
        else:
            type = <TransferType>(endpoint.bmAttributes & 3)
            if type == CONTROL:  # besides endpoint 0: it must not end up there
                refusal = -LINUX_EINVAL
    if (type == INTERRUPT or type == ISOCHRONOUS) and session.most != PROMPT:
        sender_be_prompt(core)
    if type == ISOCHRONOUS and count != NO_PACKETS:
        packets = count
    if packets > MAX_ISO_PACKETS:
        snprintf(session.problem, PROBLEM_SIZE, "CMD_SUBMIT seqnum %u: number_of_packets %u is above %d",
                 seqnum, packets, <int>MAX_ISO_PACKETS)
        session.wake = WAKE_CLIENT_FAILED
        return True
    if type == ISOCHRONOUS and packets == 0:
        refusal = -LINUX_EINVAL
    if inflight_find(core, seqnum) != NULL:
        snprintf(session.problem, PROBLEM_SIZE, "CMD_SUBMIT seqnum %u: an URB of this seqnum is in flight", seqnum)
        session.wake = WAKE_CLIENT_FAILED
        return True

    room = 0 if refusal else length
    if packets:
        room += pool_iso_room(packets)
    urb = pool_take(&core.pool, room)
    if urb == NULL and core.pool.lacks_memory:
        urb = pool_take_spare(&core.pool, FOR_SUBMIT)
        refusal = refusal or -LINUX_ENOMEM
    if urb == NULL:
        return False
    urb.state = URB_RECEIVING
    urb.seqnum = urb.names = seqnum
    urb.endpoint = address
    urb.wire_in = is_in
    urb.type = type
    urb.transfer_flags = urb_get32(header + AT_TRANSFER_FLAGS)
    urb.interval = urb_get32(header + AT_INTERVAL)
    urb.number_of_packets = count
    urb.submitted = core.now
    urb.packets = packets
    session.expected = <size_t>packets * ISO_DESCRIPTOR_SIZE
    if refusal:
        urb.status = refusal
        session.discard = 0 if is_in else length
        if packets == 0:
            receiver_begin_urb(core, urb)
            return True
    else:
        urb.length = length
        session.expected += 0 if is_in else length
        memcpy(urb.data - SETUP_SIZE, header + AT_SETUP, SETUP_SIZE)
    session.incoming = urb
    session.received = 0
    return True


cdef int receiver_arrange_isochronous(Urb *urb) noexcept nogil:
    """Reads the descriptors and lays the packets of an OUT URB one behind the other; 0 or a negative errno."""
    cdef const uint8_t *wire = urb.data + (0 if urb.wire_in else urb.length)
    cdef size_t behind = <size_t>(urb.data + urb.length) + <size_t>urb.packets * ISO_DESCRIPTOR_SIZE
    cdef uint32_t i, begin = 0
    cdef IsoPacket *packet
    urb.iso = <IsoPacket *>((behind + sizeof(IsoPacket) - 1) & ~<size_t>(sizeof(IsoPacket) - 1))
    urb_get_iso(wire, urb.iso, urb.packets)
    for i in range(urb.packets):
        packet = &urb.iso[i]
        if packet.offset > urb.length or packet.length > urb.length - packet.offset or packet.offset < begin:
            return -LINUX_EINVAL
        if packet.length > MAX_ISO_PACKET_LENGTH:
            return -LINUX_EMSGSIZE  # as usb_submit_urb, drivers/usb/core/urb.c, for what no endpoint can send
        if not urb.wire_in and packet.offset != begin:
            memmove(urb.data + begin, urb.data + packet.offset, packet.length)
        begin += packet.length
    return 0


cdef int receiver_check_control(Urb *urb) noexcept nogil:
    """The setup packet against the header (usb_submit_urb, drivers/usb/core/urb.c); 0 or a negative errno."""
    cdef uint8_t *setup = urb.data - SETUP_SIZE
    cdef uint16_t wLength = urb_get16le(setup + 6)
    if wLength > urb.length:
        return -LINUX_EINVAL
    if wLength and (setup[0] & DIRECTION_IN != 0) != (urb.wire_in != 0):
        return -LINUX_EINVAL
    urb.length = wLength
    urb.endpoint = setup[0] & DIRECTION_IN
    return 0


cdef void receiver_begin_urb(Core *core, Urb *urb) noexcept nogil:
    """The URB is whole: to the device with it, unless it is refused: its status is not 0."""
    cdef int refusal = urb.status, result = 0
    if inflight_overtaken(core, urb):
        return
    if urb.type == ISOCHRONOUS:
        result = receiver_arrange_isochronous(urb)
    elif urb.type == CONTROL and refusal == 0:
        result = receiver_check_control(urb)
    result = refusal or result
    if result != 0:
        inflight_answer(core, urb, result)
    elif urb.type == CONTROL:
        requests_begin(core, urb)
    else:
        inflight_submit(core, urb)


cdef bint receiver_read_header(Core *core, const uint8_t *header) noexcept nogil:
    cdef Session *session = &core.session
    cdef uint32_t command = urb_get32(header + AT_COMMAND)
    if command != USBIP_CMD_SUBMIT and command != USBIP_CMD_UNLINK:
        snprintf(session.problem, PROBLEM_SIZE, "command 0x%08x is neither CMD_SUBMIT nor CMD_UNLINK", command)
        session.wake = WAKE_CLIENT_FAILED
        return True
    if urb_get32(header + AT_DEVID) != core.devid:
        snprintf(session.problem, PROBLEM_SIZE, "devid 0x%08x is not the imported device's 0x%08x",
                 urb_get32(header + AT_DEVID), core.devid)
        session.wake = WAKE_CLIENT_FAILED
        return True
    if command == USBIP_CMD_UNLINK:
        return receiver_read_unlink(core, header)
    return receiver_read_submit(core, header)


cdef void receiver_parse(Core *core) noexcept nogil:
    """Takes what the inbox holds, as far as it goes."""
    cdef Session *session = &core.session
    cdef size_t available, taken
    cdef Urb *urb
    while session.wake == RUNNING:
        available = session.end - session.at
        if session.discard:
            taken = min(available, session.discard)
            session.at += taken
            session.discard -= taken
            if session.discard:
                return
        elif session.incoming != NULL:
            urb = session.incoming
            taken = min(available, session.expected - session.received)
            memcpy(urb.data + session.received, core.inbox + session.at, taken)
            session.at += taken
            session.received += taken
            if session.received < session.expected:
                return
            session.incoming = NULL
            receiver_begin_urb(core, urb)
        elif available < USBIP_HEADER_SIZE:
            return
        elif receiver_read_header(core, core.inbox + session.at):
            session.at += USBIP_HEADER_SIZE
        else:
            session.stalled = True
            return


cdef void receiver_receive(Core *core) noexcept nogil:
    """Reads and parses all that the socket has, within reason."""
    cdef Session *session = &core.session
    cdef iovec pieces[2]
    cdef msghdr message
    cdef size_t asked, direct
    cdef ssize_t got
    cdef bint straight       # into the URB's buffer
    cdef int turn
    session.heard = core.now
    memset(&message, 0, sizeof(message))
    message.msg_iov = pieces
    for turn in range(READS_A_ROUND):
        if session.stalled or session.wake != RUNNING:
            return
        message.msg_iovlen = 1
        straight = session.incoming != NULL and session.discard == 0
        if straight:  # and so the inbox is empty
            pieces[0].iov_base = session.incoming.data + session.received
            pieces[0].iov_len = session.expected - session.received
            pieces[1].iov_base = core.inbox
            pieces[1].iov_len = INBOX_SIZE
            message.msg_iovlen = 2
            asked = pieces[0].iov_len + INBOX_SIZE
        else:
            memmove(core.inbox, core.inbox + session.at, session.end - session.at)
            session.end -= session.at
            session.at = 0
            pieces[0].iov_base = core.inbox + session.end
            asked = pieces[0].iov_len = INBOX_SIZE - session.end
        got = recvmsg(session.client, &message, 0)
        if got == 0:
            session.wake = WAKE_CLIENT_CLOSED
            return
        if got < 0:
            if errno != EAGAIN and errno != EINTR:
                session_fail(core, strerror(errno))
            return
        if straight:
            direct = min(<size_t>got, session.expected - session.received)
            session.received += direct
            session.at = 0
            session.end = <size_t>got - direct
        else:
            session.end += <size_t>got
        receiver_parse(core)
        if <size_t>got < asked:
            return
