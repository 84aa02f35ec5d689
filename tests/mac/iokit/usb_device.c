/*
 * IOUSBDeviceInterface: a program's view of a device on a Mac.  Runs in each process of a software Mac.
 *
 * The comments describe Apple's documentation in IOUSBLib.h.  Each call goes to the kernel, which also tracks whether
 * this user client has the device open.
 */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

#define MAX_CONFIGURATIONS 16

struct device {
    IOUSBDeviceInterface197 *functions;
    IOUSBDeviceInterface197 table;
    int references; /* including one for each call in progress */
    int calls;      /* in progress that change something */
    uint64_t client;
    CFRunLoopSourceRef source;
    pthread_mutex_t lock;
    uint8_t *descriptors[MAX_CONFIGURATIONS]; /* returned to the caller */
};

struct state {
    UInt32 device_class, vendor, product, address, speed, configurations, location, information, configuration;
};

static void begin(struct message *message, enum call call, const struct device *device)
{
    message_begin(message, call);
    put_u64(message, device->client);
}

/* The last reference closes the user client, and the device with it. */
static int drop(struct device *device)
{
    struct message message;
    int left = __atomic_sub_fetch(&device->references, 1, __ATOMIC_ACQ_REL);
    if (left != 0)
        return left;
    begin(&message, SERVICE_CLOSE, device);
    message_result(&message);
    if (device->source != NULL)
        CFRelease(device->source);
    for (size_t i = 0; i < MAX_CONFIGURATIONS; i++)
        free(device->descriptors[i]);
    pthread_mutex_destroy(&device->lock);
    free(device);
    return 0;
}

static IOReturn finish(struct device *device, struct message *message)
{
    IOReturn result;
    __atomic_add_fetch(&device->references, 1, __ATOMIC_ACQ_REL);
    __atomic_add_fetch(&device->calls, 1, __ATOMIC_ACQ_REL);
    result = message_result(message);
    __atomic_sub_fetch(&device->calls, 1, __ATOMIC_ACQ_REL);
    drop(device);
    return result;
}

static IOReturn simple(void *self, enum call call)
{
    struct message message;
    begin(&message, call, self);
    return finish(self, &message);
}

static IOReturn with_number(void *self, enum call call, UInt32 number)
{
    struct message message;
    begin(&message, call, self);
    put_u32(&message, number);
    return finish(self, &message);
}

static ULONG add_reference(void *self)
{
    struct device *device = self;
    return (ULONG)__atomic_add_fetch(&device->references, 1, __ATOMIC_ACQ_REL);
}

/* A release during a call is a bug, which stock libusb has: it aborts the process here if SOFTWARE_MAC_STRICT is set,
 * else the device stays until the call has returned. */
static ULONG release(void *self)
{
    struct device *device = self;
    int references = __atomic_load_n(&device->references, __ATOMIC_ACQUIRE);
    int calls = __atomic_load_n(&device->calls, __ATOMIC_ACQUIRE);
    if (references <= 0)
        fail("an interface of a device was released too often");
    if (calls != 0 && references == calls + 1 && getenv("SOFTWARE_MAC_STRICT") != NULL)
        fail("an interface of a device was released during a call of it");
    return (ULONG)drop(device);
}

static HRESULT query_interface(void *self, CFUUIDBytes id, LPVOID *interface)
{
    if (uuid_number_of_bytes(id) / 1000 != 1)
        return (HRESULT)0x80000004; /* E_NOINTERFACE */
    add_reference(self);
    *interface = self;
    return 0;
}

/* The source that performs this device's callbacks; the caller releases it. */
static IOReturn create_event_source(void *self, CFRunLoopSourceRef *source)
{
    struct device *device = self;
    pthread_mutex_lock(&device->lock);
    if (device->source == NULL)
        device->source = source_of_events();
    *source = (CFRunLoopSourceRef)CFRetain(device->source);
    pthread_mutex_unlock(&device->lock);
    return kIOReturnSuccess;
}

/* Opens the device exclusively.  USBDeviceOpenSeize also asks a program that has it open to close it; the program
 * may refuse, and here always does. */
static IOReturn open_device(void *self)
{
    return simple(self, DEVICE_OPEN);
}

