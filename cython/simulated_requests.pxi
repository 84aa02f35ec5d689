# Device requests of simulated devices, answered from their descriptors (USB 2.0 section 9.4).  Runs in workers.
# Class and vendor requests, and those to an interface, go to the model.

cdef enum:
    USB_REQ_GET_STATUS = 0
    USB_REQ_GET_CONFIGURATION = 8
    USB_REQ_GET_INTERFACE = 10
    USB_DT_DEVICE = 1
    USB_DT_STRING = 3
    USB_DT_DEVICE_QUALIFIER = 6
    USB_DT_BOS = 15
    FROM_INTERFACE = 0x81
    FROM_ENDPOINT = 0x82
    HIGH_SPEED = 3           # enum usb_device_speed, include/uapi/linux/usb/ch9.h
    SELF_POWERED = 0x40      # bmAttributes of a configuration, USB 2.0 table 9-10


cdef int32_t supply(Urb *urb, const uint8_t *bytes, uint32_t length) noexcept nogil:
    urb.actual_length = min(length, urb.length)
    memcpy(urb.data, bytes, urb.actual_length)
    return 0


cdef int32_t supply_blob(Urb *urb, Blob *blobs, int count, int index) noexcept nogil:
    if index >= count or blobs[index].length == 0:
        return -LINUX_EPIPE
    return supply(urb, blobs[index].bytes, blobs[index].length)


cdef int32_t supply_qualifier(SimulatedBackend *it, Urb *urb) noexcept nogil:
    """What every high-speed device has (USB 2.0 section 9.6.2): this one has no configuration at full speed."""
    cdef uint8_t[10] qualifier
    memcpy(qualifier, it.device.bytes, 8)
    qualifier[0] = sizeof(qualifier)
    qualifier[1] = USB_DT_DEVICE_QUALIFIER
    qualifier[8] = qualifier[9] = 0
    return supply(urb, qualifier, sizeof(qualifier))


cdef int32_t get_descriptor(SimulatedBackend *it, Urb *urb, int type, int index) noexcept nogil:
    if type == USB_DT_DEVICE:
        return supply_blob(urb, &it.device, 1, index)
    if type == USB_DT_CONFIGURATION:
        return supply_blob(urb, it.configurations, it.configuration_count, index)
    if type == USB_DT_STRING:
        return supply_blob(urb, it.strings, it.string_count, index)
    if type == USB_DT_BOS:
        return supply_blob(urb, &it.bos, 1, index)
    if type == USB_DT_DEVICE_QUALIFIER and index == 0 and it.speed == HIGH_SPEED:
        return supply_qualifier(it, urb)
    return -LINUX_EPIPE


cdef bint has_setting(SimulatedBackend *it, int configuration, int interface, int alternate) noexcept nogil:
    """Whether there is such a setting; -1 for `interface` and `alternate`: such a configuration."""
    cdef int i
    cdef uint8_t *s
    for i in range(it.setting_count):
        s = it.settings + 3 * i
        if s[0] == configuration and (interface < 0 or s[1] == interface and (alternate < 0 or s[2] == alternate)):
            return True
    return False


