# The transfer interface over libusb: real devices.  Runs in workers, on the pump's thread; libusb's callbacks run
# inside `events`, called from there.  Blocking: only the device requests, which go to the claim (claim.pyx).

import sys

from usbipd.errors import ClaimError

cdef extern from *:
    """
    /* Memory for a device's DMA is ordinary memory where caches follow DMA: on x86, always.  Elsewhere the kernel may
       hand it out uncached, and to read it takes up to 50 times as long (dma_pgprot, kernel/dma/mapping.c). */
    #if defined(__x86_64__) || defined(__i386__)
    #define DEVICE_MEMORY_IS_CACHED 1
    #else
    #define DEVICE_MEMORY_IS_CACHED 0
    #endif
    """
    bint DEVICE_MEMORY_IS_CACHED


cdef int32_t real_errno_of_transfer(int status) noexcept nogil:
    """A completed transfer's status on the wire."""
    if status == LIBUSB_TRANSFER_COMPLETED:
        return 0
    if status == LIBUSB_TRANSFER_CANCELLED:
        return -LINUX_ECONNRESET
    if status == LIBUSB_TRANSFER_STALL:
        return -LINUX_EPIPE
    if status == LIBUSB_TRANSFER_NO_DEVICE:
        return -LINUX_ENODEV
    if status == LIBUSB_TRANSFER_OVERFLOW:
        return -LINUX_EOVERFLOW
    if status == LIBUSB_TRANSFER_TIMED_OUT:
        return -LINUX_ETIMEDOUT
    return -LINUX_EPROTO


cdef int32_t real_errno_of_packet(int status) noexcept nogil:
    """An isochronous packet's status: what libusb calls an error is a packet that did not make it (EXDEV)."""
    return -LINUX_EXDEV if status == LIBUSB_TRANSFER_ERROR else real_errno_of_transfer(status)


cdef void real_done(libusb_transfer *transfer) noexcept nogil:
    cdef Urb *urb = <Urb *>transfer.user_data
    cdef Backend *backend = urb.device.real.backend
    cdef uint32_t i
    (<RealBackend *>backend).ended += 1
    urb.status = real_errno_of_transfer(transfer.status)
    urb.actual_length = <uint32_t>transfer.actual_length
    for i in range(urb.packets):
        urb.iso[i].actual_length = transfer.iso_packet_desc[i].actual_length
        urb.iso[i].status = real_errno_of_packet(transfer.iso_packet_desc[i].status)
    if transfer.status == LIBUSB_TRANSFER_NO_DEVICE:
        backend.gone = True
    backend.complete(backend, urb)


