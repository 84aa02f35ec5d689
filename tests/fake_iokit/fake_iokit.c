/*
 * An IORegistry that holds what the test puts into it.  registry.py links it into the extension module that is made of
 * cython/iokit.pyx, where it stands in for the frameworks IOKit and CoreFoundation.
 *
 * Every reference that is handed out has a number of its own, which is never used again: so to release one twice, or
 * to use one that has been released, shows, where the kernel would count references to the same object.
 *
 * An iterator over children goes through the children that there are, as in the kernel: when one of them comes or goes
 * it ends, and is not valid any more.
 *
 * Of power management there is one listener, whom fake_power() calls on a thread of its own, as libdispatch does.
 */

#include "iokit_min.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ENTRIES 64
#define MAX_PROPERTIES 8
#define MAX_REFERENCES 4096
#define TEXT 1024

enum kind { NOTHING, ENTRY, ITERATOR, DICTIONARY, NUMBER, STRING, CONNECTION, NOTIFIER };

struct property {
    char key[64];
    enum kind kind;
    int64_t number;
    char text[TEXT];
};

struct entry {
    int there;
    int parent; /* -1: none */
    char class_name[128];
    char name[128];
    struct property properties[MAX_PROPERTIES];
    int generation; /* of its children */
};

struct reference {
    enum kind kind;
    int released;
    int entry; /* that it is, or whose children it goes through; -1: it goes through devices */
    char text[TEXT];
    int64_t number;
    int next;       /* entry to be looked at */
    int generation; /* of the children when it was made */
};

static struct entry entries[MAX_ENTRIES];
static int entry_count;
static struct reference references[MAX_REFERENCES]; /* 0 is none */
static int reference_count = 1;
static int misuses;
static int steps, removal_step, removal; /* calls of IOIteratorNext; before which, and what, to remove */
static int restless;
static char failing[64];
static int failure, failures;

/* ---- what the test calls ---- */

void fake_begin(void)
{
    memset(entries, 0, sizeof entries);
    memset(references, 0, sizeof references);
    entry_count = misuses = steps = removal_step = restless = failures = 0;
    reference_count = 1;
}

int fake_add(int parent, const char *class_name, const char *name)
{
    struct entry *e = &entries[entry_count];
    if (entry_count == MAX_ENTRIES)
        abort();
    e->there = 1;
    e->parent = parent;
    strncpy(e->class_name, class_name, sizeof e->class_name - 1);
    strncpy(e->name, name, sizeof e->name - 1);
    if (parent >= 0)
        entries[parent].generation++;
    return entry_count++;
}

static struct property *add_property(int entry, const char *key)
{
    struct property *p = entries[entry].properties;
    while (p->kind != NOTHING)
        p++;
    strncpy(p->key, key, sizeof p->key - 1);
    return p;
}

void fake_number(int entry, const char *key, int64_t number)
{
    struct property *p = add_property(entry, key);
    p->kind = NUMBER;
    p->number = number;
}

void fake_text(int entry, const char *key, const char *text)
{
    struct property *p = add_property(entry, key);
    p->kind = STRING;
    strncpy(p->text, text, sizeof p->text - 1);
}

/* Neither a number nor a string. */
void fake_other(int entry, const char *key) { add_property(entry, key)->kind = DICTIONARY; }

static void take_away(int entry)
{
    entries[entry].there = 0;
    if (entries[entry].parent >= 0)
        entries[entries[entry].parent].generation++;
    for (int i = 0; i < entry_count; i++)
        if (entries[i].there && entries[i].parent == entry)
            take_away(i);
}

void fake_remove(int entry) { take_away(entry); }

/* Takes the entry, and all below it, away before the step-th call of IOIteratorNext. */
void fake_remove_before(int step, int entry)
{
    removal_step = steps + step;
    removal = entry;
}

int fake_steps(void) { return steps; }
void fake_restless(int always) { restless = always; }

/* The next calls of `function`, so many, fail with `code`. */
void fake_fail(const char *function, int code, int times)
{
    strncpy(failing, function, sizeof failing - 1);
    failure = code;
    failures = times;
}

/* References that were handed out and not released. */
int fake_held(void)
{
    int held = 0;
    for (int i = 1; i < reference_count; i++)
        held += !references[i].released;
    return held;
}

int fake_handed_out(void) { return reference_count - 1; }
int fake_misuses(void) { return misuses; }

/* ---- references ---- */

static struct reference *hand_out(enum kind kind)
{
    struct reference *r = &references[reference_count];
    if (reference_count == MAX_REFERENCES)
        abort();
    r->kind = kind;
    reference_count++;
    return r;
}

static io_object_t number_of(struct reference *r) { return (io_object_t)(r - references); }

