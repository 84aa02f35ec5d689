# The transfer interface over software: simulated devices.  Runs in workers, on the pump's thread.
#
# Each endpoint is a pipe: a FIFO of URBs and a behaviour that says who moves their data.  SOURCE, SINK and LOOPBACK
# are moved here at C speed, MODEL by the Python model (simulated_model.pxi), device requests are answered from the
# descriptors (simulated_requests.pxi).  Isochronous URBs end when the time of their packets is over.
#
# Nothing blocks.  Model pipes move inside `events`, all else inside `submit` too.


cdef inline Pipe *simulated_pipe(SimulatedBackend *it, uint8_t endpoint) noexcept nogil:
    return &it.pipes[endpoints_index(endpoint)]


cdef void simulated_add(Pipe *pipe, Urb *urb) noexcept nogil:
    urb_append(&pipe.first, &pipe.last, urb)


cdef void simulated_finish(SimulatedBackend *it, Pipe *pipe, int32_t status) noexcept nogil:
    """Completes the oldest URB."""
    cdef Urb *urb = pipe.first
    it.isochronous -= urb.type == ISOCHRONOUS
    pipe.first = urb.next
    urb.next = NULL
    urb.status = status
    if status != 0 and pipe.behaviour == LOOPBACK and not urb.wire_in:
        simulated_loop_end_message(it.loops[urb.endpoint])
    it.base.complete(&it.base, urb)


# ---- SOURCE, SINK, LOOPBACK -----------------------------------------------------------------------------------

cdef void simulated_fill(Pipe *pipe, uint8_t *to, uint32_t length) noexcept nogil:
    """What Linux's g_zero sends: byte i of each packet is i % 63 (f_sourcesink.c, pattern=1)."""
    cdef uint32_t part
    while length:
        part = min(length, pipe.pattern_length)
        memcpy(to, pipe.pattern, part)
        to += part
        length -= part


cdef bint simulated_loop_write(Loop *loop, Urb *urb) noexcept nogil:
    """Moves bytes of an OUT URB in; True when it is through."""
    cdef size_t part, end
    cdef uint32_t *length
    if not loop.open:
        if loop.messages == LOOP_MESSAGES:
            return False
        loop.lengths[(loop.oldest + loop.messages) % LOOP_MESSAGES] = 0
        loop.messages += 1
        loop.open = True
    length = &loop.lengths[(loop.oldest + loop.messages - 1) % LOOP_MESSAGES]
    while urb.actual_length < urb.length and loop.used < LOOP_SIZE:
        end = (loop.at + loop.used) % LOOP_SIZE
        part = min(<size_t>(urb.length - urb.actual_length), min(LOOP_SIZE - loop.used, LOOP_SIZE - end))
        memcpy(loop.bytes + end, urb.data + urb.actual_length, part)
        loop.used += part
        length[0] += <uint32_t>part
        urb.actual_length += <uint32_t>part
    if urb.actual_length < urb.length:
        return False
    loop.open = False
    return True


cdef bint simulated_loop_read(Loop *loop, Urb *urb) noexcept nogil:
    """Moves bytes of the oldest message out; True when the IN URB is full or the message at its end."""
    cdef size_t part
    cdef uint32_t *length
    if loop.messages == 0:
        return False
    length = &loop.lengths[loop.oldest]
    while length[0] and urb.actual_length < urb.length:
        part = min(<size_t>min(length[0], urb.length - urb.actual_length), LOOP_SIZE - loop.at)
        memcpy(urb.data + urb.actual_length, loop.bytes + loop.at, part)
        loop.at = (loop.at + part) % LOOP_SIZE
        loop.used -= part
        length[0] -= <uint32_t>part
        urb.actual_length += <uint32_t>part
    if length[0] == 0 and not (loop.open and loop.messages == 1):
        loop.oldest = (loop.oldest + 1) % LOOP_MESSAGES
        loop.messages -= 1
        return True
    return urb.actual_length == urb.length


