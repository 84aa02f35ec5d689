"""Numbers of USB/IP and of USB, each with its origin.  Used by every process.

Paths that begin with `drivers/`, `include/` or `tools/` are of the Linux source tree; "USB 2.0" and "USB 3.2"
are the specifications of usb.org.
"""

from enum import IntEnum
from typing import Final

# ---- USB/IP: operations before a device is attached --------------------------------------------------------

USBIP_VERSION: Final = 0x0111  # tools/usb/usbip/configure.ac, USBIP_VERSION 1.1.1 as binary-coded decimal
USBIP_PORT: Final = 3240  # registered with IANA; tools/usb/usbip/src/usbip_network.c

OP_REQ_DEVLIST: Final = 0x8005  # tools/usb/usbip/src/usbip_network.h, OP_REQUEST | OP_DEVLIST
OP_REP_DEVLIST: Final = 0x0005  # tools/usb/usbip/src/usbip_network.h, OP_REPLY | OP_DEVLIST
OP_REQ_IMPORT: Final = 0x8003  # tools/usb/usbip/src/usbip_network.h, OP_REQUEST | OP_IMPORT
OP_REP_IMPORT: Final = 0x0003  # tools/usb/usbip/src/usbip_network.h, OP_REPLY | OP_IMPORT

ST_OK: Final = 0  # tools/usb/usbip/libsrc/usbip_common.h
ST_NA: Final = 1  # tools/usb/usbip/libsrc/usbip_common.h: the request failed
ST_DEV_BUSY: Final = 2  # tools/usb/usbip/libsrc/usbip_common.h: another client uses the device
ST_DEV_ERR: Final = 3  # tools/usb/usbip/libsrc/usbip_common.h: the device is in an error state
ST_NODEV: Final = 4  # tools/usb/usbip/libsrc/usbip_common.h: no such device
ST_ERROR: Final = 5  # tools/usb/usbip/libsrc/usbip_common.h: unexpected response

PATH_SIZE: Final = 256  # tools/usb/usbip/libsrc/usbip_common.h, SYSFS_PATH_MAX
BUSID_SIZE: Final = 32  # tools/usb/usbip/libsrc/usbip_common.h, SYSFS_BUS_ID_SIZE; the last byte is NUL
OP_HEADER_SIZE: Final = 8  # tools/usb/usbip/src/usbip_network.h, struct op_common
OP_DEVICE_SIZE: Final = 312  # tools/usb/usbip/libsrc/usbip_common.h, struct usbip_usb_device
OP_INTERFACE_SIZE: Final = 4  # tools/usb/usbip/libsrc/usbip_common.h, struct usbip_usb_interface

MAX_DEVICES: Final = 4096
"""Devices in one OP_REP_DEVLIST that our client accepts: more than any host has, at most 5 MiB."""


class Speed(IntEnum):
    """Speed of a device as it travels.  libusb numbers differently: its 4 (super) is 5 here."""

    LOW = 1  # include/uapi/linux/usb/ch9.h, enum usb_device_speed
    FULL = 2
    HIGH = 3
    SUPER = 5  # 4 is wireless; vhci-hcd before Linux 6.12 refuses 6 (super plus), so 5 stands for both

    @property
    def label(self) -> str:
        """The word for people: "low", "full", "high" or "super"."""
        return self.name.lower()

    @classmethod
    def of_libusb(cls, number: int) -> "Speed":
        """The speed that `enum libusb_speed` (libusb.h) calls `number`; unknown ones count as full speed."""
        return {1: cls.LOW, 3: cls.HIGH, 4: cls.SUPER, 5: cls.SUPER, 6: cls.SUPER}.get(number, cls.FULL)


# ---- USB/IP: URBs of an attached device --------------------------------------------------------------------

USBIP_CMD_SUBMIT: Final = 1  # drivers/usb/usbip/usbip_common.h
USBIP_CMD_UNLINK: Final = 2  # drivers/usb/usbip/usbip_common.h
USBIP_RET_SUBMIT: Final = 3  # drivers/usb/usbip/usbip_common.h
USBIP_RET_UNLINK: Final = 4  # drivers/usb/usbip/usbip_common.h

