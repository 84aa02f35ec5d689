/*
 * A usbfs whose ioctls answer at once.  Runs in the two processes that over_usbfs.py compares, preloaded (LD_PRELOAD):
 * a worker of usbipd, and the reference loop.c.  Above it runs the real libusb-1.0, unchanged.
 *
 * Files: what is opened below /sys/bus/usb and /dev/bus/usb is taken from $USBFS_ROOT, a directory that host.py fills.
 * The device node there is an empty file; its descriptor is the one that the ioctls below belong to.
 * udev: one device, the one that host.py describes.  Nothing is ever plugged in or pulled out.
 * Data: GET_DESCRIPTOR of the device descriptor is answered, other control IN requests stall.  Bulk IN brings the
 * pattern of the kernel's g_zero, copied as usbfs copies when an URB is reaped; OUT takes everything.
 *
 * Nothing of this enters the kernel: SUBMITURB queues, REAPURBNDELAY takes from the queue, and poll() says POLLOUT for
 * the node as long as something is queued (usbdev_poll in drivers/usb/core/devio.c) while the kernel waits for the
 * other descriptors.  Only the thread that submits may poll the node: no other one would be woken.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/usb/ch9.h>
#include <linux/usbdevice_fs.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define BUSID "1-1" /* these three as in host.py */
#define NODE "/dev/bus/usb/001/002"
#define DESCRIPTORS "/sys/bus/usb/devices/1-1/descriptors"

enum {
    QUEUE = 4096,         /* a power of two, and more than the pump lets a client have in flight */
    PATTERN = 16 << 20,   /* usbfs's own limit for all that is in flight */
    SETUP = sizeof(struct usb_ctrlrequest),
};

static int (*real_open)(const char *, int, ...);
static int (*real_close)(int);
static int (*real_ioctl)(int, unsigned long, ...);
static int (*real_poll)(struct pollfd *, nfds_t, int);
static DIR *(*real_opendir)(const char *);

static const char *root;
static uint8_t descriptor[USB_DT_DEVICE_SIZE];
static uint8_t *pattern;

static int node = -1; /* the descriptor of the opened device node */
static struct usbdevfs_urb *queue[QUEUE]; /* submitted and not reaped: first..last, modulo QUEUE */
static unsigned first, last;

static void die(const char *what)
{
    fprintf(stderr, "usbfs: %s: %s\n", what, strerror(errno));
    _exit(1);
}

static void *symbol(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    if (!found)
        die(name);
    return found;
}

__attribute__((constructor)) static void start(void)
{
    real_open = symbol("open");
    real_close = symbol("close");
    real_ioctl = symbol("ioctl");
    real_poll = symbol("poll");
    real_opendir = symbol("opendir");
    root = getenv("USBFS_ROOT");
    if (!root) {
        errno = EINVAL;
        die("USBFS_ROOT is not set");
    }
    pattern = malloc(PATTERN);
    if (!pattern)
        die("malloc");
    for (size_t i = 0; i < PATTERN; i++)
        pattern[i] = (uint8_t)(i % 63);
}

/* ---- files --------------------------------------------------------------- */

/* `path`, or where it is to be found instead: in `space`. */
static const char *moved(const char *path, char space[PATH_MAX])
{
    if (strncmp(path, "/sys/bus/usb", 12) && strncmp(path, "/dev/bus/usb", 12))
        return path;
    if (snprintf(space, PATH_MAX, "%s%s", root, path) >= PATH_MAX)
        die("USBFS_ROOT is too long");
    return space;
}

static void read_descriptor(void)
{
    char space[PATH_MAX];
    int fd = real_open(moved(DESCRIPTORS, space), O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, descriptor, sizeof descriptor) != sizeof descriptor)
        die(DESCRIPTORS);
    real_close(fd);
}

int open(const char *path, int flags, ...)
{
    char space[PATH_MAX];
    va_list rest;
    va_start(rest, flags);
    int mode = flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, int) : 0;
    va_end(rest);
    int fd = real_open(moved(path, space), flags, mode);
    if (fd >= 0 && !strcmp(path, NODE) && (flags & O_ACCMODE) == O_RDWR) {
        read_descriptor();
        node = fd;
        first = last = 0;
    }
    return fd;
}

/* What open() becomes in libusb, which is built with _FORTIFY_SOURCE. */
int __open_2(const char *path, int flags) { return open(path, flags); }

DIR *opendir(const char *path)
{
    char space[PATH_MAX];
    return real_opendir(moved(path, space));
}

int close(int fd)
{
    if (fd >= 0 && fd == node)
        node = -1;
    return real_close(fd);
}

/* ---- transfers ----------------------------------------------------------- */

static int fail(int code)
{
    errno = code;
    return -1;
}

