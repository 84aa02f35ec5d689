/* usbip_null: the upper bound for a USB/IP server.  Runs beside usbipd in `make bench`.
 *
 * It speaks the wire protocol for one made-up device (busid 1-1) and completes
 * every URB at once out of static memory, with no USB beneath. What it reaches
 * is what the socket costs, so no server with the same strategy can be faster.
 * The strategies differ only in how the bytes cross the socket:
 *
 *   batch    recv what there is, answer all of it with one sendmsg
 *   writev   recv one header, recv its payload, answer with one sendmsg
 *
 * A sendmsg takes 512 KiB at most, unless -s limits what is on its way: more
 * falls out of the processor's cache, and takes twice as long.
 *
 * One client at a time. Endpoint 0 answers the device descriptor; every other
 * one is an endless source and sink.
 */
#define _GNU_SOURCE
#include "usbip_wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    MAX_URB = 16 << 20,
    RX_BUFFER = 256 << 10,
    REPLIES = 512, /* replies gathered into one sendmsg at most: IOV_MAX / 2 */
    SMALL = 512,   /* payloads up to here are copied next to their header */
    AT_ONCE = 512 << 10, /* bytes of one sendmsg at most, where the kernel chooses the send buffer */
};

static const uint8_t descriptor[18] = {18, 1, 0, 2, 0xff, 0, 0, 64, 0x6b, 0x1d, 4, 1, 0, 1, 0, 0, 0, 1};
static uint8_t *source, *sink; /* what every IN URB brings; where every OUT URB goes */
static int sndbuf;             /* 0: left to the kernel */

struct conn {
    int fd;
    /* receive: bytes at..len are not parsed yet */
    uint8_t rx[RX_BUFFER];
    size_t at, len;
    /* send: replies gathered so far */
    struct iovec v[2 * REPLIES];
    uint8_t small[REPLIES][USBIP_URB_HDR + SMALL];
    size_t nv, nreplies;
};

/* ---- bytes in ----------------------------------------------------------- */

static ssize_t wait_recv(struct conn *c, struct iovec *v, size_t n)
{
    struct msghdr m = {.msg_iov = v, .msg_iovlen = n};
    for (;;) {
        ssize_t got = recvmsg(c->fd, &m, 0);
        if (got >= 0 || errno != EINTR)
            return got;
    }
}

static bool recv_exact(struct conn *c, void *data, size_t len)
{
    for (uint8_t *p = data; len;) {
        struct iovec v = {p, len};
        ssize_t n = wait_recv(c, &v, 1);
        if (n <= 0)
            return false;
        p += n;
        len -= (size_t)n;
    }
    return true;
}

/* Makes a header contiguous in the buffer; reads all that has arrived. */
static bool need_header(struct conn *c)
{
    if (c->len - c->at >= USBIP_URB_HDR)
        return true;
    memmove(c->rx, c->rx + c->at, c->len - c->at);
    c->len -= c->at;
    c->at = 0;
    while (c->len < USBIP_URB_HDR) {
        struct iovec v = {c->rx + c->len, RX_BUFFER - c->len};
        ssize_t n = wait_recv(c, &v, 1);
        if (n <= 0)
            return false;
        c->len += (size_t)n;
    }
    return true;
}

/* Moves an OUT payload to its place. What is not in the buffer yet goes there
 * straight from the socket, and the headers behind it come with the same call. */
static bool take_payload(struct conn *c, size_t len)
{
    uint8_t *to = sink;
    size_t have = c->len - c->at < len ? c->len - c->at : len;
    memcpy(to, c->rx + c->at, have);
    c->at += have;
    to += have;
    len -= have;
    while (len) {
        struct iovec v[2] = {{to, len}, {c->rx, RX_BUFFER}};
        ssize_t n = wait_recv(c, v, 2);
        if (n <= 0)
            return false;
        size_t mine = (size_t)n < len ? (size_t)n : len;
        to += mine;
        len -= mine;
        c->at = 0;
        c->len = (size_t)n - mine;
    }
    return true;
}

/* ---- bytes out ---------------------------------------------------------- */

