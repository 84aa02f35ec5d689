# The endpoint map: which transfer type an endpoint of the active configuration and alternate settings has.  Runs
# in workers.  The wire does not say (usbip_protocol.rst carries no type), and it changes with SET_CONFIGURATION
# and SET_INTERFACE.


cdef inline int endpoints_index(uint8_t address) noexcept nogil:
    """Where a table of endpoints has this bEndpointAddress: by number, + 16 for IN."""
    return (address & 0x0f) + (16 if address & DIRECTION_IN else 0)


cdef void endpoints_load(EndpointMap *map, object configurations) except *:
    """Fills the map from `usbipd.usb.descriptors.Configuration` objects."""
    cdef int i = 0
    endpoints = [endpoint for each in configurations for endpoint in each.endpoints]
    first = [(each, setting) for each in configurations for setting in each.initial if setting.bAlternateSetting != 0]
    map.first = <FirstSetting *>calloc(max(1, len(first)), sizeof(FirstSetting))
    if map.first == NULL:
        raise MemoryError
    for configuration, setting in first:
        map.first[i].bConfigurationValue = configuration.bConfigurationValue
        map.first[i].bInterfaceNumber = setting.bInterfaceNumber
        map.first[i].bAlternateSetting = setting.bAlternateSetting
        i += 1
    map.first_count = i
    i = 0
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


cdef void endpoints_free(EndpointMap *map) noexcept nogil:
    free(map.all)
    free(map.first)


cdef void endpoints_refresh(EndpointMap *map) noexcept nogil:
    cdef int i
    cdef Endpoint *e
    memset(map.active, 0, sizeof(map.active))
    for i in range(map.count):
        e = &map.all[i]
        if e.bConfigurationValue == map.configuration and e.bAlternateSetting == map.alternate[e.bInterfaceNumber]:
            map.active[endpoints_index(e.bEndpointAddress)] = e


cdef inline uint8_t endpoints_first(EndpointMap *map, uint8_t interface) noexcept nogil:
    """The alternate setting that an interface of the active configuration begins with: 0, unless it has none such
    (usb_set_configuration in drivers/usb/core/message.c)."""
    cdef int i
    for i in range(map.first_count):
        if map.first[i].bConfigurationValue == map.configuration and map.first[i].bInterfaceNumber == interface:
            return map.first[i].bAlternateSetting
    return 0


cdef void endpoints_configure(EndpointMap *map, uint8_t value) noexcept nogil:
    """SET_CONFIGURATION: every interface falls back to its first setting (USB 2.0 section 9.1.1.5)."""
    cdef int interface
    map.configuration = value
    for interface in range(256):
        map.alternate[interface] = endpoints_first(map, <uint8_t>interface)
    endpoints_refresh(map)


cdef void endpoints_select(EndpointMap *map, uint8_t interface, uint8_t alternate) noexcept nogil:
    """SET_INTERFACE (USB 2.0 section 9.4.10)."""
    map.alternate[interface] = alternate
    endpoints_refresh(map)


cdef inline Endpoint *endpoints_find(EndpointMap *map, uint8_t address) noexcept nogil:
    return map.active[endpoints_index(address)]


cdef inline int endpoints_interface_of(EndpointMap *map, Urb *urb) noexcept nogil:
    """bInterfaceNumber that the URB's endpoint belongs to; -1: none, as for endpoint 0."""
    cdef Endpoint *endpoint = endpoints_find(map, urb.endpoint)
    return -1 if endpoint == NULL else endpoint.bInterfaceNumber
