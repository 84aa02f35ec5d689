# The transfer interface: what the pump asks of the thing that moves data to a device.  Runs in workers, without
# the GIL, on the pump's one thread.  Two implementations: transfer_libusb.pxi and transfer_simulated.pxi, and one,
# transfer_queued.pxi, that stands in front of another where the host's stack is not as the pump would have it.
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
#             A backend that has no such memory leaves it NULL.  `release` gives the memory back.
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
# backend that nobody changes until the URB is given back.  Isochronous packets lie one behind the other in urb.data,
# in both directions: packet i begins where the lengths before it end.  iso[i].offset is the client's and means
# nothing here.

from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef enum TransferType:  # bmAttributes & 3, USB 2.0 table 9-13
    CONTROL = 0
    ISOCHRONOUS = 1
    BULK = 2
    INTERRUPT = 3

cdef enum UrbState:
    URB_FREE       # in the pool; nobody holds a pointer to it
    URB_RECEIVING  # the receiver owns the buffer and fills it from the socket
    URB_HELD       # the pump keeps it back from the backend; the URB stands in the in-flight table
    URB_PENDING    # the backend owns the buffer; the URB stands in the in-flight table
    URB_DONE       # the sender owns the buffer; the URB is no longer in the in-flight table

cdef enum:
    HEADROOM = 64       # bytes in front of urb.data: the reply's header, or the setup packet of a control URB
    INLINE_DATA = 320   # data up to here needs no buffer of its own
    SETUP_SIZE = 8      # USB 2.0 section 9.3
    DIRECTION_IN = 0x80  # in endpoint addresses and bmRequestType

cdef struct IsoPacket:  # struct usbip_iso_packet_descriptor, include/uapi/linux/usbip.h, in host byte order
    uint32_t offset
    uint32_t length
    uint32_t actual_length
    int32_t status

cdef struct Backend

cdef struct Urb:
    Urb *next                # the list that the URB is on: pool, send queue, or whatever its backend keeps
    Urb *hash_next           # the in-flight table's chain
    Urb *unlink_reply        # the RET_UNLINK that will say how the race ended; set: an UNLINK came for this URB
    UrbState state
    Backend *backend         # whom it is submitted to
    uint32_t seqnum
    uint32_t unlinks         # of an UNLINK that came before its SUBMIT: the seqnum that it names
    uint8_t endpoint         # bEndpointAddress: 0x80 set for IN; control: 0x80 as in bmRequestType
    uint8_t wire_in          # the header's direction: decides which way data crosses the socket
    TransferType type
    uint32_t transfer_flags
    uint32_t interval
    uint8_t *data            # `length` bytes; HEADROOM bytes in front of it belong to the URB too
    const uint8_t *lent      # the data of an IN URB, if they are not in `data`
    uint32_t length          # transfer_buffer_length
    uint32_t actual_length
    int32_t status
    uint32_t start_frame
    uint32_t error_count
    uint32_t number_of_packets  # as it came, even where it means nothing
    uint32_t packets         # isochronous packets; 0 for every other type
    IsoPacket *iso           # `packets` of them
    int64_t submitted        # microseconds, CLOCK_MONOTONIC
    size_t reply_length      # bytes of the reply from data - USBIP_HEADER_SIZE on
    int size_class           # which pool the buffer belongs to; -1: inline
    bint device_memory       # and whether it is `Backend.allocate`'s
    void *transfer           # the backend's own
    uint32_t transfer_room   # isochronous packets that `transfer` has room for
    int64_t due              # the simulated backend's: when an isochronous URB ends
    uint64_t turn            # transfer_queued.pxi's, down to `flying`: its place among the URBs of the endpoint
    uint32_t moved           # bytes that attempts before this one have moved
    uint32_t whole           # `length`, while it is that of a part
    bint owes_zero_packet    # an empty packet has to follow
    bint asked               # to end
    bint flying              # the backend in the back has it
    Urb *behind              # while it has it: the next one of this endpoint
    uint8_t storage[HEADROOM + INLINE_DATA]

cdef struct Backend:
    int (*submit)(Backend *self, Urb *urb) noexcept nogil
    int (*cancel)(Backend *self, Urb *urb) noexcept nogil
    void (*events)(Backend *self) noexcept nogil
    int (*describe)(Backend *self, pollfd *fds, int room) noexcept nogil
    int64_t (*deadline)(Backend *self) noexcept nogil
    void (*forget)(Backend *self, Urb *urb) noexcept nogil
    void *(*allocate)(Backend *self, size_t size) noexcept nogil
    void (*release)(Backend *self, void *memory, size_t size) noexcept nogil
    bint (*has_setting)(Backend *self, int configuration, int interface, int alternate) noexcept nogil
    int (*set_configuration)(Backend *self, int value) noexcept nogil
    int (*set_interface)(Backend *self, int interface, int alternate, int in_force) noexcept nogil
    int (*clear_halt)(Backend *self, uint8_t endpoint) noexcept nogil
    int (*reset)(Backend *self) noexcept nogil
    # set by the pump:
    void (*complete)(Backend *self, Urb *urb) noexcept nogil  # gives the URB back; the backend forgets its pointer
    void *owner
    bint ready               # see `describe`
    # set by the backend:
    bint gone                # the device is no longer there; pending URBs have completed or are about to
    bint unclaimed           # an interface could not be claimed again: nothing more may be asked of the device
    int configuration        # bConfigurationValue after set_configuration; for backends with `loses_settings`
    bint aborts_endpoints    # see `cancel`
    bint lacks_zero_packets  # takes no notice of URB_ZERO_PACKET
    bint loses_settings      # set_configuration and reset leave each interface in alternate setting 0, even in vain
    bint reenumerated        # the last reset took the device off the bus: each interface is in alternate setting 0


cdef inline void list_append(Urb **first, Urb **last, Urb *urb) noexcept nogil:
    """Puts the URB at the end of a list that its `next` links; an empty one has `first` NULL."""
    urb.next = NULL
    if first[0] == NULL:
        first[0] = urb
    else:
        last[0].next = urb
    last[0] = urb


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


cdef inline int64_t monotonic_us() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000 + now.tv_nsec // 1000
