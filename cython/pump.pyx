"""The pump: carries the URBs of one client to one device and back.  Runs in workers, on one thread.

One round is: read all that the client has sent, submit all of it, let the device complete what it has, send all
replies.  Between rounds one poll waits for the client, the extension and the device.  No round creates a Python
object or takes a lock; the GIL is taken only for a simulated device whose model is written in Python, for
SET_CONFIGURATION and for a reset.

pump.pxd declares all structures and constants, and a function is named after its file: `pool_take` is in pool.pxi,
`simulated_*` in one of the three.  Cython reads all functions and classes before it compiles one, so the files below
may come in any order.  They stand as an URB meets them: in from the client, to the device, and out.
"""

import os

cimport cython
from pump cimport *

include "session.pxi"            # begins and ends with a client
include "receiver.pxi"           # from the socket
include "pool.pxi"               # memory, bounded
include "urb.pxi"                # the wire
include "endpoints.pxi"          # which type an endpoint has
include "requests.pxi"           # control requests that are intercepted
include "inflight.pxi"           # how an URB ends: the UNLINK strategy
include "transfer.pxi"           # the contract with what moves the data: one of these
include "queued.pxi"             # in front of another one: what macOS needs
include "interface.pxi"          # claims and settings, also of numbers that libusb does not know
include "real.pxi"               # through libusb
include "simulated.pxi"          # in software
include "simulated_requests.pxi"
include "simulated_model.pxi"
include "linux_errno.pxi"        # how calls of libusb end, on the wire
include "counters.pxi"           # the counter page
include "sender.pxi"             # to the socket

CHANNEL = WAKE_CHANNEL
CLAIM_LOST = WAKE_CLAIM_LOST
CLIENT_CLOSED = WAKE_CLIENT_CLOSED
CLIENT_FAILED = WAKE_CLIENT_FAILED
DEVICE_GONE = WAKE_DEVICE_GONE
SIGNAL = WAKE_SIGNAL
COUNTER_WORDS = sizeof(Counters) // sizeof(uint64_t)
SMALLEST_BUDGET = 40 << 20  # one URB of the largest size class fits, and some


cdef void pump_work(Core *core) noexcept nogil:
    """Completes, sends, and reads on where memory was the only thing missing."""
    cdef Session *session = &core.session
    cdef size_t at
    while True:
        core.now = monotonic_us()
        core.backend.events(core.backend)
        requests_release_held(core)
        inflight_expire_early(core)
        if core.pool.device_kept and core.now - session.heard >= DEVICE_IDLE:
            pool_return_device_memory(&core.pool)
        if (session.outbox != NULL or session.bulk_waits) and not session.blocked:
            sender_send(core)
        if not session.stalled or session.wake != RUNNING:
            return
        at = session.at
        session.stalled = False
        receiver_parse(core)
        if session.at == at:
            return


