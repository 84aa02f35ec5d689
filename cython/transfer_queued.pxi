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
#   An abort closes the queue until everything that the backend has of this endpoint is back: what came behind would
#   overtake.  Whoever was asked to end goes to the pump as cancelled, whoever was faster with what it did, and the
#   others take their old places again.  Then the queue opens, and what waits is submitted in its order.
#   Bytes that an aborted attempt moved stay moved: the next attempt is for the rest, in both directions.  An IN that
#   was ended by a short packet, or is full, has ended.
#   The packets of an isochronous URB are submitted again as they were: their time is over, what they carried is lost.
#   Endpoint 0 is given one URB at a time.  A control request must not be carried out twice, and an abort cannot tell
#   how far the device was with it: so none but the one that was asked to end is ever aborted.
#   An URB that waits in a queue ends without the backend.
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
    int flying               # URBs that the backend has
    bint aborting            # all that fly are about to come back; closed until then
    bint owing               # the last one that flies needs its zero packet before the next; closed until then

cdef struct QueuedBackend:
    Backend base
    Backend *device
    EndpointMap *map
    uint64_t turns
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


cdef void queued_start(QueuedBackend *it, Lane *lane, Urb *urb) noexcept nogil:
    """To the backend with the URB, or the rest of it, or its zero packet."""
    cdef int result
    urb.flying = True
    urb.backend = it.device
    urb.whole = urb.length
    urb.actual_length = 0
    urb.status = 0
    if in_parts(urb):
        urb.data += urb.moved
        urb.length -= urb.moved
        lane.owing = urb.owes_zero_packet and urb.length != 0
    lane.flying += 1
    result = it.device.submit(it.device, urb)
    if result != 0:
        queued_landed(it, lane, urb)
        queued_finish(it, urb, result)


cdef void queued_landed(QueuedBackend *it, Lane *lane, Urb *urb) noexcept nogil:
    """Whole again: the URB is not the backend's any more."""
    urb.flying = False
    lane.flying -= 1
    if lane.flying == 0:
        lane.aborting = False
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


cdef void queued_returned(Backend *device, Urb *urb) noexcept nogil:
    """The backend gives an URB back: its `complete`."""
    cdef QueuedBackend *it = <QueuedBackend *>device.owner
    cdef Lane *lane = &it.lanes[lane_index(urb)]
    cdef bint aborted = lane.aborting and urb.status == -LINUX_ECONNRESET and not urb.asked
    cdef bint was_zero_packet = urb.owes_zero_packet and urb.length == 0
    cdef int32_t status = urb.status
    queued_landed(it, lane, urb)
    if aborted and was_zero_packet or aborted and not has_ended(it, urb):
        lane_insert(lane, urb)
        return
    if aborted:
        status = 0
    if status == 0 and urb.owes_zero_packet and not was_zero_packet and urb.moved == urb.length:
        if not urb.asked:
            lane_insert(lane, urb)
            return
        status = -LINUX_ECONNRESET
    queued_finish(it, urb, status)


cdef void queued_advance(QueuedBackend *it, int index) noexcept nogil:
    """Starts what may be started in one lane."""
    cdef Lane *lane = &it.lanes[index]
    cdef Urb *urb
    while lane.first != NULL and not lane.aborting and not lane.owing and not (index == 0 and lane.flying):
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


cdef int queued_set_configuration(Backend *self, int value) noexcept nogil:
    cdef Backend *device = (<QueuedBackend *>self).device
    cdef int result = device.set_configuration(device, value)
    self.unclaimed = device.unclaimed
    self.configuration = device.configuration
    return result


cdef int queued_set_interface(Backend *self, int interface, int alternate, int in_force) noexcept nogil:
    cdef Backend *device = (<QueuedBackend *>self).device
    cdef int result = device.set_interface(device, interface, alternate, in_force)
    self.unclaimed = device.unclaimed
    return result


cdef int queued_clear_halt(Backend *self, uint8_t endpoint) noexcept nogil:
    cdef Backend *device = (<QueuedBackend *>self).device
    return device.clear_halt(device, endpoint)


cdef int queued_reset(Backend *self) noexcept nogil:
    cdef Backend *device = (<QueuedBackend *>self).device
    cdef int result = device.reset(device)
    self.gone = device.gone
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