cdef int32_t control_request(SimulatedBackend *it, Urb *urb) noexcept nogil:
    """The status of a control URB, with its data stage done."""
    cdef uint8_t *setup = urb.data - SETUP_SIZE
    cdef uint8_t to = setup[0], request = setup[1]
    cdef uint8_t[2] answer
    cdef uint16_t value = get16le(setup + 2), index = get16le(setup + 4)
    answer[0] = answer[1] = 0
    if to == FROM_DEVICE and request == USB_REQ_GET_DESCRIPTOR:
        return get_descriptor(it, urb, value >> 8, value & 0xff)
    if to == FROM_DEVICE and request == USB_REQ_GET_CONFIGURATION:
        answer[0] = it.map.configuration
        return supply(urb, answer, 1)
    if to == FROM_DEVICE and request == USB_REQ_GET_STATUS:
        answer[0] = it.configurations[0].bytes[7] & SELF_POWERED != 0
        return supply(urb, answer, 2)
    if to == FROM_INTERFACE and request in (USB_REQ_GET_STATUS, USB_REQ_GET_INTERFACE):
        if not has_setting(it, it.map.configuration, index, -1):
            return -LINUX_EPIPE
        if request == USB_REQ_GET_STATUS:
            return supply(urb, answer, 2)
        answer[0] = it.map.alternate[index]
        return supply(urb, answer, 1)
    if to == FROM_ENDPOINT and request == USB_REQ_GET_STATUS:
        if not has_endpoint(it, index):
            return -LINUX_EPIPE
        answer[0] = pipe_of(it, <uint8_t>index).halted
        return supply(urb, answer, 2)
    if to == TO_ENDPOINT and request == USB_REQ_SET_FEATURE and value == USB_ENDPOINT_HALT:
        if not has_endpoint(it, index) or index & 0x0f == 0:
            return -LINUX_EPIPE
        halt(it, <uint8_t>index)
        return 0
    if to == TO_ENDPOINT and request == USB_REQ_CLEAR_FEATURE and value == USB_ENDPOINT_HALT:  # of endpoint 0
        return 0 if has_endpoint(it, index) else -LINUX_EPIPE
    if to & 0x60 == 0 and to & 0x1f != 1:  # standard, and not to an interface
        return -LINUX_EPIPE
    return model_control(it, urb)


cdef bint has_endpoint(SimulatedBackend *it, uint16_t address) noexcept nogil:
    """Endpoint 0 is always there."""
    if address & ~(DIRECTION_IN | 0x0f):
        return False
    return address & 0x0f == 0 or endpoints_find(&it.map, <uint8_t>address) != NULL


cdef void halt(SimulatedBackend *it, uint8_t endpoint) noexcept nogil:
    """The endpoint answers STALL from now on, also to what is pending."""
    cdef Pipe *pipe = pipe_of(it, endpoint)
    pipe.halted = True
    while pipe.first != NULL:
        pipe_finish(it, pipe, -LINUX_EPIPE)


cdef void reset_pipes(SimulatedBackend *it) noexcept nogil:
    cdef int i
    for i in range(ENDPOINTS):
        it.pipes[i].halted = False
    for i in range(16):
        if it.loops[i] != NULL:
            loop_clear(it.loops[i])


cdef bint simulated_has_setting(Backend *self, int configuration, int interface, int alternate) noexcept nogil:
    return has_setting(<SimulatedBackend *>self, configuration, interface, alternate)


cdef int simulated_set_configuration(Backend *self, int value) noexcept nogil:
    cdef SimulatedBackend *it = <SimulatedBackend *>self
    cdef int result
    reset_pipes(it)
    result = model_reset(it)
    if result == 0:  # only then does the pump's map change, and the two must agree
        endpoints_configure(&it.map, <uint8_t>value)
    return result


cdef int simulated_set_interface(Backend *self, int interface, int alternate, int in_force) noexcept nogil:
    cdef SimulatedBackend *it = <SimulatedBackend *>self
    cdef Endpoint *e
    cdef int i
    for i in range(it.map.count):
        e = &it.map.all[i]
        if e.bConfigurationValue == it.map.configuration and e.bInterfaceNumber == interface:
            pipe_of(it, e.bEndpointAddress).halted = False
            if it.loops[e.bEndpointAddress & 0x0f] != NULL:
                loop_clear(it.loops[e.bEndpointAddress & 0x0f])
    endpoints_select(&it.map, <uint8_t>interface, <uint8_t>alternate)
    return 0


cdef int simulated_clear_halt(Backend *self, uint8_t endpoint) noexcept nogil:
    cdef SimulatedBackend *it = <SimulatedBackend *>self
    if not has_endpoint(it, endpoint):
        return -LINUX_EPIPE
    pipe_of(it, endpoint).halted = False
    return model_halt_cleared(it, endpoint)


cdef int simulated_reset(Backend *self) noexcept nogil:
    """Configuration and settings stay: the host's stack would bring them back."""
    cdef SimulatedBackend *it = <SimulatedBackend *>self
    reset_pipes(it)
    return model_reset(it)
