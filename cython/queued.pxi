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
# all with kIOUSBTransactionReturned, which does not tell how many bytes they moved.  So the pipe is
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


cdef inline int queued_lane_index(Urb *urb) noexcept nogil:
    """Endpoint 0 is one pipe for both directions."""
    return 0 if urb.type == CONTROL else endpoints_index(urb.endpoint)


cdef inline bint queued_in_parts(Urb *urb) noexcept nogil:
    """Whether the rest of it can be submitted when a part is done."""
    return urb.type == BULK or urb.type == INTERRUPT


cdef uint32_t queued_packet_size(QueuedBackend *it, Urb *urb) noexcept nogil:
    """wMaxPacketSize without the bits for more packets in a microframe (USB 2.0 table 9-13); 0: unknown."""
    cdef Endpoint *endpoint = endpoints_find(it.map, urb.endpoint)
    return 0 if endpoint == NULL else endpoint.wMaxPacketSize & 0x7ff


cdef bint queued_needs_zero_packet(QueuedBackend *it, Urb *urb) noexcept nogil:
    cdef uint32_t size
    if not (it.device.lacks_zero_packets and urb.transfer_flags & URB_ZERO_PACKET):
        return False
    if urb.type != BULK or urb.wire_in or urb.length == 0:
        return False
    size = queued_packet_size(it, urb)
    return size != 0 and urb.length % size == 0


cdef void queued_insert(Lane *lane, Urb *urb) noexcept nogil:
    """Puts the URB where its `turn` says.  URBs return in order, mostly: then no walk is needed."""
    cdef Urb **link = &lane.first
    if lane.returned != NULL and lane.returned.queued.turn < urb.queued.turn:
        link = &lane.returned.next
    while link[0] != NULL and link[0].queued.turn < urb.queued.turn:
        link = &link[0].next
    urb.next = link[0]
    link[0] = urb
    if urb.next == NULL:
        lane.last = urb
    lane.returned = urb


cdef void queued_remove(Lane *lane, Urb *urb) noexcept nogil:
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
    if queued_in_parts(urb):
        urb.actual_length = urb.queued.moved
    it.base.complete(&it.base, urb)


cdef void queued_flying_add(Lane *lane, Urb *urb) noexcept nogil:
    urb.queued.behind = NULL
    if lane.flying == NULL:
        lane.flying = urb
    else:
        lane.newest.queued.behind = urb
    lane.newest = urb
    urb.queued.flying = True


cdef void queued_flying_remove(Lane *lane, Urb *urb) noexcept nogil:
    """URBs land in order, mostly: then no walk is needed."""
    cdef Urb **link = &lane.flying
    cdef Urb *before = NULL
    while link[0] != urb:
        before = link[0]
        link = &link[0].queued.behind
    link[0] = urb.queued.behind
    if lane.newest == urb:
        lane.newest = before
    urb.queued.flying = False


cdef void queued_start(QueuedBackend *it, Lane *lane, Urb *urb) noexcept nogil:
    """To the backend with the URB, or the rest of it, or its zero packet."""
    cdef int result
    urb.queued.whole = urb.length
    urb.actual_length = 0
    urb.status = 0
    if queued_in_parts(urb):
        urb.data += urb.queued.moved
        urb.length -= urb.queued.moved
        lane.owing = urb.queued.owes_zero_packet and urb.length != 0
    queued_flying_add(lane, urb)
    result = it.device.submit(it.device, urb)
    if result != 0:
        queued_landed(it, lane, urb)
        queued_finish(it, urb, result)


cdef void queued_landed(QueuedBackend *it, Lane *lane, Urb *urb) noexcept nogil:
    """Whole again: the URB is not the backend's any more."""
    queued_flying_remove(lane, urb)
    if queued_in_parts(urb):
        if urb.queued.owes_zero_packet and urb.length != 0:
            lane.owing = False
        if urb.lent != NULL and (urb.queued.moved or urb.status != 0):  # a part: all have to lie in one place
            memcpy(urb.data, urb.lent, min(urb.actual_length, urb.length))
            urb.lent = NULL
        urb.data -= urb.queued.moved
        urb.queued.moved += min(urb.actual_length, urb.length)
        urb.length = urb.queued.whole
    it.dirty |= <uint32_t>1 << queued_lane_index(urb)


cdef bint queued_has_ended(QueuedBackend *it, Urb *urb) noexcept nogil:
    """Whether an attempt that was aborted has moved all that there was to be moved."""
    cdef uint32_t size
    if not queued_in_parts(urb) or urb.queued.moved == 0:
        return False
    if urb.queued.moved == urb.length:
        return True
    size = queued_packet_size(it, urb)
    return urb.wire_in and size != 0 and urb.queued.moved % size != 0


cdef void queued_note_abort(QueuedBackend *it, Lane *lane, Urb *urb) noexcept nogil:
    """An abort has brought this URB back: notes what only the oldest one can have moved."""
    cdef bint reports = queued_in_parts(urb) and urb.actual_length != 0
    cdef bint counts
    it.counts_aborted = it.counts_aborted or reports
    counts = it.counts_aborted and urb.length != 0 and urb.status == -LINUX_ECONNRESET
    if lane.oldest == 0 or urb.queued.turn < lane.oldest:
        lane.oldest = urb.queued.turn
        lane.uncounted = queued_in_parts(urb) and not (reports or counts or lane.halted)