/* How many of the `n` pieces one sendmsg takes.  The last of them is cut to the limit; *cut says by how much. */
static size_t pieces_at_once(struct iovec *v, size_t n, size_t *cut)
{
    size_t bytes = 0, i = 0, limit = sndbuf ? SIZE_MAX : AT_ONCE;
    while (i < n && bytes < limit)
        bytes += v[i++].iov_len;
    *cut = bytes > limit ? bytes - limit : 0;
    v[i - 1].iov_len -= *cut;
    return i;
}

static bool flush(struct conn *c)
{
    struct iovec *v = c->v;
    size_t n = c->nv;
    while (n) {
        size_t cut, now = pieces_at_once(v, n, &cut);
        struct msghdr m = {.msg_iov = v, .msg_iovlen = now};
        ssize_t sent = sendmsg(c->fd, &m, MSG_NOSIGNAL);
        v[now - 1].iov_len += cut;
        if (sent < 0) {
            if (errno != EINTR)
                return false;
            continue;
        }
        while (n && (size_t)sent >= v->iov_len) {
            sent -= (ssize_t)v->iov_len;
            v++, n--;
        }
        if (n) {
            v->iov_base = (uint8_t *)v->iov_base + sent;
            v->iov_len -= (size_t)sent;
        }
    }
    c->nv = c->nreplies = 0;
    return true;
}

/* ---- the device --------------------------------------------------------- */

struct urb {
    uint32_t command, ep, length;
    bool in;
};

static bool parse_header(const uint8_t *h, struct urb *u)
{
    u->command = get32(h + H_COMMAND);
    u->in = get32(h + H_DIRECTION) == USBIP_DIR_IN;
    u->ep = get32(h + H_EP);
    u->length = u->command == USBIP_CMD_SUBMIT ? get32(h + S_LENGTH) : 0;
    return (u->command == USBIP_CMD_UNLINK || u->command == USBIP_CMD_SUBMIT) && u->length <= MAX_URB;
}

/* Puts the reply behind those that are gathered already. */
static void answer(struct conn *c, const uint8_t *h, const struct urb *u)
{
    uint8_t *ret = c->small[c->nreplies++];
    uint32_t actual = u->length;
    const uint8_t *data = source;
    memset(ret, 0, USBIP_URB_HDR);
    memcpy(ret + H_SEQNUM, h + H_SEQNUM, 4);
    put32(ret + H_COMMAND, u->command == USBIP_CMD_UNLINK ? USBIP_RET_UNLINK : USBIP_RET_SUBMIT);
    if (u->in && u->ep == 0) {
        actual = actual < sizeof descriptor ? actual : sizeof descriptor;
        data = descriptor;
    }
    if (u->command == USBIP_CMD_SUBMIT) { /* else status 0: it is complete already */
        put32(ret + R_ACTUAL, actual);
        memcpy(ret + R_NPACKETS, h + S_NPACKETS, 4);
    }
    size_t len = u->in ? actual : 0;
    if (len <= SMALL)
        memcpy(ret + USBIP_URB_HDR, data, len);
    c->v[c->nv++] = (struct iovec){ret, USBIP_URB_HDR + (len <= SMALL ? len : 0)};
    if (len > SMALL)
        c->v[c->nv++] = (struct iovec){(void *)data, len};
}

/* ---- strategies --------------------------------------------------------- */

static bool serve_writev(struct conn *c)
{
    uint8_t h[USBIP_URB_HDR];
    struct urb u;
    while (recv_exact(c, h, sizeof h)) {
        if (!parse_header(h, &u) || !recv_exact(c, sink, u.in ? 0 : u.length))
            return false;
        answer(c, h, &u);
        if (!flush(c))
            return false;
    }
    return true;
}

static bool serve_batch(struct conn *c)
{
    struct urb u;
    for (;;) {
        if (c->len - c->at < USBIP_URB_HDR && !flush(c)) /* answer before sleeping */
            return false;
        if (!need_header(c))
            return true;
        uint8_t h[USBIP_URB_HDR];
        memcpy(h, c->rx + c->at, sizeof h);
        c->at += sizeof h;
        if (!parse_header(h, &u))
            return false;
        size_t payload = u.in ? 0 : u.length;
        if (payload > c->len - c->at && !flush(c)) /* it may sleep for the payload */
            return false;
        if (!take_payload(c, payload))
            return false;
        answer(c, h, &u);
        if (c->nreplies == REPLIES && !flush(c))
            return false;
    }
}

