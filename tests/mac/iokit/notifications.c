/*
 * Notifications of services that arrive and leave.  Runs in each process of a software Mac.
 *
 * As documented, the client arms a notification by emptying its iterator: it is sent once, and again only after the
 * iterator has returned 0.
 */
#include "internal.h"

#include <stdlib.h>

struct IONotificationPort {
    CFRunLoopSourceRef source;
    CFRunLoopRef loop; /* of a dispatch queue */
};

struct subscription {
    struct subscription *next;
    uint64_t iterator; /* the kernel's */
    IONotificationPortRef port; /* NULL: it was destroyed */
    IOServiceMatchingCallback callback;
    void *refcon;
};

struct notification {
    struct event event;
    struct subscription *subscription;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct subscription *subscriptions;
static long pending; /* notifications that have arrived, and are not performed or dropped yet */

/*
 * How many notifications of what has happened so far are not performed yet, for tests.  The kernel sends them before it
 * answers this call.
 */
API long software_mac_pending_notifications(void)
{
    mach_timespec_t no_time = {0, 0};
    IOKitWaitQuiet(0, &no_time);
    return __atomic_load_n(&pending, __ATOMIC_ACQUIRE);
}

/* A new port for notifications. */
API IONotificationPortRef IONotificationPortCreate(mach_port_t main_port)
{
    IONotificationPortRef port = allocate(sizeof *port);
    (void)main_port;
    port->source = source_of_events();
    return port;
}

static void leave_loop(IONotificationPortRef port)
{
    if (port->loop != NULL)
        CFRunLoopRemoveSource(port->loop, port->source, kCFRunLoopDefaultMode);
    port->loop = NULL;
}

/* Frees a port; its notifications stop.  The caller releases the iterators. */
API void IONotificationPortDestroy(IONotificationPortRef port)
{
    pthread_mutex_lock(&lock);
    for (struct subscription *each = subscriptions; each != NULL; each = each->next)
        if (each->port == port)
            each->port = NULL;
    pthread_mutex_unlock(&lock);
    leave_loop(port);
    CFRelease(port->source);
    free(port);
}

/* The source that performs the notifications; the port keeps its ownership. */
API CFRunLoopSourceRef IONotificationPortGetRunLoopSource(IONotificationPortRef port)
{
    return port->source;
}

CFRunLoopSourceRef notification_port_source(IONotificationPortRef port)
{
    return port->source;
}

/* Makes a queue perform the notifications; NULL: stops that. */
API void IONotificationPortSetDispatchQueue(IONotificationPortRef port, dispatch_queue_t queue)
{
    leave_loop(port);
    if (queue != NULL) {
        port->loop = dispatch_queue_loop(queue);
        CFRunLoopAddSource(port->loop, port->source, kCFRunLoopDefaultMode);
    }
}

static void dropped(struct event *event)
{
    (void)event;
    __atomic_sub_fetch(&pending, 1, __ATOMIC_RELEASE);
}

static void perform(struct event *event)
{
    struct subscription *subscription = ((struct notification *)event)->subscription;
    io_object_t iterator;
    bool still;
    pthread_mutex_lock(&lock);
    still = subscription->port != NULL;
    pthread_mutex_unlock(&lock);
    if (still) {
        iterator = object_named(subscription->iterator);
        subscription->callback(subscription->refcon, iterator);
        IOObjectRelease(iterator);
    }
    dropped(event);
}

void notification_arrived(struct message *message)
{
    uint64_t iterator = get_u64(message);
    pthread_mutex_lock(&lock);
    for (struct subscription *each = subscriptions; each != NULL; each = each->next)
        if (each->iterator == iterator && each->port != NULL) {
            struct notification *notification = allocate(sizeof *notification);
            notification->event.perform = perform;
            notification->event.drop = dropped;
            notification->subscription = each;
            __atomic_add_fetch(&pending, 1, __ATOMIC_RELAXED);
            source_post(each->port->source, &notification->event);
        }
    pthread_mutex_unlock(&lock);
}

/*
 * Subscribes to matching services that arrive or are terminated.  Takes over the reference to the dictionary.  The
 * iterator starts with the services that already match.
 */
API kern_return_t IOServiceAddMatchingNotification(IONotificationPortRef port, const io_name_t kind,
                                                   CFDictionaryRef matching, IOServiceMatchingCallback callback,
                                                   void *refcon, io_iterator_t *iterator)
{
    struct message message;
    struct subscription *subscription = allocate(sizeof *subscription);
    kern_return_t result;
    message_begin(&message, SUBSCRIBE);
    put_text(&message, kind);
    put_matching(&message, matching);
    CFRelease(matching);
    result = message_call(&message);
    if (result != kIOReturnSuccess) {
        message_free(&message);
        free(subscription);
        return result;
    }
    subscription->iterator = get_u64(&message);
    message_free(&message);
    subscription->port = port;
    subscription->callback = callback;
    subscription->refcon = refcon;
    pthread_mutex_lock(&lock);
    subscription->next = subscriptions;
    subscriptions = subscription;
    pthread_mutex_unlock(&lock);
    *iterator = object_named(subscription->iterator);
    return kIOReturnSuccess;
}
