# The pump's header: all structures, enumerations and constants of pump.pyx and the .pxi files that it includes, but for
# those of linux_errno.pxi and interface.pxi, which the claim needs as well.  Runs in workers.
#
# Functions are listed, not declared: Cython exports what a module's own .pxd declares (__pyx_capi__), so the C compiler
# cannot make them part of their callers, and an URB takes up to 8% more instructions.  These are called from other
# files, as tests/unit/worker/test_header.py checks; the others are private:
#
#   session.pxi     session_reset, session_fail, session_close
#   receiver.pxi    receiver_receive, receiver_parse
#   pool.pxi        pool_take, pool_take_spare, pool_give, pool_give_all, pool_empty, pool_return_device_memory,
#                   pool_make_spares, pool_free_spares, pool_iso_room
#   urb.pxi         urb_begin, urb_append, urb_get16le, urb_get32, urb_get_iso, urb_encode_ret_submit,
#                   urb_encode_ret_unlink
#   endpoints.pxi   endpoints_load, endpoints_free, endpoints_first, endpoints_configure, endpoints_select,
#                   endpoints_find, endpoints_index, endpoints_interface_of
#   requests.pxi    requests_begin, requests_release_held, requests_remove_held, requests_withdraw_held,
#                   requests_select_configuration, requests_select_interface, requests_reset_device,
#                   requests_mask_remote_wakeup
#   inflight.pxi    inflight_submit, inflight_answer, inflight_unlink, inflight_overtaken, inflight_expire_early,
#                   inflight_completed, inflight_withdraw, inflight_drain, inflight_find, inflight_add, inflight_remove
#   transfer.pxi    transfer_note_ready, transfer_wait
#   queued.pxi      queued_stand_before
#   interface.pxi   interface_claim, interface_release, interface_select
#   simulated.pxi   simulated_pipe, simulated_finish, simulated_loop_clear
#   simulated_requests.pxi  simulated_control_request, simulated_supply, simulated_has_setting,
#                   simulated_set_configuration, simulated_set_interface, simulated_clear_halt, simulated_reset
#   simulated_model.pxi  simulated_model_control, simulated_model_advance, simulated_model_isochronous,
#                   simulated_model_reset, simulated_model_halt_cleared
#   linux_errno.pxi  linux_errno_of_libusb, linux_errno_of_request
#   counters.pxi    counters_take_snapshot, counters_add_completion
#   sender.pxi      sender_add, sender_add_behind, sender_settle, sender_be_prompt, sender_send

from cpython.buffer cimport PyBUF_READ, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport PyObject
from libc.errno cimport EAGAIN, EINTR, ENOBUFS, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove, memset, strerror
from libusb cimport *
from posix.stdlib cimport posix_memalign
from posix.time cimport timeval

cdef extern from *:
    """
    #include <arpa/inet.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <poll.h>
    #include <stdint.h>
    #include <sys/socket.h>
    #include <sys/uio.h>
    #include <time.h>
    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0  /* macOS has none; Python ignores SIGPIPE anyway */
    #endif
    #ifndef POLLRDHUP
    #define POLLRDHUP 0  /* Linux only, behind _GNU_SOURCE */
    #endif
    #define NO_PACKETS UINT32_C(0xffffffff)
    static inline int64_t monotonic_us(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
    }
    """
    int IPPROTO_TCP
    int MSG_NOSIGNAL
    short POLLIN
    short POLLOUT
    short POLLERR
    short POLLHUP
    short POLLRDHUP
    int TCP_NOTSENT_LOWAT
    uint32_t NO_PACKETS      # number_of_packets of an URB that is not isochronous: usbip_protocol.rst

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

    uint32_t htonl(uint32_t) nogil
    uint32_t ntohl(uint32_t) nogil
    int poll(pollfd *fds, unsigned int count, int timeout) nogil
    ssize_t recvmsg(int fd, msghdr *message, int flags) nogil
    ssize_t sendmsg(int fd, const msghdr *message, int flags) nogil
    int setsockopt(int fd, int level, int option, const void *value, unsigned int length) nogil
    int64_t monotonic_us() nogil  # microseconds of CLOCK_MONOTONIC


# ---- limits -------------------------------------------------------------------------------------------------------

