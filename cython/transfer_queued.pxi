# The transfer interface in front of another one whose host's stack needs help: macOS's.  Runs in workers, on the
# pump's thread.  The pump puts it between itself and a backend with `aborts_endpoints` or `lacks_zero_packets`; with
# any other backend nothing of this file runs.
#
# ABORTED ENDPOINTS
#
# To cancel one transfer libusb aborts the pipe that it is on (cancel_control_transfer and darwin_abort_transfers in
# libusb's darwin_usb.c; libusb#549, #1121): all transfers of the endpoint come back as cancelled.  The client asked
# for one.  So each endpoint has a queue, and each URB keeps its place in it until the pump gets it back:
#
#   An abort closes the queue until everything that the backend has of this endpoint is back, in whatever order: what
#   came behind would overtake.  An URB that was asked to end goes to the pump as cancelled, one that was faster with
#   its result, and the others take their old places again.  Then it is decided what the oldest of them has moved, the
#   queue opens, and what waits is submitted in its order.
#   Bytes that an aborted attempt moved stay moved: the next attempt is for the rest, in both directions.  An IN that
#   was ended by a short packet, or is full, has ended.
#   The packets of an isochronous URB are submitted again as they were: their time is over, what they carried is lost.
#   Endpoint 0 is given one URB at a time.  A control request must not be carried out twice, and an abort cannot tell
#   how far the device was with it: so none but the one that was asked to end is ever aborted.
#   An URB that waits in a queue ends without the backend.
#
# WHAT AN ABORTED URB HAS MOVED
#
# libusb counts the bytes of transfers that succeed, 0 for one that was aborted (darwin_handle_transfer_completion), and
# whether Apple's kernel reports them at all is not documented.  The transfers of a pipe run in their order, so of those
# that come back aborted only the oldest can have moved bytes; the others have moved none and are submitted again whole.
# If the oldest was asked to end, nothing is in question.  If it was not:
#
#   It reports bytes: they are known, and the rest is submitted again.
#   It reports none, and an aborted URB of this device has reported some before: the host counts, so it has moved none.
#   The endpoint is halted: an URB before it has ended with a stall, and nothing has moved since.
#   Else what it has moved is not known.  Submitted again whole it could lose what it has read, or send twice what it
#   has written.  So it ends with -EILSEQ, the errno of a damaged packet, and what earlier attempts have moved.  The
#   class drivers of Linux take that for a passing error: usb-storage resets and repeats the command, usbhid retries,
#   usbnet counts it, cdc-acm and usb-serial go on reading.  They would stop at -ECONNRESET, -ENOENT, -ESHUTDOWN and
#   -EPIPE; cdc-acm waits half a second after -EPROTO; usb-storage takes -EREMOTEIO for a short answer.
#   Of a zero packet no count can tell whether it was sent, so its URB ends in this way too.
#
# IOKit says that an abort ends transfers with kIOReturnAborted.  Any other code is an error for libusb, whose bytes it
# never counts.  So an error during an abort is taken for its doing, and what such an URB has moved is not known.
#
# CLEARED HALTS
#
# Linux leaves queued URBs alone when it clears a halt (usb_clear_halt in drivers/usb/core/message.c).  IOKit ends them
# all with an error of its own, kIOUSBTransactionReturned, which does not tell what they have moved.  So the pipe is
# aborted before: its URBs come back as described above, and are submitted again when the halt is cleared.
#
# FAILED ISOCHRONOUS URBS
#
# IOKit fails an isochronous transfer as a whole where Linux fails each of its packets, and has 0 for the URB.  libusb
# leaves the packets as they were submitted then (darwin_handle_transfer_completion): as failed.
#
# ZERO PACKETS
#
# A bulk OUT of whole packets with URB_ZERO_PACKET is followed by an empty transfer, and ends when that has ended.  URBs
# behind it wait until the empty one is on its way, as it has to stay in front of them: what libusb sends for
# LIBUSB_TRANSFER_ADD_ZERO_PACKET on macOS, if it takes the flag at all, comes behind all that is queued by then.
# An URB that was asked to end meanwhile has sent its bytes, and is cancelled.
#
# URBs are started in `submit` and `events` only: of many UNLINKs in one round each endpoint is restarted once.

cdef struct Lane:            # one endpoint's queue
    Urb *first               # URBs that wait, in the order of their `turn`
    Urb *last
    Urb *returned            # the one that took its place again last
    Urb *flying              # URBs that the backend has, oldest first
    Urb *newest              # and the last of them
    bint aborting            # all that fly are about to come back; closed until then
    bint owing               # the last one that flies needs its zero packet before the next; closed until then
    bint halted              # the last one that the device has ended was stalled
    uint64_t oldest          # `turn` of the oldest that this abort has brought back; 0: none yet
    bint uncounted           # what that one has moved is not known

