/*
 * Values of CoreFoundation: strings, numbers, data, dictionaries, identifiers.  Runs in each process of a software Mac.
 *
 * As documented (Memory Management Programming Guide for Core Foundation): the result of a function with Create or Copy
 * in its name must be released once, that of one with Get must not.  An excess release aborts the process here with a
 * message; on a Mac it is undefined.
 */
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define IMMORTAL (1 << 30)
#define REMEMBERED 256 /* freed values whose memory is kept, to detect excess releases */

struct text {
    struct value value;
    size_t length; /* bytes of UTF-8, followed by a 0 */
    char bytes[];
};

struct number {
    struct value value;
    int64_t number;
};

struct data {
    struct value value;
    size_t length;
    uint8_t bytes[];
};

struct entry {
    CFTypeRef key, value;
};

struct dictionary {
    struct value value;
    size_t count;
    struct entry *entries;
};

API const CFAllocatorRef kCFAllocatorDefault = NULL;
API const CFDictionaryKeyCallBacks kCFTypeDictionaryKeyCallBacks = {0};
API const CFDictionaryValueCallBacks kCFTypeDictionaryValueCallBacks = {0};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct value *remembered[REMEMBERED];
static size_t remembered_next;
static long alive;

void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "software Mac, pid %d: ", (int)getpid());
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    abort();
}

void *allocate(size_t size)
{
    void *memory = calloc(1, size);
    if (memory == NULL)
        fail("out of memory");
    return memory;
}

void *value_new(enum value_type type, size_t size, void (*destroy)(struct value *value))
{
    struct value *value = allocate(size);
    value->type = type;
    value->references = 1;
    value->destroy = destroy;
    __atomic_add_fetch(&alive, 1, __ATOMIC_RELAXED);
    return value;
}

/* How many values exist: for tests that look for leaks. */
API long software_mac_values(void)
{
    return __atomic_load_n(&alive, __ATOMIC_RELAXED);
}

static void forget(struct value *value)
{
    struct value *oldest;
    if (value->destroy != NULL)
        value->destroy(value);
    __atomic_sub_fetch(&alive, 1, __ATOMIC_RELAXED);
    pthread_mutex_lock(&lock);
    oldest = remembered[remembered_next];
    remembered[remembered_next] = value;
    remembered_next = (remembered_next + 1) % REMEMBERED;
    pthread_mutex_unlock(&lock);
    free(oldest);
}

/* Adds a reference and returns the value. */
API CFTypeRef CFRetain(CFTypeRef reference)
{
    struct value *value = (struct value *)reference;
    if (__atomic_fetch_add(&value->references, 1, __ATOMIC_ACQ_REL) <= 0)
        fail("CFRetain of a value (type %d) that was released", value->type);
    return reference;
}

/* Drops a reference; the last one frees the value.  NULL is an error, as on a Mac. */
API void CFRelease(CFTypeRef reference)
{
    struct value *value = (struct value *)reference;
    int before;
    if (value == NULL)
        fail("CFRelease(NULL)");
    before = __atomic_fetch_sub(&value->references, 1, __ATOMIC_ACQ_REL);
    if (before <= 0)
        fail("a value (type %d) was released too often", value->type);
    if (before == 1)
        forget(value);
}

API CFTypeID CFGetTypeID(CFTypeRef value)
{
    return ((const struct value *)value)->type;
}

API CFTypeID CFBooleanGetTypeID(void)
{
    return BOOLEAN;
}

API CFTypeID CFDataGetTypeID(void)
{
    return DATA;
}

API CFTypeID CFNumberGetTypeID(void)
{
    return NUMBER;
}

API CFTypeID CFStringGetTypeID(void)
{
    return STRING;
}

/* ---- strings ---- */

static size_t length_of_utf8(uint8_t first)
{
    return first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
}

/* Whether the bytes are UTF-8: lead bytes with their continuation bytes. */
static bool is_utf8(const uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length;) {
        size_t n = length_of_utf8(bytes[i]);
        if ((bytes[i] & 0xc0) == 0x80 || bytes[i] >= 0xf8 || n > length - i)
            return false;
        for (size_t k = 1; k < n; k++)
            if ((bytes[i + k] & 0xc0) != 0x80)
                return false;
        i += n;
    }
    return true;
}

