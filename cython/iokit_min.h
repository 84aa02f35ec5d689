/*
 * The part of IOKit and CoreFoundation that iokit.pyx uses in the extension: enough to compile it without an
 * SDK of Apple's, for macOS by any compiler and for the tests on other systems.  With an SDK its headers are used, and
 * the assertions below check them.
 *
 * IOKit: IOKit/IOKitLib.h, IOKit/IOTypes.h, IOKit/IOMessage.h, IOKit/IOCFPlugIn.h, IOKit/pwr_mgt/IOPMLib.h,
 * IOKit/usb/IOUSBLib.h and IOKit/usb/USB.h.  CoreFoundation: CFBase.h, CFData.h, CFNumber.h, CFString.h, CFUUID.h and
 * CFPlugInCOM.h.  libdispatch: dispatch/queue.h.
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
#include <IOKit/IOCFPlugIn.h>
#include <IOKit/IOKitLib.h>
#include <IOKit/IOMessage.h>
#include <IOKit/pwr_mgt/IOPMLib.h>
#include <IOKit/usb/IOUSBLib.h>
#include <dispatch/dispatch.h>
#else

typedef unsigned int io_object_t; /* a Mach port of this process */
typedef char io_name_t[128];
typedef int kern_return_t;
typedef struct IONotificationPort *IONotificationPortRef;
typedef struct dispatch_queue_s *dispatch_queue_t;
typedef void (*dispatch_function_t)(void *context);
typedef void (*IOServiceMatchingCallback)(void *context, io_object_t iterator);
typedef void (*IOServiceInterestCallback)(void *context, io_object_t service, uint32_t message, void *argument);

typedef unsigned char Boolean;
typedef signed long CFIndex;
typedef unsigned long CFTypeID;
typedef const void *CFTypeRef;
typedef const struct __CFAllocator *CFAllocatorRef;
typedef const struct __CFData *CFDataRef;
typedef const struct __CFDictionary *CFDictionaryRef;
typedef struct __CFDictionary *CFMutableDictionaryRef;
typedef const struct __CFNumber *CFNumberRef;
typedef const struct __CFString *CFStringRef;
typedef const struct __CFUUID *CFUUIDRef;
typedef struct {
    CFIndex location;
    CFIndex length;
} CFRange;

typedef struct {
    uint8_t byte[16];
} CFUUIDBytes;

enum { kCFNumberSInt64Type = 4 };
enum { kCFStringEncodingUTF8 = 0x08000100 };

/* iokit_common_msg(): sys_iokit, sub_iokit_common */
#define kIOMessageCanSystemSleep 0xe0000270U
#define kIOMessageSystemWillSleep 0xe0000280U
#define kIOMessageSystemHasPoweredOn 0xe0000300U

enum { kUSBReEnumerateReleaseDeviceMask = 1 << 29 };

/* The functions of a COM interface; those that are not used here are slots. */
#define USBIPD_UNKNOWN                                                            \
    void *reserved;                                                               \
    int32_t (*QueryInterface)(void *self, CFUUIDBytes interface_id, void **made); \
    uint32_t (*AddRef)(void *self);                                               \
    uint32_t (*Release)(void *self)

typedef struct {
    USBIPD_UNKNOWN;
} IOCFPlugInInterface;

typedef struct {
    USBIPD_UNKNOWN;
    void *async_source_and_port[4];
    kern_return_t (*USBDeviceOpen)(void *self);
    kern_return_t (*USBDeviceClose)(void *self);
    void *get_device_class_to_create_interface_iterator[19];
    void *open_seize_to_serial_number_string_index[8];
    kern_return_t (*USBDeviceReEnumerate)(void *self, uint32_t options);
} IOUSBDeviceInterface197;

#define kIOUSBDeviceUserClientTypeID                                                                             \
    CFUUIDGetConstantUUIDWithBytes(NULL, 0x9d, 0xc7, 0xb7, 0x80, 0x9e, 0xc0, 0x11, 0xd4, 0xa5, 0x4f, 0x00, 0x0a, \
                                   0x27, 0x05, 0x28, 0x61)
#define kIOCFPlugInInterfaceID                                                                                   \
    CFUUIDGetConstantUUIDWithBytes(NULL, 0xc2, 0x44, 0xe8, 0x58, 0x10, 0x9c, 0x11, 0xd4, 0x91, 0xd4, 0x00, 0x50, \
                                   0xe4, 0xc6, 0x42, 0x6f)
#define kIOUSBDeviceInterfaceID197                                                                               \
    CFUUIDGetConstantUUIDWithBytes(NULL, 0xc8, 0x09, 0xb8, 0xd8, 0x08, 0x84, 0x11, 0xd7, 0xbb, 0x96, 0x00, 0x03, \
                                   0x93, 0x3e, 0x3e, 0x3e)

kern_return_t IOCreatePlugInInterfaceForService(io_object_t service, CFUUIDRef type, CFUUIDRef interface_id,
                                                IOCFPlugInInterface ***made, int32_t *score);