cdef void simulated_loop_end_message(Loop *loop) noexcept nogil:
    """The OUT URB ended before all of it had come: its message ends where it is, or never was."""
    if loop.open:
        loop.open = False
        if loop.lengths[(loop.oldest + loop.messages - 1) % LOOP_MESSAGES] == 0:
            loop.messages -= 1


cdef void simulated_loop_clear(Loop *loop) noexcept nogil:
    loop.at = loop.used = loop.oldest = loop.messages = 0
    loop.open = False


cdef void simulated_advance_loop(SimulatedBackend *it, int number) noexcept nogil:
    """Moves what can be moved through the loopback of this endpoint number."""
    cdef Pipe *out = &it.pipes[number]
    cdef Pipe *back = &it.pipes[number + 16]
    cdef bint moved = True
    cdef size_t before
    while moved:
        moved = False
        before = it.loops[number].used
        while out.first != NULL and (out.halted or simulated_loop_write(it.loops[number], out.first)):
            simulated_finish(it, out, -LINUX_EPIPE if out.halted else 0)
            moved = True
        moved = moved or it.loops[number].used != before
        before = it.loops[number].used
        while back.first != NULL and (back.halted or simulated_loop_read(it.loops[number], back.first)):
            simulated_finish(it, back, -LINUX_EPIPE if back.halted else 0)
            moved = True
        moved = moved or it.loops[number].used != before


# ---- isochronous --------------------------------------------------------------------------------------------

