/*
 * The least that a USB/IP server over libusb can do.  Runs beside usbipd in `make bench`, over the same usbfs.c.
 *
 * One thread: recv what there is, submit all of it, handle_events(0), answer what that has completed with one sendmsg.
 * It waits in recv when nothing is in flight, and in poll only when neither client nor device has anything.
 * Nothing is checked that a benchmark does not get wrong, nothing counted, no UNLINK: what usbipd does beyond this is
 * what it costs more.  One client at a time, 127.0.0.1 only; an OUT payload has to fit the receive buffer.
 */
#define _GNU_SOURCE
#include "../load/usbip_wire.h"

#include <errno.h>
#include <libusb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    RX_BUFFER = 256 << 10,
    HEADROOM = 64,      /* in front of the data: the reply's header, or the setup packet */
    LARGEST = 64 << 10, /* bytes of data of an URB */
    IN_FLIGHT = 512,    /* and replies in one sendmsg: IOV_MAX is 1024 */
    POLLED = 8,
    REAPED = 26, /* completions of one handle_events, at most: op_handle_events in libusb's linux_usbfs.c */
};

struct urb {
    struct libusb_transfer *transfer;
    struct urb *next; /* in the pool */
    uint8_t seqnum[4];
    bool in;
    uint8_t *data; /* HEADROOM + LARGEST bytes from `data - HEADROOM` on */
};

static libusb_context *context;
static libusb_device_handle *device;
static struct urb *pool;
static unsigned pending;
static struct iovec replies[IN_FLIGHT];
static struct urb *answered[IN_FLIGHT];
static size_t count; /* of both */

static void die(const char *what)
{
    fprintf(stderr, "loop: %s\n", what);
    exit(1);
}

/* ---- URBs ---------------------------------------------------------------- */

static void LIBUSB_CALL done(struct libusb_transfer *transfer)
{
    struct urb *u = transfer->user_data;
    uint8_t *reply = u->data - USBIP_URB_HDR;
    uint32_t actual = (uint32_t)transfer->actual_length;
    if (transfer->status != LIBUSB_TRANSFER_COMPLETED)
        die("a transfer failed");
    memset(reply, 0, USBIP_URB_HDR);
    put32(reply + H_COMMAND, USBIP_RET_SUBMIT);
    memcpy(reply + H_SEQNUM, u->seqnum, sizeof u->seqnum);
    put32(reply + R_ACTUAL, actual);
    replies[count] = (struct iovec){reply, USBIP_URB_HDR + (u->in ? actual : 0)};
    answered[count++] = u;
    pending--;
}

static struct urb *take(void)
{
    struct urb *u = pool;
    if (u) {
        pool = u->next;
        return u;
    }
    void *memory;
    u = calloc(1, sizeof *u);
    if (!u || posix_memalign(&memory, 64, HEADROOM + LARGEST) || !(u->transfer = libusb_alloc_transfer(0)))
        die("out of memory");
    u->data = (uint8_t *)memory + HEADROOM;
    return u;
}

/* The URB at `h`, of which `have` bytes are here; the bytes that it took, 0: it is not whole. */
static size_t submit(const uint8_t *h, size_t have)
{
    uint32_t length = get32(h + S_LENGTH), ep = get32(h + H_EP);
    bool in = get32(h + H_DIRECTION) == USBIP_DIR_IN;
    size_t whole = USBIP_URB_HDR + (in ? 0 : length);
    if (get32(h + H_COMMAND) != USBIP_CMD_SUBMIT || length > LARGEST || pending == IN_FLIGHT)
        die("a request that this loop does not take");
    if (whole > have)
        return 0;
    struct urb *u = take();
    memcpy(u->seqnum, h + H_SEQNUM, sizeof u->seqnum);
    u->in = in;
    if (ep == 0) {
        memcpy(u->data - LIBUSB_CONTROL_SETUP_SIZE, h + S_SETUP, LIBUSB_CONTROL_SETUP_SIZE);
        libusb_fill_control_transfer(u->transfer, device, u->data - LIBUSB_CONTROL_SETUP_SIZE, done, u, 0);
    } else {
        memcpy(u->data, h + USBIP_URB_HDR, whole - USBIP_URB_HDR);
        libusb_fill_bulk_transfer(u->transfer, device, (uint8_t)(ep | (in ? LIBUSB_ENDPOINT_IN : 0)), u->data,
                                  (int)length, done, u, 0);
    }
    if (libusb_submit_transfer(u->transfer))
        die("libusb_submit_transfer failed");
    pending++;
    return whole;
}

