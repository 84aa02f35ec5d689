/*
 * The plug-in of IOUSBLib: turns a service into an interface of functions.  Runs in each process of a software Mac.
 *
 * An interface is a pointer to a pointer to a table of functions, as in COM; AddRef and Release count its references.
 */
#include "internal.h"

#include <stdlib.h>

enum { FOR_DEVICES = 2, FOR_INTERFACES = 3 }; /* IOServiceOpen's type, and the identifiers' numbers */

struct plugin {
    IOCFPlugInInterface *functions;
    IOCFPlugInInterface table;
    int references;
    uint64_t service;
    unsigned type;
};

static ULONG add_reference(void *self)
{
    struct plugin *plugin = self;
    return (ULONG)__atomic_add_fetch(&plugin->references, 1, __ATOMIC_ACQ_REL);
}

static ULONG release(void *self)
{
    struct plugin *plugin = self;
    int left = __atomic_sub_fetch(&plugin->references, 1, __ATOMIC_ACQ_REL);
    if (left == 0)
        free(plugin);
    return (ULONG)left;
}

/* The interface of a device or an interface, with a separate user client in the kernel. */
static HRESULT query_interface(void *self, CFUUIDBytes id, LPVOID *interface)
{
    struct plugin *plugin = self;
    struct message message;
    IOReturn result;
    uint64_t client;
    *interface = NULL;
    if (uuid_number_of_bytes(id) / 1000 != plugin->type - 1)
        return (HRESULT)0x80000004; /* E_NOINTERFACE */
    message_begin(&message, SERVICE_OPEN);
    put_u64(&message, plugin->service);
    put_u32(&message, plugin->type);
    result = message_call(&message);
    client = get_u64(&message);
    message_free(&message);
    if (result != kIOReturnSuccess)
        return result;
    *interface = plugin->type == FOR_DEVICES ? usb_device_new(client) : usb_interface_new(client);
    return 0;
}

/* A new plug-in for a service; its QueryInterface returns the requested interface. */
API kern_return_t IOCreatePlugInInterfaceForService(io_service_t service, CFUUIDRef type, CFUUIDRef interface_type,
                                                    IOCFPlugInInterface ***interface, SInt32 *score)
{
    struct plugin *plugin;
    uint64_t object = object_of(service);
    *interface = NULL;
    if (object == 0 || uuid_number(interface_type) != uuid_number(kIOCFPlugInInterfaceID))
        return kIOReturnBadArgument;
    plugin = allocate(sizeof *plugin);
    plugin->functions = &plugin->table;
    plugin->table = (IOCFPlugInInterface){query_interface, add_reference, release};
    plugin->references = 1;
    plugin->service = object;
    plugin->type = uuid_number(type);
    *interface = (IOCFPlugInInterface **)plugin;
    *score = 0;
    return kIOReturnSuccess;
}
