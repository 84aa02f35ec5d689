/*
 * Power management: sleep and wake of the system.  Runs in each process of a software Mac.
 *
 * As documented in IOPMLib.h: kIOMessageCanSystemSleep and kIOMessageSystemWillSleep must be answered with
 * IOAllowPowerChange or IOCancelPowerChange; the system waits 30 seconds for an answer.
 */
#include "internal.h"

#include <stdlib.h>

struct listener {
    struct listener *next;
    uint64_t number; /* the kernel's */
    io_object_t name;
    IONotificationPortRef port;
    IOServiceInterestCallback callback;
    void *refcon;
    bool closed;
};

struct change {
    struct event event;
    struct listener *listener;
    uint32_t message;
    uint64_t id;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct listener *listeners;

static void perform(struct event *event)
{
    struct change *change = (struct change *)event;
    bool closed;
    pthread_mutex_lock(&lock);
    closed = change->listener->closed;
    pthread_mutex_unlock(&lock);
    if (!closed)
        change->listener->callback(change->listener->refcon, change->listener->name, change->message,
                                   (void *)(uintptr_t)change->id);
}

void power_arrived(struct message *message)
{
    uint64_t number = get_u64(message);
    uint32_t what = get_u32(message);
    uint64_t id = get_u64(message);
    pthread_mutex_lock(&lock);
    for (struct listener *each = listeners; each != NULL; each = each->next)
        if (each->number == number && !each->closed) {
            struct change *change = allocate(sizeof *change);
            change->event.perform = perform;
            change->listener = each;
            change->message = what;
            change->id = id;
            source_post(notification_port_source(each->port), &change->event);
        }
    pthread_mutex_unlock(&lock);
}

/*
 * Registers for sleep and wake of the system.  Returns the connection to the root of power management, for
 * IOAllowPowerChange and IOServiceClose; 0 on failure.
 */
API io_connect_t IORegisterForSystemPower(void *refcon, IONotificationPortRef *port, IOServiceInterestCallback callback,
                                          io_object_t *notifier)
{
    struct message message;
    struct listener *listener;
    message_begin(&message, POWER_REGISTER);
    if (message_call(&message) != kIOReturnSuccess) {
        message_free(&message);
        return IO_OBJECT_NULL;
    }
    listener = allocate(sizeof *listener);
    listener->number = get_u64(&message);
    message_free(&message);
    listener->name = object_named(listener->number);
    listener->port = *port = IONotificationPortCreate(0);
    listener->callback = callback;
    listener->refcon = refcon;
    pthread_mutex_lock(&lock);
    listener->next = listeners;
    listeners = listener;
    pthread_mutex_unlock(&lock);
    *notifier = object_named(listener->number);
    return listener->name;
}

/* Ends the registration.  The caller closes port and connection. */
API kern_return_t IODeregisterForSystemPower(io_object_t *notifier)
{
    struct message message;
    uint64_t number = object_of(*notifier);
    kern_return_t result;
    pthread_mutex_lock(&lock);
    for (struct listener *each = listeners; each != NULL; each = each->next)
        if (each->number == number)
            each->closed = true;
    pthread_mutex_unlock(&lock);
    message_begin(&message, POWER_DEREGISTER);
    put_u64(&message, number);
    result = message_result(&message);
    IOObjectRelease(*notifier);
    *notifier = IO_OBJECT_NULL;
    return result;
}

static kern_return_t answer(io_connect_t connection, intptr_t id, uint32_t allowed)
{
    struct message message;
    message_begin(&message, POWER_ALLOW);
    put_u64(&message, object_of(connection));
    put_u64(&message, (uint64_t)id);
    put_u32(&message, allowed);
    return message_result(&message);
}

/* Answers a question: the change may happen. */
API kern_return_t IOAllowPowerChange(io_connect_t connection, intptr_t id)
{
    return answer(connection, id, 1);
}

/* Answers a question: the system should not sleep. */
API kern_return_t IOCancelPowerChange(io_connect_t connection, intptr_t id)
{
    return answer(connection, id, 0);
}

/* Closes a connection. */
API kern_return_t IOServiceClose(io_connect_t connection)
{
    return IOObjectRelease(connection);
}
