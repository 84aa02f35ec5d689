/* USB/IP wire format, protocol version 1.1.1 (0x0111).  Included by the load
 * generator and the null server.
 *
 * Sizes and field order follow Linux Documentation/usb/usbip_protocol.rst.
 * Every multi-byte integer on the wire is big-endian, the 8 setup bytes are
 * carried verbatim (so wValue, wIndex and wLength stay little-endian).
 */
#ifndef USBIP_WIRE_H
#define USBIP_WIRE_H

#include <stdint.h>
#include <string.h>
#include <arpa/inet.h>

enum {
    USBIP_VERSION = 0x0111,
    USBIP_PORT = 3240,

    OP_REQ_IMPORT = 0x8003,
    OP_REP_IMPORT = 0x0003,

    USBIP_CMD_SUBMIT = 1,
    USBIP_CMD_UNLINK = 2,
    USBIP_RET_SUBMIT = 3,
    USBIP_RET_UNLINK = 4,

    USBIP_DIR_OUT = 0,
    USBIP_DIR_IN = 1,

    USBIP_OP_HDR = 8,    /* version, code, status */
    USBIP_BUSID = 32,
    USBIP_DEV = 312,     /* struct usbip_usb_device */
    USBIP_URB_HDR = 48,  /* header_basic (20) + command part (28) */
};

static inline void put16(uint8_t *p, uint16_t v) { v = htons(v); memcpy(p, &v, 2); }
static inline void put32(uint8_t *p, uint32_t v) { v = htonl(v); memcpy(p, &v, 4); }
static inline uint16_t get16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return ntohs(v); }
static inline uint32_t get32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return ntohl(v); }

/* Offsets in the 48-byte URB header. */
enum {
    H_COMMAND = 0, H_SEQNUM = 4, H_DEVID = 8, H_DIRECTION = 12, H_EP = 16,
    /* CMD_SUBMIT */
    S_FLAGS = 20, S_LENGTH = 24, S_START_FRAME = 28, S_NPACKETS = 32, S_INTERVAL = 36, S_SETUP = 40,
    /* RET_SUBMIT */
    R_STATUS = 20, R_ACTUAL = 24, R_START_FRAME = 28, R_NPACKETS = 32, R_ERRORS = 36,
    /* CMD_UNLINK, RET_UNLINK */
    U_SEQNUM = 20, U_STATUS = 20,
};

/* Offsets in struct usbip_usb_device. */
enum {
    D_PATH = 0, D_BUSID = 256, D_BUSNUM = 288, D_DEVNUM = 292, D_SPEED = 296,
    D_VENDOR = 300, D_PRODUCT = 302, D_BCD = 304, D_CLASS = 306, D_SUBCLASS = 307,
    D_PROTOCOL = 308, D_CONFIG = 309, D_NCONFIGS = 310, D_NIFS = 311,
};

#endif
