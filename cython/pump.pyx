"""The pump: carries the URBs of one client to one device and back.  Runs in workers, on one thread.

One round is: read all that the client has sent, submit all of it, let the device complete what it has, send all
replies.  Between rounds one poll waits for the client, the extension and the device.  No round creates a Python
object or takes a lock; the GIL is taken only for a simulated device whose model is written in Python, for
SET_CONFIGURATION and for a reset.

The parts, in the order in which a byte meets them:
"""

import os
import sys

cimport cython
from cpython.buffer cimport PyBUF_READ, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport PyObject
from libc.errno cimport EINTR, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from libusb cimport *
from posix.time cimport timeval

cdef extern from *:
    """
    #include <poll.h>
    #include <sys/socket.h>
    #include <sys/uio.h>
    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0  /* macOS has none; Python ignores SIGPIPE anyway */
    #endif
    #ifndef POLLRDHUP
    #define POLLRDHUP 0  /* Linux only, behind _GNU_SOURCE */
    #endif
    """
    int MSG_NOSIGNAL
    short POLLIN
    short POLLOUT
    short POLLERR
    short POLLHUP
    short POLLRDHUP

    cdef struct pollfd:
        int fd
        short events
        short revents

    cdef struct iovec:
        void *iov_base
        size_t iov_len

    cdef struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen

    int poll(pollfd *fds, unsigned int count, int timeout) nogil
    ssize_t recvmsg(int fd, msghdr *message, int flags) nogil
    ssize_t sendmsg(int fd, const msghdr *message, int flags) nogil

from usbipd.errors import ClaimError

include "linux_errno.pxi"    # how calls of libusb end, on the wire
include "transfer.pxi"       # the transfer interface: Urb, Backend
include "urb.pxi"            # the wire
include "buffers.pxi"        # memory, bounded
include "counters.pxi"       # the counter page
include "endpoints.pxi"      # which type an endpoint has
include "inflight.pxi"       # the core, and how an URB ends: the UNLINK strategy
include "requests.pxi"       # the control requests that are intercepted
include "receiver.pxi"       # socket to backend
include "sender.pxi"         # backend to socket
include "interfaces.pxi"     # claims and settings, beyond libusb's numbers too
include "transfer_libusb.pxi"
include "transfer_queued.pxi"    # in front of another backend: what macOS needs
include "transfer_simulated.pxi"
include "simulated_requests.pxi"
include "simulated_model.pxi"

cdef enum:
    POLLED = 32              # client, channel and the backend's descriptors
    DRAIN_TIME = 1500000     # microseconds that cancelled URBs get to come back: less than DISCONNECT_TIMEOUT

CHANNEL = WAKE_CHANNEL
CLAIM_LOST = WAKE_CLAIM_LOST
CLIENT_CLOSED = WAKE_CLIENT_CLOSED
CLIENT_FAILED = WAKE_CLIENT_FAILED
DEVICE_GONE = WAKE_DEVICE_GONE
SIGNAL = WAKE_SIGNAL
COUNTER_WORDS = sizeof(Counters) // sizeof(uint64_t)
SMALLEST_BUDGET = 40 << 20  # one URB of the largest size class fits, and some


cdef void work(Core *core) noexcept nogil:
    """Completes, sends, and reads on where memory was the only thing missing."""
    cdef size_t at
    while True:
        core.now = monotonic_us()
        core.backend.events(core.backend)
        release_held(core)
        expire_early(core)
        if core.pool.device_kept and core.now - core.heard >= DEVICE_IDLE:
            pool_return_device_memory(&core.pool)
        if core.outbox != NULL and not core.blocked:
            send_replies(core)
        if not core.stalled or core.wake != RUNNING:
            return
        at = core.at
        core.stalled = False
        parse(core)
        if core.at == at:
            return


cdef void note_ready(Backend *backend, const pollfd *fds, int count) noexcept nogil:
    """Tells the backend what poll has found at its descriptors."""
    cdef int i
    for i in range(count):
        backend.ready = backend.ready or fds[i].revents != 0


