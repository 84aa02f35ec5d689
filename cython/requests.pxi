# Control requests that must not simply pass: the host's own USB stack has to know of them, or the endpoint map.
# Runs in workers.  Source: tweak_special_requests in drivers/usb/usbip/stub_rx.c; USB 2.0 section 9.4.
#
# Such a request is carried out by a call that blocks, all others wait in the backend for their turn at endpoint 0.
# Clients queue control transfers and count on their order.  So a request of this kind is held until the backend has
# no control URB any more, and every control URB that comes behind it is held with it.  Only a reset waits for
# nothing: it ends them all.


# Each of the three that follow ends the URBs that it concerns first, as usb_disable_interface does in Linux.  Left to
# the host's stack they come back as complete with no data, or as if the device were gone (handle_bulk_completion and
# handle_control_completion in libusb's linux_usbfs.c).  What the device does not have is refused before that, as a
# device would, and the client's URBs go on.

cdef int requests_select_configuration(Core *core, int value) noexcept nogil:
    cdef int result
    if value != 0 and not core.backend.has_setting(core.backend, value, -1, -1):
        return -LINUX_EPIPE
    if not inflight_drain(core, -1):
        return -LINUX_ETIMEDOUT
    result = core.backend.set_configuration(core.backend, value)
    if result == 0:
        endpoints_configure(&core.endpoints, <uint8_t>value)
    elif core.backend.loses_settings:
        endpoints_configure(&core.endpoints, <uint8_t>core.backend.configuration)
    return result


cdef int requests_select_interface(Core *core, int interface, int alternate) noexcept nogil:
    cdef int result = -LINUX_ETIMEDOUT
    if not core.backend.has_setting(core.backend, core.endpoints.configuration, interface, alternate):
        return -LINUX_EPIPE
    if inflight_drain(core, interface):
        result = core.backend.set_interface(core.backend, interface, alternate, core.endpoints.alternate[interface])
    if result == 0:
        endpoints_select(&core.endpoints, <uint8_t>interface, <uint8_t>alternate)
    return result


cdef int requests_reset_device(Core *core) noexcept nogil:
    """A bus reset.

    The kernel's own server keeps the alternate settings over it (usb_reset_and_verify_device in
    drivers/usb/core/hub.c).  libusb on Linux releases all interfaces first, and an interface that is released goes
    back to alternate setting 0 (op_reset_device in linux_usbfs.c; usb_unbind_interface in drivers/usb/core/driver.c).
    On macOS it does that only where the reset enumerates the device again.
    """
    cdef int result = -LINUX_ETIMEDOUT
    if inflight_drain(core, -1):
        requests_withdraw_held(core)
        result = core.backend.reset(core.backend)
        if core.backend.loses_settings or core.backend.reenumerated:
            endpoints_configure(&core.endpoints, core.endpoints.configuration)
    return result


cdef int requests_reset_port(Core *core) noexcept nogil:
    """A bus reset for the client: each interface gets its alternate setting back; one that had 0 is sent nothing."""
    cdef uint8_t[256] before
    cdef int result, interface
    memcpy(before, core.endpoints.alternate, sizeof(before))
    result = requests_reset_device(core)
    for interface in range(256):
        if result == 0 and core.endpoints.alternate[interface] != before[interface]:
            result = requests_select_interface(core, interface, before[interface])
    return result


cdef Request requests_classify(Urb *urb) noexcept nogil:
    """Whether a control URB is one of the four."""
    cdef uint8_t *setup = urb.data - SETUP_SIZE
    cdef uint8_t to = setup[0], request = setup[1]
    cdef uint16_t value = urb_get16le(setup + 2), index = urb_get16le(setup + 4)
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


cdef int requests_carry_out(Core *core, Urb *urb, Request request) noexcept nogil:
    """Does one of the four; the status of its URB.  It blocks, which the counter page shows."""
    cdef int result
    core.counters.blocked = monotonic_us()
    result = requests_carry_out_blocking(core, urb, request)
    core.counters.blocked = 0
    if core.backend.unclaimed:
        # usbfs would claim an interface for the next URB by itself: checkintf in devio.c.
        core.session.wake = WAKE_CLAIM_LOST
    return result


cdef int requests_carry_out_blocking(Core *core, Urb *urb, Request request) noexcept nogil:
    cdef uint8_t *setup = urb.data - SETUP_SIZE
    cdef uint16_t value = urb_get16le(setup + 2), index = urb_get16le(setup + 4)
    if request == SELECTS_CONFIGURATION:
        return requests_select_configuration(core, value & 0xff)
    if request == SELECTS_INTERFACE:
        if index > 0xff or value > 0xff:
            return -LINUX_EPIPE  # bInterfaceNumber and bAlternateSetting are bytes: a device would stall
        return requests_select_interface(core, index, value)
    if request == CLEARS_HALT:
        return core.backend.clear_halt(core.backend, <uint8_t>index)
    return requests_reset_port(core)


cdef void requests_start(Core *core, Urb *urb, Request request) noexcept nogil:
    """A control URB whose turn it is."""
    cdef int result
    if request == PASSES:
        inflight_submit(core, urb)
        return
    result = requests_carry_out(core, urb, request)
    sender_settle(core)
    inflight_answer(core, urb, result)


cdef void requests_begin(Core *core, Urb *urb) noexcept nogil:
    cdef Session *session = &core.session
    cdef Request request = requests_classify(urb)
    if request == RESETS or (session.held == NULL and (request == PASSES or session.controls == 0)):
        requests_start(core, urb, request)
    else:
        inflight_add(core, urb)
        urb.state = URB_HELD
        urb_append(&session.held, &session.held_last, urb)


cdef void requests_remove_held(Core *core, Urb *urb) noexcept nogil:
    cdef Session *session = &core.session
    cdef Urb *other = session.held
    cdef Urb *following
    session.held = NULL
    while other != NULL:
        following = other.next
        if other != urb:
            urb_append(&session.held, &session.held_last, other)
        other = following


cdef void requests_withdraw_held(Core *core) noexcept nogil:
    cdef Session *session = &core.session
    cdef Urb *urb
    while session.held != NULL:
        urb = session.held
        session.held = urb.next
        inflight_withdraw(core, urb)


cdef void requests_release_held(Core *core) noexcept nogil:
    """Begins the control URBs that waited, as far as it is their turn."""
    cdef Session *session = &core.session
    cdef Urb *urb
    cdef Request request
    while session.held != NULL and session.wake == RUNNING:
        urb = session.held
        request = requests_classify(urb)
        if request != PASSES and session.controls:
            return
        session.held = urb.next
        inflight_remove(core, urb)
        requests_start(core, urb, request)


cdef void requests_mask_remote_wakeup(Urb *urb) noexcept nogil:
    """Suspend does not travel over USB/IP, so the client must not hope for remote wake-up."""
    cdef uint8_t *setup = urb.data - SETUP_SIZE
    if (setup[0] == FROM_DEVICE and setup[1] == USB_REQ_GET_DESCRIPTOR and urb.actual_length >= 8
            and (setup[3] == USB_DT_CONFIGURATION or setup[3] == USB_DT_OTHER_SPEED_CONFIGURATION)):
        urb.data[7] &= <uint8_t>~REMOTE_WAKEUP