cdef void queued_settle_abort(QueuedBackend *it, Lane *lane) noexcept nogil:
    """All are back: opens the queue, and ends the oldest one if what it has moved is not known."""
    cdef Urb *urb = lane.first
    lane.aborting = False
    if urb != NULL and urb.queued.turn == lane.oldest and lane.uncounted:
        queued_remove(lane, urb)
        queued_finish(it, urb, -LINUX_EILSEQ)
    lane.oldest = 0


cdef void queued_returned(Backend *device, Urb *urb) noexcept nogil:
    """The backend gives an URB back: its `complete`."""
    cdef QueuedBackend *it = <QueuedBackend *>device.owner
    cdef Lane *lane = &it.lanes[queued_lane_index(urb)]
    cdef bint aborted = lane.aborting and (urb.status == -LINUX_ECONNRESET or urb.status == -LINUX_EPROTO)
    cdef bint was_zero_packet = urb.queued.owes_zero_packet and urb.length == 0
    cdef bint owes
    cdef int32_t status = urb.status
    if aborted:
        queued_note_abort(it, lane, urb)
        status = -LINUX_ECONNRESET
    elif status == 0 or status == -LINUX_EPIPE:
        lane.halted = status != 0
    elif urb.type == ISOCHRONOUS and status == -LINUX_EPROTO:
        status = 0  # each of its packets has failed
    aborted = aborted and not urb.queued.asked
    queued_landed(it, lane, urb)
    if aborted and not was_zero_packet and queued_has_ended(it, urb):
        aborted = False
        status = 0
    owes = status == 0 and urb.queued.owes_zero_packet and not was_zero_packet and urb.queued.moved == urb.length
    if aborted or (owes and not urb.queued.asked):
        queued_insert(lane, urb)
    else:
        queued_finish(it, urb, -LINUX_ECONNRESET if owes else status)
    if lane.flying == NULL and lane.aborting:
        queued_settle_abort(it, lane)


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
    cdef int index = queued_lane_index(urb)
    it.turns += 1
    urb.queued.turn = it.turns
    urb.queued.moved = 0
    urb.queued.asked = urb.queued.flying = False
    urb.queued.owes_zero_packet = queued_needs_zero_packet(it, urb)
    urb_append(&it.lanes[index].first, &it.lanes[index].last, urb)
    queued_advance(it, index)
    self.gone = it.device.gone
    return 0


cdef int queued_cancel(Backend *self, Urb *urb) noexcept nogil:
    cdef QueuedBackend *it = <QueuedBackend *>self
    cdef int index = queued_lane_index(urb)
    cdef Lane *lane = &it.lanes[index]
    cdef bint aborting = lane.aborting, again = urb.queued.asked
    cdef int result
    urb.queued.asked = True
    if not urb.queued.flying:
        queued_remove(lane, urb)
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


cdef void queued_forget_halts(QueuedBackend *it) noexcept nogil:
    cdef int index
    for index in range(ENDPOINTS):
        it.lanes[index].halted = False


cdef int queued_set_configuration(Backend *self, int value) noexcept nogil:
    cdef Backend *device = (<QueuedBackend *>self).device
    cdef int result = device.set_configuration(device, value)
    queued_forget_halts(<QueuedBackend *>self)
    self.unclaimed = device.unclaimed
    self.configuration = device.configuration
    return result


cdef int queued_set_interface(Backend *self, int interface, int alternate, int in_force) noexcept nogil:
    cdef Backend *device = (<QueuedBackend *>self).device
    cdef int result = device.set_interface(device, interface, alternate, in_force)
    queued_forget_halts(<QueuedBackend *>self)
    self.unclaimed = device.unclaimed
    return result


cdef bint queued_call_back(QueuedBackend *it, Lane *lane) noexcept nogil:
    """Takes back what the backend has of one endpoint, for it to be submitted again; False: it keeps some."""
    cdef int64_t end = monotonic_us() + DRAIN_TIME
    if not lane.aborting and lane.flying != NULL:
        lane.aborting = True
        it.device.cancel(it.device, lane.flying)
    while lane.flying != NULL:
        if monotonic_us() > end:
            return False
        transfer_wait(it.device)
    return True


cdef int queued_clear_halt(Backend *self, uint8_t endpoint) noexcept nogil:
    cdef QueuedBackend *it = <QueuedBackend *>self
    cdef Lane *lane = &it.lanes[endpoints_index(endpoint)]
    cdef int result
    if self.aborts_endpoints and not queued_call_back(it, lane):
        return -LINUX_ETIMEDOUT
    result = it.device.clear_halt(it.device, endpoint)
    lane.halted = False
    return result


cdef int queued_reset(Backend *self) noexcept nogil:
    cdef Backend *device = (<QueuedBackend *>self).device
    cdef int result = device.reset(device)
    queued_forget_halts(<QueuedBackend *>self)
    self.gone = device.gone
    self.reenumerated = device.reenumerated
    return result


cdef Backend *queued_stand_before(QueuedBackend *it, Backend *device, EndpointMap *map) noexcept nogil:
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