cdef struct QueuedBackend:
    Backend base
    Backend *device
    EndpointMap *map
    uint64_t turns
    bint counts_aborted      # an aborted URB has reported bytes
    uint32_t dirty           # a bit per lane in which something may be to be started
    Lane lanes[ENDPOINTS]


cdef inline int lane_index(Urb *urb) noexcept nogil:
    """Endpoint 0 is one pipe for both directions."""
    return 0 if urb.type == CONTROL else endpoint_index(urb.endpoint)


cdef inline bint in_parts(Urb *urb) noexcept nogil:
    """Whether the rest of it can be submitted when a part is done."""
    return urb.type == BULK or urb.type == INTERRUPT


cdef uint32_t packet_size(QueuedBackend *it, Urb *urb) noexcept nogil:
    """wMaxPacketSize without the bits for more packets in a microframe (USB 2.0 table 9-13); 0: unknown."""
    cdef Endpoint *endpoint = endpoints_find(it.map, urb.endpoint)
    return 0 if endpoint == NULL else endpoint.wMaxPacketSize & 0x7ff


cdef bint needs_zero_packet(QueuedBackend *it, Urb *urb) noexcept nogil:
    cdef uint32_t size
    if not (it.device.lacks_zero_packets and urb.transfer_flags & URB_ZERO_PACKET):
        return False
    if urb.type != BULK or urb.wire_in or urb.length == 0:
        return False
    size = packet_size(it, urb)
    return size != 0 and urb.length % size == 0


cdef void lane_insert(Lane *lane, Urb *urb) noexcept nogil:
    """Puts the URB where its `turn` says.  URBs return in order, mostly: then no walk is needed."""
    cdef Urb **link = &lane.first
    if lane.returned != NULL and lane.returned.turn < urb.turn:
        link = &lane.returned.next
    while link[0] != NULL and link[0].turn < urb.turn:
        link = &link[0].next
    urb.next = link[0]
    link[0] = urb
    if urb.next == NULL:
        lane.last = urb
    lane.returned = urb


cdef void lane_remove(Lane *lane, Urb *urb) noexcept nogil:
    cdef Urb **link = &lane.first
    cdef Urb *before = NULL
    while link[0] != urb:
        before = link[0]
        link = &link[0].next
    link[0] = urb.next
    if lane.last == urb:
        lane.last = before
    if lane.returned == urb:
        lane.returned = NULL
    urb.next = NULL


cdef void queued_finish(QueuedBackend *it, Urb *urb, int32_t status) noexcept nogil:
    """To the pump with it, with all the bytes that it has moved."""
    urb.status = status
    if in_parts(urb):
        urb.actual_length = urb.moved
    it.base.complete(&it.base, urb)


cdef void flying_add(Lane *lane, Urb *urb) noexcept nogil:
    urb.behind = NULL
    if lane.flying == NULL:
        lane.flying = urb
    else:
        lane.newest.behind = urb
    lane.newest = urb
    urb.flying = True


cdef void flying_remove(Lane *lane, Urb *urb) noexcept nogil:
    """URBs land in order, mostly: then no walk is needed."""
    cdef Urb **link = &lane.flying
    cdef Urb *before = NULL
    while link[0] != urb:
        before = link[0]
        link = &link[0].behind
    link[0] = urb.behind
    if lane.newest == urb:
        lane.newest = before
    urb.flying = False


cdef void queued_start(QueuedBackend *it, Lane *lane, Urb *urb) noexcept nogil:
    """To the backend with the URB, or the rest of it, or its zero packet."""
    cdef int result
    urb.backend = it.device
    urb.whole = urb.length
    urb.actual_length = 0
    urb.status = 0
    if in_parts(urb):
        urb.data += urb.moved
        urb.length -= urb.moved
        lane.owing = urb.owes_zero_packet and urb.length != 0
    flying_add(lane, urb)
    result = it.device.submit(it.device, urb)
    if result != 0:
        queued_landed(it, lane, urb)
        queued_finish(it, urb, result)


cdef void queued_landed(QueuedBackend *it, Lane *lane, Urb *urb) noexcept nogil:
    """Whole again: the URB is not the backend's any more."""
    flying_remove(lane, urb)
    if in_parts(urb):
        if urb.owes_zero_packet and urb.length != 0:
            lane.owing = False
        if urb.lent != NULL and (urb.moved or urb.status != 0):  # only a part: all parts have to lie in one place
            memcpy(urb.data, urb.lent, min(urb.actual_length, urb.length))
            urb.lent = NULL
        urb.data -= urb.moved
        urb.moved += min(urb.actual_length, urb.length)
        urb.length = urb.whole
    it.dirty |= <uint32_t>1 << lane_index(urb)


