# Device requests of simulated devices, answered from their descriptors (USB 2.0 section 9.4).  Runs in workers.
# Class and vendor requests, and those to an interface, go to the model.


cdef int32_t simulated_supply(Urb *urb, const uint8_t *bytes, uint32_t length) noexcept nogil:
    urb.actual_length = min(length, urb.length)
    memcpy(urb.data, bytes, urb.actual_length)
    return 0


cdef int32_t simulated_supply_blob(Urb *urb, Blob *blobs, int count, int index) noexcept nogil:
    if index >= count or blobs[index].length == 0:
        return -LINUX_EPIPE
    return simulated_supply(urb, blobs[index].bytes, blobs[index].length)


cdef int32_t simulated_supply_qualifier(SimulatedBackend *it, Urb *urb) noexcept nogil:
    """The device qualifier of a high-speed device (USB 2.0 section 9.6.2): no configuration at full speed."""
    cdef uint8_t[10] qualifier
    memcpy(qualifier, it.device.bytes, 8)
    qualifier[0] = sizeof(qualifier)
    qualifier[1] = USB_DT_DEVICE_QUALIFIER
    qualifier[8] = qualifier[9] = 0
    return simulated_supply(urb, qualifier, sizeof(qualifier))


cdef int32_t simulated_get_descriptor(SimulatedBackend *it, Urb *urb, int type, int index) noexcept nogil:
    if type == USB_DT_DEVICE:
        return simulated_supply_blob(urb, &it.device, 1, index)
    if type == USB_DT_CONFIGURATION:
        return simulated_supply_blob(urb, it.configurations, it.configuration_count, index)
    if type == USB_DT_STRING:
        return simulated_supply_blob(urb, it.strings, it.string_count, index)
    if type == USB_DT_BOS:
        return simulated_supply_blob(urb, &it.bos, 1, index)
    if type == USB_DT_DEVICE_QUALIFIER and index == 0 and it.speed == HIGH_SPEED:
        return simulated_supply_qualifier(it, urb)
    return -LINUX_EPIPE


cdef bint simulated_find_setting(SimulatedBackend *it, int configuration, int interface, int alternate) noexcept nogil:
    """Whether this setting exists; -1 for `interface` and `alternate`: whether the configuration does."""
    cdef int i
    cdef uint8_t *s
    for i in range(it.setting_count):
        s = it.settings + 3 * i
        if s[0] == configuration and (interface < 0 or s[1] == interface and (alternate < 0 or s[2] == alternate)):
            return True
    return False


cdef int32_t simulated_control_request(SimulatedBackend *it, Urb *urb) noexcept nogil:
    """The status of a control URB, with its data stage done."""
    cdef uint8_t *setup = urb.data - SETUP_SIZE
    cdef uint8_t to = setup[0], request = setup[1]
    cdef uint8_t[2] answer
    cdef uint16_t value = urb_get16le(setup + 2), index = urb_get16le(setup + 4)
    answer[0] = answer[1] = 0
    if to == FROM_DEVICE and request == USB_REQ_GET_DESCRIPTOR:
        return simulated_get_descriptor(it, urb, value >> 8, value & 0xff)
    if to == FROM_DEVICE and request == USB_REQ_GET_CONFIGURATION:
        answer[0] = it.map.configuration
        return simulated_supply(urb, answer, 1)
    if to == FROM_DEVICE and request == USB_REQ_GET_STATUS:
        answer[0] = it.configurations[0].bytes[7] & SELF_POWERED != 0
        return simulated_supply(urb, answer, 2)
    if to == FROM_INTERFACE and request in (USB_REQ_GET_STATUS, USB_REQ_GET_INTERFACE):
        if not simulated_find_setting(it, it.map.configuration, index, -1):
            return -LINUX_EPIPE
        if request == USB_REQ_GET_STATUS:
            return simulated_supply(urb, answer, 2)
        answer[0] = it.map.alternate[index]
        return simulated_supply(urb, answer, 1)
    if to == FROM_ENDPOINT and request == USB_REQ_GET_STATUS:
        if not simulated_has_endpoint(it, index):
            return -LINUX_EPIPE
        answer[0] = simulated_pipe(it, <uint8_t>index).halted
        return simulated_supply(urb, answer, 2)
    if to == TO_ENDPOINT and request == USB_REQ_SET_FEATURE and value == USB_ENDPOINT_HALT:
        if not simulated_has_endpoint(it, index) or index & 0x0f == 0:
            return -LINUX_EPIPE
        simulated_halt(it, <uint8_t>index)
        return 0
    if to == TO_ENDPOINT and request == USB_REQ_CLEAR_FEATURE and value == USB_ENDPOINT_HALT:  # of endpoint 0
        return 0 if simulated_has_endpoint(it, index) else -LINUX_EPIPE
    if to & 0x60 == 0 and to & 0x1f != 1:  # standard, and not to an interface
        return -LINUX_EPIPE
    return simulated_model_control(it, urb)


