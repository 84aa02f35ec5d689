/*
 * Shared declarations of this library.  Runs in each process of a software Mac.
 *
 * A value of CoreFoundation begins with a `struct value`.  The kernel's messages become events in the queue of a run
 * loop's source; the loop that the source was added to performs them.  Any thread may call any function here, with no
 * lock held.
 */
#ifndef SOFTWARE_MAC_INTERNAL_H
#define SOFTWARE_MAC_INTERNAL_H

#include <pthread.h>
#include <software_mac/all.h>

#include "wire.h"

#define API __attribute__((visibility("default")))

/* ---- corefoundation.c ---- */

enum value_type { STRING = 1, NUMBER, BOOLEAN, DATA, DICTIONARY, UUID, SOURCE, LOOP, TASK };

struct value {
    enum value_type type;
    int references;
    void (*destroy)(struct value *value);
};

/* A new value with one reference; `size` bytes, zeroed.  Ends the process if there is no memory. */
void *value_new(enum value_type type, size_t size, void (*destroy)(struct value *value));
/* Zeroed memory; ends the process if there is none. */
void *allocate(size_t size);
/* Prints a message and ends the process, with SIGABRT. */
void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

CFTypeRef value_of_number(int64_t number);
CFTypeRef value_of_text(const uint8_t *text, size_t length);
CFTypeRef value_of_data(const uint8_t *bytes, size_t length);
const char *text_of(CFStringRef string);
/* The value of `key`, owned by the dictionary; NULL if missing. */
CFTypeRef dictionary_value(CFDictionaryRef dictionary, const char *key);
/* The n-th entry; false if there are no more. */
bool dictionary_entry(CFDictionaryRef dictionary, size_t n, const char **key, CFTypeRef *value);
unsigned uuid_number(CFUUIDRef uuid);
unsigned uuid_number_of_bytes(CFUUIDBytes bytes);

/* ---- runloop.c ---- */

/* Performed on the thread of the loop, then freed.  `drop` frees what it holds if it is never performed. */
struct event {
    struct event *next;
    void (*perform)(struct event *event);
    void (*drop)(struct event *event);
};

/* A source that performs events. */
CFRunLoopSourceRef source_of_events(void);
/* Takes over the event.  The source may be in no loop yet. */
void source_post(CFRunLoopSourceRef source, struct event *event);
CFRunLoopRef dispatch_queue_loop(dispatch_queue_t queue);

/* ---- registry.c ---- */

/* The name of a kernel object in this process, with one more reference; 0 for 0. */
io_object_t object_named(uint64_t kernel_object);
/* The kernel's object; 0 if no such name exists. */
uint64_t object_of(io_object_t name);
/* Adds class and properties of a matching dictionary to a message. */
void put_matching(struct message *message, CFDictionaryRef matching);

/* ---- notifications.c, power.c ---- */

CFRunLoopSourceRef notification_port_source(IONotificationPortRef port);
void notification_arrived(struct message *message);
void power_arrived(struct message *message);

/* ---- transfers.c ---- */

struct request; /* a transfer in flight */

/*
 * A new one, which completes on `source`.  `buffer` receives the data of an IN transfer, `frames` the result of each
 * frame and `devrequest` the number of moved bytes; both may be NULL.  Its number goes into the message that starts it.
 */
struct request *request_new(CFRunLoopSourceRef source, void *buffer, size_t room, IOUSBIsocFrame *frames,
                            UInt32 frame_count, IOUSBDevRequestTO *devrequest, IOAsyncCallback1 callback,
                            void *refcon);
uint64_t request_number(const struct request *request);
/* Sends the message that starts it, and returns the kernel's answer.  Takes over the request. */
IOReturn request_start(struct request *request, struct message *message);
void completion_arrived(struct message *message);

/* ---- usb_device.c, usb_interface.c ---- */

void *usb_device_new(uint64_t client);
void *usb_interface_new(uint64_t client);

#endif
