# The part of libusb 1.0 (libusb.h, 1.0.26 or newer) that the claim and the pump use.  Runs in workers.
from libc.stdint cimport int64_t, intptr_t, uint8_t, uint16_t
from posix.time cimport timeval

cdef extern from "libusb.h" nogil:
    struct libusb_context
    struct libusb_device
    struct libusb_device_handle

    struct libusb_version:
        const uint16_t major
        const uint16_t minor
        const uint16_t micro
        const char *rc

    struct libusb_pollfd:
        int fd
        short events

    struct libusb_iso_packet_descriptor:
        unsigned int length
        unsigned int actual_length
        int status

    struct libusb_transfer
    ctypedef void (*libusb_transfer_cb_fn)(libusb_transfer *transfer) noexcept nogil
    struct libusb_transfer:
        libusb_device_handle *dev_handle
        uint8_t flags
        unsigned char endpoint
        unsigned char type
        unsigned int timeout
        int status
        int length
        int actual_length
        libusb_transfer_cb_fn callback
        void *user_data
        unsigned char *buffer
        int num_iso_packets
        libusb_iso_packet_descriptor *iso_packet_desc

    ctypedef void (*libusb_pollfd_added_cb)(int fd, short events, void *user_data) noexcept nogil
    ctypedef void (*libusb_pollfd_removed_cb)(int fd, void *user_data) noexcept nogil

    enum:
        LIBUSB_ERROR_IO
        LIBUSB_ERROR_INVALID_PARAM
        LIBUSB_ERROR_ACCESS
        LIBUSB_ERROR_NO_DEVICE
        LIBUSB_ERROR_NOT_FOUND
        LIBUSB_ERROR_BUSY
        LIBUSB_ERROR_TIMEOUT
        LIBUSB_ERROR_OVERFLOW
        LIBUSB_ERROR_PIPE
        LIBUSB_ERROR_NO_MEM
        LIBUSB_ERROR_NOT_SUPPORTED
        LIBUSB_ERROR_OTHER

        LIBUSB_TRANSFER_COMPLETED
        LIBUSB_TRANSFER_ERROR
        LIBUSB_TRANSFER_TIMED_OUT
        LIBUSB_TRANSFER_CANCELLED
        LIBUSB_TRANSFER_STALL
        LIBUSB_TRANSFER_NO_DEVICE
        LIBUSB_TRANSFER_OVERFLOW

        LIBUSB_TRANSFER_ADD_ZERO_PACKET

        LIBUSB_CAP_SUPPORTS_DETACH_KERNEL_DRIVER

        LIBUSB_HOTPLUG_MATCH_ANY

        LIBUSB_OPTION_LOG_LEVEL
        LIBUSB_OPTION_NO_DEVICE_DISCOVERY
        LIBUSB_LOG_LEVEL_NONE
        LIBUSB_LOG_LEVEL_WARNING
        LIBUSB_LOG_LEVEL_INFO
        LIBUSB_LOG_CB_CONTEXT

    ctypedef void (*libusb_log_cb)(libusb_context *context, int level, const char *text) noexcept nogil

    ctypedef enum libusb_hotplug_event:
        LIBUSB_HOTPLUG_EVENT_DEVICE_LEFT

    ctypedef int (*libusb_hotplug_callback_fn)(libusb_context *context, libusb_device *device,
                                               libusb_hotplug_event event, void *user_data) noexcept nogil

    int libusb_init(libusb_context **context)
    const libusb_version *libusb_get_version()
    int libusb_has_capability(int capability)
    int libusb_set_option(libusb_context *context, int option, ...)
    void libusb_set_log_cb(libusb_context *context, libusb_log_cb callback, int mode)
    const char *libusb_error_name(int code)
    const char *libusb_strerror(int code)

    ssize_t libusb_get_device_list(libusb_context *context, libusb_device ***devices)
    void libusb_free_device_list(libusb_device **devices, int unref)
    uint8_t libusb_get_bus_number(libusb_device *device)
    uint8_t libusb_get_device_address(libusb_device *device)
    int libusb_get_device_speed(libusb_device *device)
    int libusb_open(libusb_device *device, libusb_device_handle **handle)
    libusb_device *libusb_get_device(libusb_device_handle *handle)

    int libusb_wrap_sys_device(libusb_context *context, intptr_t system_device, libusb_device_handle **handle)
    int libusb_control_transfer(libusb_device_handle *handle, uint8_t bmRequestType, uint8_t bRequest, uint16_t wValue,
                                uint16_t wIndex, unsigned char *data, uint16_t wLength, unsigned int timeout)

    int libusb_get_configuration(libusb_device_handle *handle, int *value)
    int libusb_set_configuration(libusb_device_handle *handle, int value)
    int libusb_set_interface_alt_setting(libusb_device_handle *handle, int interface, int alternate)
    int libusb_clear_halt(libusb_device_handle *handle, unsigned char endpoint)
    int libusb_reset_device(libusb_device_handle *handle)
    int libusb_kernel_driver_active(libusb_device_handle *handle, int interface)
    int libusb_detach_kernel_driver(libusb_device_handle *handle, int interface)
    int libusb_attach_kernel_driver(libusb_device_handle *handle, int interface)
    int libusb_claim_interface(libusb_device_handle *handle, int interface)
    int libusb_release_interface(libusb_device_handle *handle, int interface)

    unsigned char *libusb_dev_mem_alloc(libusb_device_handle *handle, size_t length)
    int libusb_dev_mem_free(libusb_device_handle *handle, unsigned char *buffer, size_t length)
    libusb_transfer *libusb_alloc_transfer(int iso_packets)
    void libusb_free_transfer(libusb_transfer *transfer)
    int libusb_submit_transfer(libusb_transfer *transfer)
    int libusb_cancel_transfer(libusb_transfer *transfer)
    int libusb_handle_events_timeout_completed(libusb_context *context, timeval *tv, int *completed)
    const libusb_pollfd **libusb_get_pollfds(libusb_context *context)
    void libusb_free_pollfds(const libusb_pollfd **pollfds)
    void libusb_set_pollfd_notifiers(libusb_context *context, libusb_pollfd_added_cb added,
                                     libusb_pollfd_removed_cb removed, void *user_data)
    int libusb_hotplug_register_callback(libusb_context *context, int events, int flags, int vendor, int product,
                                         int device_class, libusb_hotplug_callback_fn callback, void *user_data,
                                         int *handle)
    void libusb_hotplug_deregister_callback(libusb_context *context, int handle)