cdef void simulated_schedule(SimulatedBackend *it, Pipe *pipe, Urb *urb) noexcept nogil:
    """The packets follow those of the URB before, one in each service interval (USB 2.0 section 9.6.6)."""
    cdef Endpoint *endpoint = endpoints_find(&it.map, urb.endpoint)
    cdef int exponent = max(0, min(15, endpoint.bInterval - 1))
    cdef int64_t frame = 1000 if it.speed < 3 else 125  # microseconds; below high speed frames, else microframes
    cdef int64_t start = monotonic_us()
    if pipe.first != NULL:
        start = max(start, pipe.last.device.simulated.due)
    urb.start_frame = <uint32_t>(start // frame)
    urb.device.simulated.due = start + (frame << exponent) * urb.packets
    it.isochronous += 1
    simulated_add(pipe, urb)


cdef void simulated_finish_packets(SimulatedBackend *it, Pipe *pipe, Urb *urb) noexcept nogil:
    cdef uint32_t i, begin = 0
    if pipe.behaviour == MODEL:
        simulated_model_isochronous(it, urb)
        return
    for i in range(urb.packets):
        if urb.wire_in:
            simulated_fill(pipe, urb.data + begin, urb.iso[i].length)
        urb.iso[i].actual_length = urb.iso[i].length
        begin += urb.iso[i].length


cdef void simulated_advance_isochronous(SimulatedBackend *it) noexcept nogil:
    cdef int64_t now = monotonic_us()
    cdef Pipe *pipe
    cdef int i
    for i in range(ENDPOINTS):
        pipe = &it.pipes[i]
        while pipe.first != NULL and pipe.first.type == ISOCHRONOUS and pipe.first.device.simulated.due <= now:
            simulated_finish_packets(it, pipe, pipe.first)
            simulated_finish(it, pipe, 0)


# ---- the interface --------------------------------------------------------------------------------------------

cdef int simulated_submit(Backend *self, Urb *urb) noexcept nogil:
    cdef SimulatedBackend *it = <SimulatedBackend *>self
    cdef Pipe *pipe
    if urb.type == CONTROL:
        urb.status = simulated_control_request(it, urb)
        self.complete(self, urb)
        return 0
    pipe = simulated_pipe(it, urb.endpoint)
    if urb.type == ISOCHRONOUS:
        simulated_schedule(it, pipe, urb)
        return 0
    simulated_add(pipe, urb)
    if pipe.behaviour == LOOPBACK:
        simulated_advance_loop(it, urb.endpoint & 0x0f)
    elif pipe.behaviour == MODEL:
        it.stirred = True
    elif pipe.halted:
        simulated_finish(it, pipe, -LINUX_EPIPE)
    else:
        if urb.wire_in and INLINE_DATA < urb.length <= pipe.pattern_length:
            urb.lent = pipe.pattern
        elif urb.wire_in:
            simulated_fill(pipe, urb.data, urb.length)
        urb.actual_length = urb.length
        simulated_finish(it, pipe, 0)
    return 0


cdef int simulated_cancel(Backend *self, Urb *urb) noexcept nogil:
    cdef SimulatedBackend *it = <SimulatedBackend *>self
    cdef Pipe *pipe = simulated_pipe(it, urb.endpoint)
    cdef Urb *before = pipe.first
    cdef int number = urb.endpoint & 0x0f
    if self.aborts_endpoints:
        simulated_abort(it, pipe, urb)
        return 0
    if before == urb:
        simulated_finish(it, pipe, -LINUX_ECONNRESET)
        if pipe.behaviour == LOOPBACK:  # it may have been in the way of the next
            simulated_advance_loop(it, number)
        return 0
    while before.next != urb:
        before = before.next
    before.next = urb.next
    if pipe.last == urb:
        pipe.last = before
    urb.next = NULL
    it.isochronous -= urb.type == ISOCHRONOUS
    urb.status = -LINUX_ECONNRESET
    self.complete(self, urb)
    return 0


cdef void simulated_abort(SimulatedBackend *it, Pipe *pipe, Urb *asked) noexcept nogil:
    """Ends all that is pending.  A message through a loopback goes on when the rest of it is submitted again."""
    cdef Urb *urb = pipe.first
    cdef Urb *following
    if pipe.behaviour == LOOPBACK and not asked.wire_in and urb == asked:
        simulated_loop_end_message(it.loops[asked.endpoint])
    pipe.first = NULL
    while urb != NULL:
        following = urb.next
        urb.next = NULL
        it.isochronous -= urb.type == ISOCHRONOUS
        urb.status = -LINUX_ECONNRESET
        it.base.complete(&it.base, urb)
        urb = following


cdef void simulated_events(Backend *self) noexcept nogil:
    cdef SimulatedBackend *it = <SimulatedBackend *>self
    if it.stirred or 0 <= it.wake <= monotonic_us():
        simulated_model_advance(it)
    if it.isochronous:
        simulated_advance_isochronous(it)


cdef int simulated_describe(Backend *self, pollfd *fds, int room) noexcept nogil:
    return 0


cdef int64_t simulated_deadline(Backend *self) noexcept nogil:
    cdef SimulatedBackend *it = <SimulatedBackend *>self
    cdef int64_t soonest = it.wake
    cdef int i
    if it.isochronous == 0:
        return soonest
    for i in range(ENDPOINTS):
        if it.pipes[i].first != NULL and it.pipes[i].first.type == ISOCHRONOUS:
            if soonest < 0 or it.pipes[i].first.device.simulated.due < soonest:
                soonest = it.pipes[i].first.device.simulated.due
    return soonest


cdef void simulated_forget(Backend *self, Urb *urb) noexcept nogil:
    pass  # an URB of a simulated device carries nothing


@cython.no_gc_clear  # the pump may call `model` once more when both are freed together
cdef class SimulatedTransfers(Transfers):
    """Transfers of a `usbipd.simulated.device.SimulatedDevice`.

    as_on_macos: cancel and URB_ZERO_PACKET do what they do in libusb on macOS (queued.pxi).
    """

    cdef SimulatedBackend it
    cdef object model
    cdef list kept           # the bytes objects that Blobs point into

    def __cinit__(self, model, *, bint as_on_macos=False):
        cdef SimulatedBackend *it = &self.it
        cdef int number
        self.model = model
        self.kept = []
        it.model = <PyObject *>model
        it.wake = -1
        it.speed = model.speed
        it.base.aborts_endpoints = it.base.lacks_zero_packets = as_on_macos
        self._load_descriptors(model)
        for address, behaviour in model.behaviours.items():
            simulated_pipe(it, address).behaviour = <Behaviour><int>behaviour
            if behaviour == LOOPBACK:
                self._load_loop(address & 0x0f)
            elif behaviour == SOURCE:
                self._load_pattern(simulated_pipe(it, address), address)
        it.base.submit = simulated_submit
        it.base.cancel = simulated_cancel
        it.base.events = simulated_events
        it.base.describe = simulated_describe
        it.base.deadline = simulated_deadline
        it.base.forget = simulated_forget
        it.base.has_setting = simulated_has_setting
        it.base.set_configuration = simulated_set_configuration
        it.base.set_interface = simulated_set_interface
        it.base.clear_halt = simulated_clear_halt
        it.base.reset = simulated_reset
        self.backend = &it.base

    cdef Blob _blob(self, bytes content):
        cdef Blob blob
        self.kept.append(content)
        blob.bytes = <const uint8_t *><const char *>content
        blob.length = <uint32_t>len(content)
        return blob

    cdef object _load_loop(self, int number):
        if self.it.loops[number] != NULL:  # its other end was here before
            return
        self.it.loops[number] = <Loop *>calloc(1, sizeof(Loop))
        if self.it.loops[number] != NULL:
            self.it.loops[number].bytes = <uint8_t *>malloc(LOOP_SIZE)
        if self.it.loops[number] == NULL or self.it.loops[number].bytes == NULL:
            raise MemoryError

    cdef object _load_pattern(self, Pipe *pipe, int address):
        cdef uint32_t i, packet = 0
        for i in range(<uint32_t>self.it.map.count):
            if self.it.map.all[i].bEndpointAddress == address:
                packet = max(packet, <uint32_t>(self.it.map.all[i].wMaxPacketSize & 0x7ff))
        if packet == 0:
            raise ValueError(f"there is no endpoint {address:#04x} to be a SOURCE")
        pipe.pattern_length = packet * (<uint32_t>PATTERN_SIZE // packet + 1)
        pipe.pattern = <uint8_t *>malloc(pipe.pattern_length)
        if pipe.pattern == NULL:
            raise MemoryError
        for i in range(pipe.pattern_length):
            pipe.pattern[i] = <uint8_t>((i % packet) % 63)

    cdef object _load_descriptors(self, model):
        cdef SimulatedBackend *it = &self.it
        cdef int i
        parsed = [parse_configuration(raw) for raw in model.configurations]
        settings = [
            (each.bConfigurationValue, interface.bInterfaceNumber, interface.bAlternateSetting)
            for each in parsed for interface in each.interfaces
        ]
        strings = string_descriptors(model.strings)
        it.configurations = <Blob *>calloc(len(parsed), sizeof(Blob))
        it.strings = <Blob *>calloc(len(strings), sizeof(Blob))
        it.settings = <uint8_t *>calloc(max(1, len(settings)), 3)
        if it.configurations == NULL or it.strings == NULL or it.settings == NULL:
            raise MemoryError
        it.device = self._blob(model.device_descriptor)
        it.bos = self._blob(model.bos_descriptor)
        it.configuration_count = len(parsed)
        for i in range(it.configuration_count):
            it.configurations[i] = self._blob(model.configurations[i])
        it.string_count = len(strings)
        for i in range(it.string_count):
            it.strings[i] = self._blob(strings[i])
        it.setting_count = len(settings)
        for i in range(it.setting_count):
            it.settings[3 * i], it.settings[3 * i + 1], it.settings[3 * i + 2] = settings[i]
        endpoints_load(&it.map, parsed)
        endpoints_configure(&it.map, parsed[0].bConfigurationValue)

    def __dealloc__(self):
        cdef int i
        for i in range(16):
            if self.it.loops[i] != NULL:
                free(self.it.loops[i].bytes)
                free(self.it.loops[i])
        free(self.it.configurations)
        free(self.it.strings)
        free(self.it.settings)
        for i in range(ENDPOINTS):
            free(self.it.pipes[i].pattern)
        endpoints_free(&self.it.map)

    @property
    def problem(self) -> str | None:
        """The last exception of the model; it ended an URB with -EPROTO."""
        return self.it.problem.decode(errors="replace") or None
