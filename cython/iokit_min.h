/*
 * The part of IOKit and CoreFoundation that iokit.pyx uses: all that it needs to be compiled where there is no SDK of
 * Apple's, for macOS by any compiler and for the tests of other systems (tests/fake_iokit).  With an SDK its headers
 * count, and what is asserted below is asserted of them.
 *
 * IOKit: IOKit/IOKitLib.h and IOKit/IOTypes.h.  CoreFoundation: CFBase.h, CFNumber.h and CFString.h.
 */
#ifndef USBIPD_IOKIT_MIN_H
#define USBIPD_IOKIT_MIN_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__APPLE__) && defined(__has_include)
#if __has_include(<IOKit/IOKitLib.h>)
#define USBIPD_HAS_IOKIT
#endif
#endif

#ifdef USBIPD_HAS_IOKIT
#include <CoreFoundation/CoreFoundation.h>
#include <IOKit/IOKitLib.h>
#else

typedef unsigned int io_object_t; /* a Mach port of this process */
typedef char io_name_t[128];
typedef int kern_return_t;

typedef unsigned char Boolean;
typedef signed long CFIndex;
typedef unsigned long CFTypeID;
typedef const void *CFTypeRef;
typedef const struct __CFAllocator *CFAllocatorRef;
typedef const struct __CFDictionary *CFDictionaryRef;
typedef struct __CFDictionary *CFMutableDictionaryRef;
typedef const struct __CFNumber *CFNumberRef;
typedef const struct __CFString *CFStringRef;
typedef struct {
    CFIndex location;
    CFIndex length;
} CFRange;

enum { kCFNumberSInt64Type = 4 };
enum { kCFStringEncodingUTF8 = 0x08000100 };

CFMutableDictionaryRef IOServiceMatching(const char *class_name);
/* Takes over the caller's reference to `matching`, whatever comes out. */
kern_return_t IOServiceGetMatchingServices(io_object_t main_port, CFDictionaryRef matching, io_object_t *iterator);
kern_return_t IORegistryEntryGetChildIterator(io_object_t entry, const char *plane, io_object_t *iterator);
kern_return_t IORegistryEntryGetName(io_object_t entry, io_name_t name);
CFTypeRef IORegistryEntryCreateCFProperty(io_object_t entry, CFStringRef key, CFAllocatorRef allocator,
                                          uint32_t options);
io_object_t IOIteratorNext(io_object_t iterator);
unsigned int IOIteratorIsValid(io_object_t iterator);
kern_return_t IOObjectGetClass(io_object_t object, io_name_t class_name);
kern_return_t IOObjectRelease(io_object_t object);

void CFRelease(CFTypeRef value);
CFTypeID CFGetTypeID(CFTypeRef value);
CFTypeID CFNumberGetTypeID(void);
CFTypeID CFStringGetTypeID(void);
Boolean CFNumberGetValue(CFNumberRef number, CFIndex type, void *value);
CFStringRef CFStringCreateWithCString(CFAllocatorRef allocator, const char *text, uint32_t encoding);
CFIndex CFStringGetLength(CFStringRef string);
CFIndex CFStringGetBytes(CFStringRef string, CFRange range, uint32_t encoding, uint8_t loss_byte,
                         Boolean is_external, uint8_t *buffer, CFIndex size, CFIndex *used);

#endif

/* What iokit.pxd tells Cython, and what the calling convention rests on: LP64, arm64 and x86_64 alike. */
static_assert(sizeof(io_object_t) == 4, "io_object_t");
static_assert(sizeof(io_name_t) == 128, "io_name_t");
static_assert(sizeof(kern_return_t) == 4, "kern_return_t");
static_assert(sizeof(Boolean) == 1, "Boolean");
static_assert(sizeof(CFIndex) == 8 && sizeof(CFTypeID) == 8 && sizeof(CFTypeRef) == 8, "CFIndex, CFTypeID, CFTypeRef");
static_assert(sizeof(CFRange) == 16 && offsetof(CFRange, length) == 8, "CFRange");
static_assert(kCFNumberSInt64Type == 4 && kCFStringEncodingUTF8 == 0x08000100, "constants");

#endif