cdef enum:
    BUCKETS = 4096           # clients count seqnum up by one, so chains stay short; at most MAX_URBS URBs in all
    MAX_URBS = 4096
    MAX_TRANSFER_LENGTH = 16 << 20  # usbfs allows 16 MiB in all by default: usbfs_memory_mb, drivers/usb/core/devio.c
    MAX_ISO_PACKETS = 1024          # USBIP_MAX_ISO_PACKETS, drivers/usb/usbip/usbip_common.h
    MAX_ISO_PACKET_LENGTH = 0xffff  # libusb for macOS has 16 bits for it, and aborts; super speed has 48 KiB at most
    POLLED = 32              # client, channel and the backend's descriptors
    PROBLEM_SIZE = 200
    INBOX_SIZE = 64 << 10
    READS_A_ROUND = 16       # then the device and the replies have their turn
    GATHER = 512             # pieces of replies that leave in one sendmsg, at most; IOV_MAX is 1024
    OFFERED = 512 << 10      # bytes of replies, after which no more are gathered: sockets seldom take so much
    PROMPT = 32 << 10        # the same, and TCP_NOTSENT_LOWAT, for a client that is to be answered promptly
    TURN = 64 << 10          # bytes after which it is the next endpoint's turn to send bulk data
    OVERTAKING = 256 << 10   # bytes of urgent replies that overtake a bulk reply, at most
    # microseconds
    DRAIN_TIME = 1500000     # that cancelled URBs get to come back: less than DISCONNECT_TIMEOUT
    EARLY_TIME = 1000000     # that an UNLINK waits for its SUBMIT
    DEVICE_IDLE = 1000000    # of a client's silence, after which the kept memory of the device goes back
    WINDOW = 1000000         # between two snapshots of the counters, at least


# ---- the wire: urb.pxi --------------------------------------------------------------------------------------------

cdef enum:
    USBIP_CMD_SUBMIT = 1
    USBIP_CMD_UNLINK = 2
    USBIP_RET_SUBMIT = 3
    USBIP_RET_UNLINK = 4

    USBIP_DIR_OUT = 0
    USBIP_DIR_IN = 1

    USBIP_HEADER_SIZE = 48
    ISO_DESCRIPTOR_SIZE = 16

    # usbip_header_basic
    AT_COMMAND = 0
    AT_SEQNUM = 4
    AT_DEVID = 8
    AT_DIRECTION = 12
    AT_EP = 16
    # CMD_SUBMIT
    AT_TRANSFER_FLAGS = 20
    AT_TRANSFER_BUFFER_LENGTH = 24
    AT_START_FRAME = 28
    AT_NUMBER_OF_PACKETS = 32
    AT_INTERVAL = 36
    AT_SETUP = 40
    # RET_SUBMIT
    AT_STATUS = 20
    AT_ACTUAL_LENGTH = 24
    AT_ERROR_COUNT = 36
    # CMD_UNLINK; RET_UNLINK has AT_STATUS
    AT_UNLINK_SEQNUM = 20

    # transfer_flags: include/uapi/linux/usbip.h
    URB_SHORT_NOT_OK = 0x0001
    URB_ZERO_PACKET = 0x0040


# ---- requests of USB 2.0 chapter 9: requests.pxi, simulated_requests.pxi ------------------------------------------

cdef enum:
    USB_REQ_GET_STATUS = 0
    USB_REQ_CLEAR_FEATURE = 1
    USB_REQ_SET_FEATURE = 3
    USB_REQ_GET_DESCRIPTOR = 6
    USB_REQ_GET_CONFIGURATION = 8
    USB_REQ_SET_CONFIGURATION = 9
    USB_REQ_GET_INTERFACE = 10
    USB_REQ_SET_INTERFACE = 11
    USB_DT_DEVICE = 1
    USB_DT_CONFIGURATION = 2
    USB_DT_STRING = 3
    USB_DT_DEVICE_QUALIFIER = 6
    USB_DT_OTHER_SPEED_CONFIGURATION = 7
    USB_DT_BOS = 15
    USB_ENDPOINT_HALT = 0
    USB_PORT_FEATURE_RESET = 4   # USB 2.0 table 11-17
    TO_DEVICE = 0x00             # bmRequestType, USB 2.0 table 9-2
    TO_INTERFACE = 0x01
    TO_ENDPOINT = 0x02
    TO_PORT = 0x23               # class, other
    FROM_DEVICE = 0x80
    FROM_INTERFACE = 0x81
    FROM_ENDPOINT = 0x82
    REMOTE_WAKEUP = 0x20         # bmAttributes of a configuration, USB 2.0 table 9-10
    SELF_POWERED = 0x40
    HIGH_SPEED = 3               # enum usb_device_speed, include/uapi/linux/usb/ch9.h
    SETUP_SIZE = 8               # USB 2.0 section 9.3
    DIRECTION_IN = 0x80          # in endpoint addresses and bmRequestType

