/*
 * IOUSBInterfaceInterface: an interface of a device, with its pipes.  Runs in each process of a software Mac.
 *
 * The comments describe Apple's documentation in IOUSBLib.h.  Pipes are numbered from 1 in the order of the endpoint
 * descriptors of the alternate setting; pipe 0 is the device's default control pipe.
 */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

struct interface {
    IOUSBInterfaceInterface220 *functions;
    IOUSBInterfaceInterface220 table;
    int references;
    uint64_t client;
    CFRunLoopSourceRef source;
    pthread_mutex_t lock;
};

static void begin(struct message *message, enum call call, const struct interface *interface)
{
    message_begin(message, call);
    put_u64(message, interface->client);
}

static IOReturn simple(void *self, enum call call)
{
    struct message message;
    begin(&message, call, self);
    return message_result(&message);
}

static IOReturn with_number(void *self, enum call call, UInt32 number)
{
    struct message message;
    begin(&message, call, self);
    put_u32(&message, number);
    return message_result(&message);
}

static ULONG add_reference(void *self)
{
    struct interface *interface = self;
    return (ULONG)__atomic_add_fetch(&interface->references, 1, __ATOMIC_ACQ_REL);
}

/* The last reference closes the user client, and the interface with it. */
static ULONG release(void *self)
{
    struct interface *interface = self;
    int left = __atomic_sub_fetch(&interface->references, 1, __ATOMIC_ACQ_REL);
    if (left < 0)
        fail("an interface of an interface was released too often");
    if (left != 0)
        return (ULONG)left;
    simple(self, SERVICE_CLOSE);
    if (interface->source != NULL)
        CFRelease(interface->source);
    pthread_mutex_destroy(&interface->lock);
    free(interface);
    return 0;
}

static HRESULT query_interface(void *self, CFUUIDBytes id, LPVOID *other)
{
    if (uuid_number_of_bytes(id) / 1000 != 2)
        return (HRESULT)0x80000004; /* E_NOINTERFACE */
    add_reference(self);
    *other = self;
    return 0;
}

/* The source that performs this interface's callbacks; the caller releases it. */
static IOReturn create_event_source(void *self, CFRunLoopSourceRef *source)
{
    struct interface *interface = self;
    pthread_mutex_lock(&interface->lock);
    if (interface->source == NULL)
        interface->source = source_of_events();
    *source = (CFRunLoopSourceRef)CFRetain(interface->source);
    pthread_mutex_unlock(&interface->lock);
    return kIOReturnSuccess;
}

/* Opens the interface exclusively; kIOReturnExclusiveAccess if a driver or a program has it open. */
static IOReturn open_interface(void *self)
{
    return simple(self, INTERFACE_OPEN);
}

/* Closes the interface; transfers in flight are aborted. */
static IOReturn close_interface(void *self)
{
    return simple(self, INTERFACE_CLOSE);
}

static IOReturn state_of(void *self, UInt32 *endpoints, UInt32 *alternate)
{
    struct message message;
    IOReturn result;
    begin(&message, INTERFACE_STATE, self);
    result = message_call(&message);
    *endpoints = get_u32(&message);
    *alternate = get_u32(&message);
    message_free(&message);
    return result;
}

/* The number of pipes, without the default control pipe. */
static IOReturn get_endpoints(void *self, UInt8 *value)
{
    UInt32 endpoints, alternate;
    IOReturn result = state_of(self, &endpoints, &alternate);
    *value = (UInt8)endpoints;
    return result;
}

static IOReturn get_alternate(void *self, UInt8 *value)
{
    UInt32 endpoints, alternate;
    IOReturn result = state_of(self, &endpoints, &alternate);
    *value = (UInt8)alternate;
    return result;
}

/* Sets an alternate setting, which has other pipes; transfers of the old ones end. */
static IOReturn set_alternate(void *self, UInt8 value)
{
    return with_number(self, SET_ALTERNATE, value);
}

/* The answer of PIPE_PROPERTIES and ENDPOINT_PROPERTIES. */
static IOReturn properties(struct message *message, IOUSBEndpointProperties *found, UInt16 *cooked)
{
    IOReturn result = message_call(message);
    UInt32 max_packet, per_interval;
    found->bAlternateSetting = (UInt8)get_u32(message);
    found->bDirection = (UInt8)get_u32(message);
    found->bEndpointNumber = (UInt8)get_u32(message);
    found->bTransferType = (UInt8)get_u32(message);
    max_packet = get_u32(message);
    per_interval = get_u32(message);
    found->bInterval = (UInt8)get_u32(message);
    found->wMaxPacketSize = (UInt16)max_packet;
    found->wBytesPerInterval = *cooked = (UInt16)per_interval;
    message_free(message);
    return result;
}

/* The properties of a pipe; its packet size is per interval, including burst and mult. */
static IOReturn get_pipe_v3(void *self, UInt8 pipe, IOUSBEndpointProperties *found)
{
    struct message message;
    IOReturn result;
    UInt16 cooked;
    begin(&message, PIPE_PROPERTIES, self);
    put_u32(&message, pipe);
    result = properties(&message, found, &cooked);
    found->wMaxPacketSize = cooked;
    return result;
}

