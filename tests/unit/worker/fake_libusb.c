/*
 * A libusb with one device that does what the test says.  Runs in the processes that fake_libusb.py makes only, where
 * it stands in for libusb-1.0.so.0: the claim and the pump are the ones that are shipped.
 *
 * Device 2 of bus 1.  Configuration 1: interface 0 with bulk 0x01 and 0x81 and interrupt 0x82; interface 1 with nothing
 * in setting 0 and isochronous 0x05 and 0x85 in setting 1.  Configuration 2: interface 0 without endpoints.
 *
 * A transfer waits until fake_complete(), a cancel or an unplug ends it.  What the host's stack takes away itself it
 * reports as libusb does on Linux (os/linux_usbfs.c, handle_bulk_completion and handle_control_completion): complete
 * with no data after set_interface, release and reset, and of endpoint 0 after a reset as if the device were gone.
 *
 * What the host sends to the device for all this is in fake_host.h.
 */

#include <errno.h>
#include <libusb.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fake_host.h"

#define MAX_TRANSFERS 64
#define REAPED_AT_ONCE 26 /* one handle_events ends no more: op_handle_events in os/linux_usbfs.c */
#define LENGTH(array) (sizeof(array) / sizeof *(array))

struct libusb_context { int unused; };
struct libusb_device { int unused; };
struct libusb_device_handle { int unused; };

struct item {
    struct libusb_transfer *transfer;
    int done;
};

static libusb_context the_context;
static libusb_device the_device;
static libusb_device_handle the_handle;
static int ready[2] = {-1, -1}; /* readable: there is something to be completed */
static int watched = 1;
static struct item items[MAX_TRANSFERS]; /* submitted, oldest first */
static int count;
static int allocated; /* transfers that are not freed */
static int occupied;    /* a bit per interface: another program claims it as soon as it can */
static int late;        /* the same: a driver binds to it right before the next claim */
static int appearing;   /* libusb watches another descriptor while it makes a list of them */
static int lists;       /* of descriptors that were made */
static int siblings;    /* the driver of interface 0 takes interface 1 by itself */
static size_t sent;     /* bytes of configuration 1 that the device sends, at most */
static int promised;    /* bNumConfigurations; those beyond configuration 2 are like it */
static int asked;       /* GET_DESCRIPTOR requests */
static int hold_cancels;
static int overstated;  /* bytes more than there are, which each isochronous packet is said to have */
static int sysfs;    /* whether libusb can read it, which a confined worker cannot */
static int hidden;  /* so often it has no memory for its descriptors */
static long device_memory;      /* bytes that are out */
static long most_device_memory; /* that there is */
static char failing[32];
static int failure;
static int failure_errno;
static char journal[4096];
static libusb_log_cb words;
static int log_level;
static libusb_pollfd_added_cb added;
static libusb_pollfd_removed_cb removed;
static void *notified_data;

/* ---- what the test calls ---- */

void fake_fail(const char *function, int code)
{
    snprintf(failing, sizeof failing, "%s", function);
    failure = code;
    failure_errno = 0;
}

/* The same, as usbfs says it. */
void fake_fail_errno(const char *function, int code, int host_errno)
{
    fake_fail(function, code);
    failure_errno = host_errno;
}

/* What the device was sent since it was asked last. */
const char *fake_bus(void)
{
    static char read[sizeof bus];
    strcpy(read, bus);
    bus[0] = 0;
    return read;
}

int fake_pending(void) { return count; }
int fake_drivers(void) { return drivers; }
int fake_allocated(void) { return allocated; }
long fake_device_memory(void) { return device_memory; }
void fake_hide_descriptors(int times) { hidden = times; }
void fake_siblings(int on) { siblings = on; }
void fake_without_driver(int interfaces) { drivers &= ~interfaces; }
void fake_occupy(int interfaces) { occupied = interfaces; }
void fake_late_drivers(int interfaces) { late = interfaces; }
void fake_appear(void) { appearing = 1; }
int fake_lists(void) { return lists; }
void fake_overstate(int bytes) { overstated = bytes; }
void fake_send(int bytes) { sent = bytes; }
void fake_promise(int configurations) { promised = configurations; }
int fake_asked(void) { return asked; }
void fake_limit_device_memory(long most) { most_device_memory = most; }