CFTypeRef value_of_text(const uint8_t *text, size_t length)
{
    struct text *made = value_new(STRING, sizeof *made + length + 1, NULL);
    made->length = length;
    memcpy(made->bytes, text, length);
    return made;
}

const char *text_of(CFStringRef string)
{
    return ((const struct text *)string)->bytes;
}

/* A constant of the program: created once, never freed. */
API CFStringRef software_mac_constant_string(const char *text)
{
    static struct constant {
        struct constant *next;
        struct text *string;
    } *constants;
    struct constant *each;
    pthread_mutex_lock(&lock);
    for (each = constants; each != NULL; each = each->next)
        if (strcmp(each->string->bytes, text) == 0)
            break;
    if (each == NULL) {
        each = allocate(sizeof *each);
        each->string = allocate(sizeof *each->string + strlen(text) + 1);
        each->string->value = (struct value){.type = STRING, .references = IMMORTAL};
        each->string->length = strlen(text);
        strcpy(each->string->bytes, text);
        each->next = constants;
        constants = each;
    }
    pthread_mutex_unlock(&lock);
    return (CFStringRef)each->string;
}

/* A new string; NULL if the bytes are not in that encoding. */
API CFStringRef CFStringCreateWithCString(CFAllocatorRef allocator, const char *text, CFStringEncoding encoding)
{
    (void)allocator;
    if (encoding != kCFStringEncodingUTF8 || !is_utf8((const uint8_t *)text, strlen(text)))
        return NULL;
    return value_of_text((const uint8_t *)text, strlen(text));
}

static size_t put_utf8(uint8_t *to, uint32_t code)
{
    if (code < 0x80) {
        to[0] = (uint8_t)code;
        return 1;
    }
    if (code < 0x800) {
        to[0] = (uint8_t)(0xc0 | code >> 6);
        to[1] = (uint8_t)(0x80 | (code & 0x3f));
        return 2;
    }
    if (code < 0x10000) {
        to[0] = (uint8_t)(0xe0 | code >> 12);
        to[1] = (uint8_t)(0x80 | (code >> 6 & 0x3f));
        to[2] = (uint8_t)(0x80 | (code & 0x3f));
        return 3;
    }
    to[0] = (uint8_t)(0xf0 | code >> 18);
    to[1] = (uint8_t)(0x80 | (code >> 12 & 0x3f));
    to[2] = (uint8_t)(0x80 | (code >> 6 & 0x3f));
    to[3] = (uint8_t)(0x80 | (code & 0x3f));
    return 4;
}

/* A new string from bytes in an encoding; only UTF-16 is needed. */
API CFStringRef CFStringCreateWithBytes(CFAllocatorRef allocator, const UInt8 *bytes, CFIndex length,
                                        CFStringEncoding encoding, Boolean is_external)
{
    uint8_t *text = allocate(2 * (size_t)length + 1);
    size_t made = 0;
    CFStringRef string;
    (void)allocator;
    (void)is_external;
    if (encoding != kCFStringEncodingUTF16LE)
        fail("CFStringCreateWithBytes: encoding %#x is not supported", encoding);
    for (CFIndex i = 0; i + 1 < length; i += 2) {
        uint32_t code = bytes[i] | (uint32_t)bytes[i + 1] << 8;
        if (code >= 0xd800 && code < 0xdc00 && i + 3 < length) {
            code = 0x10000 + ((code - 0xd800) << 10) + ((bytes[i + 2] | (uint32_t)bytes[i + 3] << 8) - 0xdc00);
            i += 2;
        }
        made += put_utf8(text + made, code);
    }
    string = value_of_text(text, made);
    free(text);
    return string;
}

