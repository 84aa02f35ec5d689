/* The part of IOKit that is used: IOReturn.h, IOTypes.h, IOKitLib.h, IOMessage.h, IOPMLib.h, IOCFPlugIn.h. */
#ifndef SOFTWARE_MAC_IOKIT_H
#define SOFTWARE_MAC_IOKIT_H

#include <software_mac/corefoundation.h>

typedef int kern_return_t;
typedef kern_return_t IOReturn;
typedef UInt32 IOOptionBits;
typedef UInt32 mach_port_t;
typedef mach_port_t io_object_t;
typedef io_object_t io_connect_t;
typedef io_object_t io_iterator_t;
typedef io_object_t io_registry_entry_t;
typedef io_object_t io_service_t;
typedef char io_name_t[128];
typedef UInt64 AbsoluteTime;

#define IO_OBJECT_NULL ((io_object_t)0)

#ifndef __APPLE__ /* else the C library has them: mach/clock_types.h */
typedef struct {
    unsigned int tv_sec;
    int tv_nsec;
} mach_timespec_t;

#define NSEC_PER_USEC 1000ULL
#define USEC_PER_SEC 1000000ULL
#define NSEC_PER_SEC 1000000000ULL
#endif

/* iokit_common_err() of IOReturn.h */
#define software_mac_error(number) ((IOReturn)(0xe0000000U | (number)))
#define kIOReturnSuccess 0
#define kIOReturnError software_mac_error(0x2bc)
#define kIOReturnNoMemory software_mac_error(0x2bd)
#define kIOReturnNoResources software_mac_error(0x2be)
#define kIOReturnNoDevice software_mac_error(0x2c0)
#define kIOReturnNotPrivileged software_mac_error(0x2c1)
#define kIOReturnBadArgument software_mac_error(0x2c2)
#define kIOReturnExclusiveAccess software_mac_error(0x2c5)
#define kIOReturnUnsupported software_mac_error(0x2c7)
#define kIOReturnNotOpen software_mac_error(0x2cd)
#define kIOReturnCannotWire software_mac_error(0x2de)
#define kIOReturnNotPermitted software_mac_error(0x2e2)
#define kIOReturnUnderrun software_mac_error(0x2e7)
#define kIOReturnOverrun software_mac_error(0x2e8)
#define kIOReturnAborted software_mac_error(0x2eb)
#define kIOReturnNotResponding software_mac_error(0x2ed)
#define kIOReturnIsoTooOld software_mac_error(0x2ee)
#define kIOReturnNotFound software_mac_error(0x2f0)
#define MACH_SEND_INVALID_DEST 0x10000003

#define kIOServicePlane "IOService"
#define kIOUSBPlane "IOUSB"
#define kIOPropertyMatchKey "IOPropertyMatch"
#define kIOFirstMatchNotification "IOServiceFirstMatch"
#define kIOMatchedNotification "IOServiceMatched"
#define kIOTerminatedNotification "IOServiceTerminate"
#define kIOServiceInteractionAllowed 1

#define kIOMessageCanSystemSleep 0xe0000270U
#define kIOMessageSystemWillSleep 0xe0000280U
#define kIOMessageSystemHasPoweredOn 0xe0000300U

typedef struct IONotificationPort *IONotificationPortRef;
typedef void (*IOServiceMatchingCallback)(void *refcon, io_iterator_t iterator);
typedef void (*IOServiceInterestCallback)(void *refcon, io_service_t service, UInt32 message, void *argument);
typedef void (*IOAsyncCallback1)(void *refcon, IOReturn result, void *arg0);

CFMutableDictionaryRef IOServiceMatching(const char *class_name);
kern_return_t IOServiceGetMatchingServices(mach_port_t main_port, CFDictionaryRef matching, io_iterator_t *iterator);
io_service_t IOServiceGetMatchingService(mach_port_t main_port, CFDictionaryRef matching);
kern_return_t IOServiceAuthorize(io_service_t service, UInt32 options);
kern_return_t IOServiceClose(io_connect_t connection);
kern_return_t IOKitWaitQuiet(mach_port_t main_port, mach_timespec_t *timeout);

io_object_t IOIteratorNext(io_iterator_t iterator);
Boolean IOIteratorIsValid(io_iterator_t iterator);
void IOIteratorReset(io_iterator_t iterator);
kern_return_t IOObjectRetain(io_object_t object);
kern_return_t IOObjectRelease(io_object_t object);
kern_return_t IOObjectGetClass(io_object_t object, io_name_t class_name);
Boolean IOObjectConformsTo(io_object_t object, const io_name_t class_name);

kern_return_t IORegistryEntryGetParentEntry(io_registry_entry_t entry, const char *plane, io_registry_entry_t *parent);
kern_return_t IORegistryEntryGetChildEntry(io_registry_entry_t entry, const char *plane, io_registry_entry_t *child);
kern_return_t IORegistryEntryGetChildIterator(io_registry_entry_t entry, const char *plane, io_iterator_t *iterator);
kern_return_t IORegistryEntryGetRegistryEntryID(io_registry_entry_t entry, UInt64 *id);
kern_return_t IORegistryEntryGetName(io_registry_entry_t entry, io_name_t name);
CFTypeRef IORegistryEntryCreateCFProperty(io_registry_entry_t entry, CFStringRef key, CFAllocatorRef allocator,
                                          IOOptionBits options);

IONotificationPortRef IONotificationPortCreate(mach_port_t main_port);
void IONotificationPortDestroy(IONotificationPortRef port);
CFRunLoopSourceRef IONotificationPortGetRunLoopSource(IONotificationPortRef port);
void IONotificationPortSetDispatchQueue(IONotificationPortRef port, dispatch_queue_t queue);
kern_return_t IOServiceAddMatchingNotification(IONotificationPortRef port, const io_name_t kind,
                                               CFDictionaryRef matching, IOServiceMatchingCallback callback,
                                               void *refcon, io_iterator_t *iterator);

io_connect_t IORegisterForSystemPower(void *refcon, IONotificationPortRef *port, IOServiceInterestCallback callback,
                                      io_object_t *notifier);
kern_return_t IODeregisterForSystemPower(io_object_t *notifier);
kern_return_t IOAllowPowerChange(io_connect_t connection, intptr_t id);
kern_return_t IOCancelPowerChange(io_connect_t connection, intptr_t id);

typedef void *LPVOID;
typedef UInt32 ULONG;
typedef SInt32 HRESULT;

/* The beginning of every interface of a plug-in, as in COM. */
#define SOFTWARE_MAC_UNKNOWN \
    HRESULT (*QueryInterface)(void *self, CFUUIDBytes id, LPVOID *interface); \
    ULONG (*AddRef)(void *self); \
    ULONG (*Release)(void *self)

typedef struct {
    SOFTWARE_MAC_UNKNOWN;
} IOCFPlugInInterface;

kern_return_t IOCreatePlugInInterfaceForService(io_service_t service, CFUUIDRef type, CFUUIDRef interface_type,
                                                IOCFPlugInInterface ***interface, SInt32 *score);

/* Each identifier of an interface is a number here. */
CFUUIDRef software_mac_uuid(unsigned number);
#define kIOCFPlugInInterfaceID software_mac_uuid(1)

#endif