cdef int real_submit(Backend *self, Urb *urb) noexcept nogil:
    cdef libusb_transfer *transfer = urb.device.real.transfer
    cdef uint32_t i, total = 0
    cdef int result
    if transfer == NULL or urb.device.real.room < urb.packets:
        libusb_free_transfer(transfer)
        transfer = libusb_alloc_transfer(<int>urb.packets)
        urb.device.real.transfer = transfer
        urb.device.real.room = urb.packets
        if transfer == NULL:
            return -LINUX_ENOMEM
    urb.device.real.backend = self
    transfer.dev_handle = (<RealBackend *>self).handle
    transfer.flags = 0
    transfer.endpoint = urb.endpoint
    transfer.type = urb.type
    transfer.timeout = 0  # an idle IN transfer waits for ever
    transfer.callback = real_done
    transfer.user_data = urb
    transfer.buffer = urb.data
    transfer.length = <int>urb.length
    transfer.num_iso_packets = <int>urb.packets
    if urb.type == CONTROL:
        transfer.endpoint = 0
        transfer.buffer = urb.data - SETUP_SIZE
        transfer.length = <int>urb.length + SETUP_SIZE
    elif urb.type == ISOCHRONOUS:
        for i in range(urb.packets):
            transfer.iso_packet_desc[i].length = urb.iso[i].length
            transfer.iso_packet_desc[i].actual_length = 0
            transfer.iso_packet_desc[i].status = LIBUSB_TRANSFER_ERROR  # as long as it has not been moved
            total += urb.iso[i].length
        transfer.length = <int>total
        urb.start_frame = <uint32_t>(monotonic_us() // 1000)  # libusb does not tell; frames are milliseconds
    elif (urb.type == BULK and not urb.wire_in and urb.transfer_flags & URB_ZERO_PACKET
            and not self.lacks_zero_packets):
        transfer.flags = LIBUSB_TRANSFER_ADD_ZERO_PACKET
    FORGET_ERRNO()
    result = libusb_submit_transfer(transfer)
    if result == LIBUSB_ERROR_NO_DEVICE:
        self.gone = True
    return linux_errno_of_libusb(result)


cdef int real_cancel(Backend *self, Urb *urb) noexcept nogil:
    cdef int result = libusb_cancel_transfer(urb.device.real.transfer)
    self.ready = True  # the kernel ends most URBs on the spot
    return -LINUX_ENOENT if result == LIBUSB_ERROR_NOT_FOUND else linux_errno_of_libusb(result)


cdef void real_events(Backend *self) noexcept nogil:
    """Does nothing where there is nothing: libusb would poll its descriptors once more."""
    cdef RealBackend *it = <RealBackend *>self
    cdef timeval none
    none.tv_sec = 0
    none.tv_usec = 0
    if not (self.ready or self.gone or it.fds_changed):
        return
    self.ready = False
    while True:
        it.ended = 0
        libusb_handle_events_timeout_completed(it.context, &none, NULL)
        if it.ended < REAPED_AT_ONCE:
            return


cdef void real_fd_added(int fd, short events, void *backend) noexcept nogil:
    (<RealBackend *>backend).fds_changed = True


cdef void real_fd_removed(int fd, void *backend) noexcept nogil:
    """libusb stops watching the device's own descriptor only when the device is gone, or closed."""
    (<RealBackend *>backend).fds_changed = True
    (<RealBackend *>backend).base.gone = True


cdef int real_describe(Backend *self, pollfd *fds, int room) noexcept nogil:
    cdef RealBackend *backend = <RealBackend *>self
    cdef const libusb_pollfd **list
    cdef int i = 0
    if backend.fds_changed:
        backend.fd_count = 0
        backend.fds_changed = False  # first: a thread of libusb's may set it meanwhile
        list = libusb_get_pollfds(backend.context)
        if list == NULL:
            backend.fds_changed = True  # it has no memory for them: see `deadline`
        else:
            while list[i] != NULL and i < LIBUSB_DESCRIPTORS:
                backend.fds[i].fd = list[i].fd
                backend.fds[i].events = list[i].events
                i += 1
            backend.fd_count = i
            libusb_free_pollfds(list)
    i = min(backend.fd_count, room)
    memcpy(fds, backend.fds, i * sizeof(pollfd))
    return i


cdef int64_t real_deadline(Backend *self) noexcept nogil:
    """No transfer has a timeout.  `events` asks libusb even without descriptors to poll, if these are to be fetched."""
    return monotonic_us() + ASK_AGAIN if (<RealBackend *>self).fds_changed else -1


cdef void real_forget(Backend *self, Urb *urb) noexcept nogil:
    libusb_free_transfer(urb.device.real.transfer)
    urb.device.real.transfer = NULL


cdef void *real_allocate(Backend *self, size_t size) noexcept nogil:
    return libusb_dev_mem_alloc((<RealBackend *>self).handle, size)


cdef void real_release(Backend *self, void *memory, size_t size) noexcept nogil:
    libusb_dev_mem_free((<RealBackend *>self).handle, <unsigned char *>memory, size)


cdef bint real_has_setting(Backend *self, int configuration, int interface, int alternate) noexcept nogil:
    with gil:
        try:
            return (<object>(<RealBackend *>self).claim).has_setting(configuration, interface, alternate)
        except BaseException:  # out of memory: the host's stack has to tell
            return True


cdef int real_set_configuration(Backend *self, int value) noexcept nogil:
    cdef int result
    with gil:
        claim = <object>(<RealBackend *>self).claim
        try:
            result = claim.set_configuration(value)
        except MemoryError:
            result = -LINUX_ENOMEM
        except BaseException:  # an exception that left from here would read as 0
            result = -LINUX_EPROTO
        self.configuration = claim.configuration
        self.gone = self.gone or result == -LINUX_ENODEV
        self.unclaimed = not (self.gone or claim.complete)
    return result


# Linux switches the endpoints of an interface off before it sends SET_INTERFACE, and leaves them so when that fails
# (usb_set_interface in drivers/usb/core/message.c).  Released and claimed, an interface in alternate setting 0 has
# them back, and nothing is sent to the device (usb_unbind_interface in drivers/usb/core/driver.c).  In another setting
# it would be sent a SET_INTERFACE, so there they stay off until one succeeds.

cdef int real_set_interface(Backend *self, int interface, int alternate, int in_force) noexcept nogil:
    cdef OpenDevice device
    cdef int code, result
    device.context, device.handle = (<RealBackend *>self).context, (<RealBackend *>self).handle
    FORGET_ERRNO()
    result = linux_errno_of_request(interface_select(&device, interface, alternate))
    if result != 0 and in_force == 0 and self.loses_settings and interface_release(&device, interface) == 0:
        code = interface_claim(&device, interface)
        self.gone = self.gone or code == LIBUSB_ERROR_NO_DEVICE
        self.unclaimed = self.unclaimed or (code < 0 and not self.gone)
    return result


cdef int real_clear_halt(Backend *self, uint8_t endpoint) noexcept nogil:
    FORGET_ERRNO()
    return linux_errno_of_request(libusb_clear_halt((<RealBackend *>self).handle, endpoint))


# A reset of a device that macOS has not captured takes it off the bus and enumerates it again (darwin_reset_device).
# libusb follows it: same handle, same interfaces, alternate settings of 0, but the host sees another address, and its
# drivers may be faster than libusb's claim.  A client that asks for a reset gets it.  Of the errors that leave the
# device usable only a timeout comes after the device has left.

cdef int real_reset(Backend *self) noexcept nogil:
    cdef int result
    cdef bint reenumerates
    with gil:
        claim = <object>(<RealBackend *>self).claim
        try:
            reenumerates = claim.reset_reenumerates
            result = claim.reset()
        except BaseException:  # as above
            reenumerates, result = False, -LINUX_EPROTO
    self.reenumerated = reenumerates and (result == 0 or result == -LINUX_ETIMEDOUT)
    self.gone = self.gone or result == -LINUX_ENODEV  # it came back as another device, or not at all
    return result


cdef int real_left(libusb_context *context, libusb_device *device, libusb_hotplug_event event,
                   void *backend) noexcept nogil:
    """A device was removed.  libusb calls this inside `events`, and says nothing while it enumerates ours again."""
    cdef RealBackend *it = <RealBackend *>backend
    if device == libusb_get_device(it.handle):
        it.base.gone = True
    return 0


@cython.no_gc_clear  # __dealloc__ needs what `claim` keeps open
cdef class LibusbTransfers(Transfers):
    """Transfers of a device that this process holds; `claim` is a `usbipd._claim.Claim`.

    device_memory: "on", "off", or "auto": on where such memory is cached.
    as_on_macos: what is true of this system's libusb (queued.pxi); tests say otherwise.
    """

    cdef RealBackend libusb
    cdef object claim
    cdef int removals        # the registration of `real_left`
    cdef bint hears_removals

    def __cinit__(self, claim, *, str device_memory, bint as_on_macos=sys.platform == "darwin"):
        cdef RealBackend *it = &self.libusb
        self.claim = claim
        it.claim = <PyObject *>claim
        it.context = <libusb_context *>PyCapsule_GetPointer(claim.context, "libusb_context")
        it.handle = <libusb_device_handle *>PyCapsule_GetPointer(claim.handle, "libusb_device_handle")
        it.fds_changed = True
        it.base.aborts_endpoints = it.base.lacks_zero_packets = as_on_macos
        it.base.loses_settings = not as_on_macos
        it.base.submit = real_submit
        it.base.cancel = real_cancel
        it.base.events = real_events
        it.base.describe = real_describe
        it.base.deadline = real_deadline
        it.base.forget = real_forget
        if device_memory == "on" or device_memory == "auto" and DEVICE_MEMORY_IS_CACHED:
            it.base.allocate = real_allocate
            it.base.release = real_release
        it.base.has_setting = real_has_setting
        it.base.set_configuration = real_set_configuration
        it.base.set_interface = real_set_interface
        it.base.clear_halt = real_clear_halt
        it.base.reset = real_reset
        self.backend = &it.base
        libusb_set_pollfd_notifiers(it.context, real_fd_added, real_fd_removed, it)
        if as_on_macos:  # no descriptor of the device reports it there
            self._watch_removals()

    cdef object _watch_removals(self):
        cdef int code = libusb_hotplug_register_callback(
            self.libusb.context, LIBUSB_HOTPLUG_EVENT_DEVICE_LEFT, 0, LIBUSB_HOTPLUG_MATCH_ANY,
            LIBUSB_HOTPLUG_MATCH_ANY, LIBUSB_HOTPLUG_MATCH_ANY, real_left, &self.libusb, &self.removals)
        if code < 0:
            name = libusb_error_name(code).decode()
            raise ClaimError(f"libusb does not report removed devices ({name}, {code})", code=name)
        self.hears_removals = True

    @property
    def reset_reenumerates(self) -> bool:
        return self.claim.reset_reenumerates

    def __dealloc__(self):
        if self.hears_removals:
            libusb_hotplug_deregister_callback(self.libusb.context, self.removals)
        if self.libusb.context != NULL:
            libusb_set_pollfd_notifiers(self.libusb.context, NULL, NULL, NULL)
