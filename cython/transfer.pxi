# The transfer interface: what the pump asks of the thing that moves data to a device.  Runs in workers, without
# the GIL, on the pump's one thread.  Two implementations: real.pxi and simulated.pxi, and one,
# queued.pxi, that stands in front of another where the host's stack is not as the pump would have it.
#
# Contract
#   submit    Starts `urb`.  Never blocks.  Returns 0, and from then on the backend owns urb.data until it calls
#             `complete`, which may happen inside submit; or returns a negative Linux errno, and owns nothing.
#   cancel    Asks for a submitted URB to end early.  Never blocks.  The URB still completes, exactly once: with
#             urb.status = -LINUX_ECONNRESET if the cancel won, with its real status if the device was faster.
#             May call `complete` for it, or for others, before it returns.  Returns 0; -LINUX_ENOENT if nothing was
#             asked to end, as the URB has ended and `events` will bring it; or another negative Linux errno.
#             With `aborts_endpoints` all that is submitted to the URB's endpoint ends so, asked or not, and
#             urb.actual_length of an URB that ends so may be 0 although it has moved bytes.
#   events    Completes all that has ended by now.  Never blocks.
#   describe  Writes at most `room` descriptors to be polled into `fds`; returns how many.  The caller polls them
#             and sets `ready` when poll has found something; `events` takes it back.
#   deadline  The moment, in microseconds of CLOCK_MONOTONIC, at which `events` has work even if no descriptor
#             says so; -1 when there is none.
#   forget    Frees what the backend hung on urb.transfer.  The URB is in nobody's hands.
#   allocate  Memory of `size` bytes that the device reaches without a copy, or NULL: there is none, or no more of it.
#             A backend that has no such memory leaves it NULL.  `release` frees the memory.
#   has_setting  Whether the device has this configuration and, unless `interface` is -1, this alternate setting of that
#             interface in it.  Nothing is sent.
#   The device requests (set_configuration, set_interface, clear_halt, reset) do what the kernel's stub driver
#   intercepts in tweak_special_requests (drivers/usb/usbip/stub_rx.c).  They may block as long as the device
#   takes to answer one control transfer (reset: a bus reset).  They return 0 or a negative Linux errno.  Before
#   set_configuration and reset no URB is pending, before set_interface none of that interface.  Both `set_` are asked
#   only for what `has_setting`, and for configuration 0.  `in_force` is the alternate setting that the interface has,
#   and keeps if the request fails.
#
# At completion the backend has set urb.status (0 or a negative Linux errno), urb.actual_length (bytes moved, for
# control without the setup packet; not for isochronous URBs) and, per isochronous packet, actual_length and
# status.  The data of an IN URB lie in urb.data, or, unless it is isochronous, where urb.lent points: memory of the
# backend that stays unchanged until the URB is given back.  Isochronous packets lie one behind the other in urb.data,
# in both directions: packet i begins where the lengths before it end.  iso[i].offset is the client's and means
# nothing here.


cdef class Transfers:
    """One device's transfers: the Python handle of a `Backend`, made by its subclasses."""

    cdef Backend *backend

    @property
    def problem(self) -> str | None:
        """The last thing that went wrong inside the backend, for the log."""
        return None

    @property
    def reset_reenumerates(self) -> bool:
        """Whether a reset makes the device leave the bus, and the host enumerate it again."""
        return False


cdef void transfer_note_ready(Backend *backend, const pollfd *fds, int count) noexcept nogil:
    """Tells the backend what poll has found at its descriptors."""
    cdef int i
    for i in range(count):
        backend.ready = backend.ready or fds[i].revents != 0


cdef void transfer_wait(Backend *backend) noexcept nogil:
    """Lets the backend complete something, if only in a moment."""
    cdef pollfd fds[POLLED]
    cdef int count = backend.describe(backend, fds, POLLED)
    if poll(fds, count, 50) > 0:
        transfer_note_ready(backend, fds, count)
    backend.events(backend)
