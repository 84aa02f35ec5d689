# The part of IOKit and CoreFoundation that iokit.pyx uses in the extension; see iokit_min.h.
from libc.stdint cimport int32_t, int64_t, intptr_t, uint8_t, uint32_t, uint64_t

cdef extern from "iokit_min.h" nogil:
    ctypedef uint32_t io_object_t
    ctypedef int kern_return_t
    ctypedef long CFIndex
    ctypedef unsigned long CFTypeID
    ctypedef const void *CFTypeRef
    ctypedef const void *CFDataRef
    ctypedef const void *CFDictionaryRef
    ctypedef const void *CFNumberRef
    ctypedef const void *CFStringRef
    ctypedef const void *CFUUIDRef
    ctypedef struct IONotificationPort
    ctypedef IONotificationPort *IONotificationPortRef
    ctypedef struct dispatch_queue_s
    ctypedef dispatch_queue_s *dispatch_queue_t
    ctypedef void (*dispatch_function_t)(void *context) noexcept nogil
    ctypedef void (*IOServiceMatchingCallback)(void *context, io_object_t iterator) noexcept nogil
    ctypedef void (*IOServiceInterestCallback)(void *context, io_object_t service, uint32_t message,
                                               void *argument) noexcept nogil

    ctypedef struct CFRange:
        CFIndex location
        CFIndex length

    ctypedef struct CFUUIDBytes:
        pass

    ctypedef struct IOCFPlugInInterface:
        int32_t (*QueryInterface)(void *self, CFUUIDBytes interface_id, void **made) noexcept nogil
        uint32_t (*Release)(void *self) noexcept nogil

    ctypedef struct IOUSBDeviceInterface197:
        uint32_t (*Release)(void *self) noexcept nogil
        kern_return_t (*USBDeviceOpen)(void *self) noexcept nogil
        kern_return_t (*USBDeviceClose)(void *self) noexcept nogil
        kern_return_t (*USBDeviceReEnumerate)(void *self, uint32_t options) noexcept nogil

    CFUUIDRef kIOUSBDeviceUserClientTypeID
    CFUUIDRef kIOCFPlugInInterfaceID
    CFUUIDRef kIOUSBDeviceInterfaceID197

    enum:
        kUSBReEnumerateReleaseDeviceMask
        kCFNumberSInt64Type
        kCFStringEncodingUTF8

    uint32_t kIOMessageCanSystemSleep
    uint32_t kIOMessageSystemWillSleep
    uint32_t kIOMessageSystemHasPoweredOn

    CFDictionaryRef IOServiceMatching(const char *class_name)
    kern_return_t IOServiceGetMatchingServices(io_object_t main_port, CFDictionaryRef matching, io_object_t *iterator)
    kern_return_t IORegistryEntryGetChildIterator(io_object_t entry, const char *plane, io_object_t *iterator)
    kern_return_t IORegistryEntryGetParentEntry(io_object_t entry, const char *plane, io_object_t *parent)
    kern_return_t IORegistryEntryGetRegistryEntryID(io_object_t entry, uint64_t *id)
    kern_return_t IORegistryEntryGetName(io_object_t entry, char *name)
    CFTypeRef IORegistryEntryCreateCFProperty(io_object_t entry, CFStringRef key, const void *allocator,
                                              uint32_t options)
    io_object_t IOIteratorNext(io_object_t iterator)
    bint IOIteratorIsValid(io_object_t iterator)
    kern_return_t IOObjectGetClass(io_object_t object, char *class_name)
    kern_return_t IOObjectRelease(io_object_t object)
    kern_return_t IOServiceClose(io_object_t connection)
    kern_return_t IOCreatePlugInInterfaceForService(io_object_t service, CFUUIDRef type, CFUUIDRef interface_id,
                                                    IOCFPlugInInterface ***made, int32_t *score)

    io_object_t IORegisterForSystemPower(void *context, IONotificationPortRef *port,
                                         IOServiceInterestCallback callback, io_object_t *notifier)
    kern_return_t IODeregisterForSystemPower(io_object_t *notifier)
    kern_return_t IOAllowPowerChange(io_object_t connection, intptr_t id)

    IONotificationPortRef IONotificationPortCreate(io_object_t main_port)
    kern_return_t IOServiceAddMatchingNotification(IONotificationPortRef port, const char *kind,
                                                   CFDictionaryRef matching, IOServiceMatchingCallback callback,
                                                   void *context, io_object_t *iterator)
    void IONotificationPortSetDispatchQueue(IONotificationPortRef port, dispatch_queue_t queue)
    void IONotificationPortDestroy(IONotificationPortRef port)

    dispatch_queue_t dispatch_queue_create(const char *label, void *attributes)
    void dispatch_sync_f(dispatch_queue_t queue, void *context, dispatch_function_t work)
    void dispatch_release(void *object)

    void CFRelease(CFTypeRef value)
    CFTypeID CFGetTypeID(CFTypeRef value)
    CFTypeID CFDataGetTypeID()
    CFIndex CFDataGetLength(CFDataRef data)
    void CFDataGetBytes(CFDataRef data, CFRange range, uint8_t *buffer)
    CFTypeID CFNumberGetTypeID()
    CFTypeID CFStringGetTypeID()
    bint CFNumberGetValue(CFNumberRef number, CFIndex type, void *value)
    CFStringRef CFStringCreateWithCString(const void *allocator, const char *text, uint32_t encoding)
    CFIndex CFStringGetLength(CFStringRef string)
    CFIndex CFStringGetBytes(CFStringRef string, CFRange range, uint32_t encoding, uint8_t loss_byte,
                             bint is_external, uint8_t *buffer, CFIndex size, CFIndex *used)
    CFUUIDBytes CFUUIDGetUUIDBytes(CFUUIDRef uuid)