/* Closes the device, which the user client has open. */
static IOReturn close_device(void *self)
{
    return simple(self, DEVICE_CLOSE);
}

/* Needs no open device: data that its driver read at enumeration. */
static IOReturn state_of(void *self, struct state *state)
{
    struct message message;
    IOReturn result;
    UInt32 *fields = (UInt32 *)state;
    begin(&message, DEVICE_STATE, self);
    result = message_call(&message);
    for (size_t i = 0; i < sizeof *state / sizeof *fields; i++)
        fields[i] = get_u32(&message);
    message_free(&message);
    return result;
}

static IOReturn get_class(void *self, UInt8 *value)
{
    struct state state;
    IOReturn result = state_of(self, &state);
    *value = (UInt8)state.device_class;
    return result;
}

static IOReturn get_vendor(void *self, UInt16 *value)
{
    struct state state;
    IOReturn result = state_of(self, &state);
    *value = (UInt16)state.vendor;
    return result;
}

static IOReturn get_product(void *self, UInt16 *value)
{
    struct state state;
    IOReturn result = state_of(self, &state);
    *value = (UInt16)state.product;
    return result;
}

static IOReturn get_address(void *self, USBDeviceAddress *value)
{
    struct state state;
    IOReturn result = state_of(self, &state);
    *(UInt8 *)value = (UInt8)state.address; /* callers pass 8 bits and 16 */
    return result;
}

static IOReturn get_speed(void *self, UInt8 *value)
{
    struct state state;
    IOReturn result = state_of(self, &state);
    *value = (UInt8)state.speed;
    return result;
}

static IOReturn get_configurations(void *self, UInt8 *value)
{
    struct state state;
    IOReturn result = state_of(self, &state);
    *value = (UInt8)state.configurations;
    return result;
}

static IOReturn get_location(void *self, UInt32 *value)
{
    struct state state;
    IOReturn result = state_of(self, &state);
    *value = state.location;
    return result;
}

static IOReturn get_information(void *self, UInt32 *value)
{
    struct state state;
    IOReturn result = state_of(self, &state);
    *value = state.information;
    return result;
}

/* The current configuration. */
static IOReturn get_configuration(void *self, UInt8 *value)
{
    struct state state;
    IOReturn result = state_of(self, &state);
    *value = (UInt8)state.configuration;
    return result;
}

/*
 * A complete configuration descriptor, from the kernel's memory; the pointer stays valid as long as the interface.
 */
static IOReturn get_descriptor(void *self, UInt8 index, IOUSBConfigurationDescriptorPtr *descriptor)
{
    struct device *device = self;
    struct message message;
    IOReturn result;
    size_t length;
    const uint8_t *bytes;
    if (index >= MAX_CONFIGURATIONS)
        return kIOUSBConfigNotFound;
    begin(&message, CONFIGURATION_DESCRIPTOR, device);
    put_u32(&message, index);
    result = message_call(&message);
    if (result == kIOReturnSuccess) {
        bytes = get_bytes(&message, &length);
        pthread_mutex_lock(&device->lock);
        if (device->descriptors[index] == NULL) {
            device->descriptors[index] = allocate(length);
            memcpy(device->descriptors[index], bytes, length);
        }
        *descriptor = (IOUSBConfigurationDescriptorPtr)device->descriptors[index];
        pthread_mutex_unlock(&device->lock);
    }
    message_free(&message);
    return result;
}

/* Sets a configuration; kIOReturnNotOpen if this user client does not have the device open. */
static IOReturn set_configuration(void *self, UInt8 value)
{
    return with_number(self, SET_CONFIGURATION, value);
}

/* Resets the device; no effect since OS X 10.11. */
static IOReturn reset(void *self)
{
    return simple(self, RESET_DEVICE);
}

/*
 * Enumerates the device again: it leaves and arrives.  With kUSBReEnumerateCaptureDeviceMask its drivers are terminated
 * and it stays; kUSBReEnumerateReleaseDeviceMask ends that.
 */
static IOReturn re_enumerate(void *self, UInt32 options)
{
    return with_number(self, RE_ENUMERATE, options);
}

static IOReturn suspend(void *self, Boolean suspended)
{
    return with_number(self, SUSPEND, suspended);
}