CFMutableDictionaryRef IOServiceMatching(const char *class_name);
/* Takes over the caller's reference to `matching`, even on failure. */
kern_return_t IOServiceGetMatchingServices(io_object_t main_port, CFDictionaryRef matching, io_object_t *iterator);
kern_return_t IORegistryEntryGetChildIterator(io_object_t entry, const char *plane, io_object_t *iterator);
kern_return_t IORegistryEntryGetParentEntry(io_object_t entry, const char *plane, io_object_t *parent);
kern_return_t IORegistryEntryGetRegistryEntryID(io_object_t entry, uint64_t *id);
kern_return_t IORegistryEntryGetName(io_object_t entry, io_name_t name);
CFTypeRef IORegistryEntryCreateCFProperty(io_object_t entry, CFStringRef key, CFAllocatorRef allocator,
                                          uint32_t options);
io_object_t IOIteratorNext(io_object_t iterator);
unsigned int IOIteratorIsValid(io_object_t iterator);
kern_return_t IOObjectGetClass(io_object_t object, io_name_t class_name);
kern_return_t IOObjectRelease(io_object_t object);
kern_return_t IOServiceClose(io_object_t connection);

/* The connection to the root of power management; 0 if there is none. */
io_object_t IORegisterForSystemPower(void *context, IONotificationPortRef *port, IOServiceInterestCallback callback,
                                     io_object_t *notifier);
kern_return_t IODeregisterForSystemPower(io_object_t *notifier);
kern_return_t IOAllowPowerChange(io_object_t connection, intptr_t id);

IONotificationPortRef IONotificationPortCreate(io_object_t main_port);
/* Takes over the caller's reference to `matching`, even on failure. */
kern_return_t IOServiceAddMatchingNotification(IONotificationPortRef port, const char *kind, CFDictionaryRef matching,
                                               IOServiceMatchingCallback callback, void *context,
                                               io_object_t *iterator);
void IONotificationPortSetDispatchQueue(IONotificationPortRef port, dispatch_queue_t queue);
void IONotificationPortDestroy(IONotificationPortRef port);

dispatch_queue_t dispatch_queue_create(const char *label, void *attributes);
void dispatch_sync_f(dispatch_queue_t queue, void *context, dispatch_function_t work);
void dispatch_release(void *object);

void CFRelease(CFTypeRef value);
CFTypeID CFGetTypeID(CFTypeRef value);
CFTypeID CFDataGetTypeID(void);
CFIndex CFDataGetLength(CFDataRef data);
void CFDataGetBytes(CFDataRef data, CFRange range, uint8_t *buffer);
CFTypeID CFNumberGetTypeID(void);
CFTypeID CFStringGetTypeID(void);
Boolean CFNumberGetValue(CFNumberRef number, CFIndex type, void *value);
CFStringRef CFStringCreateWithCString(CFAllocatorRef allocator, const char *text, uint32_t encoding);
CFIndex CFStringGetLength(CFStringRef string);
CFIndex CFStringGetBytes(CFStringRef string, CFRange range, uint32_t encoding, uint8_t loss_byte,
                         Boolean is_external, uint8_t *buffer, CFIndex size, CFIndex *used);
CFUUIDRef CFUUIDGetConstantUUIDWithBytes(CFAllocatorRef allocator, uint8_t, uint8_t, uint8_t, uint8_t, uint8_t,
                                         uint8_t, uint8_t, uint8_t, uint8_t, uint8_t, uint8_t, uint8_t, uint8_t,
                                         uint8_t, uint8_t, uint8_t);
CFUUIDBytes CFUUIDGetUUIDBytes(CFUUIDRef uuid);

static_assert(offsetof(IOCFPlugInInterface, QueryInterface) == 8 && offsetof(IOCFPlugInInterface, Release) == 24,
              "IOCFPlugInInterface");
static_assert(offsetof(IOUSBDeviceInterface197, USBDeviceOpen) == 8 * 8 &&
                  offsetof(IOUSBDeviceInterface197, USBDeviceClose) == 9 * 8 &&
                  offsetof(IOUSBDeviceInterface197, USBDeviceReEnumerate) == 37 * 8,
              "IOUSBDeviceInterface197");

#endif

/* Assumptions of iokit_min.pxd and of the calling convention: LP64, arm64 and x86_64 alike. */
static_assert(sizeof(io_object_t) == 4, "io_object_t");
static_assert(sizeof(io_name_t) == 128, "io_name_t");
static_assert(sizeof(kern_return_t) == 4, "kern_return_t");
static_assert(sizeof(Boolean) == 1, "Boolean");
static_assert(sizeof(CFIndex) == 8 && sizeof(CFTypeID) == 8 && sizeof(CFTypeRef) == 8, "CFIndex, CFTypeID, CFTypeRef");
static_assert(sizeof(CFRange) == 16 && offsetof(CFRange, length) == 8, "CFRange");
static_assert(sizeof(IONotificationPortRef) == 8 && sizeof(dispatch_queue_t) == 8, "ports and queues");
static_assert(sizeof(CFUUIDBytes) == 16 && kUSBReEnumerateReleaseDeviceMask == 0x20000000, "CFUUIDBytes, masks");
static_assert(kIOMessageCanSystemSleep == 0xe0000270U && kIOMessageSystemWillSleep == 0xe0000280U &&
                  kIOMessageSystemHasPoweredOn == 0xe0000300U,
              "messages");
static_assert(kCFNumberSInt64Type == 4 && kCFStringEncodingUTF8 == 0x08000100, "constants");

#endif