cdef int pump_poll_timeout(Core *core) noexcept nogil:
    """Milliseconds until the backend wants a turn or something here has waited long enough, rounded up; -1: never."""
    cdef int64_t deadline = core.backend.deadline(core.backend), left
    if core.session.early != NULL and (deadline < 0 or core.session.early.submitted + EARLY_TIME < deadline):
        deadline = core.session.early.submitted + EARLY_TIME
    if core.pool.device_kept and (deadline < 0 or core.session.heard + DEVICE_IDLE < deadline):
        deadline = core.session.heard + DEVICE_IDLE
    if deadline < 0:
        return -1
    left = deadline - monotonic_us()
    return 0 if left <= 0 else <int>((left + 999) // 1000)


cdef Wake pump_run(Core *core, int channel) noexcept nogil:
    """Moves packets until Python is needed."""
    cdef Session *session = &core.session
    cdef pollfd fds[POLLED]
    cdef int count, client_events
    session.wake = RUNNING
    while True:
        fds[0].fd = channel
        fds[0].events = POLLIN
        # Of a client that is not read, poll would not tell that it has closed.
        client_events = (POLLRDHUP if session.stalled else POLLIN) | (POLLOUT if session.blocked else 0)
        fds[1].fd = session.client  # poll skips -1
        fds[1].events = <short>client_events
        fds[0].revents = fds[1].revents = 0
        count = 2 + core.backend.describe(core.backend, fds + 2, POLLED - 2)
        if poll(fds, count, pump_poll_timeout(core)) < 0:
            if errno == EINTR:
                return WAKE_SIGNAL
            continue
        transfer_note_ready(core.backend, fds + 2, count - 2)
        core.now = monotonic_us()
        counters_take_snapshot(core.counters, core.now)
        if fds[1].revents & POLLOUT:
            session.blocked = False
            session.unasked = 0
        if fds[1].revents & POLLIN:
            receiver_receive(core)
        elif fds[1].revents & (POLLHUP | POLLERR | POLLRDHUP):
            session.wake = WAKE_CLIENT_CLOSED
        pump_work(core)
        if session.wake != RUNNING:
            return session.wake
        if core.backend.gone:
            return WAKE_DEVICE_GONE
        if fds[0].revents:
            return WAKE_CHANNEL


@cython.final
@cython.no_gc_clear  # __dealloc__ needs `transfers`
cdef class Pump:
    """The packets of one device.

    transfers: the device, a `LibusbTransfers` or a `SimulatedTransfers`.
    configurations: all that the device has (`usbipd.usb.descriptors.Configuration`).
    configuration: bConfigurationValue that is active now and that each client begins with.
    channel: the descriptor of the extension's channel; it is only watched here.
    counters: a writable buffer of COUNTER_WORDS 64-bit words.
    budget: bytes of buffers that one client may hold; at least SMALLEST_BUDGET.
    """

    cdef Core *core
    cdef QueuedBackend queued
    cdef Transfers transfers
    cdef int channel
    cdef uint8_t configuration
    cdef Py_buffer page
    cdef bint page_held

    def __cinit__(self, Transfers transfers not None, *, configurations, int configuration, uint32_t devid, int channel,
                  counters, size_t budget):
        if budget < <size_t>SMALLEST_BUDGET:
            raise ValueError(f"budget {budget} is below {SMALLEST_BUDGET} bytes")
        self.core = <Core *>calloc(1, sizeof(Core))
        if self.core == NULL:
            raise MemoryError
        session_reset(&self.core.session)
        self.core.inbox = <uint8_t *>malloc(INBOX_SIZE)
        if self.core.inbox == NULL:
            raise MemoryError
        PyObject_GetBuffer(counters, &self.page, PyBUF_WRITABLE)
        self.page_held = True
        if <size_t>self.page.len < sizeof(Counters):
            raise ValueError(f"the counter page has {self.page.len} bytes, not {sizeof(Counters)}")
        self.core.counters = <Counters *>self.page.buf
        pool_make_spares(&self.core.pool)
        self.core.pool.budget = budget
        self.core.devid = devid
        self.core.backend = transfers.backend
        if transfers.backend.aborts_endpoints or transfers.backend.lacks_zero_packets:
            self.core.backend = queued_stand_before(&self.queued, transfers.backend, &self.core.endpoints)
        self.core.backend.owner = self.core
        self.core.backend.complete = inflight_completed
        self.core.pool.backend = transfers.backend
        self.transfers = transfers
        self.channel = channel
        self.configuration = <uint8_t>configuration
        endpoints_load(&self.core.endpoints, configurations)
        endpoints_configure(&self.core.endpoints, self.configuration)

    def __dealloc__(self):
        if self.core != NULL:
            if self.core.backend != NULL:
                session_close(self.core)
            endpoints_free(&self.core.endpoints)
            free(self.core.inbox)
            pool_free_spares(&self.core.pool)
            free(self.core)
        if self.page_held:
            PyBuffer_Release(&self.page)

    def attach(self, int client) -> None:
        """Serves this connected socket from now on; the caller keeps and closes it, after `finish`."""
        if self.core.session.client != -1:
            raise ValueError("a client is attached")
        os.set_blocking(client, False)  # macOS takes no notice of MSG_DONTWAIT in what is sent
        self.core.session.client = client

    def run(self) -> int:
        """Moves packets until Python is needed, and returns why: one of the constants of this module.

        Without a client it waits for the extension, and for the device to vanish.
        """
        cdef Wake wake
        with nogil:
            wake = pump_run(self.core, self.channel)
        return wake

    @property
    def problem(self) -> str:
        """What was wrong, after CLIENT_FAILED and until `finish`."""
        return self.core.session.problem.decode(errors="replace")

    def finish(self) -> bool:
        """Ends the client's session: cancels its URBs and takes them back.  False: the device keeps some."""
        cdef bint drained
        with nogil:
            drained = session_close(self.core)
        return drained

    def restore(self) -> int:
        """Prepares the device for the next client: reset, first configuration, default settings.

        It is not reset if that would make it leave the bus: it would come back as another device of the host.
        What has its default setting already is sent no SET_INTERFACE: many devices cannot take it (hub.c).
        Blocks for a bus reset.  Returns 0 or the first negative Linux errno.
        """
        cdef Core *core = self.core
        cdef bint resets = not self.transfers.reset_reenumerates
        cdef int result = 0, interface, first
        with nogil:
            core.counters.blocked = monotonic_us()
            if resets:
                result = requests_reset_device(core)
            if core.endpoints.configuration != self.configuration:
                result = requests_select_configuration(core, self.configuration) or result
            else:
                for interface in range(256):
                    first = endpoints_first(&core.endpoints, <uint8_t>interface)
                    if core.endpoints.alternate[interface] != first:
                        result = requests_select_interface(core, interface, first) or result
            core.counters.blocked = 0
        return result

    @property
    def gone(self) -> bool:
        """The device is no longer there."""
        return self.core.backend.gone

    @property
    def unclaimed(self) -> bool:
        """An interface could not be claimed again; the device must not be used any more."""
        return self.core.backend.unclaimed