/* Ends all transfers of the default control pipe with kIOReturnAborted. */
static IOReturn abort_pipe_zero(void *self)
{
    return simple(self, ABORT_PIPE_ZERO);
}

/* An iterator over the interfaces that match the request. */
static IOReturn create_interface_iterator(void *self, IOUSBFindInterfaceRequest *request, io_iterator_t *iterator)
{
    struct message message;
    IOReturn result;
    begin(&message, FIND_INTERFACES, self);
    put_u32(&message, request->bInterfaceClass);
    put_u32(&message, request->bInterfaceSubClass);
    put_u32(&message, request->bInterfaceProtocol);
    put_u32(&message, request->bAlternateSetting);
    result = message_call(&message);
    *iterator = result == kIOReturnSuccess ? object_named(get_u64(&message)) : IO_OBJECT_NULL;
    message_free(&message);
    return result;
}

static void put_request(struct message *message, const IOUSBDevRequestTO *request)
{
    uint8_t setup[8] = {request->bmRequestType, request->bRequest};
    memcpy(setup + 2, &request->wValue, 2);
    memcpy(setup + 4, &request->wIndex, 2);
    memcpy(setup + 6, &request->wLength, 2);
    put_bytes(message, setup, sizeof setup);
    put_u32(message, request->completionTimeout);
    put_bytes(message, request->pData, request->bmRequestType & 0x80 ? 0 : request->wLength);
}

/* A synchronous control transfer.  The device need not be open. */
static IOReturn device_request(void *self, IOUSBDevRequestTO *request)
{
    struct message message;
    IOReturn result;
    const uint8_t *data;
    size_t length;
    begin(&message, DEVICE_REQUEST_SYNC, self);
    put_request(&message, request);
    result = message_call(&message);
    request->wLenDone = get_u32(&message);
    data = get_bytes(&message, &length);
    if (length > request->wLength)
        fail("%zu bytes for a request of %u", length, request->wLength);
    if (length != 0)
        memcpy(request->pData, data, length);
    message_free(&message);
    return result;
}

/* Starts a control transfer; kIOUSBNoAsyncPortErr without an event source. */
static IOReturn device_request_async(void *self, IOUSBDevRequestTO *request, IOAsyncCallback1 callback, void *refcon)
{
    struct device *device = self;
    struct message message;
    struct request *under_way;
    if (device->source == NULL)
        return kIOUSBNoAsyncPortErr;
    under_way = request_new(device->source, request->pData, request->bmRequestType & 0x80 ? request->wLength : 0, NULL,
                            0, request, callback, refcon);
    begin(&message, DEVICE_REQUEST, device);
    put_u64(&message, request_number(under_way));
    put_request(&message, request);
    return request_start(under_way, &message);
}

static const IOUSBDeviceInterface197 functions = {
    .QueryInterface = query_interface,
    .AddRef = add_reference,
    .Release = release,
    .CreateDeviceAsyncEventSource = create_event_source,
    .USBDeviceOpen = open_device,
    .USBDeviceOpenSeize = open_device,
    .USBDeviceClose = close_device,
    .GetDeviceClass = get_class,
    .GetDeviceVendor = get_vendor,
    .GetDeviceProduct = get_product,
    .GetDeviceAddress = get_address,
    .GetDeviceSpeed = get_speed,
    .GetNumberOfConfigurations = get_configurations,
    .GetLocationID = get_location,
    .GetUSBDeviceInformation = get_information,
    .GetConfiguration = get_configuration,
    .GetConfigurationDescriptorPtr = get_descriptor,
    .SetConfiguration = set_configuration,
    .ResetDevice = reset,
    .USBDeviceReEnumerate = re_enumerate,
    .USBDeviceSuspend = suspend,
    .USBDeviceAbortPipeZero = abort_pipe_zero,
    .CreateInterfaceIterator = create_interface_iterator,
    .DeviceRequestTO = device_request,
    .DeviceRequestAsyncTO = device_request_async,
};

void *usb_device_new(uint64_t client)
{
    struct device *device = allocate(sizeof *device);
    device->table = functions;
    device->functions = &device->table;
    device->references = 1;
    device->client = client;
    pthread_mutex_init(&device->lock, NULL);
    return device;
}