/* As it was in the beginning: plugged in, with a driver at each interface. */
void fake_begin(void)
{
    host_begin();
    watched = 1;
    sysfs = 1;
    occupied = late = appearing = lists = 0;
    hold_cancels = hidden = failure_errno = siblings = overstated = 0;
    sent = SIZE_MAX;
    promised = 2;
    asked = 0;
    most_device_memory = 16 << 20; /* as usbfs has it */
    failing[0] = 0;
    journal[0] = 0;
}

const char *fake_journal(void)
{
    static char read[sizeof journal];
    strcpy(read, journal);
    journal[0] = 0;
    return read;
}

static void end(struct item *item, enum libusb_transfer_status status)
{
    if (item->done)
        return;
    item->done = 1;
    item->transfer->status = status;
    if (write(ready[1], "!", 1) != 1)
        abort();
}

void fake_confine(void) { sysfs = 0; }

/* A transfer that is to be cancelled waits for its device. */
void fake_hold_cancels(int hold) { hold_cancels = hold; }

/* Ends the oldest transfer of `endpoint`; an isochronous one gets `data` packet by packet.  0: there is none. */
int fake_complete(unsigned char endpoint, int status, const unsigned char *data, int length)
{
    for (int i = 0; i < count; i++) {
        struct libusb_transfer *t = items[i].transfer;
        if (t->endpoint != endpoint || items[i].done)
            continue;
        t->actual_length = length;
        if (t->type == LIBUSB_TRANSFER_TYPE_ISOCHRONOUS) {
            unsigned char *to = t->buffer;
            t->actual_length = 0; /* libusb leaves it so */
            for (int p = 0; p < t->num_iso_packets; p++) {
                struct libusb_iso_packet_descriptor *d = &t->iso_packet_desc[p];
                int part = length < (int)d->length ? length : (int)d->length;
                if (endpoint & LIBUSB_ENDPOINT_IN)
                    memcpy(to, data, part);
                d->actual_length = part + overstated;
                d->status = part ? LIBUSB_TRANSFER_COMPLETED : LIBUSB_TRANSFER_ERROR;
                to += d->length;
                data += part;
                length -= part;
            }
        } else if (data != NULL) {
            memcpy(t->buffer + (t->type == LIBUSB_TRANSFER_TYPE_CONTROL ? LIBUSB_CONTROL_SETUP_SIZE : 0), data, length);
        }
        end(&items[i], status);
        return 1;
    }
    return 0;
}

/* The oldest transfer of `endpoint` as it was submitted: "type flags length" and its bytes in hexadecimal. */
const char *fake_submitted(unsigned char endpoint)
{
    static char text[4096];
    text[0] = 0;
    for (int i = 0; i < count; i++) {
        struct libusb_transfer *t = items[i].transfer;
        if (t->endpoint != endpoint || items[i].done)
            continue;
        int at = snprintf(text, sizeof text, "%d %d %d ", t->type, t->flags, t->length);
        for (int k = 0; k < t->length && k < 64; k++)
            at += snprintf(text + at, sizeof text - at, "%02x", t->buffer[k]);
        break;
    }
    return text;
}

void fake_unplug(void)
{
    for (int i = 0; i < count; i++)
        end(&items[i], LIBUSB_TRANSFER_NO_DEVICE);
    watched = 0;
    if (removed != NULL)
        removed(ready[0], notified_data);
}

/* ---- libusb ---- */

static int call(const char *function, const char *arguments)
{
    size_t at = strlen(journal);
    snprintf(journal + at, sizeof journal - at, "%s%s %s", at ? "\n" : "", function, arguments);
    if (strcmp(function, failing) != 0)
        return 0;
    failing[0] = 0;
    if (words != NULL && log_level >= LIBUSB_LOG_LEVEL_ERROR) {
        char text[64];
        snprintf(text, sizeof text, "libusb: error [%s] the stack said\n no", function);
        words(&the_context, LIBUSB_LOG_LEVEL_ERROR, text);
    }
    errno = failure_errno;
    return failure;
}