/* The reference if it is alive and of that kind; else the misuse is counted. */
static struct reference *alive(struct reference *r, enum kind kind)
{
    if (r > references && r < references + reference_count && r->kind == kind && !r->released)
        return r;
    misuses++;
    return NULL;
}

static void release(struct reference *r)
{
    if (r <= references || r >= references + reference_count || r->released++)
        misuses++;
}

static int fails(const char *function)
{
    if (failures == 0 || strcmp(failing, function) != 0)
        return 0;
    failures--;
    return failure;
}

/* ---- IOKit ---- */

CFMutableDictionaryRef IOServiceMatching(const char *class_name)
{
    struct reference *r = hand_out(DICTIONARY);
    strncpy(r->text, class_name, sizeof r->text - 1);
    return (CFMutableDictionaryRef)r;
}

kern_return_t IOServiceGetMatchingServices(io_object_t main_port, CFDictionaryRef matching, io_object_t *iterator)
{
    struct reference *wanted = alive((struct reference *)matching, DICTIONARY), *r;
    int code = fails("IOServiceGetMatchingServices");
    if (wanted == NULL || main_port != 0)
        return 0xe00002c2; /* kIOReturnBadArgument */
    release(wanted);
    if (code)
        return code;
    r = hand_out(ITERATOR);
    r->entry = -1;
    strcpy(r->text, wanted->text);
    *iterator = number_of(r);
    return 0;
}

static struct entry *entry_of(io_object_t object)
{
    struct reference *r = alive(&references[object], ENTRY);
    return r ? &entries[r->entry] : NULL;
}

kern_return_t IORegistryEntryGetChildIterator(io_object_t entry, const char *plane, io_object_t *iterator)
{
    struct entry *parent = entry_of(entry);
    int code = fails("IORegistryEntryGetChildIterator");
    struct reference *r;
    if (parent == NULL || strcmp(plane, "IOService") != 0)
        return 0xe00002c2;
    if (code)
        return code;
    r = hand_out(ITERATOR);
    r->entry = parent - entries;
    r->generation = parent->generation;
    *iterator = number_of(r);
    return 0;
}

static int changed(struct reference *iterator)
{
    return iterator->entry >= 0 && (restless || entries[iterator->entry].generation != iterator->generation);
}

io_object_t IOIteratorNext(io_object_t iterator)
{
    struct reference *r = alive(&references[iterator], ITERATOR), *found;
    if (++steps == removal_step)
        take_away(removal);
    if (r == NULL || changed(r))
        return 0;
    for (; r->next < entry_count; r->next++) {
        struct entry *e = &entries[r->next];
        if (!e->there || (r->entry < 0 ? strcmp(e->class_name, r->text) != 0 : e->parent != r->entry))
            continue;
        found = hand_out(ENTRY);
        found->entry = r->next++;
        return number_of(found);
    }
    return 0;
}

unsigned int IOIteratorIsValid(io_object_t iterator)
{
    struct reference *r = alive(&references[iterator], ITERATOR);
    return r != NULL && !changed(r);
}

static kern_return_t copy_text(const char *function, const char *text, char *to)
{
    int code = fails(function);
    if (text == NULL)
        return 0xe00002c2;
    if (code == 0)
        strcpy(to, text);
    return code;
}

kern_return_t IOObjectGetClass(io_object_t object, io_name_t class_name)
{
    struct entry *e = entry_of(object);
    return copy_text("IOObjectGetClass", e ? e->class_name : NULL, class_name);
}

kern_return_t IORegistryEntryGetRegistryEntryID(io_object_t entry, uint64_t *id)
{
    struct entry *e = entry_of(entry);
    int code = fails("IORegistryEntryGetRegistryEntryID");
    if (e == NULL)
        return 0xe00002c2;
    *id = 0x100000000 + (e - entries);
    return code;
}

kern_return_t IORegistryEntryGetName(io_object_t entry, io_name_t name)
{
    struct entry *e = entry_of(entry);
    return copy_text("IORegistryEntryGetName", e ? e->name : NULL, name);
}

CFTypeRef IORegistryEntryCreateCFProperty(io_object_t entry, CFStringRef key, CFAllocatorRef allocator,
                                          uint32_t options)
{
    struct entry *e = entry_of(entry);
    struct reference *wanted = alive((struct reference *)key, STRING), *r;
    if (e == NULL || wanted == NULL || allocator != NULL || options != 0)
        return NULL;
    for (struct property *p = e->properties; p < e->properties + MAX_PROPERTIES && p->kind != NOTHING; p++)
        if (strcmp(p->key, wanted->text) == 0) {
            r = hand_out(p->kind);
            r->number = p->number;
            strcpy(r->text, p->text);
            return r;
        }
    return NULL;
}

kern_return_t IOObjectRelease(io_object_t object)
{
    release(&references[object]);
    return 0;
}

