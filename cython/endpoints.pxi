# The endpoint map: the transfer type of each endpoint of the active configuration and alternate settings.  Runs in
# workers.  USB/IP does not carry the type (usbip_protocol.rst), and it changes with SET_CONFIGURATION and
# SET_INTERFACE.


cdef inline int endpoints_index(uint8_t address) noexcept nogil:
    """Index of this bEndpointAddress in a table of endpoints: the number, + 16 for IN."""
    return (address & 0x0f) + (16 if address & DIRECTION_IN else 0)


cdef void endpoints_load(EndpointMap *map, object endpoints) except *:
    """Fills `map.all` from `usbipd.usb.descriptors.Endpoint` tuples."""
    cdef int i = 0
    map.all = <Endpoint *>calloc(max(1, len(endpoints)), sizeof(Endpoint))
    if map.all == NULL:
        raise MemoryError
    for endpoint in endpoints:
        map.all[i].bConfigurationValue = endpoint.bConfigurationValue
        map.all[i].bInterfaceNumber = endpoint.bInterfaceNumber
        map.all[i].bAlternateSetting = endpoint.bAlternateSetting
        map.all[i].bEndpointAddress = endpoint.bEndpointAddress
        map.all[i].bmAttributes = endpoint.bmAttributes
        map.all[i].bInterval = endpoint.bInterval
        map.all[i].wMaxPacketSize = endpoint.wMaxPacketSize
        i += 1
    map.count = i


cdef void endpoints_refresh(EndpointMap *map) noexcept nogil:
    cdef int i
    cdef Endpoint *e
    memset(map.active, 0, sizeof(map.active))
    for i in range(map.count):
        e = &map.all[i]
        if e.bConfigurationValue == map.configuration and e.bAlternateSetting == map.alternate[e.bInterfaceNumber]:
            map.active[endpoints_index(e.bEndpointAddress)] = e


cdef void endpoints_configure(EndpointMap *map, uint8_t value) noexcept nogil:
    """SET_CONFIGURATION: every interface falls back to alternate setting 0 (USB 2.0 section 9.1.1.5)."""
    map.configuration = value
    memset(map.alternate, 0, sizeof(map.alternate))
    endpoints_refresh(map)


cdef void endpoints_select(EndpointMap *map, uint8_t interface, uint8_t alternate) noexcept nogil:
    """SET_INTERFACE (USB 2.0 section 9.4.10)."""
    map.alternate[interface] = alternate
    endpoints_refresh(map)


cdef inline Endpoint *endpoints_find(EndpointMap *map, uint8_t address) noexcept nogil:
    return map.active[endpoints_index(address)]


cdef inline int endpoints_interface_of(EndpointMap *map, Urb *urb) noexcept nogil:
    """bInterfaceNumber of the URB's endpoint; -1: none, as for endpoint 0."""
    cdef Endpoint *endpoint = endpoints_find(map, urb.endpoint)
    return -1 if endpoint == NULL else endpoint.bInterfaceNumber
