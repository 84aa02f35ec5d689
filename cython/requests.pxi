# Control requests that must not simply pass: the host's own USB stack has to know of them, or the endpoint map.
# Runs in workers.  Source: tweak_special_requests in drivers/usb/usbip/stub_rx.c; USB 2.0 section 9.4.
#
# Such a request is carried out by a call that blocks, all others wait in the backend for their turn at endpoint 0.
# Clients queue control transfers and count on their order.  So a request of this kind is held until the backend has
# no control URB any more, and every control URB that comes behind it is held with it.  Only a reset waits for
# nothing: it ends them all.

cdef enum:
    USB_REQ_CLEAR_FEATURE = 1
    USB_REQ_SET_FEATURE = 3
    USB_REQ_GET_DESCRIPTOR = 6
    USB_REQ_SET_CONFIGURATION = 9
    USB_REQ_SET_INTERFACE = 11
    USB_DT_CONFIGURATION = 2
    USB_DT_OTHER_SPEED_CONFIGURATION = 7
    USB_ENDPOINT_HALT = 0
    USB_PORT_FEATURE_RESET = 4   # USB 2.0 table 11-17
    TO_DEVICE = 0x00             # bmRequestType, USB 2.0 table 9-2
    TO_INTERFACE = 0x01
    TO_ENDPOINT = 0x02
    TO_PORT = 0x23               # class, other
    FROM_DEVICE = 0x80
    REMOTE_WAKEUP = 0x20         # bmAttributes of a configuration, USB 2.0 table 9-10


cdef inline uint16_t get16le(const uint8_t *at) noexcept nogil:
    return at[0] | (<uint16_t>at[1] << 8)


# Each of the three that follow ends the URBs that it concerns first, as usb_disable_interface does in Linux.  Left to
# the host's stack they come back as complete with no data, or as if the device were gone (handle_bulk_completion and
# handle_control_completion in libusb's linux_usbfs.c).  What the device does not have is refused before that, as a
# device would, and the client's URBs go on.

cdef int select_configuration(Core *core, int value) noexcept nogil:
    cdef int result
    if value != 0 and not core.backend.has_setting(core.backend, value, -1, -1):
        return -LINUX_EPIPE
    if not drain(core, -1):
        return -LINUX_ETIMEDOUT
    result = core.backend.set_configuration(core.backend, value)
    if result == 0:
        endpoints_configure(&core.endpoints, <uint8_t>value)
    elif core.backend.loses_settings:
        endpoints_configure(&core.endpoints, <uint8_t>core.backend.configuration)
    return result


cdef int select_interface(Core *core, int interface, int alternate) noexcept nogil:
    cdef int result = -LINUX_ETIMEDOUT
    if not core.backend.has_setting(core.backend, core.endpoints.configuration, interface, alternate):
        return -LINUX_EPIPE
    if drain(core, interface):
        result = core.backend.set_interface(core.backend, interface, alternate, core.endpoints.alternate[interface])
    if result == 0:
        endpoints_select(&core.endpoints, <uint8_t>interface, <uint8_t>alternate)
    return result


cdef int reset_device(Core *core) noexcept nogil:
    """A bus reset.

    The kernel's own server keeps the alternate settings over it (usb_reset_and_verify_device in
    drivers/usb/core/hub.c).  libusb on Linux releases all interfaces first, and an interface that is released goes
    back to alternate setting 0 (op_reset_device in linux_usbfs.c; usb_unbind_interface in drivers/usb/core/driver.c).
    On macOS it does that only where the reset enumerates the device again.
    """
    cdef int result = -LINUX_ETIMEDOUT
    if drain(core, -1):
        withdraw_held(core)
        result = core.backend.reset(core.backend)
        if core.backend.loses_settings or core.backend.reenumerated:
            endpoints_configure(&core.endpoints, core.endpoints.configuration)
    return result


cdef int reset_port(Core *core) noexcept nogil:
    """A bus reset for the client: each interface gets its alternate setting back; one that had 0 is sent nothing."""
    cdef uint8_t[256] before
    cdef int result, interface
    memcpy(before, core.endpoints.alternate, sizeof(before))
    result = reset_device(core)
    for interface in range(256):
        if result == 0 and core.endpoints.alternate[interface] != before[interface]:
            result = select_interface(core, interface, before[interface])
    return result