/* The length in UTF-16 code units. */
API CFIndex CFStringGetLength(CFStringRef string)
{
    const struct text *text = (const struct text *)string;
    CFIndex units = 0;
    for (size_t i = 0; i < text->length;) {
        size_t n = length_of_utf8((uint8_t)text->bytes[i]);
        units += n == 4 ? 2 : 1;
        i += n;
    }
    return units;
}

/*
 * Converts a range of UTF-16 code units to an encoding.  Returns how many of them fit into the buffer as whole
 * characters; sets `used` to the number of bytes.
 */
API CFIndex CFStringGetBytes(CFStringRef string, CFRange range, CFStringEncoding encoding, UInt8 loss_byte,
                             Boolean is_external, UInt8 *buffer, CFIndex size, CFIndex *used)
{
    const struct text *text = (const struct text *)string;
    CFIndex unit = 0, converted = 0, length = 0;
    (void)loss_byte;
    (void)is_external;
    if (encoding != kCFStringEncodingUTF8)
        fail("CFStringGetBytes: encoding %#x is not supported", encoding);
    for (size_t i = 0; i < text->length && unit < range.location + range.length;) {
        size_t n = length_of_utf8((uint8_t)text->bytes[i]);
        CFIndex units = n == 4 ? 2 : 1;
        if (unit >= range.location) {
            if (buffer != NULL && length + (CFIndex)n > size)
                break;
            if (buffer != NULL)
                memcpy(buffer + length, text->bytes + i, n);
            length += (CFIndex)n;
            converted += units;
        }
        unit += units;
        i += n;
    }
    if (used != NULL)
        *used = length;
    return converted;
}

/* ---- numbers and data ---- */

CFTypeRef value_of_number(int64_t number)
{
    struct number *made = value_new(NUMBER, sizeof *made, NULL);
    made->number = number;
    return made;
}

/* A new number; `type` is the C type that `value` points to. */
API CFNumberRef CFNumberCreate(CFAllocatorRef allocator, CFNumberType type, const void *value)
{
    int64_t number = 0;
    (void)allocator;
    if (type == kCFNumberSInt8Type)
        number = *(const int8_t *)value;
    else if (type == kCFNumberSInt16Type)
        number = *(const int16_t *)value;
    else if (type == kCFNumberSInt32Type)
        number = *(const int32_t *)value;
    else if (type == kCFNumberSInt64Type)
        number = *(const int64_t *)value;
    else
        fail("CFNumberCreate: type %ld is not supported", type);
    return value_of_number(number);
}

/* Converts a number to a C type; false if the conversion is lossy. */
API Boolean CFNumberGetValue(CFNumberRef reference, CFNumberType type, void *value)
{
    int64_t number = ((const struct number *)reference)->number;
    if (type == kCFNumberSInt8Type) {
        *(int8_t *)value = (int8_t)number;
        return number == (int8_t)number;
    }
    if (type == kCFNumberSInt16Type) {
        *(int16_t *)value = (int16_t)number;
        return number == (int16_t)number;
    }
    if (type == kCFNumberSInt32Type) {
        *(int32_t *)value = (int32_t)number;
        return number == (int32_t)number;
    }
    if (type == kCFNumberSInt64Type) {
        *(int64_t *)value = number;
        return true;
    }
    fail("CFNumberGetValue: type %ld is not supported", type);
}

API Boolean CFBooleanGetValue(CFBooleanRef value)
{
    return ((const struct number *)value)->number != 0;
}

CFTypeRef value_of_data(const uint8_t *bytes, size_t length)
{
    struct data *made = value_new(DATA, sizeof *made + length, NULL);
    made->length = length;
    memcpy(made->bytes, bytes, length);
    return made;
}

API CFIndex CFDataGetLength(CFDataRef data)
{
    return (CFIndex)((const struct data *)data)->length;
}

/* Copies a range of the bytes. */
API void CFDataGetBytes(CFDataRef reference, CFRange range, UInt8 *buffer)
{
    const struct data *data = (const struct data *)reference;
    if (range.location < 0 || range.length < 0 || (size_t)(range.location + range.length) > data->length)
        fail("CFDataGetBytes: out of bounds");
    memcpy(buffer, data->bytes + range.location, (size_t)range.length);
}

