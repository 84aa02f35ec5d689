# What is done to one interface of an open device: its driver, the claim, its alternate setting.  Runs in workers.
#
# libusb does it for the numbers that it knows.  Linux shows interfaces with any number, and usbfs takes those below 64;
# for what is beyond libusb's the same requests go to usbfs directly, on the descriptor that libusb has open.  Nothing
# else is needed: transfers are submitted by endpoint.  All results are libusb's, with errno as usbfs has left it.
# Source: proc_* in drivers/usb/core/devio.c.

cdef extern from *:
    """
    #include <errno.h>
    #include <poll.h>
    #include <string.h>

    enum { USBFS_EVENTS = POLLOUT };

    #ifdef __linux__
    #include <linux/usbdevice_fs.h>
    #include <sys/ioctl.h>

    static int usbfs_result(int done)
    {
        if (done >= 0)
            return done;
        switch (errno) {
        case ENOENT: case ENODATA: return LIBUSB_ERROR_NOT_FOUND;
        case EBUSY: return LIBUSB_ERROR_BUSY;
        case ENODEV: case EBADF: return LIBUSB_ERROR_NO_DEVICE; /* EBADF: interface_usbfs() found none */
        case EINVAL: return LIBUSB_ERROR_INVALID_PARAM;
        default: return LIBUSB_ERROR_OTHER;
        }
    }

    static int usbfs_claim(int file, unsigned int number)
    {
        return usbfs_result(ioctl(file, USBDEVFS_CLAIMINTERFACE, &number));
    }

    static int usbfs_release(int file, unsigned int number)
    {
        return usbfs_result(ioctl(file, USBDEVFS_RELEASEINTERFACE, &number));
    }

    static int usbfs_select(int file, unsigned int number, unsigned int alternate)
    {
        struct usbdevfs_setinterface setting = {number, alternate};
        return usbfs_result(ioctl(file, USBDEVFS_SETINTERFACE, &setting));
    }

    static int usbfs_has_driver(int file, unsigned int number)
    {
        struct usbdevfs_getdriver driver = {number, ""};
        int done = usbfs_result(ioctl(file, USBDEVFS_GETDRIVER, &driver));
        return done == LIBUSB_ERROR_NOT_FOUND ? 0 : done < 0 ? done : strcmp(driver.driver, "usbfs") != 0;
    }

    static int usbfs_driver_request(int file, int number, int request)
    {
        struct usbdevfs_ioctl command = {number, request, NULL};
        return usbfs_result(ioctl(file, USBDEVFS_IOCTL, &command));
    }

    static int usbfs_detach(int file, int number)
    {
        int done = usbfs_driver_request(file, number, USBDEVFS_DISCONNECT);
        return done < 0 ? done : 0;
    }

    static int usbfs_attach(int file, int number)
    {
        int done = usbfs_driver_request(file, number, USBDEVFS_CONNECT); /* 0: no driver wants it */
        return done < 0 ? done : done ? 0 : LIBUSB_ERROR_NOT_FOUND;
    }
    #else
    #define usbfs_claim(file, number) LIBUSB_ERROR_INVALID_PARAM
    #define usbfs_release(file, number) LIBUSB_ERROR_INVALID_PARAM
    #define usbfs_select(file, number, alternate) LIBUSB_ERROR_INVALID_PARAM
    #define usbfs_has_driver(file, number) LIBUSB_ERROR_INVALID_PARAM
    #define usbfs_detach(file, number) LIBUSB_ERROR_INVALID_PARAM
    #define usbfs_attach(file, number) LIBUSB_ERROR_INVALID_PARAM
    #endif
    """
    short USBFS_EVENTS
    int usbfs_claim(int file, unsigned int number) nogil
    int usbfs_release(int file, unsigned int number) nogil
    int usbfs_select(int file, unsigned int number, unsigned int alternate) nogil
    int usbfs_has_driver(int file, unsigned int number) nogil
    int usbfs_detach(int file, int number) nogil
    int usbfs_attach(int file, int number) nogil

cdef enum:
    LIBUSB_INTERFACES = 32   # USB_MAXINTERFACES in libusb's libusbi.h

cdef struct OpenDevice:
    libusb_context *context
    libusb_device_handle *handle


cdef int interface_usbfs(const OpenDevice *device) noexcept nogil:
    """The only descriptor on which libusb waits for POLLOUT (initialize_handle in linux_usbfs.c); -1: none, because the
    device has been removed (op_handle_events)."""
    cdef const libusb_pollfd **list = libusb_get_pollfds(device.context)
    cdef int i = 0, file = -1
    if list != NULL:
        while list[i] != NULL:
            if list[i].events & USBFS_EVENTS:
                file = list[i].fd
            i += 1
        libusb_free_pollfds(list)
    return file


cdef int interface_claim(const OpenDevice *device, int number) noexcept nogil:
    if number < LIBUSB_INTERFACES:
        return libusb_claim_interface(device.handle, number)
    return usbfs_claim(interface_usbfs(device), number)


cdef int interface_release(const OpenDevice *device, int number) noexcept nogil:
    if number < LIBUSB_INTERFACES:
        return libusb_release_interface(device.handle, number)
    return usbfs_release(interface_usbfs(device), number)


cdef int interface_select(const OpenDevice *device, int number, int alternate) noexcept nogil:
    if number < LIBUSB_INTERFACES:
        return libusb_set_interface_alt_setting(device.handle, number, alternate)
    return usbfs_select(interface_usbfs(device), number, alternate)


cdef int interface_has_driver(const OpenDevice *device, int number) noexcept nogil:
    """1: a driver of the host other than usbfs has it; 0: none has."""
    if number < LIBUSB_INTERFACES:
        return libusb_kernel_driver_active(device.handle, number)
    return usbfs_has_driver(interface_usbfs(device), number)


cdef int interface_detach(const OpenDevice *device, int number) noexcept nogil:
    if number < LIBUSB_INTERFACES:
        return libusb_detach_kernel_driver(device.handle, number)
    return usbfs_detach(interface_usbfs(device), number)


cdef int interface_attach(const OpenDevice *device, int number) noexcept nogil:
    if number < LIBUSB_INTERFACES:
        return libusb_attach_kernel_driver(device.handle, number)
    return usbfs_attach(interface_usbfs(device), number)