static IOReturn get_pipe(void *self, UInt8 pipe, UInt8 *direction, UInt8 *number, UInt8 *transfer_type,
                         UInt16 *max_packet_size, UInt8 *interval)
{
    IOUSBEndpointProperties found = {.bVersion = kUSBEndpointPropertiesVersion3};
    IOReturn result = get_pipe_v3(self, pipe, &found);
    *direction = found.bDirection;
    *number = found.bEndpointNumber;
    *transfer_type = found.bTransferType;
    *max_packet_size = found.wMaxPacketSize;
    *interval = found.bInterval;
    return result;
}

/* The properties of an endpoint of any alternate setting, from its descriptor. */
static IOReturn get_endpoint_v3(void *self, IOUSBEndpointProperties *wanted)
{
    struct message message;
    UInt16 cooked;
    begin(&message, ENDPOINT_PROPERTIES, self);
    put_u32(&message, wanted->bAlternateSetting);
    put_u32(&message, wanted->bEndpointNumber);
    put_u32(&message, wanted->bDirection);
    return properties(&message, wanted, &cooked);
}

static IOReturn get_endpoint(void *self, UInt8 alternate, UInt8 number, UInt8 direction, UInt8 *transfer_type,
                             UInt16 *max_packet_size, UInt8 *interval)
{
    IOUSBEndpointProperties found = {
        .bAlternateSetting = alternate, .bEndpointNumber = number, .bDirection = direction};
    IOReturn result = get_endpoint_v3(self, &found);
    *transfer_type = found.bTransferType;
    *max_packet_size = found.wMaxPacketSize;
    *interval = found.bInterval;
    return result;
}

/* The number of the current bus frame, and its start time. */
static IOReturn get_frame(void *self, UInt64 *frame, AbsoluteTime *at)
{
    struct message message;
    IOReturn result;
    begin(&message, FRAME_NUMBER, self);
    result = message_call(&message);
    *frame = get_u64(&message);
    *at = *frame * NSEC_PER_SEC / 1000;
    message_free(&message);
    return result;
}

/* Ends all transfers of a pipe with kIOReturnAborted. */
static IOReturn abort_pipe(void *self, UInt8 pipe)
{
    return with_number(self, ABORT_PIPE, pipe);
}

/* Clears the halt and the data toggle of a pipe, and of the device's endpoint by CLEAR_FEATURE(ENDPOINT_HALT). */
static IOReturn clear_stall(void *self, UInt8 pipe)
{
    return with_number(self, CLEAR_STALL, pipe);
}

/* Writes to an OUT pipe synchronously. */
static IOReturn write_pipe(void *self, UInt8 pipe, void *buffer, UInt32 length)
{
    struct message message;
    begin(&message, WRITE_SYNC, self);
    put_u32(&message, pipe);
    put_bytes(&message, buffer, length);
    return message_result(&message);
}

/* Control requests on endpoints other than 0: no device here has one. */
static IOReturn control_request(void *self, UInt8 pipe, IOUSBDevRequestTO *request, IOAsyncCallback1 callback,
                                void *refcon)
{
    (void)self;
    (void)pipe;
    (void)request;
    (void)callback;
    (void)refcon;
    return kIOReturnUnsupported;
}

/* Starts a read of an IN pipe, with a timeout in milliseconds; 0: none, as required for an interrupt pipe. */
static IOReturn read_timed(void *self, UInt8 pipe, void *buffer, UInt32 length, UInt32 no_data_timeout,
                           UInt32 completion_timeout, IOAsyncCallback1 callback, void *refcon)
{
    struct interface *interface = self;
    struct message message;
    struct request *request;
    (void)no_data_timeout;
    if (interface->source == NULL)
        return kIOUSBNoAsyncPortErr;
    request = request_new(interface->source, buffer, length, NULL, 0, NULL, callback, refcon);
    begin(&message, READ, interface);
    put_u32(&message, pipe);
    put_u64(&message, request_number(request));
    put_u32(&message, completion_timeout);
    put_u32(&message, length);
    return request_start(request, &message);
}

/* Starts a write to an OUT pipe, with a timeout in milliseconds. */
static IOReturn write_timed(void *self, UInt8 pipe, void *buffer, UInt32 length, UInt32 no_data_timeout,
                            UInt32 completion_timeout, IOAsyncCallback1 callback, void *refcon)
{
    struct interface *interface = self;
    struct message message;
    struct request *request;
    (void)no_data_timeout;
    if (interface->source == NULL)
        return kIOUSBNoAsyncPortErr;
    request = request_new(interface->source, NULL, 0, NULL, 0, NULL, callback, refcon);
    begin(&message, WRITE, interface);
    put_u32(&message, pipe);
    put_u64(&message, request_number(request));
    put_u32(&message, completion_timeout);
    put_bytes(&message, buffer, length);
    return request_start(request, &message);
}

static IOReturn read_async(void *self, UInt8 pipe, void *buffer, UInt32 length, IOAsyncCallback1 callback, void *refcon)
{
    return read_timed(self, pipe, buffer, length, 0, 0, callback, refcon);
}