/* ---- dictionaries, with strings as keys ---- */

static void dictionary_destroy(struct value *value)
{
    struct dictionary *dictionary = (struct dictionary *)value;
    for (size_t i = 0; i < dictionary->count; i++) {
        CFRelease(dictionary->entries[i].key);
        CFRelease(dictionary->entries[i].value);
    }
    free(dictionary->entries);
}

API CFMutableDictionaryRef CFDictionaryCreateMutable(CFAllocatorRef allocator, CFIndex capacity,
                                                     const CFDictionaryKeyCallBacks *keys,
                                                     const CFDictionaryValueCallBacks *values)
{
    (void)allocator;
    (void)capacity;
    (void)keys;
    (void)values;
    return (CFMutableDictionaryRef)value_new(DICTIONARY, sizeof(struct dictionary), dictionary_destroy);
}

/* Adds or replaces the value of a key: retains what it stores, and releases the value that it replaces. */
API void CFDictionarySetValue(CFMutableDictionaryRef reference, const void *key, const void *value)
{
    struct dictionary *dictionary = (struct dictionary *)reference;
    CFRetain(value);
    for (size_t i = 0; i < dictionary->count; i++)
        if (strcmp(text_of(dictionary->entries[i].key), text_of(key)) == 0) {
            CFRelease(dictionary->entries[i].value);
            dictionary->entries[i].value = value;
            return;
        }
    dictionary->entries = realloc(dictionary->entries, (dictionary->count + 1) * sizeof *dictionary->entries);
    if (dictionary->entries == NULL)
        fail("out of memory");
    dictionary->entries[dictionary->count++] = (struct entry){CFRetain(key), value};
}

CFTypeRef dictionary_value(CFDictionaryRef reference, const char *key)
{
    const struct dictionary *dictionary = (const struct dictionary *)reference;
    for (size_t i = 0; i < dictionary->count; i++)
        if (strcmp(text_of(dictionary->entries[i].key), key) == 0)
            return dictionary->entries[i].value;
    return NULL;
}

bool dictionary_entry(CFDictionaryRef reference, size_t n, const char **key, CFTypeRef *value)
{
    const struct dictionary *dictionary = (const struct dictionary *)reference;
    if (n >= dictionary->count)
        return false;
    *key = text_of(dictionary->entries[n].key);
    *value = dictionary->entries[n].value;
    return true;
}

/* ---- identifiers, which are numbers here ---- */

API CFUUIDRef software_mac_uuid(unsigned number)
{
    static struct number uuids[4096];
    if (number >= sizeof uuids / sizeof *uuids)
        fail("no identifier has the number %u", number);
    pthread_mutex_lock(&lock);
    uuids[number].value = (struct value){.type = UUID, .references = IMMORTAL};
    uuids[number].number = number;
    pthread_mutex_unlock(&lock);
    return (CFUUIDRef)&uuids[number];
}

API CFUUIDBytes CFUUIDGetUUIDBytes(CFUUIDRef uuid)
{
    CFUUIDBytes bytes = {{0}};
    unsigned number = uuid_number(uuid);
    bytes.bytes[0] = (UInt8)(number >> 8);
    bytes.bytes[1] = (UInt8)number;
    return bytes;
}

unsigned uuid_number(CFUUIDRef uuid)
{
    return (unsigned)((const struct number *)uuid)->number;
}

unsigned uuid_number_of_bytes(CFUUIDBytes bytes)
{
    return (unsigned)bytes.bytes[0] << 8 | bytes.bytes[1];
}

/* ---- Security ---- */

API SecTaskRef SecTaskCreateFromSelf(CFAllocatorRef allocator)
{
    (void)allocator;
    return value_new(TASK, sizeof(struct value), NULL);
}

/* A command line tool has no entitlements. */
API CFTypeRef SecTaskCopyValueForEntitlement(SecTaskRef task, CFStringRef entitlement, CFErrorRef *error)
{
    (void)task;
    (void)entitlement;
    if (error != NULL)
        *error = NULL;
    return NULL;
}