cdef enum Request:           # what a control URB asks for
    PASSES                   # the device alone
    SELECTS_CONFIGURATION
    SELECTS_INTERFACE
    CLEARS_HALT
    RESETS


# ---- one URB ------------------------------------------------------------------------------------------------------

cdef enum TransferType:      # bmAttributes & 3, USB 2.0 table 9-13
    CONTROL = 0
    ISOCHRONOUS = 1
    BULK = 2
    INTERRUPT = 3

cdef enum UrbState:
    URB_FREE                 # in the pool; nothing else points to it
    URB_RECEIVING            # the receiver owns the buffer and fills it from the socket
    URB_HELD                 # the pump keeps it back from the backend; the URB stands in the in-flight table
    URB_PENDING              # the backend owns the buffer; the URB stands in the in-flight table
    URB_DONE                 # the sender owns the buffer; the URB is no longer in the in-flight table

cdef enum:
    HEADROOM = 64            # bytes in front of urb.data: the reply's header, or the setup packet of a control URB
    INLINE_DATA = 320        # data up to here needs no separate buffer

cdef struct IsoPacket:       # struct usbip_iso_packet_descriptor, include/uapi/linux/usbip.h, in host byte order
    uint32_t offset
    uint32_t length
    uint32_t actual_length
    int32_t status

cdef struct Backend
cdef struct Urb

cdef struct RealUrb:         # real.pxi alone uses it
    Backend *backend
    libusb_transfer *transfer
    uint32_t room            # isochronous packets that `transfer` has room for

cdef struct SimulatedUrb:    # simulated.pxi alone uses it
    int64_t due              # when an isochronous URB ends

cdef union DeviceUrb:        # the part of the backend that has the device
    RealUrb real
    SimulatedUrb simulated

cdef struct QueuedUrb:       # queued.pxi alone uses it
    uint64_t turn            # place among the URBs of the endpoint
    uint32_t moved           # bytes that attempts before this one have moved
    uint32_t whole           # `length`, while that is the length of a part
    bint owes_zero_packet    # an empty packet has to follow
    bint asked               # to end
    bint flying              # the backend in the back has it
    Urb *behind              # while it has it: the next one of this endpoint

cdef struct Urb:
    Urb *next                # the list that the URB is on: pool, send queue, or whatever its backend keeps
    Urb *hash_next           # the in-flight table's chain
    Urb *unlink_reply        # the RET_UNLINK that will say how the race ended; set: an UNLINK came for this URB
    UrbState state
    uint32_t seqnum
    uint32_t names           # seqnum of a SUBMIT: its own, or the one to be unlinked
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
    DeviceUrb device
    QueuedUrb queued         # beside `device`: the queue stands in front of such a backend
    uint8_t storage[HEADROOM + INLINE_DATA]


# ---- what moves it: transfer.pxi has the contract -----------------------------------------------------------------

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


# ---- memory: pool.pxi ---------------------------------------------------------------------------------------------

cdef enum:
    SIZE_CLASSES = 16        # 1 KiB << 15 = 32 MiB: MAX_TRANSFER_LENGTH and 1024 isochronous packets
    SMALLEST_CLASS = 1024
    CACHE_LINE = 64
    DEVICE_CLASS = 4         # from 16 KiB on a copy costs more than the page that is lost to HEADROOM
    DEVICE_MEMORY = 1 << 20
    PAGE = 4096              # usbfs counts whole ones: usbdev_mmap in devio.c
    SPARE = -2               # size_class of a spare
    FOR_SUBMIT = 0           # places in Pool.spares
    FOR_UNLINK = 1
    SPARES = 2