cdef bint has_ended(QueuedBackend *it, Urb *urb) noexcept nogil:
    """Whether an attempt that was aborted has moved all that there was to be moved."""
    cdef uint32_t size
    if not in_parts(urb) or urb.moved == 0:
        return False
    if urb.moved == urb.length:
        return True
    size = packet_size(it, urb)
    return urb.wire_in and size != 0 and urb.moved % size != 0


cdef void note_abort(QueuedBackend *it, Lane *lane, Urb *urb) noexcept nogil:
    """An abort has brought this URB back: notes what only the oldest one can have moved."""
    cdef bint reports = in_parts(urb) and urb.actual_length != 0
    cdef bint counts
    it.counts_aborted = it.counts_aborted or reports
    counts = it.counts_aborted and urb.length != 0 and urb.status == -LINUX_ECONNRESET
    if lane.oldest == 0 or urb.turn < lane.oldest:
        lane.oldest = urb.turn
        lane.uncounted = in_parts(urb) and not (reports or counts or lane.halted)


cdef void settle_abort(QueuedBackend *it, Lane *lane) noexcept nogil:
    """All are back: opens the queue, and ends the oldest one if what it has moved is not known."""
    cdef Urb *urb = lane.first
    lane.aborting = False
    if urb != NULL and urb.turn == lane.oldest and lane.uncounted:
        lane_remove(lane, urb)
        queued_finish(it, urb, -LINUX_EILSEQ)
    lane.oldest = 0


cdef void queued_returned(Backend *device, Urb *urb) noexcept nogil:
    """The backend gives an URB back: its `complete`."""
    cdef QueuedBackend *it = <QueuedBackend *>device.owner
    cdef Lane *lane = &it.lanes[lane_index(urb)]
    cdef bint aborted = lane.aborting and (urb.status == -LINUX_ECONNRESET or urb.status == -LINUX_EPROTO)
    cdef bint was_zero_packet = urb.owes_zero_packet and urb.length == 0
    cdef bint owes
    cdef int32_t status = urb.status
    if aborted:
        note_abort(it, lane, urb)
        status = -LINUX_ECONNRESET
    elif status == 0 or status == -LINUX_EPIPE:
        lane.halted = status != 0
    elif urb.type == ISOCHRONOUS and status == -LINUX_EPROTO:
        status = 0  # each of its packets has failed
    aborted = aborted and not urb.asked
    queued_landed(it, lane, urb)
    if aborted and not was_zero_packet and has_ended(it, urb):
        aborted = False
        status = 0
    owes = status == 0 and urb.owes_zero_packet and not was_zero_packet and urb.moved == urb.length
    if aborted or (owes and not urb.asked):
        lane_insert(lane, urb)
    else:
        queued_finish(it, urb, -LINUX_ECONNRESET if owes else status)
    if lane.flying == NULL and lane.aborting:
        settle_abort(it, lane)


cdef void queued_advance(QueuedBackend *it, int index) noexcept nogil:
    """Starts what may be started in one lane."""
    cdef Lane *lane = &it.lanes[index]
    cdef Urb *urb
    while lane.first != NULL and not lane.aborting and not lane.owing and not (index == 0 and lane.flying != NULL):
        urb = lane.first
        lane.first = urb.next
        urb.next = NULL
        lane.returned = NULL
        queued_start(it, lane, urb)


cdef int queued_submit(Backend *self, Urb *urb) noexcept nogil:
    """Whatever is wrong with the URB, its completion says so."""
    cdef QueuedBackend *it = <QueuedBackend *>self
    cdef int index = lane_index(urb)
    it.turns += 1
    urb.turn = it.turns
    urb.moved = 0
    urb.asked = urb.flying = False
    urb.owes_zero_packet = needs_zero_packet(it, urb)
    list_append(&it.lanes[index].first, &it.lanes[index].last, urb)
    queued_advance(it, index)
    self.gone = it.device.gone
    return 0


cdef int queued_cancel(Backend *self, Urb *urb) noexcept nogil:
    cdef QueuedBackend *it = <QueuedBackend *>self
    cdef int index = lane_index(urb)
    cdef Lane *lane = &it.lanes[index]
    cdef bint aborting = lane.aborting, again = urb.asked
    cdef int result
    urb.asked = True
    if not urb.flying:
        lane_remove(lane, urb)
        it.dirty |= <uint32_t>1 << index
        queued_finish(it, urb, -LINUX_ECONNRESET)
        return 0
    if aborting and not again:  # what flies is on its way back
        return 0
    # An error may come from what the host's stack does behind the abort, as clearing a halt that the device refuses.
    lane.aborting = self.aborts_endpoints
    result = it.device.cancel(it.device, urb)
    if result == -LINUX_ENOENT and not aborting:
        lane.aborting = False
    return result


