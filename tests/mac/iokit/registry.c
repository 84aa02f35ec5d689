/*
 * The IORegistry: services that match, iterators, entries and their properties.  Runs in each process of a software Mac.
 *
 * An io_object_t is the name of a Mach port in this process.  An object keeps its name as long as the process holds a
 * reference to it; an excess release aborts the process here with a message.  Each call goes to the kernel, as on a Mac.
 */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

struct name {
    struct name *next;
    io_object_t name;
    uint64_t object;
    int references;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct name *names;
static io_object_t last_name = 0x1000;
static long references;

io_object_t object_named(uint64_t object)
{
    struct name *each;
    io_object_t name;
    if (object == 0)
        return IO_OBJECT_NULL;
    pthread_mutex_lock(&lock);
    for (each = names; each != NULL && each->object != object;)
        each = each->next;
    if (each == NULL) {
        each = allocate(sizeof *each);
        each->name = ++last_name;
        each->object = object;
        each->next = names;
        names = each;
    }
    each->references++;
    references++;
    name = each->name;
    pthread_mutex_unlock(&lock);
    return name;
}

uint64_t object_of(io_object_t name)
{
    uint64_t object = 0;
    pthread_mutex_lock(&lock);
    for (struct name *each = names; each != NULL; each = each->next)
        if (each->name == name)
            object = each->object;
    pthread_mutex_unlock(&lock);
    return object;
}

/* How many references this process holds: for tests that look for leaks. */
API long software_mac_references(void)
{
    long count;
    pthread_mutex_lock(&lock);
    count = references;
    pthread_mutex_unlock(&lock);
    return count;
}

/* Adds a reference to a name. */
API kern_return_t IOObjectRetain(io_object_t name)
{
    kern_return_t result = kIOReturnBadArgument;
    pthread_mutex_lock(&lock);
    for (struct name *each = names; each != NULL; each = each->next)
        if (each->name == name) {
            each->references++;
            references++;
            result = kIOReturnSuccess;
        }
    pthread_mutex_unlock(&lock);
    return result;
}

/* Drops a reference to a name.  IO_OBJECT_NULL is an error and harmless. */
API kern_return_t IOObjectRelease(io_object_t name)
{
    struct message message;
    struct name **at, *last = NULL;
    if (name == IO_OBJECT_NULL)
        return kIOReturnBadArgument;
    pthread_mutex_lock(&lock);
    for (at = &names; *at != NULL && (*at)->name != name;)
        at = &(*at)->next;
    if (*at == NULL)
        fail("the object %#x was released too often", name);
    references--;
    if (--(*at)->references == 0) {
        last = *at;
        *at = last->next;
    }
    pthread_mutex_unlock(&lock);
    if (last != NULL) {
        message_begin(&message, OBJECT_RELEASE);
        put_u64(&message, last->object);
        message_send(&message);
        free(last);
    }
    return kIOReturnSuccess;
}

/* ---- matching ---- */

/* A new dictionary that matches services of a class and its subclasses. */
API CFMutableDictionaryRef IOServiceMatching(const char *class_name)
{
    CFMutableDictionaryRef matching = CFDictionaryCreateMutable(NULL, 0, NULL, NULL);
    CFStringRef name = CFStringCreateWithCString(NULL, class_name, kCFStringEncodingUTF8);
    CFDictionarySetValue(matching, CFSTR("IOProviderClass"), name);
    CFRelease(name);
    return matching;
}

static void put_value(struct message *message, const char *key, CFTypeRef value)
{
    int64_t number = 0;
    put_text(message, key);
    if (CFGetTypeID(value) == CFNumberGetTypeID()) {
        CFNumberGetValue(value, kCFNumberSInt64Type, &number);
        put_u32(message, NUMBER);
        put_u64(message, (uint64_t)number);
    } else if (CFGetTypeID(value) == CFStringGetTypeID()) {
        put_u32(message, STRING);
        put_text(message, text_of(value));
    } else
        fail("a matching dictionary with a value of type %lu under %s", CFGetTypeID(value), key);
}

void put_matching(struct message *message, CFDictionaryRef matching)
{
    CFTypeRef class_name = dictionary_value(matching, "IOProviderClass");
    CFDictionaryRef properties = dictionary_value(matching, kIOPropertyMatchKey);
    const char *key;
    CFTypeRef value;
    uint32_t count = 0;
    put_text(message, class_name == NULL ? "IOService" : text_of(class_name));
    while (properties != NULL && dictionary_entry(properties, count, &key, &value))
        count++;
    put_u32(message, count);
    for (uint32_t n = 0; n < count; n++) {
        dictionary_entry(properties, n, &key, &value);
        put_value(message, key, value);
    }
}

/* A call whose result is one object, returned as its name. */
static kern_return_t call_for_object(struct message *message, io_object_t *object)
{
    kern_return_t result = message_call(message);
    *object = result == kIOReturnSuccess ? object_named(get_u64(message)) : IO_OBJECT_NULL;
    message_free(message);
    return result;
}

/*
 * An iterator over the services that match now.  Takes over the reference to the dictionary.
 */
API kern_return_t IOServiceGetMatchingServices(mach_port_t main_port, CFDictionaryRef matching, io_iterator_t *iterator)
{
    struct message message;
    (void)main_port;
    if (matching == NULL)
        return kIOReturnBadArgument;
    message_begin(&message, MATCH);
    put_matching(&message, matching);
    CFRelease(matching);
    return call_for_object(&message, iterator);
}

/* The first service that matches, or IO_OBJECT_NULL.  Takes over the reference to the dictionary. */
API io_service_t IOServiceGetMatchingService(mach_port_t main_port, CFDictionaryRef matching)
{
    io_iterator_t iterator;
    io_service_t service;
    if (IOServiceGetMatchingServices(main_port, matching, &iterator) != kIOReturnSuccess)
        return IO_OBJECT_NULL;
    service = IOIteratorNext(iterator);
    IOObjectRelease(iterator);
    return service;
}

/* ---- iterators ---- */

/* The next object; 0 at the end, or if the iterator is no longer valid. */
API io_object_t IOIteratorNext(io_iterator_t iterator)
{
    struct message message;
    io_object_t object;
    message_begin(&message, ITERATOR_NEXT);
    put_u64(&message, object_of(iterator));
    call_for_object(&message, &object);
    return object;
}

/* Whether the iterated entries are unchanged. */
API Boolean IOIteratorIsValid(io_iterator_t iterator)
{
    struct message message;
    bool valid;
    message_begin(&message, ITERATOR_VALID);
    put_u64(&message, object_of(iterator));
    valid = message_call(&message) == kIOReturnSuccess && get_u32(&message) != 0;
    message_free(&message);
    return valid;
}

/* Restarts the iteration; it becomes valid again. */
API void IOIteratorReset(io_iterator_t iterator)
{
    struct message message;
    message_begin(&message, ITERATOR_RESET);
    put_u64(&message, object_of(iterator));
    message_result(&message);
}

/* ---- entries ---- */

static kern_return_t describe(io_object_t object, io_name_t class_name, io_name_t name, UInt64 *id)
{
    struct message message;
    kern_return_t result;
    message_begin(&message, DESCRIBE);
    put_u64(&message, object_of(object));
    result = message_call(&message);
    if (result == kIOReturnSuccess) {
        get_text(&message, class_name, sizeof(io_name_t));
        get_text(&message, name, sizeof(io_name_t));
        *id = get_u64(&message);
    }
    message_free(&message);
    return result;
}

/* The class of an object. */
API kern_return_t IOObjectGetClass(io_object_t object, io_name_t class_name)
{
    io_name_t name;
    UInt64 id;
    return describe(object, class_name, name, &id);
}

/* The name of an entry; its class if it has none. */
API kern_return_t IORegistryEntryGetName(io_registry_entry_t entry, io_name_t name)
{
    io_name_t class_name;
    UInt64 id;
    return describe(entry, class_name, name, &id);
}

/* The id of an entry: the same in all processes, and not reused until the next boot. */
API kern_return_t IORegistryEntryGetRegistryEntryID(io_registry_entry_t entry, UInt64 *id)
{
    io_name_t class_name, name;
    return describe(entry, class_name, name, id);
}

/* Whether an object is of a class or a subclass of it. */
API Boolean IOObjectConformsTo(io_object_t object, const io_name_t class_name)
{
    struct message message;
    bool conforms;
    message_begin(&message, CONFORMS);
    put_u64(&message, object_of(object));
    put_text(&message, class_name);
    conforms = message_call(&message) == kIOReturnSuccess && get_u32(&message) != 0;
    message_free(&message);
    return conforms;
}

/* The first parent in a plane; kIOReturnNoDevice without one. */
API kern_return_t IORegistryEntryGetParentEntry(io_registry_entry_t entry, const char *plane,
                                                io_registry_entry_t *parent)
{
    struct message message;
    message_begin(&message, PARENT);
    put_u64(&message, object_of(entry));
    put_text(&message, plane);
    return call_for_object(&message, parent);
}

/* An iterator over the children in a plane. */
API kern_return_t IORegistryEntryGetChildIterator(io_registry_entry_t entry, const char *plane, io_iterator_t *iterator)
{
    struct message message;
    message_begin(&message, CHILDREN);
    put_u64(&message, object_of(entry));
    put_text(&message, plane);
    return call_for_object(&message, iterator);
}

/* The first child in a plane; kIOReturnNoDevice without one. */
API kern_return_t IORegistryEntryGetChildEntry(io_registry_entry_t entry, const char *plane, io_registry_entry_t *child)
{
    io_iterator_t iterator;
    kern_return_t result = IORegistryEntryGetChildIterator(entry, plane, &iterator);
    *child = IO_OBJECT_NULL;
    if (result != kIOReturnSuccess)
        return result;
    *child = IOIteratorNext(iterator);
    IOObjectRelease(iterator);
    return *child == IO_OBJECT_NULL ? kIOReturnNoDevice : kIOReturnSuccess;
}

/*
 * A copy of the current value of a property; NULL if missing.  A terminated service keeps its properties as long as a
 * reference to it exists.
 */
API CFTypeRef IORegistryEntryCreateCFProperty(io_registry_entry_t entry, CFStringRef key, CFAllocatorRef allocator,
                                              IOOptionBits options)
{
    struct message message;
    CFTypeRef value = NULL;
    (void)allocator;
    (void)options;
    message_begin(&message, PROPERTY);
    put_u64(&message, object_of(entry));
    put_text(&message, text_of(key));
    if (message_call(&message) == kIOReturnSuccess) {
        enum value_type type = get_u32(&message);
        if (type == NUMBER)
            value = value_of_number((int64_t)get_u64(&message));
        else if (type == STRING || type == DATA) {
            size_t length;
            const uint8_t *bytes = get_bytes(&message, &length);
            value = type == STRING ? value_of_text(bytes, length) : value_of_data(bytes, length);
        }
    }
    message_free(&message);
    return value;
}

/* ---- the rest ---- */

/* Waits until no service is being started or stopped; without a timeout, indefinitely. */
API kern_return_t IOKitWaitQuiet(mach_port_t main_port, mach_timespec_t *timeout)
{
    struct message message;
    (void)main_port;
    message_begin(&message, WAIT_QUIET);
    put_u64(&message, timeout == NULL ? UINT64_MAX : timeout->tv_sec * NSEC_PER_SEC + (UInt64)timeout->tv_nsec);
    return message_result(&message);
}

/* Asks the user to allow the capture of a device, for programs with an entitlement: none has one here. */
API kern_return_t IOServiceAuthorize(io_service_t service, UInt32 options)
{
    (void)service;
    (void)options;
    return kIOReturnUnsupported;
}

/* kern.osproductversion: the version of macOS, from the kernel. */
API int sysctlbyname(const char *name, void *value, size_t *length, void *new_value, size_t new_length)
{
    struct message message;
    int result = -1;
    (void)new_value;
    (void)new_length;
    if (strcmp(name, "kern.osproductversion") != 0)
        return -1;
    message_begin(&message, SYSTEM_VERSION);
    if (message_call(&message) == kIOReturnSuccess) {
        get_text(&message, value, *length);
        *length = strlen(value) + 1;
        result = 0;
    }
    message_free(&message);
    return result;
}
