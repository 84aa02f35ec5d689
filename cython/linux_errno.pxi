# errno values of Linux, on every host, and the mapping of libusb's errors to them.  Runs in workers.
#
# A request that the host's stack rejects because of an unknown interface, setting, endpoint or configuration is
# answered with -EPIPE, the stall that a device would answer.  The kernel's server gets the same result in another way:
# it sends requests that usb_set_interface rejects to the device (stub_recv_cmd_submit in drivers/usb/usbip/stub_rx.c).
# Answers of the device keep their errno.  libusb maps most of them to LIBUSB_ERROR_OTHER and leaves errno as the ioctl
# of usbfs set it (linux_usbfs.c); IOKit has no errno, and there libusb has a code for each.

from libc.errno cimport (
    EILSEQ, EINVAL, EMSGSIZE, ENODEV, ENOENT, ENOMEM, ENOSPC, EOVERFLOW, EPIPE, EPROTO, ESHUTDOWN, ETIMEDOUT,
)

cdef extern from *:
    """
    #include <errno.h>
    #ifdef __linux__
    #define USBFS_ERRNO errno
    #else
    #define USBFS_ERRNO 0
    #endif
    #define FORGET_ERRNO() (void)(errno = 0)
    """
    int USBFS_ERRNO
    void FORGET_ERRNO() nogil

cdef enum:  # include/uapi/asm-generic/errno-base.h, errno.h
    LINUX_ENOENT = 2
    LINUX_ENOMEM = 12
    LINUX_EACCES = 13
    LINUX_EBUSY = 16
    LINUX_EXDEV = 18
    LINUX_ENODEV = 19
    LINUX_EINVAL = 22
    LINUX_ENOSPC = 28
    LINUX_EPIPE = 32
    LINUX_EPROTO = 71
    LINUX_EOVERFLOW = 75
    LINUX_EILSEQ = 84
    LINUX_EMSGSIZE = 90
    LINUX_ECONNRESET = 104
    LINUX_ESHUTDOWN = 108
    LINUX_ETIMEDOUT = 110
    LINUX_EREMOTEIO = 121


cdef int linux_errno_of_usbfs(int host, int otherwise) noexcept nogil:
    """This host's errno as Linux's, whose numbers differ between processors; `otherwise`: it tells nothing."""
    if host == ENOENT or host == EINVAL or host == EPIPE:
        return LINUX_EPIPE
    if host == ENOMEM:
        return LINUX_ENOMEM
    if host == ENODEV:
        return LINUX_ENODEV
    if host == ENOSPC:
        return LINUX_ENOSPC
    if host == EPROTO:
        return LINUX_EPROTO
    if host == EOVERFLOW:
        return LINUX_EOVERFLOW
    if host == EILSEQ:
        return LINUX_EILSEQ
    if host == ESHUTDOWN:
        return LINUX_ESHUTDOWN
    if host == ETIMEDOUT:
        return LINUX_ETIMEDOUT
    return otherwise


cdef int linux_errno_of_libusb(int code) noexcept nogil:
    """What a call of libusb has returned, as a negative Linux errno.  Asked directly after the call, which has
    FORGET_ERRNO before it."""
    if code >= 0:
        return 0
    if code == LIBUSB_ERROR_NO_DEVICE:
        return -LINUX_ENODEV
    if code == LIBUSB_ERROR_BUSY:
        return -LINUX_EBUSY
    if code == LIBUSB_ERROR_NO_MEM:
        return -LINUX_ENOMEM
    if code == LIBUSB_ERROR_ACCESS:
        return -LINUX_EACCES
    if code == LIBUSB_ERROR_TIMEOUT:
        return -LINUX_ETIMEDOUT
    if code == LIBUSB_ERROR_OVERFLOW:
        return -LINUX_EOVERFLOW
    if code == LIBUSB_ERROR_IO:
        return -linux_errno_of_usbfs(USBFS_ERRNO, LINUX_EPROTO)
    if code == LIBUSB_ERROR_OTHER:
        return -linux_errno_of_usbfs(USBFS_ERRNO, LINUX_EPIPE)
    if code == LIBUSB_ERROR_INVALID_PARAM and USBFS_ERRNO == EMSGSIZE:
        return -LINUX_EMSGSIZE  # an isochronous packet is longer than usbfs takes
    if code == LIBUSB_ERROR_INVALID_PARAM or code == LIBUSB_ERROR_NOT_SUPPORTED:
        return -LINUX_EINVAL  # of a transfer: longer than libusb can make it
    return -LINUX_EPIPE  # PIPE; NOT_FOUND: nothing has reached the device


cdef int linux_errno_of_request(int code) noexcept nogil:
    """The same for a device request: a number beyond libusb's own limits is one that does not exist."""
    return -LINUX_EPIPE if code == LIBUSB_ERROR_INVALID_PARAM else linux_errno_of_libusb(code)