static int call_with(const char *function, int number)
{
    char text[16];
    snprintf(text, sizeof text, "%d", number);
    return call(function, text);
}

/* The host's stack ends the transfers of an interface, -1: of all. */
static void flush(int interface)
{
    for (int i = 0; i < count; i++) {
        int number = items[i].transfer->endpoint & LIBUSB_ENDPOINT_ADDRESS_MASK;
        if (interface < 0 || (number && interface_at(items[i].transfer->endpoint) == interface))
            end(&items[i], number ? LIBUSB_TRANSFER_COMPLETED : LIBUSB_TRANSFER_NO_DEVICE);
    }
}

int libusb_init(libusb_context **context)
{
    *context = &the_context;
    return ready[0] >= 0 || pipe(ready) == 0 ? 0 : LIBUSB_ERROR_OTHER;
}

const struct libusb_version *libusb_get_version(void)
{
    static const struct libusb_version version = {1, 0, 27, 0, "", ""};
    return &version;
}

int libusb_has_capability(uint32_t capability) { return 1; }
int libusb_set_option(libusb_context *context, enum libusb_option option, ...)
{
    va_list arguments;
    va_start(arguments, option);
    if (option == LIBUSB_OPTION_LOG_LEVEL)
        log_level = va_arg(arguments, int);
    va_end(arguments);
    return 0;
}

void libusb_set_log_cb(libusb_context *context, libusb_log_cb callback, int mode) { words = callback; }

const char *libusb_error_name(int code)
{
    switch (code) {
    case LIBUSB_ERROR_BUSY: return "LIBUSB_ERROR_BUSY";
    case LIBUSB_ERROR_ACCESS: return "LIBUSB_ERROR_ACCESS";
    case LIBUSB_ERROR_NO_DEVICE: return "LIBUSB_ERROR_NO_DEVICE";
    case LIBUSB_ERROR_NOT_FOUND: return "LIBUSB_ERROR_NOT_FOUND";
    default: return "LIBUSB_ERROR";
    }
}

const char *libusb_strerror(int code) { return "as the test said"; }

ssize_t libusb_get_device_list(libusb_context *context, libusb_device ***list)
{
    static libusb_device *devices[] = {&the_device, NULL};
    *list = devices;
    return 1;
}

void libusb_free_device_list(libusb_device **list, int unref) {}
uint8_t libusb_get_bus_number(libusb_device *device) { return 1; }
uint8_t libusb_get_device_address(libusb_device *device) { return 2; }
int libusb_get_device_speed(libusb_device *device) { return LIBUSB_SPEED_HIGH; }
int libusb_open(libusb_device *device, libusb_device_handle **handle) { *handle = &the_handle; return 0; }
libusb_device *libusb_get_device(libusb_device_handle *handle) { return &the_device; }

int libusb_wrap_sys_device(libusb_context *context, intptr_t file, libusb_device_handle **handle)
{
    return LIBUSB_ERROR_IO;
}

static const unsigned char device_descriptor[] = {
    18, 1, 0x00, 0x02, 0, 0, 0, 64, 0x6b, 0x1d, 0x00, 0x00, 0x00, 0x01, 0, 0, 0, 2};
static const unsigned char configuration_1[] = {
    9, 2, 71, 0, 2, 1, 0, 0x80, 50,
    9, 4, 0, 0, 3, 0xff, 0, 0, 0,
    7, 5, 0x01, 2, 0x00, 0x02, 1,
    7, 5, 0x81, 2, 0x00, 0x02, 1,
    7, 5, 0x82, 3, 64, 0, 1,
    9, 4, 1, 0, 0, 0xff, 0, 0, 0,
    9, 4, 1, 1, 2, 0xff, 0, 0, 0,
    7, 5, 0x05, 1, 192, 0, 1,
    7, 5, 0x85, 1, 192, 0, 1};
