# The part of IOKit and CoreFoundation that asks the IORegistry about a device: iokit_min.h.
from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef extern from "iokit_min.h" nogil:
    ctypedef uint32_t io_object_t
    ctypedef int kern_return_t
    ctypedef long CFIndex
    ctypedef unsigned long CFTypeID
    ctypedef const void *CFTypeRef
    ctypedef const void *CFDictionaryRef
    ctypedef const void *CFNumberRef
    ctypedef const void *CFStringRef

    ctypedef struct CFRange:
        CFIndex location
        CFIndex length

    enum:
        kCFNumberSInt64Type
        kCFStringEncodingUTF8

    CFDictionaryRef IOServiceMatching(const char *class_name)
    kern_return_t IOServiceGetMatchingServices(io_object_t main_port, CFDictionaryRef matching, io_object_t *iterator)
    kern_return_t IORegistryEntryGetChildIterator(io_object_t entry, const char *plane, io_object_t *iterator)
    kern_return_t IORegistryEntryGetName(io_object_t entry, char *name)
    CFTypeRef IORegistryEntryCreateCFProperty(io_object_t entry, CFStringRef key, const void *allocator,
                                              uint32_t options)
    io_object_t IOIteratorNext(io_object_t iterator)
    bint IOIteratorIsValid(io_object_t iterator)
    kern_return_t IOObjectGetClass(io_object_t object, char *class_name)
    kern_return_t IOObjectRelease(io_object_t object)

    void CFRelease(CFTypeRef value)
    CFTypeID CFGetTypeID(CFTypeRef value)
    CFTypeID CFNumberGetTypeID()
    CFTypeID CFStringGetTypeID()
    bint CFNumberGetValue(CFNumberRef number, CFIndex type, void *value)
    CFStringRef CFStringCreateWithCString(const void *allocator, const char *text, uint32_t encoding)
    CFIndex CFStringGetLength(CFStringRef string)
    CFIndex CFStringGetBytes(CFStringRef string, CFRange range, uint32_t encoding, uint8_t loss_byte,
                             bint is_external, uint8_t *buffer, CFIndex size, CFIndex *used)