cdef struct Block:           # a free buffer
    Block *next

cdef struct Pool:
    size_t budget            # bytes
    size_t allocated         # bytes of buffers, in use or kept
    Block *kept[SIZE_CLASSES]
    Backend *backend
    size_t device_memory     # bytes of `allocated` that are the backend's
    size_t device_kept       # and how many of these are kept
    bint device_memory_ends  # it has no more
    Block *kept_device[SIZE_CLASSES]
    Urb *free_urbs
    int urbs                 # URBs that are not on the free list
    Urb *spares[SPARES]
    uint8_t *spare_buffer    # of the one FOR_SUBMIT
    bint lacks_memory        # why the last `pool_take` failed: the system has no more, the client's budget has


# ---- the counter page: counters.pxi -------------------------------------------------------------------------------

cdef enum:
    LATENCY_BUCKETS = 24     # the last one: 4 s and more

cdef struct Snapshot:
    int64_t taken            # microseconds of CLOCK_MONOTONIC; 0: never
    uint64_t urbs
    uint64_t bytes_in
    uint64_t bytes_out

cdef struct Counters:
    uint64_t urbs
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t errors
    uint64_t unlinks
    uint64_t in_flight
    uint64_t latency[LATENCY_BUCKETS]
    int64_t blocked          # microseconds of CLOCK_MONOTONIC: since when a call to the device blocks; 0: none does
    Snapshot previous        # what stood in `newest` until that was taken
    Snapshot newest


# ---- which type an endpoint has: endpoints.pxi --------------------------------------------------------------------

cdef enum:
    ENDPOINTS = 32           # 16 endpoint numbers, OUT and IN

cdef struct Endpoint:
    uint8_t bConfigurationValue
    uint8_t bInterfaceNumber
    uint8_t bAlternateSetting
    uint8_t bEndpointAddress
    uint8_t bmAttributes
    uint8_t bInterval
    uint16_t wMaxPacketSize

cdef struct FirstSetting:
    uint8_t bConfigurationValue
    uint8_t bInterfaceNumber
    uint8_t bAlternateSetting

cdef struct EndpointMap:
    Endpoint *all            # every endpoint of every setting of every configuration
    int count
    FirstSetting *first      # of the interfaces that have no alternate setting 0
    int first_count
    uint8_t configuration    # bConfigurationValue that is active; 0: none
    uint8_t alternate[256]   # by bInterfaceNumber
    Endpoint *active[ENDPOINTS]  # by endpoints_index; NULL: there is no such endpoint now


# ---- the pump -----------------------------------------------------------------------------------------------------

cdef enum Wake:              # why the pump went back to Python
    RUNNING = 0
    WAKE_CHANNEL = 1         # the extension has something to say
    WAKE_CLIENT_CLOSED = 2   # the client closed the connection
    WAKE_CLIENT_FAILED = 3   # the connection broke, or the client broke the protocol: see `problem`
    WAKE_DEVICE_GONE = 4
    WAKE_SIGNAL = 5
    WAKE_CLAIM_LOST = 6      # see Backend.unclaimed

cdef struct Queue:
    Urb *first               # oldest first
    Urb *last

# One client's session.  What begins with a client and ends with it is here, and nothing else: `session_reset` clears it
# as a whole.  What a client leaves behind is in Core: the state of the device, which `Pump.restore` puts right, and
# memory, which `pool_empty` frees.