cdef int poll_timeout(Core *core) noexcept nogil:
    """Milliseconds until the backend wants a turn or something here has waited long enough, rounded up; -1: never."""
    cdef int64_t deadline = core.backend.deadline(core.backend), left
    if core.early != NULL and (deadline < 0 or core.early.submitted + EARLY_TIME < deadline):
        deadline = core.early.submitted + EARLY_TIME
    if core.pool.device_kept and (deadline < 0 or core.heard + DEVICE_IDLE < deadline):
        deadline = core.heard + DEVICE_IDLE
    if deadline < 0:
        return -1
    left = deadline - monotonic_us()
    return 0 if left <= 0 else <int>((left + 999) // 1000)


cdef Wake run(Core *core, int channel) noexcept nogil:
    """Moves packets until Python is needed."""
    cdef pollfd fds[POLLED]
    cdef int count, client_events
    core.wake = RUNNING
    while True:
        fds[0].fd = channel
        fds[0].events = POLLIN
        # Of a client that is not read, poll would not tell that it has closed.
        client_events = (POLLRDHUP if core.stalled else POLLIN) | (POLLOUT if core.blocked else 0)
        fds[1].fd = core.client  # poll skips -1
        fds[1].events = <short>client_events
        fds[0].revents = fds[1].revents = 0
        count = 2 + core.backend.describe(core.backend, fds + 2, POLLED - 2)
        if poll(fds, count, poll_timeout(core)) < 0:
            if errno == EINTR:
                return WAKE_SIGNAL
            continue
        note_ready(core.backend, fds + 2, count - 2)
        core.now = monotonic_us()
        take_snapshot(core.counters, core.now)
        if fds[1].revents & POLLOUT:
            core.blocked = False
        if fds[1].revents & POLLIN:
            receive(core)
        elif fds[1].revents & (POLLHUP | POLLERR | POLLRDHUP):
            core.wake = WAKE_CLIENT_CLOSED
        work(core)
        if core.wake != RUNNING:
            return core.wake
        if core.backend.gone:
            return WAKE_DEVICE_GONE
        if fds[0].revents:
            return WAKE_CHANNEL


cdef int cancel_urbs(Core *core, int interface) noexcept nogil:
    """Asks the URBs of one interface to end, -1: all; how many of them are still to come back.

    Cancelling may complete others, which stay readable in the outbox or the pool.
    """
    cdef int i, left = 0
    cdef Urb *urb
    cdef Urb *following
    for i in range(BUCKETS):
        urb = core.in_flight[i]
        while urb != NULL:
            following = urb.hash_next
            if urb.state == URB_PENDING and (interface < 0 or interface_of(&core.endpoints, urb) == interface):
                core.backend.cancel(core.backend, urb)
                left += urb.state == URB_PENDING
            urb = following
    return left


cdef void wait_for(Backend *backend) noexcept nogil:
    """Lets the backend complete something, if only in a moment."""
    cdef pollfd fds[POLLED]
    cdef int count = backend.describe(backend, fds, POLLED)
    if poll(fds, count, 50) > 0:
        note_ready(backend, fds, count)
    backend.events(backend)


cdef bint drain(Core *core, int interface) noexcept nogil:
    """Ends the URBs of one interface, -1: all, and waits for the backend to give them back; False: it does not."""
    cdef int64_t end = monotonic_us() + DRAIN_TIME
    while cancel_urbs(core, interface):
        if monotonic_us() > end:
            return False
        wait_for(core.backend)
    return True


cdef bint close_session(Core *core) noexcept nogil:
    """Takes all URBs back, unanswered, and forgets the client; False: the device keeps some."""
    cdef bint drained
    core.closing = True
    drained = drain(core, -1)
    withdraw_held(core)
    core.closing = False
    if drained:
        forget_client(core)
    return drained


cdef void forget_client(Core *core) noexcept nogil:
    """Back to where the next client begins."""
    cdef Urb *urb
    if core.incoming != NULL:
        pool_give(&core.pool, core.incoming)
        core.incoming = NULL
    while core.outbox != NULL:
        urb = core.outbox
        core.outbox = urb.next
        pool_give(&core.pool, urb)
    while core.early != NULL:
        urb = core.early
        core.early = urb.next
        pool_give(&core.pool, urb)
    core.newest = 0
    core.at = core.end = core.expected = core.received = core.discard = core.sent = 0
    core.stalled = core.blocked = False
    core.client = -1
    pool_empty(&core.pool, core.backend)


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
        self.core.client = -1
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
            self.core.backend = queue_before(&self.queued, transfers.backend, &self.core.endpoints)
        self.core.backend.owner = self.core
        self.core.backend.complete = completed
        self.core.pool.backend = transfers.backend
        self.transfers = transfers
        self.channel = channel
        self.configuration = <uint8_t>configuration
        endpoints_load(&self.core.endpoints, configurations)
        endpoints_configure(&self.core.endpoints, self.configuration)

    def __dealloc__(self):
        if self.core != NULL:
            if self.core.backend != NULL:
                close_session(self.core)
            endpoints_free(&self.core.endpoints)
            free(self.core.inbox)
            pool_free_spares(&self.core.pool)
            free(self.core)
        if self.page_held:
            PyBuffer_Release(&self.page)

    def attach(self, int client) -> None:
        """Serves this connected socket from now on; the caller keeps and closes it, after `finish`."""
        if self.core.client != -1:
            raise ValueError("a client is attached")
        os.set_blocking(client, False)  # macOS takes no notice of MSG_DONTWAIT in what is sent
        self.core.client = client

    def run(self) -> int:
        """Moves packets until Python is needed, and returns why: one of the constants of this module.

        Without a client it waits for the extension, and for the device to vanish.
        """
        cdef Wake wake
        with nogil:
            wake = run(self.core, self.channel)
        return wake

    @property
    def problem(self) -> str:
        """What was wrong, after CLIENT_FAILED."""
        return self.core.problem.decode(errors="replace")

    def finish(self) -> bool:
        """Ends the client's session: cancels its URBs and takes them back.  False: the device keeps some."""
        cdef bint drained
        with nogil:
            drained = close_session(self.core)
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
                result = reset_device(core)
            if core.endpoints.configuration != self.configuration:
                result = select_configuration(core, self.configuration) or result
            else:
                for interface in range(256):
                    first = endpoints_first(&core.endpoints, <uint8_t>interface)
                    if core.endpoints.alternate[interface] != first:
                        result = select_interface(core, interface, first) or result
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