static IOReturn write_async(void *self, UInt8 pipe, void *buffer, UInt32 length, IOAsyncCallback1 callback,
                            void *refcon)
{
    return write_timed(self, pipe, buffer, length, 0, 0, callback, refcon);
}

static size_t length_of_frames(const IOUSBIsocFrame *frames, UInt32 count)
{
    size_t length = 0;
    for (UInt32 n = 0; n < count; n++)
        length += frames[n].frReqCount;
    return length;
}

static void put_frames(struct message *message, UInt8 pipe, const struct request *request, UInt64 frame, UInt32 count,
                       const IOUSBIsocFrame *frames)
{
    put_u32(message, pipe);
    put_u64(message, request_number(request));
    put_u64(message, frame);
    put_u32(message, count);
    for (UInt32 n = 0; n < count; n++)
        put_u32(message, frames[n].frReqCount);
}

/*
 * Starts a read of an isochronous pipe at a future bus frame (else kIOReturnIsoTooOld).  Each frame's data begin where
 * the requests of the previous frames end.
 */
static IOReturn read_isoc(void *self, UInt8 pipe, void *buffer, UInt64 frame, UInt32 count, IOUSBIsocFrame *frames,
                          IOAsyncCallback1 callback, void *refcon)
{
    struct interface *interface = self;
    struct message message;
    struct request *request;
    if (interface->source == NULL)
        return kIOUSBNoAsyncPortErr;
    request = request_new(interface->source, buffer, length_of_frames(frames, count), frames, count, NULL, callback,
                          refcon);
    begin(&message, READ_ISOC, interface);
    put_frames(&message, pipe, request, frame, count, frames);
    return request_start(request, &message);
}

/* Starts a write to an isochronous pipe at a future bus frame. */
static IOReturn write_isoc(void *self, UInt8 pipe, void *buffer, UInt64 frame, UInt32 count, IOUSBIsocFrame *frames,
                           IOAsyncCallback1 callback, void *refcon)
{
    struct interface *interface = self;
    struct message message;
    struct request *request;
    if (interface->source == NULL)
        return kIOUSBNoAsyncPortErr;
    request = request_new(interface->source, NULL, 0, frames, count, NULL, callback, refcon);
    begin(&message, WRITE_ISOC, interface);
    put_frames(&message, pipe, request, frame, count, frames);
    put_bytes(&message, buffer, length_of_frames(frames, count));
    return request_start(request, &message);
}

/* ---- streams of USB 3, which no device has here ---- */

static IOReturn supports_streams(void *self, UInt8 pipe, UInt32 *streams)
{
    (void)self;
    (void)pipe;
    *streams = 0;
    return kIOReturnSuccess;
}

static IOReturn create_streams(void *self, UInt8 pipe, UInt32 streams)
{
    (void)self;
    (void)pipe;
    (void)streams;
    return kIOReturnUnsupported;
}

static IOReturn stream_async(void *self, UInt8 pipe, UInt32 stream, void *buffer, UInt32 length, UInt32 no_data_timeout,
                             UInt32 completion_timeout, IOAsyncCallback1 callback, void *refcon)
{
    (void)buffer;
    (void)length;
    (void)no_data_timeout;
    (void)completion_timeout;
    (void)callback;
    (void)refcon;
    return create_streams(self, pipe, stream);
}

static const IOUSBInterfaceInterface220 functions = {
    .QueryInterface = query_interface,
    .AddRef = add_reference,
    .Release = release,
    .CreateInterfaceAsyncEventSource = create_event_source,
    .USBInterfaceOpen = open_interface,
    .USBInterfaceClose = close_interface,
    .GetNumEndpoints = get_endpoints,
    .GetAlternateSetting = get_alternate,
    .SetAlternateInterface = set_alternate,
    .GetPipeProperties = get_pipe,
    .GetEndpointProperties = get_endpoint,
    .GetPipePropertiesV3 = get_pipe_v3,
    .GetEndpointPropertiesV3 = get_endpoint_v3,
    .GetBusFrameNumber = get_frame,
    .AbortPipe = abort_pipe,
    .ClearPipeStallBothEnds = clear_stall,
    .WritePipe = write_pipe,
    .ControlRequestAsyncTO = control_request,
    .ReadPipeAsync = read_async,
    .WritePipeAsync = write_async,
    .ReadPipeAsyncTO = read_timed,
    .WritePipeAsyncTO = write_timed,
    .ReadIsochPipeAsync = read_isoc,
    .WriteIsochPipeAsync = write_isoc,
    .SupportsStreams = supports_streams,
    .CreateStreams = create_streams,
    .AbortStreamsPipe = create_streams,
    .ReadStreamsPipeAsyncTO = stream_async,
    .WriteStreamsPipeAsyncTO = stream_async,
};

void *usb_interface_new(uint64_t client)
{
    struct interface *interface = allocate(sizeof *interface);
    interface->table = functions;
    interface->functions = &interface->table;
    interface->references = 1;
    interface->client = client;
    pthread_mutex_init(&interface->lock, NULL);
    return interface;
}