cdef bint simulated_has_endpoint(SimulatedBackend *it, uint16_t address) noexcept nogil:
    """Endpoint 0 always exists."""
    if address & ~(DIRECTION_IN | 0x0f):
        return False
    return address & 0x0f == 0 or endpoints_find(&it.map, <uint8_t>address) != NULL


cdef void simulated_halt(SimulatedBackend *it, uint8_t endpoint) noexcept nogil:
    """The endpoint answers STALL from now on, also to what is pending."""
    cdef Pipe *pipe = simulated_pipe(it, endpoint)
    pipe.halted = True
    while pipe.first != NULL:
        simulated_finish(it, pipe, -LINUX_EPIPE)


cdef void simulated_reset_pipes(SimulatedBackend *it) noexcept nogil:
    cdef int i
    for i in range(ENDPOINTS):
        it.pipes[i].halted = False
    for i in range(16):
        if it.loops[i] != NULL:
            simulated_loop_clear(it.loops[i])


cdef bint simulated_has_setting(Backend *self, int configuration, int interface, int alternate) noexcept nogil:
    return simulated_find_setting(<SimulatedBackend *>self, configuration, interface, alternate)


cdef int simulated_set_configuration(Backend *self, int value) noexcept nogil:
    cdef SimulatedBackend *it = <SimulatedBackend *>self
    cdef int result
    simulated_reset_pipes(it)
    result = simulated_model_reset(it)
    if result == 0:  # the pump changes its map only then, and the two must agree
        endpoints_configure(&it.map, <uint8_t>value)
    return result


cdef int simulated_set_interface(Backend *self, int interface, int alternate, int in_force) noexcept nogil:
    cdef SimulatedBackend *it = <SimulatedBackend *>self
    cdef Endpoint *e
    cdef int i
    for i in range(it.map.count):
        e = &it.map.all[i]
        if e.bConfigurationValue == it.map.configuration and e.bInterfaceNumber == interface:
            simulated_pipe(it, e.bEndpointAddress).halted = False
            if it.loops[e.bEndpointAddress & 0x0f] != NULL:
                simulated_loop_clear(it.loops[e.bEndpointAddress & 0x0f])
    endpoints_select(&it.map, <uint8_t>interface, <uint8_t>alternate)
    return 0


cdef int simulated_clear_halt(Backend *self, uint8_t endpoint) noexcept nogil:
    cdef SimulatedBackend *it = <SimulatedBackend *>self
    if not simulated_has_endpoint(it, endpoint):
        return -LINUX_EPIPE
    simulated_pipe(it, endpoint).halted = False
    return simulated_model_halt_cleared(it, endpoint)


cdef int simulated_reset(Backend *self) noexcept nogil:
    """Configuration and settings stay: the host's stack would restore them."""
    cdef SimulatedBackend *it = <SimulatedBackend *>self
    simulated_reset_pipes(it)
    return simulated_model_reset(it)