cdef enum Request:
    PASSES
    SELECTS_CONFIGURATION
    SELECTS_INTERFACE
    CLEARS_HALT
    RESETS


cdef Request request_of(Urb *urb) noexcept nogil:
    """Whether a control URB is one of the four."""
    cdef uint8_t *setup = urb.data - SETUP_SIZE
    cdef uint8_t to = setup[0], request = setup[1]
    cdef uint16_t value = get16le(setup + 2), index = get16le(setup + 4)
    if to == TO_DEVICE and request == USB_REQ_SET_CONFIGURATION:
        return SELECTS_CONFIGURATION
    if to == TO_INTERFACE and request == USB_REQ_SET_INTERFACE:
        return SELECTS_INTERFACE
    # Of endpoint 0 the host's stack has nothing to know, and refuses to clear it (findintfep in devio.c).
    if to == TO_ENDPOINT and request == USB_REQ_CLEAR_FEATURE and value == USB_ENDPOINT_HALT and index & 0x0f:
        return CLEARS_HALT
    if to == TO_PORT and request == USB_REQ_SET_FEATURE and value == USB_PORT_FEATURE_RESET:
        return RESETS
    return PASSES


cdef int carry_out(Core *core, Urb *urb, Request request) noexcept nogil:
    """Does one of the four; the status of its URB.  It blocks, which the counter page shows."""
    cdef int result
    core.counters.blocked = monotonic_us()
    result = carry_out_blocking(core, urb, request)
    core.counters.blocked = 0
    if core.backend.unclaimed:
        core.wake = WAKE_CLAIM_LOST  # usbfs would claim an interface for the next URB by itself: checkintf in devio.c
    return result


cdef int carry_out_blocking(Core *core, Urb *urb, Request request) noexcept nogil:
    cdef uint8_t *setup = urb.data - SETUP_SIZE
    cdef uint16_t value = get16le(setup + 2), index = get16le(setup + 4)
    if request == SELECTS_CONFIGURATION:
        return select_configuration(core, value & 0xff)
    if request == SELECTS_INTERFACE:
        if index > 0xff or value > 0xff:
            return -LINUX_EPIPE  # bInterfaceNumber and bAlternateSetting are bytes: a device would stall
        return select_interface(core, index, value)
    if request == CLEARS_HALT:
        return core.backend.clear_halt(core.backend, <uint8_t>index)
    return reset_port(core)


cdef void start_control(Core *core, Urb *urb, Request request) noexcept nogil:
    """A control URB whose turn it is."""
    if request == PASSES:
        submit(core, urb)
    else:
        answer(core, urb, carry_out(core, urb, request))


cdef void begin_control(Core *core, Urb *urb) noexcept nogil:
    cdef Request request = request_of(urb)
    if request == RESETS or (core.held == NULL and (request == PASSES or core.controls == 0)):
        start_control(core, urb, request)
    else:
        inflight_add(core, urb)
        urb.state = URB_HELD
        list_append(&core.held, &core.held_last, urb)


cdef void release_held(Core *core) noexcept nogil:
    """Begins the control URBs that waited, as far as it is their turn."""
    cdef Urb *urb
    cdef Request request
    while core.held != NULL and core.wake == RUNNING:
        urb = core.held
        request = request_of(urb)
        if request != PASSES and core.controls:
            return
        core.held = urb.next
        inflight_remove(core, urb)
        start_control(core, urb, request)


cdef void mask_remote_wakeup(Urb *urb) noexcept nogil:
    """Suspend does not travel over USB/IP, so the client must not hope for remote wake-up."""
    cdef uint8_t *setup = urb.data - SETUP_SIZE
    if (setup[0] == FROM_DEVICE and setup[1] == USB_REQ_GET_DESCRIPTOR and urb.actual_length >= 8
            and (setup[3] == USB_DT_CONFIGURATION or setup[3] == USB_DT_OTHER_SPEED_CONFIGURATION)):
        urb.data[7] &= <uint8_t>~REMOTE_WAKEUP
