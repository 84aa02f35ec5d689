# USBIP_CMD_* and USBIP_RET_* on the wire: offsets, byte order, encoding.  Runs in workers.
# Source: Linux Documentation/usb/usbip_protocol.rst.  tests/urb.py is the twin that tests hold it to.


cdef void urb_begin(Urb *urb, uint8_t *buffer) noexcept nogil:
    """As every URB begins."""
    urb.data = buffer + HEADROOM
    urb.next = urb.hash_next = urb.unlink_reply = NULL
    urb.length = urb.actual_length = urb.error_count = urb.start_frame = urb.packets = 0
    urb.status = 0
    urb.lent = NULL
    urb.iso = NULL


cdef inline void urb_append(Urb **first, Urb **last, Urb *urb) noexcept nogil:
    """Puts the URB at the end of a list that its `next` links; an empty one has `first` NULL."""
    urb.next = NULL
    if first[0] == NULL:
        first[0] = urb
    else:
        last[0].next = urb
    last[0] = urb


cdef inline uint16_t urb_get16le(const uint8_t *at) noexcept nogil:
    return at[0] | (<uint16_t>at[1] << 8)


cdef inline uint32_t urb_get32(const uint8_t *at) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, at, sizeof(value))
    return ntohl(value)


cdef inline void urb_put32(uint8_t *at, uint32_t value) noexcept nogil:
    value = htonl(value)
    memcpy(at, &value, sizeof(value))


cdef inline void urb_put_header(uint8_t *header, uint32_t command, uint32_t seqnum, int32_t status) noexcept nogil:
    """The part that both replies share; devid, direction and ep are 0 in replies."""
    memset(header, 0, USBIP_HEADER_SIZE)
    urb_put32(header + AT_COMMAND, command)
    urb_put32(header + AT_SEQNUM, seqnum)
    urb_put32(header + AT_STATUS, <uint32_t>status)


cdef void urb_get_iso(const uint8_t *wire, IsoPacket *packets, uint32_t count) noexcept nogil:
    cdef uint32_t i
    for i in range(count):
        packets[i].offset = urb_get32(wire)
        packets[i].length = urb_get32(wire + 4)
        packets[i].actual_length = 0
        packets[i].status = 0
        wire += ISO_DESCRIPTOR_SIZE


cdef void urb_put_iso(uint8_t *wire, const IsoPacket *packets, uint32_t count) noexcept nogil:
    cdef uint32_t i
    for i in range(count):
        urb_put32(wire, packets[i].offset)
        urb_put32(wire + 4, packets[i].length)
        urb_put32(wire + 8, packets[i].actual_length)
        urb_put32(wire + 12, <uint32_t>packets[i].status)
        wire += ISO_DESCRIPTOR_SIZE


cdef void urb_finish_isochronous(Urb *urb) noexcept nogil:
    """Sums up the packets and, for IN, moves their data together (usbip_pack in stub_tx.c, usbip_pad_iso)."""
    cdef uint32_t i, packed = 0, begin = 0
    urb.error_count = 0
    for i in range(urb.packets):
        if urb.iso[i].actual_length > urb.iso[i].length:
            urb.iso[i].actual_length = urb.iso[i].length
        if urb.iso[i].status != 0:
            urb.error_count += 1
        if urb.wire_in and packed != begin:
            memmove(urb.data + packed, urb.data + begin, urb.iso[i].actual_length)
        packed += urb.iso[i].actual_length
        begin += urb.iso[i].length
    urb.actual_length = packed


cdef void urb_encode_ret_submit(Urb *urb) noexcept nogil:
    """Lays the whole reply out in the URB's own buffer: header in front of the data, descriptors behind it.

    The setup packet of a control URB lies where the header comes to lie: it is of no more use by now.
    """
    cdef uint8_t *header = urb.data - USBIP_HEADER_SIZE
    cdef uint32_t carried
    if urb.type == ISOCHRONOUS:
        urb_finish_isochronous(urb)
    elif urb.actual_length > urb.length:
        urb.actual_length = urb.length
    if (urb.status == 0 and urb.wire_in and urb.transfer_flags & URB_SHORT_NOT_OK
            and urb.type != ISOCHRONOUS and urb.actual_length < urb.length):
        urb.status = -LINUX_EREMOTEIO
    carried = urb.actual_length if urb.wire_in else 0
    urb_put_header(header, USBIP_RET_SUBMIT, urb.seqnum, urb.status)
    urb_put32(header + AT_ACTUAL_LENGTH, urb.actual_length)
    urb_put32(header + AT_START_FRAME, urb.start_frame)
    urb_put32(header + AT_NUMBER_OF_PACKETS, urb.number_of_packets)
    urb_put32(header + AT_ERROR_COUNT, urb.error_count)
    urb_put_iso(urb.data + carried, urb.iso, urb.packets)
    urb.reply_length = USBIP_HEADER_SIZE + carried + <size_t>urb.packets * ISO_DESCRIPTOR_SIZE


cdef void urb_encode_ret_unlink(Urb *reply, int32_t status) noexcept nogil:
    urb_put_header(reply.data - USBIP_HEADER_SIZE, USBIP_RET_UNLINK, reply.seqnum, status)
    reply.reply_length = USBIP_HEADER_SIZE