static const unsigned char configuration_2[] = {
    9, 2, 18, 0, 1, 2, 0, 0x80, 50,
    9, 4, 0, 0, 0, 0xff, 0, 0, 0};
static const struct { const unsigned char *bytes; size_t length; } configurations[] = {
    {configuration_1, sizeof configuration_1}, {configuration_2, sizeof configuration_2}};

/* GET_DESCRIPTOR only. */
int libusb_control_transfer(libusb_device_handle *handle, uint8_t type, uint8_t request, uint16_t value, uint16_t index,
                            unsigned char *data, uint16_t length, unsigned int timeout)
{
    const unsigned char *from = device_descriptor;
    size_t has = sizeof device_descriptor;
    asked++;
    if (strcmp("control", failing) == 0) {
        failing[0] = 0;
        return failure;
    }
    if (value >> 8 == LIBUSB_DT_CONFIG) {
        size_t at = value & 0xff;
        if ((int)at >= promised)
            return LIBUSB_ERROR_PIPE;
        at = at < LENGTH(configurations) ? at : LENGTH(configurations) - 1;
        from = configurations[at].bytes;
        has = configurations[at].length;
        if (from == configuration_1 && has > sent)
            has = sent;
    }
    has = has < length ? has : length;
    memcpy(data, from, has);
    if (from == device_descriptor && has == sizeof device_descriptor)
        data[17] = promised;
    return has;
}

int libusb_get_configuration(libusb_device_handle *handle, int *value)
{
    if (!sysfs)
        return LIBUSB_ERROR_NO_DEVICE; /* open_sysfs_attr in os/linux_usbfs.c */
    *value = configuration;
    return 0;
}

int libusb_set_configuration(libusb_device_handle *handle, int value)
{
    int code = call_with("set_configuration", value), host_errno = errno;
    code = host_set_configuration(value, code, host_errno);
    errno = host_errno;
    return code;
}

int libusb_set_interface_alt_setting(libusb_device_handle *handle, int interface, int alternate)
{
    char text[32];
    snprintf(text, sizeof text, "%d %d", interface, alternate);
    flush(interface);
    return host_set_interface(interface, alternate, call("set_interface", text));
}

int libusb_clear_halt(libusb_device_handle *handle, unsigned char endpoint)
{
    int code = call_with("clear_halt", endpoint);
    return code != 0 || has_endpoint(endpoint) ? code : LIBUSB_ERROR_NOT_FOUND;
}

int libusb_reset_device(libusb_device_handle *handle)
{
    flush(-1);
    host_reset();
    return call("reset", "");
}

int libusb_kernel_driver_active(libusb_device_handle *handle, int interface) { return drivers >> interface & 1; }

int libusb_detach_kernel_driver(libusb_device_handle *handle, int interface)
{
    int code = call_with("detach", interface);
    if (code == 0)
        drivers &= ~(1 << interface);
    return code;
}

int libusb_attach_kernel_driver(libusb_device_handle *handle, int interface)
{
    int code = call_with("attach", interface);
    if (code == 0 && !has_interface(interface))
        code = LIBUSB_ERROR_INVALID_PARAM; /* EINVAL of proc_ioctl */
    if (code == 0 && drivers >> interface & 1)
        code = LIBUSB_ERROR_BUSY; /* proc_ioctl in drivers/usb/core/devio.c */
    if (code == 0)
        drivers |= siblings ? 3 : 1 << interface;
    return code;
}

int libusb_claim_interface(libusb_device_handle *handle, int interface)
{
    int code = call_with("claim", interface);
    if (code == 0 && !has_interface(interface))
        return LIBUSB_ERROR_NOT_FOUND;
    if (code == 0 && !(claimed >> interface & 1)) {
        drivers |= late & 1 << interface;
        late &= ~(1 << interface);
        if ((occupied | drivers) >> interface & 1)
            return LIBUSB_ERROR_BUSY; /* usb_driver_claim_interface in driver.c */
    }
    claimed |= code == 0 ? 1 << interface : 0;
    return code;
}

