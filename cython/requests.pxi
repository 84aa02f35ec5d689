# Control requests that must not simply pass: the host's own USB stack has to know of them, or the endpoint map.
# Runs in workers.  Source: tweak_special_requests in drivers/usb/usbip/stub_rx.c; USB 2.0 section 9.4.

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
# handle_control_completion in libusb's linux_usbfs.c).

cdef int select_configuration(Core *core, int value) noexcept nogil:
    cdef int result = -LINUX_ETIMEDOUT
    if drain(core, -1):
        result = core.backend.set_configuration(core.backend, value)
    if result == 0:
        endpoints_configure(&core.endpoints, <uint8_t>value)
    return result


cdef int select_interface(Core *core, int interface, int alternate) noexcept nogil:
    cdef int result = -LINUX_ETIMEDOUT
    if drain(core, interface):
        result = core.backend.set_interface(core.backend, interface, alternate)
    if result == 0:
        endpoints_select(&core.endpoints, <uint8_t>interface, <uint8_t>alternate)
    return result


cdef int reset_device(Core *core) noexcept nogil:
    """A bus reset; the host's stack brings the device back to the settings that it had (usb_reset_device)."""
    return core.backend.reset(core.backend) if drain(core, -1) else -LINUX_ETIMEDOUT


cdef bint intercept(Core *core, Urb *urb, int *result) noexcept nogil:
    """True if the control URB was one of the four: `result` is its status."""
    cdef uint8_t *setup = urb.data - SETUP_SIZE
    cdef uint8_t to = setup[0], request = setup[1]
    cdef uint16_t value = get16le(setup + 2), index = get16le(setup + 4)
    if to == TO_DEVICE and request == USB_REQ_SET_CONFIGURATION:
        result[0] = select_configuration(core, value & 0xff)
    elif to == TO_INTERFACE and request == USB_REQ_SET_INTERFACE:
        if index > 0xff or value > 0xff:
            result[0] = -LINUX_EPIPE  # bInterfaceNumber and bAlternateSetting are bytes: a device would stall
        else:
            result[0] = select_interface(core, index, value)
    elif to == TO_ENDPOINT and request == USB_REQ_CLEAR_FEATURE and value == USB_ENDPOINT_HALT:
        result[0] = core.backend.clear_halt(core.backend, <uint8_t>index)
    elif to == TO_PORT and request == USB_REQ_SET_FEATURE and value == USB_PORT_FEATURE_RESET:
        result[0] = reset_device(core)
    else:
        return False
    return True


cdef void mask_remote_wakeup(Urb *urb) noexcept nogil:
    """Suspend does not travel over USB/IP, so the client must not hope for remote wake-up."""
    cdef uint8_t *setup = urb.data - SETUP_SIZE
    if (setup[0] == FROM_DEVICE and setup[1] == USB_REQ_GET_DESCRIPTOR and urb.actual_length >= 8
            and (setup[3] == USB_DT_CONFIGURATION or setup[3] == USB_DT_OTHER_SPEED_CONFIGURATION)):
        urb.data[7] &= <uint8_t>~REMOTE_WAKEUP