/* ---- operation phase ---------------------------------------------------- */

/* True once the device is imported; OP_REQ_IMPORT is all that is answered. */
static bool serve_import(struct conn *c)
{
    uint8_t req[USBIP_OP_HDR + USBIP_BUSID], rep[USBIP_OP_HDR + USBIP_DEV] = {0}, *d = rep + USBIP_OP_HDR;
    if (!recv_exact(c, req, sizeof req) || get16(req + 2) != OP_REQ_IMPORT)
        return false;
    put16(rep, USBIP_VERSION);
    put16(rep + 2, OP_REP_IMPORT);
    if (strncmp((char *)req + USBIP_OP_HDR, "1-1", USBIP_BUSID)) {
        put32(rep + 4, 1);
        send(c->fd, rep, USBIP_OP_HDR, MSG_NOSIGNAL);
        return false;
    }
    strcpy((char *)d + D_PATH, "/sys/devices/null/1-1");
    strcpy((char *)d + D_BUSID, "1-1");
    put32(d + D_BUSNUM, 1);
    put32(d + D_DEVNUM, 2);
    put32(d + D_SPEED, 5); /* USB_SPEED_SUPER */
    put16(d + D_VENDOR, 0x1d6b);
    put16(d + D_PRODUCT, 0x0104);
    d[D_CLASS] = 0xff;
    d[D_CONFIG] = d[D_NCONFIGS] = d[D_NIFS] = 1;
    return send(c->fd, rep, sizeof rep, MSG_NOSIGNAL) == sizeof rep;
}

static void serve(int fd, bool batch)
{
    static struct conn c;
    int one = 1;
    c.fd = fd;
    c.at = c.len = c.nv = c.nreplies = 0;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (sndbuf)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &sndbuf, sizeof sndbuf);
    if (serve_import(&c) && !(batch ? serve_batch(&c) : serve_writev(&c)))
        fputs("usbip_null: the client broke the protocol or went away\n", stderr);
    close(fd);
}

static const char usage[] =
    "usage: usbip_null [-a ADDRESS] [-p PORT] [-m batch|writev] [-s BYTES]\n"
    "  -a  address to listen on (127.0.0.1)                                    -s  SO_SNDBUF\n"
    "  -p  port (3240; 0: a free one, which the first line of output names)\n";

int main(int argc, char **argv)
{
    long port = USBIP_PORT;
    bool batch = true, ok = true;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int o; (o = getopt(argc, argv, "a:p:m:s:")) != -1;) {
        char *end = "";
        switch (o) {
        case 'a': ok = ok && inet_pton(AF_INET, optarg, &a.sin_addr) == 1; break;
        case 'p': port = strtol(optarg, &end, 10); break;
        case 'm': batch = !strcmp(optarg, "batch"); ok = ok && (batch || !strcmp(optarg, "writev")); break;
        case 's': sndbuf = (int)strtol(optarg, &end, 10); break;
        default: ok = false;
        }
        ok = ok && !*end;
    }
    if (!ok || optind < argc || port < 0 || port > 65535 || sndbuf < 0) {
        fputs(usage, stderr);
        return 2;
    }
    source = malloc(MAX_URB);
    sink = malloc(MAX_URB);
    if (!source || !sink) {
        fputs("usbip_null: out of memory\n", stderr);
        return 1;
    }
    for (size_t i = 0; i < MAX_URB; i++)
        source[i] = (uint8_t)(i % 63); /* the pattern of the kernel's g_zero */
    memset(sink, 0, MAX_URB);

    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    socklen_t length = sizeof a;
    a.sin_port = htons((uint16_t)port);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 4) ||
        getsockname(fd, (struct sockaddr *)&a, &length)) {
        perror("usbip_null");
        return 1;
    }
    printf("%u\n", ntohs(a.sin_port));
    fflush(stdout);
    for (int client; (client = accept(fd, NULL, NULL)) >= 0;)
        serve(client, batch);
    return 0;
}