USBIP_DIR_OUT: Final = 0  # drivers/usb/usbip/usbip_common.h
USBIP_DIR_IN: Final = 1  # drivers/usb/usbip/usbip_common.h

URB_HEADER_SIZE: Final = 48  # drivers/usb/usbip/usbip_common.h, struct usbip_header
ISO_PACKET_SIZE: Final = 16  # drivers/usb/usbip/usbip_common.h, struct usbip_iso_packet_descriptor

MAX_ISO_PACKETS: Final = 1024  # drivers/usb/usbip/usbip_common.h, USBIP_MAX_ISO_PACKETS
MAX_TRANSFER_LENGTH: Final = 16 * 1024 * 1024
"""Bytes of one transfer buffer.  usbfs of a Linux host takes 16 MiB in total by default, usbfs_memory_mb of
drivers/usb/core/devio.c, so no larger one can reach a device."""

URB_SHORT_NOT_OK: Final = 0x0001  # include/uapi/linux/usbip.h
URB_ISO_ASAP: Final = 0x0002  # include/uapi/linux/usbip.h
URB_ZERO_PACKET: Final = 0x0040  # include/uapi/linux/usbip.h
URB_NO_INTERRUPT: Final = 0x0080  # include/uapi/linux/usbip.h
URB_DIR_IN: Final = 0x0200  # include/uapi/linux/usbip.h

NO_ISO_PACKETS: Final = 0xFFFFFFFF  # Documentation/usb/usbip_protocol.rst, number_of_packets

# ---- Linux error numbers: they travel as they are on every host --------------------------------------------

LINUX_ENOENT: Final = 2  # include/uapi/asm-generic/errno-base.h
LINUX_ENOMEM: Final = 12  # include/uapi/asm-generic/errno-base.h
LINUX_EXDEV: Final = 18  # include/uapi/asm-generic/errno-base.h
LINUX_ENODEV: Final = 19  # include/uapi/asm-generic/errno-base.h
LINUX_EINVAL: Final = 22  # include/uapi/asm-generic/errno-base.h
LINUX_EPIPE: Final = 32  # include/uapi/asm-generic/errno-base.h
LINUX_EPROTO: Final = 71  # include/uapi/asm-generic/errno.h
LINUX_EOVERFLOW: Final = 75  # include/uapi/asm-generic/errno.h
LINUX_EILSEQ: Final = 84  # include/uapi/asm-generic/errno.h
LINUX_EMSGSIZE: Final = 90  # include/uapi/asm-generic/errno.h
LINUX_ECONNRESET: Final = 104  # include/uapi/asm-generic/errno.h; 54 on a Mac
LINUX_ESHUTDOWN: Final = 108  # include/uapi/asm-generic/errno.h
LINUX_ETIMEDOUT: Final = 110  # include/uapi/asm-generic/errno.h; 60 on a Mac
LINUX_EREMOTEIO: Final = 121  # include/uapi/asm-generic/errno.h

# ---- USB: control requests ---------------------------------------------------------------------------------

USB_DIR_IN: Final = 0x80  # USB 2.0, table 9-2, bmRequestType; also table 9-13, bEndpointAddress
USB_TYPE_CLASS: Final = 0x20  # USB 2.0, table 9-2
USB_RECIP_DEVICE: Final = 0x00  # USB 2.0, table 9-2
USB_RECIP_INTERFACE: Final = 0x01  # USB 2.0, table 9-2
USB_RECIP_ENDPOINT: Final = 0x02  # USB 2.0, table 9-2
USB_RECIP_OTHER: Final = 0x03  # USB 2.0, table 9-2; a port of a hub

