/*
 * Transfers in flight: from the call that starts one until its callback on a run loop.  Runs in each process of a
 * software Mac.
 *
 * The kernel cannot access this process's memory, so messages carry the data: OUT with the one that starts the transfer,
 * IN with its completion, including data received before an abort.  The thread that reads the socket copies them into
 * the caller's buffer; a call that ends transfers is answered after their completions, so no buffer is written later.
 */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

struct request {
    struct event event;
    struct request *next;
    uint64_t number;
    CFRunLoopSourceRef source; /* retained until the completion is posted */
    uint8_t *buffer;
    size_t room;
    IOUSBIsocFrame *frames;
    UInt32 frame_count;
    IOUSBDevRequestTO *devrequest;
    IOAsyncCallback1 callback;
    void *refcon;
    IOReturn result;
    UInt32 moved;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct request *requests;
static uint64_t last_number;

static void perform(struct event *event)
{
    struct request *request = (struct request *)event;
    request->callback(request->refcon, request->result, (void *)(uintptr_t)request->moved);
}

struct request *request_new(CFRunLoopSourceRef source, void *buffer, size_t room, IOUSBIsocFrame *frames,
                            UInt32 frame_count, IOUSBDevRequestTO *devrequest, IOAsyncCallback1 callback, void *refcon)
{
    struct request *request = allocate(sizeof *request);
    request->event.perform = perform;
    request->source = (CFRunLoopSourceRef)CFRetain(source);
    request->buffer = buffer;
    request->room = room;
    request->frames = frames;
    request->frame_count = frame_count;
    request->devrequest = devrequest;
    request->callback = callback;
    request->refcon = refcon;
    pthread_mutex_lock(&lock);
    request->number = ++last_number;
    request->next = requests;
    requests = request;
    pthread_mutex_unlock(&lock);
    return request;
}

uint64_t request_number(const struct request *request)
{
    return request->number;
}

static struct request *take(uint64_t number)
{
    struct request **at, *found;
    pthread_mutex_lock(&lock);
    for (at = &requests; *at != NULL && (*at)->number != number;)
        at = &(*at)->next;
    found = *at;
    if (found != NULL)
        *at = found->next;
    pthread_mutex_unlock(&lock);
    return found;
}

IOReturn request_start(struct request *request, struct message *message)
{
    uint64_t number = request->number; /* request may be freed when this returns */
    IOReturn result = message_result(message);
    if (result != kIOReturnSuccess && (request = take(number)) != NULL) {
        CFRelease(request->source);
        free(request);
    }
    return result;
}

void completion_arrived(struct message *message)
{
    struct request *request = take(get_u64(message));
    CFRunLoopSourceRef source;
    const uint8_t *data;
    size_t length;
    UInt32 frames;
    if (request == NULL)
        fail("the kernel completed a transfer that is not in flight");
    request->result = (IOReturn)get_u32(message);
    request->moved = get_u32(message);
    frames = get_u32(message);
    for (UInt32 n = 0; n < frames; n++) {
        IOReturn status = (IOReturn)get_u32(message);
        UInt32 actual = get_u32(message);
        if (n < request->frame_count) {
            request->frames[n].frStatus = status;
            request->frames[n].frActCount = (UInt16)actual;
        }
    }
    data = get_bytes(message, &length);
    if (length > request->room)
        fail("%zu bytes for a buffer of %zu", length, request->room);
    if (length != 0)
        memcpy(request->buffer, data, length);
    if (request->devrequest != NULL)
        request->devrequest->wLenDone = request->moved;
    source = request->source;
    source_post(source, &request->event);
    CFRelease(source);
}
