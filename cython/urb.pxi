# USBIP_CMD_* and USBIP_RET_* on the wire: offsets, byte order, encoding.  Runs in workers.
# Source: Linux Documentation/usb/usbip_protocol.rst.  tests/urb.py is the twin that tests hold it to.

from libc.string cimport memcpy, memmove, memset

cdef extern from "<arpa/inet.h>" nogil:
    uint32_t htonl(uint32_t)
    uint32_t ntohl(uint32_t)

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

    MAX_TRANSFER_LENGTH = 16 << 20  # usbfs allows 16 MiB in all by default: usbfs_memory_mb, drivers/usb/core/devio.c
    MAX_ISO_PACKETS = 1024          # USBIP_MAX_ISO_PACKETS, drivers/usb/usbip/usbip_common.h
    MAX_ISO_PACKET_LENGTH = 0xffff  # libusb for macOS has 16 bits for it, and aborts; super speed has 48 KiB at most

    # transfer_flags: include/uapi/linux/usbip.h
    URB_SHORT_NOT_OK = 0x0001
    URB_ZERO_PACKET = 0x0040

cdef uint32_t NO_PACKETS = 0xffffffff  # number_of_packets of an URB that is not isochronous: usbip_protocol.rst


cdef inline uint32_t get32(const uint8_t *at) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, at, sizeof(value))
    return ntohl(value)


cdef inline void put32(uint8_t *at, uint32_t value) noexcept nogil:
    value = htonl(value)
    memcpy(at, &value, sizeof(value))


cdef inline void put_header(uint8_t *header, uint32_t command, uint32_t seqnum, int32_t status) noexcept nogil:
    """The part that both replies share; devid, direction and ep are 0 in replies."""
    memset(header, 0, USBIP_HEADER_SIZE)
    put32(header + AT_COMMAND, command)
    put32(header + AT_SEQNUM, seqnum)
    put32(header + AT_STATUS, <uint32_t>status)


cdef void get_iso(const uint8_t *wire, IsoPacket *packets, uint32_t count) noexcept nogil:
    cdef uint32_t i
    for i in range(count):
        packets[i].offset = get32(wire)
        packets[i].length = get32(wire + 4)
        packets[i].actual_length = 0
        packets[i].status = 0
        wire += ISO_DESCRIPTOR_SIZE


cdef void put_iso(uint8_t *wire, const IsoPacket *packets, uint32_t count) noexcept nogil:
    cdef uint32_t i
    for i in range(count):
        put32(wire, packets[i].offset)
        put32(wire + 4, packets[i].length)
        put32(wire + 8, packets[i].actual_length)
        put32(wire + 12, <uint32_t>packets[i].status)
        wire += ISO_DESCRIPTOR_SIZE


cdef void finish_isochronous(Urb *urb) noexcept nogil:
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


cdef void encode_ret_submit(Urb *urb) noexcept nogil:
    """Lays the whole reply out in the URB's own buffer: header in front of the data, descriptors behind it.

    The setup packet of a control URB lies where the header comes to lie: it is of no more use by now.
    """
    cdef uint8_t *header = urb.data - USBIP_HEADER_SIZE
    cdef uint32_t carried
    if urb.type == ISOCHRONOUS:
        finish_isochronous(urb)
    elif urb.actual_length > urb.length:
        urb.actual_length = urb.length
    if (urb.status == 0 and urb.wire_in and urb.transfer_flags & URB_SHORT_NOT_OK
            and urb.type != ISOCHRONOUS and urb.actual_length < urb.length):
        urb.status = -LINUX_EREMOTEIO
    carried = urb.actual_length if urb.wire_in else 0
    put_header(header, USBIP_RET_SUBMIT, urb.seqnum, urb.status)
    put32(header + AT_ACTUAL_LENGTH, urb.actual_length)
    put32(header + AT_START_FRAME, urb.start_frame)
    put32(header + AT_NUMBER_OF_PACKETS, urb.number_of_packets)
    put32(header + AT_ERROR_COUNT, urb.error_count)
    put_iso(urb.data + carried, urb.iso, urb.packets)
    urb.reply_length = USBIP_HEADER_SIZE + carried + <size_t>urb.packets * ISO_DESCRIPTOR_SIZE


cdef void encode_ret_unlink(Urb *reply, int32_t status) noexcept nogil:
    put_header(reply.data - USBIP_HEADER_SIZE, USBIP_RET_UNLINK, reply.seqnum, status)
    reply.reply_length = USBIP_HEADER_SIZE