int libusb_release_interface(libusb_device_handle *handle, int interface)
{
    int code;
    if (interface >= 32 || !(claimed >> interface & 1))
        return LIBUSB_ERROR_NOT_FOUND;
    code = call_with("release", interface);
    flush(interface);
    if (code == 0)
        host_release(interface);
    return code;
}

unsigned char *libusb_dev_mem_alloc(libusb_device_handle *handle, size_t length)
{
    if (device_memory + (long)length > most_device_memory)
        return NULL;
    unsigned char *memory = malloc(length);
    device_memory += memory != NULL ? (long)length : 0;
    return memory;
}

int libusb_dev_mem_free(libusb_device_handle *handle, unsigned char *buffer, size_t length)
{
    device_memory -= (long)length;
    free(buffer);
    return 0;
}

struct libusb_transfer *libusb_alloc_transfer(int packets)
{
    size_t size = sizeof(struct libusb_transfer) + packets * sizeof(struct libusb_iso_packet_descriptor);
    struct libusb_transfer *transfer = calloc(1, size);
    allocated += transfer != NULL;
    return transfer;
}

void libusb_free_transfer(struct libusb_transfer *transfer)
{
    allocated -= transfer != NULL;
    free(transfer);
}

int libusb_submit_transfer(struct libusb_transfer *transfer)
{
    int code = call_with("submit", transfer->endpoint);
    if (code != 0)
        return code;
    if (!watched)
        return LIBUSB_ERROR_NO_DEVICE;
    if (!has_endpoint(transfer->endpoint) || (transfer->endpoint && off >> interface_at(transfer->endpoint) & 1)) {
        errno = ENOENT;
        return LIBUSB_ERROR_IO;
    }
    if (count == MAX_TRANSFERS)
        return LIBUSB_ERROR_NO_MEM;
    transfer->actual_length = 0;
    items[count++] = (struct item){transfer, 0};
    return 0;
}

int libusb_cancel_transfer(struct libusb_transfer *transfer)
{
    for (int i = 0; i < count; i++)
        if (items[i].transfer == transfer && !items[i].done && !hold_cancels) {
            end(&items[i], LIBUSB_TRANSFER_CANCELLED);
            return 0;
        }
    return LIBUSB_ERROR_NOT_FOUND;
}

int libusb_handle_events_timeout_completed(libusb_context *context, struct timeval *tv, int *completed)
{
    int ended = 0;
    for (int i = 0; i < count && ended < REAPED_AT_ONCE;) {
        struct libusb_transfer *transfer = items[i].transfer;
        char byte;
        if (!items[i].done) {
            i++;
            continue;
        }
        memmove(&items[i], &items[i + 1], (--count - i) * sizeof *items);
        if (read(ready[0], &byte, 1) != 1)
            abort();
        ended++;
        transfer->callback(transfer);
    }
    return 0;
}

const struct libusb_pollfd **libusb_get_pollfds(libusb_context *context)
{
    static struct libusb_pollfd fd;
    static const struct libusb_pollfd *list[2];
    lists++;
    if (hidden && hidden--)
        return NULL;
    if (appearing) {
        appearing = 0;
        added(ready[0], 1, notified_data);
    }
    fd.fd = ready[0];
    fd.events = 1; /* POLLIN */
    list[0] = watched ? &fd : NULL;
    return list;
}

void libusb_free_pollfds(const struct libusb_pollfd **pollfds) {}

/* On Linux the claim and the pump ask for none. */
int libusb_hotplug_register_callback(libusb_context *context, int events, int flags, int vendor, int product,
                                     int device_class, libusb_hotplug_callback_fn callback, void *data, int *handle)
{
    return LIBUSB_ERROR_NOT_SUPPORTED;
}

void libusb_hotplug_deregister_callback(libusb_context *context, int handle) {}

void libusb_set_pollfd_notifiers(libusb_context *context, libusb_pollfd_added_cb on_added,
                                 libusb_pollfd_removed_cb on_removed, void *data)
{
    added = on_added;
    removed = on_removed;
    notified_data = data;
}