cdef struct Session:
    int client               # the client's socket; -1: no client is attached
    Wake wake                # why the present round is to be the last
    bint closing             # URBs that end are not answered any more
    int64_t heard            # of the last round that has read something from the client

    size_t at                # bytes at..end of the inbox are received and not parsed
    size_t end
    Urb *incoming            # the URB whose payload is on its way
    size_t expected          # bytes of that payload
    size_t received
    size_t discard           # bytes of a payload still to be dropped
    bint stalled             # the client holds its whole budget: its socket is not read

    int pending
    int controls             # control URBs that the backend has
    Urb *held                # control URBs that wait for those, oldest first: see requests.pxi
    Urb *held_last
    Urb *early               # UNLINKs that came before their SUBMIT, oldest first: see the UNLINK strategy
    Urb *early_last
    uint32_t newest          # seqnum of the last SUBMIT; 0: there was none

    Urb *outbox              # replies in the order in which they leave
    Urb *outbox_last
    Urb *urgent_last         # the last one of these that bulk data must not overtake; NULL: there is none
    size_t sent              # bytes of the first that the socket has taken
    size_t overtaking        # bytes of urgent replies since a bulk reply left
    Queue bulk[16]           # bulk data that waits for a place in the outbox, by number of the IN endpoint
    uint32_t bulk_waits      # a bit for each of these that is not empty
    size_t bulk_placed       # bytes of the bulk data that have a place
    int turn                 # the one whose turn it is
    size_t turn_taken        # bytes that it has had of it
    bint blocked             # the socket takes no more for now
    size_t unasked           # bytes that a prompt one has taken since poll found it writable
    size_t most              # bytes offered to it at once; PROMPT: the client has interrupt or isochronous URBs

    char problem[PROBLEM_SIZE]
    Urb *in_flight[BUCKETS]  # by seqnum

cdef struct Core:
    Backend *backend
    EndpointMap endpoints
    uint32_t devid
    Counters *counters
    int64_t now              # of this round
    Session session
    Pool pool
    uint8_t *inbox           # INBOX_SIZE bytes
    iovec gather[GATHER]     # of one sendmsg


# ---- real devices: real.pxi ---------------------------------------------------------------------------------------

cdef enum:
    LIBUSB_DESCRIPTORS = 16
    ASK_AGAIN = 10000        # microseconds until libusb is asked for its descriptors again, if it lacked memory
    REAPED_AT_ONCE = 26      # one handle_events ends no more: op_handle_events in libusb's linux_usbfs.c

cdef struct RealBackend:
    Backend base
    libusb_context *context
    libusb_device_handle *handle
    PyObject *claim
    pollfd fds[LIBUSB_DESCRIPTORS]
    int fd_count
    bint fds_changed
    int ended                # transfers, since handle_events was called last


# ---- in front of another backend: queued.pxi ----------------------------------------------------------------------

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


# ---- simulated devices: simulated*.pxi ----------------------------------------------------------------------------

cdef enum:
    LOOP_SIZE = 1 << 20      # bytes on their way through a loopback
    LOOP_MESSAGES = 4096
    PATTERN_SIZE = 256 << 10  # bytes, at least, of what a SOURCE gives

cdef enum Behaviour:         # usbipd/simulated/device.py
    MODEL = 0
    SOURCE = 1
    SINK = 2
    LOOPBACK = 3

cdef enum Outcome:           # of an URB that was offered to a model
    WAITS                    # the pipe's oldest URB stays
    ENDS                     # it is complete, with urb.status

cdef struct Pipe:
    Urb *first               # pending URBs, oldest first
    Urb *last
    Behaviour behaviour
    bint halted
    uint8_t *pattern         # SOURCE: whole packets of what it gives
    uint32_t pattern_length

cdef struct Loop:            # from OUT to IN: bytes, and where each message ends
    uint8_t *bytes
    size_t at
    size_t used
    uint32_t lengths[LOOP_MESSAGES]  # of each message what has come and is not gone
    uint32_t oldest
    uint32_t messages
    bint open                # the newest message has not ended

cdef struct Blob:
    const uint8_t *bytes
    uint32_t length

cdef struct SimulatedBackend:
    Backend base
    EndpointMap map
    uint8_t speed            # enum usb_device_speed
    Pipe pipes[ENDPOINTS]
    Loop *loops[16]
    PyObject *model
    int isochronous          # URBs in all pipes
    bint stirred             # something happened that a model may have waited for
    int64_t wake             # when the model wants to be asked again; -1: never
    char problem[PROBLEM_SIZE]
    Blob device
    Blob bos                 # empty: there is none
    Blob *configurations
    int configuration_count
    Blob *strings            # 0: the languages
    int string_count
    uint8_t *settings        # triples of bConfigurationValue, bInterfaceNumber, bAlternateSetting
    int setting_count