static void give_back(void)
{
    while (count) {
        struct urb *u = answered[--count];
        u->next = pool;
        pool = u;
    }
}

static bool flush(int fd)
{
    struct iovec *v = replies;
    size_t left = count;
    while (left) {
        struct msghdr m = {.msg_iov = v, .msg_iovlen = left};
        ssize_t sent = sendmsg(fd, &m, MSG_NOSIGNAL);
        if (sent < 0)
            return false;
        while (left && (size_t)sent >= v->iov_len) {
            sent -= (ssize_t)v->iov_len;
            v++, left--;
        }
        if (left) {
            v->iov_base = (uint8_t *)v->iov_base + sent;
            v->iov_len -= (size_t)sent;
        }
    }
    give_back();
    return true;
}

/* ---- a client ------------------------------------------------------------ */

/* All that is complete. */
static void complete(void)
{
    struct timeval none = {0, 0};
    unsigned before;
    do {
        before = pending;
        if (libusb_handle_events_timeout_completed(context, &none, NULL))
            die("libusb_handle_events failed");
    } while (before - pending >= REAPED);
}

static void wait_for_either(int fd)
{
    struct pollfd fds[POLLED] = {{.fd = fd, .events = POLLIN}};
    const struct libusb_pollfd **list = libusb_get_pollfds(context);
    nfds_t n = 1;
    for (; list[n - 1] && n < POLLED; n++)
        fds[n] = (struct pollfd){.fd = list[n - 1]->fd, .events = list[n - 1]->events};
    libusb_free_pollfds(list);
    poll(fds, n, -1);
}

static void serve_urbs(int fd)
{
    static uint8_t rx[RX_BUFFER];
    size_t at = 0, end = 0, took;
    for (;;) {
        memmove(rx, rx + at, end - at);
        end -= at;
        at = 0;
        ssize_t got = recv(fd, rx + end, sizeof rx - end, pending ? MSG_DONTWAIT : 0);
        if (got == 0 || (got < 0 && errno != EAGAIN))
            break;
        if (got > 0)
            end += (size_t)got;
        while (end - at >= USBIP_URB_HDR && (took = submit(rx + at, end - at)))
            at += took;
        complete();
        if (got < 0 && !count)
            wait_for_either(fd);
        if (!flush(fd))
            break;
    }
    give_back();
    while (pending)
        complete();
    give_back();
}

static void put_device(uint8_t *d, uint8_t bus, uint8_t address)
{
    strcpy((char *)d + D_PATH, "/sys/devices/loop/1-1");
    strcpy((char *)d + D_BUSID, "1-1");
    put32(d + D_BUSNUM, bus);
    put32(d + D_DEVNUM, address);
    put32(d + D_SPEED, 3); /* USB_SPEED_HIGH */
    d[D_CONFIG] = d[D_NCONFIGS] = d[D_NIFS] = 1;
}

/* Answers the one OP_REQ_IMPORT. */
static bool import(int fd)
{
    uint8_t request[USBIP_OP_HDR + USBIP_BUSID], reply[USBIP_OP_HDR + USBIP_DEV] = {0};
    if (recv(fd, request, sizeof request, MSG_WAITALL) != sizeof request || get16(request + 2) != OP_REQ_IMPORT)
        return false;
    put16(reply, USBIP_VERSION);
    put16(reply + 2, OP_REP_IMPORT);
    libusb_device *it = libusb_get_device(device);
    put_device(reply + USBIP_OP_HDR, libusb_get_bus_number(it), libusb_get_device_address(it));
    return send(fd, reply, sizeof reply, MSG_NOSIGNAL) == sizeof reply;
}

static void open_device(void)
{
    libusb_device **list;
    if (libusb_init(&context) || libusb_get_device_list(context, &list) != 1)
        die("libusb does not find the one device");
    if (libusb_open(list[0], &device) || libusb_claim_interface(device, 0))
        die("the device cannot be claimed");
    libusb_free_device_list(list, 1);
}

/* Takes a listening socket as descriptor 0. */
int main(void)
{
    open_device();
    for (int fd; (fd = accept(0, NULL, NULL)) >= 0; close(fd)) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        if (import(fd))
            serve_urbs(fd);
    }
    perror("loop: accept");
    return 1;
}