USB_REQ_GET_STATUS: Final = 0x00  # USB 2.0, table 9-4
USB_REQ_CLEAR_FEATURE: Final = 0x01  # USB 2.0, table 9-4
USB_REQ_SET_FEATURE: Final = 0x03  # USB 2.0, table 9-4
USB_REQ_GET_DESCRIPTOR: Final = 0x06  # USB 2.0, table 9-4
USB_REQ_GET_CONFIGURATION: Final = 0x08  # USB 2.0, table 9-4
USB_REQ_SET_CONFIGURATION: Final = 0x09  # USB 2.0, table 9-4
USB_REQ_GET_INTERFACE: Final = 0x0A  # USB 2.0, table 9-4
USB_REQ_SET_INTERFACE: Final = 0x0B  # USB 2.0, table 9-4

USB_FEATURE_ENDPOINT_HALT: Final = 0  # USB 2.0, table 9-6
USB_FEATURE_PORT_RESET: Final = 4  # USB 2.0, table 11-17

# ---- USB: descriptors --------------------------------------------------------------------------------------

USB_DT_DEVICE: Final = 0x01  # USB 2.0, table 9-5
USB_DT_CONFIG: Final = 0x02  # USB 2.0, table 9-5
USB_DT_STRING: Final = 0x03  # USB 2.0, table 9-5
USB_DT_INTERFACE: Final = 0x04  # USB 2.0, table 9-5
USB_DT_ENDPOINT: Final = 0x05  # USB 2.0, table 9-5
USB_DT_INTERFACE_ASSOCIATION: Final = 0x0B  # Interface Association Descriptors (USB ECN), table 9-5
USB_DT_BOS: Final = 0x0F  # USB 3.2, table 9-6
USB_DT_DEVICE_CAPABILITY: Final = 0x10  # USB 3.2, table 9-6
USB_DT_HID: Final = 0x21  # HID 1.11, 7.1
USB_DT_HID_REPORT: Final = 0x22  # HID 1.11, 7.1
USB_DT_CS_INTERFACE: Final = 0x24  # class-specific: CDC 1.2, table 12; Audio 1.0, Video 1.1, table A-4
USB_DT_CS_ENDPOINT: Final = 0x25  # class-specific endpoint: Audio 1.0, table A-4
USB_DT_SS_ENDPOINT_COMP: Final = 0x30  # USB 3.2, table 9-6

USB_DT_DEVICE_SIZE: Final = 18  # USB 2.0, table 9-8
USB_DT_CONFIG_SIZE: Final = 9  # USB 2.0, table 9-10
USB_DT_INTERFACE_SIZE: Final = 9  # USB 2.0, table 9-12
USB_DT_ENDPOINT_SIZE: Final = 7  # USB 2.0, table 9-13

USB_CONFIG_ATT_ONE: Final = 0x80  # USB 2.0, table 9-10, bmAttributes: reserved, always one
USB_CONFIG_ATT_WAKEUP: Final = 0x20  # USB 2.0, table 9-10, bmAttributes: remote wake-up

USB_ENDPOINT_NUMBER_MASK: Final = 0x0F  # USB 2.0, table 9-13, bEndpointAddress
USB_ENDPOINT_XFERTYPE_MASK: Final = 0x03  # USB 2.0, table 9-13, bmAttributes
USB_ENDPOINT_XFER_CONTROL: Final = 0  # USB 2.0, table 9-13
USB_ENDPOINT_XFER_ISOC: Final = 1  # USB 2.0, table 9-13
USB_ENDPOINT_XFER_BULK: Final = 2  # USB 2.0, table 9-13
USB_ENDPOINT_XFER_INT: Final = 3  # USB 2.0, table 9-13

USB_CLASS_AUDIO: Final = 0x01  # usb.org, defined class codes
USB_CLASS_COMM: Final = 0x02  # usb.org, defined class codes
USB_CLASS_HID: Final = 0x03  # usb.org, defined class codes
USB_CLASS_MASS_STORAGE: Final = 0x08  # usb.org, defined class codes
USB_CLASS_HUB: Final = 0x09  # usb.org, defined class codes
USB_CLASS_CDC_DATA: Final = 0x0A  # usb.org, defined class codes
USB_CLASS_VIDEO: Final = 0x0E  # usb.org, defined class codes
USB_CLASS_MISC: Final = 0xEF  # usb.org, defined class codes
USB_CLASS_VENDOR_SPEC: Final = 0xFF  # usb.org, defined class codes