cdef void queued_events(Backend *self) noexcept nogil:
    cdef QueuedBackend *it = <QueuedBackend *>self
    cdef int index
    it.device.ready = it.device.ready or self.ready
    self.ready = False
    it.device.events(it.device)
    while it.dirty:
        for index in range(ENDPOINTS):
            if it.dirty & <uint32_t>1 << index:
                it.dirty &= ~(<uint32_t>1 << index)
                queued_advance(it, index)
        it.device.events(it.device)
    self.gone = it.device.gone


cdef int queued_describe(Backend *self, pollfd *fds, int room) noexcept nogil:
    cdef Backend *device = (<QueuedBackend *>self).device
    return device.describe(device, fds, room)


cdef int64_t queued_deadline(Backend *self) noexcept nogil:
    cdef Backend *device = (<QueuedBackend *>self).device
    return 0 if (<QueuedBackend *>self).dirty else device.deadline(device)


cdef void queued_forget(Backend *self, Urb *urb) noexcept nogil:
    cdef Backend *device = (<QueuedBackend *>self).device
    device.forget(device, urb)


cdef bint queued_has_setting(Backend *self, int configuration, int interface, int alternate) noexcept nogil:
    cdef Backend *device = (<QueuedBackend *>self).device
    return device.has_setting(device, configuration, interface, alternate)


cdef void forget_halts(QueuedBackend *it) noexcept nogil:
    cdef int index
    for index in range(ENDPOINTS):
        it.lanes[index].halted = False


cdef int queued_set_configuration(Backend *self, int value) noexcept nogil:
    cdef Backend *device = (<QueuedBackend *>self).device
    cdef int result = device.set_configuration(device, value)
    forget_halts(<QueuedBackend *>self)
    self.unclaimed = device.unclaimed
    self.configuration = device.configuration
    return result


cdef int queued_set_interface(Backend *self, int interface, int alternate, int in_force) noexcept nogil:
    cdef Backend *device = (<QueuedBackend *>self).device
    cdef int result = device.set_interface(device, interface, alternate, in_force)
    forget_halts(<QueuedBackend *>self)
    self.unclaimed = device.unclaimed
    return result


cdef bint call_back(QueuedBackend *it, Lane *lane) noexcept nogil:
    """Takes back what the backend has of one endpoint, for it to be submitted again; False: it keeps some."""
    cdef int64_t end = monotonic_us() + DRAIN_TIME
    if not lane.aborting and lane.flying != NULL:
        lane.aborting = True
        it.device.cancel(it.device, lane.flying)
    while lane.flying != NULL:
        if monotonic_us() > end:
            return False
        wait_for(it.device)
    return True


cdef int queued_clear_halt(Backend *self, uint8_t endpoint) noexcept nogil:
    cdef QueuedBackend *it = <QueuedBackend *>self
    cdef Lane *lane = &it.lanes[endpoint_index(endpoint)]
    cdef int result
    if self.aborts_endpoints and not call_back(it, lane):
        return -LINUX_ETIMEDOUT
    result = it.device.clear_halt(it.device, endpoint)
    lane.halted = False
    return result


cdef int queued_reset(Backend *self) noexcept nogil:
    cdef Backend *device = (<QueuedBackend *>self).device
    cdef int result = device.reset(device)
    forget_halts(<QueuedBackend *>self)
    self.gone = device.gone
    self.reenumerated = device.reenumerated
    return result


cdef Backend *queue_before(QueuedBackend *it, Backend *device, EndpointMap *map) noexcept nogil:
    """What the pump talks to instead of `device`."""
    it.device = device
    it.map = map
    it.base.aborts_endpoints = device.aborts_endpoints
    it.base.loses_settings = device.loses_settings
    it.base.submit = queued_submit
    it.base.cancel = queued_cancel
    it.base.events = queued_events
    it.base.describe = queued_describe
    it.base.deadline = queued_deadline
    it.base.forget = queued_forget
    it.base.has_setting = queued_has_setting
    it.base.set_configuration = queued_set_configuration
    it.base.set_interface = queued_set_interface
    it.base.clear_halt = queued_clear_halt
    it.base.reset = queued_reset
    device.owner = it
    device.complete = queued_returned
    return &it.base