static void carry_out(struct usbdevfs_urb *urb)
{
    uint8_t *data = urb->buffer;
    urb->status = 0;
    urb->actual_length = urb->buffer_length;
    if (urb->type != USBDEVFS_URB_TYPE_CONTROL) {
        if (urb->endpoint & USB_DIR_IN)
            memcpy(data, pattern, (size_t)urb->buffer_length);
        return;
    }
    urb->actual_length -= SETUP;
    if (!(data[0] & USB_DIR_IN))
        return;
    if (data[1] != USB_REQ_GET_DESCRIPTOR || data[3] != USB_DT_DEVICE) {
        urb->status = -EPIPE;
        urb->actual_length = 0;
        return;
    }
    if (urb->actual_length > USB_DT_DEVICE_SIZE)
        urb->actual_length = USB_DT_DEVICE_SIZE;
    memcpy(data + SETUP, descriptor, (size_t)urb->actual_length);
}

static int submit(struct usbdevfs_urb *urb)
{
    if (last - first == QUEUE || urb->type == USBDEVFS_URB_TYPE_ISO || urb->buffer_length > PATTERN)
        return fail(urb->type == USBDEVFS_URB_TYPE_ISO ? EINVAL : ENOMEM);
    queue[last++ % QUEUE] = urb;
    return 0;
}

static int reap(struct usbdevfs_urb **urb)
{
    if (first == last)
        return fail(EAGAIN);
    *urb = queue[first++ % QUEUE];
    carry_out(*urb);
    return 0;
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if (fd < 0 || fd != node)
        return real_ioctl(fd, request, argument);
    switch (request) {
    case USBDEVFS_SUBMITURB: return submit(argument);
    case USBDEVFS_REAPURBNDELAY: return reap(argument);
    case USBDEVFS_DISCARDURB: return fail(EINVAL); /* it is complete already */
    case USBDEVFS_GET_CAPABILITIES: /* of a controller that takes any length in one URB */
        *(uint32_t *)argument = USBDEVFS_CAP_ZERO_PACKET | USBDEVFS_CAP_NO_PACKET_SIZE_LIM |
                                USBDEVFS_CAP_BULK_SCATTER_GATHER | USBDEVFS_CAP_REAP_AFTER_DISCONNECT;
        return 0;
    case USBDEVFS_GETDRIVER: return fail(ENODATA); /* no driver has the interface */
    case USBDEVFS_RESET:
    case USBDEVFS_CLEAR_HALT:
    case USBDEVFS_SETINTERFACE:
    case USBDEVFS_CLAIMINTERFACE:
    case USBDEVFS_DISCONNECT_CLAIM:
    case USBDEVFS_RELEASEINTERFACE: return 0;
    }
    return fail(ENOTTY);
}

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized" /* glibc says that poll only writes to `fds` */
int poll(struct pollfd *fds, nfds_t count, int timeout)
{
    nfds_t at = 0;
    if (node >= 0)
        while (at < count && fds[at].fd != node)
            at++;
    if (node < 0 || at == count)
        return real_poll(fds, count, timeout);
    bool ready = first != last && fds[at].events & POLLOUT;
    fds[at].fd = -1; /* poll skips it */
    int found = real_poll(fds, count, ready ? 0 : timeout);
    fds[at].fd = node;
    if (ready && found >= 0) {
        fds[at].revents = POLLOUT;
        found++;
    }
    return found;
}

/* ---- udev ---------------------------------------------------------------- */

/* libusb asks these of libudev; pointers to things that it never looks into. */
static int it;

void *udev_new(void) { return &it; }
void *udev_unref(void *udev) { (void)udev; return NULL; }

void *udev_monitor_new_from_netlink(void *udev, const char *name) { (void)udev, (void)name; return &it; }
int udev_monitor_filter_add_match_subsystem_devtype(void *monitor, const char *subsystem, const char *type)
{
    (void)monitor, (void)subsystem, (void)type;
    return 0;
}
int udev_monitor_enable_receiving(void *monitor) { (void)monitor; return 0; }
int udev_monitor_get_fd(void *monitor) { (void)monitor; return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }
void *udev_monitor_receive_device(void *monitor) { (void)monitor; return NULL; }
void *udev_monitor_unref(void *monitor) { (void)monitor; return NULL; }

void *udev_enumerate_new(void *udev) { (void)udev; return &it; }
int udev_enumerate_add_match_subsystem(void *enumerate, const char *name) { (void)enumerate, (void)name; return 0; }
int udev_enumerate_add_match_property(void *enumerate, const char *name, const char *value)
{
    (void)enumerate, (void)name, (void)value;
    return 0;
}
int udev_enumerate_scan_devices(void *enumerate) { (void)enumerate; return 0; }
void *udev_enumerate_get_list_entry(void *enumerate) { (void)enumerate; return &it; }
void *udev_enumerate_unref(void *enumerate) { (void)enumerate; return NULL; }
void *udev_list_entry_get_next(void *entry) { (void)entry; return NULL; }
const char *udev_list_entry_get_name(void *entry) { (void)entry; return "/sys/bus/usb/devices/" BUSID; }

void *udev_device_new_from_syspath(void *udev, const char *path) { (void)udev, (void)path; return &it; }
const char *udev_device_get_devnode(void *device) { (void)device; return NODE; }
const char *udev_device_get_sysname(void *device) { (void)device; return BUSID; }
const char *udev_device_get_action(void *device) { (void)device; return NULL; }
void *udev_device_unref(void *device) { (void)device; return NULL; }
