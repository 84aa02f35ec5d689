# Calls into the Python model of a simulated device.  Runs in workers, on the pump's thread, with the GIL.
# No exception propagates: it ends its URB with -EPROTO (-ENOMEM for MemoryError) or an isochronous packet with -EXDEV,
# and is kept for the log.

import time

from usbipd.simulated.descriptors import string_descriptors
from usbipd.simulated.device import Handshake
from usbipd.usb.descriptors import parse_configuration

cdef object NAK = Handshake.NAK
cdef object STALL = Handshake.STALL


cdef int32_t simulated_model_failed(SimulatedBackend *it, object error) noexcept:
    """Keeps the exception; returns the status of its URB."""
    snprintf(it.problem, PROBLEM_SIZE, "an exception that cannot be printed")
    try:
        text = f"{type(error).__name__}: {error}".encode(errors="replace")
        snprintf(it.problem, PROBLEM_SIZE, "%s", <const char *>text)
    except BaseException:
        pass  # formatting it failed too, for instance for lack of memory
    return -LINUX_ENOMEM if isinstance(error, MemoryError) else -LINUX_EPROTO


cdef int32_t simulated_model_take(object content, uint8_t *to, uint32_t room, uint32_t *taken):
    """Copies the model's data into an IN URB or packet; more than fits is babble."""
    cdef const uint8_t[::1] view = content
    taken[0] = <uint32_t>min(<size_t>view.shape[0], <size_t>room)
    if taken[0]:
        memcpy(to, &view[0], taken[0])
    return -LINUX_EOVERFLOW if <size_t>view.shape[0] > room else 0


cdef object simulated_model_readable(uint8_t *data, uint32_t length):
    return PyMemoryView_FromMemory(<char *>data, length, PyBUF_READ)


cdef int32_t simulated_model_control(SimulatedBackend *it, Urb *urb) noexcept nogil:
    with gil:
        return simulated_model_control_with_gil(it, urb)


cdef int32_t simulated_model_control_with_gil(SimulatedBackend *it, Urb *urb) noexcept:
    model = <object>it.model
    it.stirred = True
    try:
        setup = (urb.data - SETUP_SIZE)[:SETUP_SIZE]
        if urb.endpoint & DIRECTION_IN:  # of bmRequestType: without a data stage the header may say anything
            answer = model.control_in(setup, urb.length)
            if isinstance(answer, Handshake):
                return -LINUX_EPIPE
            return simulated_supply(urb, answer, <uint32_t>len(answer))
        if model.control_out(setup, simulated_model_readable(urb.data, urb.length)) is not None:
            return -LINUX_EPIPE
        urb.actual_length = urb.length
        return 0
    except BaseException as error:
        return simulated_model_failed(it, error)


cdef Outcome simulated_model_bulk(SimulatedBackend *it, Urb *urb) noexcept:
    """Offers the pipe's oldest URB to the model."""
    model = <object>it.model
    try:
        if urb.wire_in:
            answer = model.read(urb.endpoint, urb.length)
            if answer is NAK:
                return WAITS
            if answer is STALL:
                urb.status = -LINUX_EPIPE
            else:
                urb.status = simulated_model_take(answer, urb.data, urb.length, &urb.actual_length)
            return ENDS
        rest = simulated_model_readable(urb.data + urb.actual_length, urb.length - urb.actual_length)
        answer = model.write(urb.endpoint, rest)
        if answer is NAK:
            return WAITS
        if answer is STALL:
            urb.status = -LINUX_EPIPE
            return ENDS
        if not 0 <= answer <= urb.length - urb.actual_length:
            raise ValueError(f"write took {answer} of {urb.length - urb.actual_length} bytes")
        urb.actual_length += <uint32_t>answer
        urb.status = 0
        return ENDS if urb.actual_length == urb.length else WAITS
    except BaseException as error:
        urb.status = simulated_model_failed(it, error)
        return ENDS


cdef bint simulated_model_advance_pipe(SimulatedBackend *it, Pipe *pipe) noexcept:
    """Moves the URBs of one pipe as far as the model allows; True if any made progress."""
    cdef bint moved = False
    cdef uint32_t before
    cdef Outcome outcome
    while pipe.first != NULL:
        before = pipe.first.actual_length
        if pipe.halted:
            pipe.first.status = -LINUX_EPIPE
        else:
            outcome = simulated_model_bulk(it, pipe.first)
            if outcome == WAITS:
                return moved or pipe.first.actual_length != before
        moved = True
        pipe.halted = pipe.first.status == -LINUX_EPIPE
        simulated_finish(it, pipe, pipe.first.status)
    return moved


cdef void simulated_model_advance(SimulatedBackend *it) noexcept nogil:
    with gil:
        simulated_model_advance_with_gil(it)


cdef void simulated_model_advance_with_gil(SimulatedBackend *it) noexcept:
    """Each pipe in turn until none makes progress: one pipe may wait for data of another."""
    cdef bint moved = True, waiting = False
    cdef int i
    it.stirred = False
    while moved:
        moved = waiting = False
        for i in range(ENDPOINTS):
            if it.pipes[i].first != NULL and it.pipes[i].behaviour == MODEL and it.pipes[i].first.type != ISOCHRONOUS:
                moved = simulated_model_advance_pipe(it, &it.pipes[i]) or moved
                waiting = waiting or it.pipes[i].first != NULL
    it.wake = -1
    if waiting:
        try:
            moment = (<object>it.model).wake_at()
            if moment is not None:
                it.wake = monotonic_us() + <int64_t>((moment - time.monotonic()) * 1000000)
        except BaseException as error:
            simulated_model_failed(it, error)


cdef void simulated_model_isochronous(SimulatedBackend *it, Urb *urb) noexcept nogil:
    with gil:
        simulated_model_isochronous_with_gil(it, urb)


cdef void simulated_model_isochronous_with_gil(SimulatedBackend *it, Urb *urb) noexcept:
    cdef uint32_t i, begin = 0
    cdef IsoPacket *packet
    model = <object>it.model
    for i in range(urb.packets):
        packet = &urb.iso[i]
        try:
            if urb.wire_in:
                content = model.iso_read(urb.endpoint, packet.length)
                packet.status = simulated_model_take(content, urb.data + begin, packet.length, &packet.actual_length)
            else:
                model.iso_write(urb.endpoint, simulated_model_readable(urb.data + begin, packet.length))
                packet.actual_length = packet.length
        except BaseException as error:
            simulated_model_failed(it, error)
            packet.status = -LINUX_EXDEV
        begin += packet.length


cdef int simulated_model_reset(SimulatedBackend *it) noexcept nogil:
    with gil:
        try:
            (<object>it.model).reset()
            return 0
        except BaseException as error:
            return simulated_model_failed(it, error)


cdef int simulated_model_halt_cleared(SimulatedBackend *it, uint8_t endpoint) noexcept nogil:
    it.stirred = True
    with gil:
        try:
            (<object>it.model).halt_cleared(endpoint)
            return 0
        except BaseException as error:
            return simulated_model_failed(it, error)