/* ---- power management and libdispatch ---- */

struct IONotificationPort { dispatch_queue_t queue; };
struct dispatch_queue_s { pthread_mutex_t lock; };

static struct {
    struct IONotificationPort port;
    struct dispatch_queue_s queue;
    int ports, queues; /* that are there */
    io_object_t connection;
    IOServiceInterestCallback callback;
    void *context;
    intptr_t allowed; /* the last that was allowed */
} power = {.queue.lock = PTHREAD_MUTEX_INITIALIZER};

int fake_power_left(void) { return power.ports + power.queues; }

struct change {
    uint32_t message;
    intptr_t id;
};

static void *call_listener(void *argument)
{
    struct change *change = argument;
    pthread_mutex_lock(&power.queue.lock); /* a serial queue */
    if (power.port.queue != NULL && power.callback != NULL)
        power.callback(power.context, power.connection, change->message, (void *)change->id);
    pthread_mutex_unlock(&power.queue.lock);
    return NULL;
}

/* Tells the listener, on another thread; the id of the change that it has allowed meanwhile, 0: none. */
intptr_t fake_power(uint32_t message, intptr_t id)
{
    struct change change = {message, id};
    pthread_t thread;
    power.allowed = 0;
    if (pthread_create(&thread, NULL, call_listener, &change) != 0)
        abort();
    pthread_join(thread, NULL);
    return power.allowed;
}

io_object_t IORegisterForSystemPower(void *context, IONotificationPortRef *port, IOServiceInterestCallback callback,
                                     io_object_t *notifier)
{
    if (fails("IORegisterForSystemPower"))
        return 0;
    power.ports++;
    power.context = context;
    power.callback = callback;
    *port = &power.port;
    *notifier = number_of(hand_out(NOTIFIER));
    return power.connection = number_of(hand_out(CONNECTION));
}

kern_return_t IODeregisterForSystemPower(io_object_t *notifier)
{
    release(alive(&references[*notifier], NOTIFIER));
    power.callback = NULL;
    return 0;
}

kern_return_t IOAllowPowerChange(io_object_t connection, intptr_t id)
{
    alive(&references[connection], CONNECTION);
    power.allowed = id;
    return 0;
}

kern_return_t IOServiceClose(io_object_t connection)
{
    release(alive(&references[connection], CONNECTION));
    return 0;
}

void IONotificationPortSetDispatchQueue(IONotificationPortRef port, dispatch_queue_t queue) { port->queue = queue; }

void IONotificationPortDestroy(IONotificationPortRef port)
{
    port->queue = NULL;
    power.ports--;
}

dispatch_queue_t dispatch_queue_create(const char *label, void *attributes)
{
    power.queues++;
    return &power.queue;
}

void dispatch_sync_f(dispatch_queue_t queue, void *context, dispatch_function_t work)
{
    pthread_mutex_lock(&queue->lock);
    work(context);
    pthread_mutex_unlock(&queue->lock);
}

void dispatch_release(void *object) { power.queues--; }

/* ---- CoreFoundation ---- */

void CFRelease(CFTypeRef value) { release((struct reference *)value); }
CFTypeID CFGetTypeID(CFTypeRef value) { return ((const struct reference *)value)->kind; }
CFTypeID CFNumberGetTypeID(void) { return NUMBER; }
CFTypeID CFStringGetTypeID(void) { return STRING; }

Boolean CFNumberGetValue(CFNumberRef number, CFIndex type, void *value)
{
    struct reference *r = alive((struct reference *)number, NUMBER);
    if (r == NULL || type != kCFNumberSInt64Type)
        return 0;
    *(int64_t *)value = r->number;
    return 1;
}

CFStringRef CFStringCreateWithCString(CFAllocatorRef allocator, const char *text, uint32_t encoding)
{
    struct reference *r = hand_out(STRING);
    if (allocator != NULL || encoding != kCFStringEncodingUTF8)
        misuses++;
    strncpy(r->text, text, sizeof r->text - 1);
    return (CFStringRef)r;
}

CFIndex CFStringGetLength(CFStringRef string)
{
    struct reference *r = alive((struct reference *)string, STRING);
    return r ? (CFIndex)strlen(r->text) : 0;
}

CFIndex CFStringGetBytes(CFStringRef string, CFRange range, uint32_t encoding, uint8_t loss_byte,
                         Boolean is_external, uint8_t *buffer, CFIndex size, CFIndex *used)
{
    struct reference *r = alive((struct reference *)string, STRING);
    *used = 0;
    if (r == NULL || range.location != 0 || encoding != kCFStringEncodingUTF8 || is_external || loss_byte != '?')
        return 0;
    *used = range.length < size ? range.length : size;
    memcpy(buffer, r->text, *used);
    return *used;
}
