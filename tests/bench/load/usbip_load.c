/* usbip_load: a bounded, single-threaded USB/IP client that loads a server.  Runs beside usbipd in `make bench`.
 *
 * It imports one device over one TCP connection and keeps up to DEPTH
 * CMD_SUBMITs in flight until COUNT of them completed or SECONDS passed, then
 * prints one tab-separated line: rate, throughput, latency percentiles and
 * the CPU time the server process spent per URB.
 *
 * Every reply is checked: it must be a RET_SUBMIT of a seqnum that is in
 * flight, may not carry more data than was asked for, and GET_DESCRIPTOR must
 * bring the same bytes every time. Failed and short URBs are counted, and any
 * violation of the protocol ends the run with exit status 4.
 */
#define _GNU_SOURCE
#include "options.h"
#include "usbip_wire.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_SAMPLES = 4 << 20,
    RX_BUFFER = 256 << 10,
    IOVECS = 256,
    STALL_SECONDS = 5,
};

/* One URB in flight. */
struct slot {
    uint8_t header[USBIP_URB_HDR];
    uint32_t seqnum; /* 0: free */
    uint64_t sent_ns;
};

struct client {
    const struct options *opt;
    int fd;
    uint32_t devid, next_seqnum;
    unsigned outstanding, mask;
    struct slot *slots; /* indexed by seqnum & mask */

    uint8_t *payload;  /* what every OUT URB sends */
    struct slot **tx;             /* ring of slots not sent in full yet */
    unsigned tx_head, tx_len;
    size_t tx_done; /* bytes of the URB at tx_head that are sent */

    uint8_t *rx;
    uint64_t heard_ns; /* when the last bytes came */
    size_t rx_len, rx_skip; /* bytes held; payload bytes still to be skipped */
    uint8_t first[64], seen[64];
    size_t seen_len, seen_want;
    bool have_first;

    uint64_t completed, bytes, failed, short_urbs;
    uint32_t *samples;
    size_t nsamples;
};

static void die(int status, const char *what)
{
    fprintf(stderr, "usbip_load: %s\n", what);
    exit(status);
}

static void die_errno(const char *what)
{
    fprintf(stderr, "usbip_load: %s: %s\n", what, strerror(errno));
    exit(errno == EAGAIN ? EXIT_STALLED : 1);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* CPU time of every live thread of a process, in nanoseconds. schedstat is
 * exact where stat counts in 10 ms ticks, but only live threads are in it. */
static uint64_t process_cpu_ns(int pid)
{
    char path[300];
    uint64_t total = 0;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *dir = opendir(path);
    if (!dir)
        return 0;
    for (struct dirent *e; (e = readdir(dir));) {
        if (e->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", pid, e->d_name);
        FILE *f = fopen(path, "r");
        unsigned long long ns;
        if (f && fscanf(f, "%llu", &ns) == 1)
            total += ns;
        if (f)
            fclose(f);
    }
    closedir(dir);
    return total;
}

static uint64_t own_cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- operation phase ---------------------------------------------------- */

static int dial(const struct options *o)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list;
    int bad = getaddrinfo(o->host, o->port, &hints, &list);
    if (bad)
        die(1, gai_strerror(bad));
    int fd = -1;
    for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, a->ai_socktype, 0);
        if (fd >= 0 && connect(fd, a->ai_addr, a->ai_addrlen) < 0) {
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(list);
    if (fd < 0)
        die_errno("connect");
    int one = 1; /* `usbip attach` sets it too */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct timeval tv = {.tv_sec = STALL_SECONDS};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
    return fd;
}

static void send_all(int fd, const void *data, size_t len)
{
    for (const uint8_t *p = data; len;) {
        ssize_t n = send(fd, p, len, MSG_NOSIGNAL);
        if (n < 0)
            die_errno("send");
        p += n;
        len -= (size_t)n;
    }
}

static void recv_all(int fd, void *data, size_t len)
{
    for (uint8_t *p = data; len;) {
        ssize_t n = recv(fd, p, len, 0);
        if (n < 0)
            die_errno("recv");
        if (!n)
            die(1, "the server closed the connection");
        p += n;
        len -= (size_t)n;
    }
}

static uint32_t operation(int fd, uint16_t code, const char *busid)
{
    uint8_t req[USBIP_OP_HDR + USBIP_BUSID] = {0}, rep[USBIP_OP_HDR];
    put16(req, USBIP_VERSION);
    put16(req + 2, code);
    if (busid)
        strncpy((char *)req + USBIP_OP_HDR, busid, USBIP_BUSID - 1);
    send_all(fd, req, USBIP_OP_HDR + (busid ? USBIP_BUSID : 0));
    recv_all(fd, rep, sizeof rep);
    if (get16(rep) != USBIP_VERSION || get16(rep + 2) != (code & 0x7fff))
        die(EXIT_PROTOCOL, "unexpected operation reply");
    return get32(rep + 4);
}

static void import(struct client *c)
{
    uint8_t dev[USBIP_DEV];
    c->fd = dial(c->opt);
    if (operation(c->fd, OP_REQ_IMPORT, c->opt->busid))
        die(1, "OP_REQ_IMPORT was refused");
    recv_all(c->fd, dev, sizeof dev);
    if (strncmp((char *)dev + D_BUSID, c->opt->busid, USBIP_BUSID))
        die(EXIT_PROTOCOL, "another busid was imported");
    c->devid = get32(dev + D_BUSNUM) << 16 | (get32(dev + D_DEVNUM) & 0xffff);
}

/* ---- URB phase ---------------------------------------------------------- */

static bool is_out(const struct client *c)
{
    return c->opt->kind == BULK_OUT;
}

static void fill_header(const struct client *c, uint8_t *h, uint32_t seqnum)
{
    memset(h, 0, USBIP_URB_HDR);
    put32(h + H_COMMAND, USBIP_CMD_SUBMIT);
    put32(h + H_SEQNUM, seqnum);
    put32(h + H_DEVID, c->devid);
    put32(h + H_DIRECTION, is_out(c) ? USBIP_DIR_OUT : USBIP_DIR_IN);
    put32(h + H_EP, c->opt->ep);
    put32(h + S_LENGTH, c->opt->size);
    if (c->opt->kind == CONTROL_IN) {
        const uint8_t setup[8] = {0x80, 6, 0, 1, 0, 0, (uint8_t)c->opt->size, (uint8_t)(c->opt->size >> 8)};
        memcpy(h + S_SETUP, setup, 8);
    }
}

/* Bytes of one URB on the wire, and the pieces they are made of. */
static size_t urb_pieces(const struct client *c, const struct slot *s, struct iovec v[2])
{
    size_t n = 1;
    v[0] = (struct iovec){(void *)s->header, USBIP_URB_HDR};
    if (is_out(c) && c->opt->size)
        v[n++] = (struct iovec){c->payload, c->opt->size};
    return n;
}

static void submit(struct client *c, uint64_t now)
{
    struct slot *s = &c->slots[c->next_seqnum & c->mask];
    s->seqnum = c->next_seqnum++;
    s->sent_ns = now;
    fill_header(c, s->header, s->seqnum);
    c->tx[(c->tx_head + c->tx_len++) & c->mask] = s;
    c->outstanding++;
}

/* Sends what it can without blocking. */
static void flush(struct client *c)
{
    while (c->tx_len) {
        struct iovec v[IOVECS], *at = v;
        size_t n = 0, skip = c->tx_done;
        unsigned urbs = c->opt->per_urb ? 1 : c->tx_len;
        for (unsigned i = 0; i < urbs && n + 2 <= IOVECS; i++)
            n += urb_pieces(c, c->tx[(c->tx_head + i) & c->mask], v + n);
        while (skip >= at->iov_len) {
            skip -= at->iov_len;
            at++, n--;
        }
        at->iov_base = (uint8_t *)at->iov_base + skip;
        at->iov_len -= skip;

        struct msghdr m = {.msg_iov = at, .msg_iovlen = n};
        ssize_t sent = sendmsg(c->fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EAGAIN)
                return;
            die_errno("sendmsg");
        }
        c->tx_done += (size_t)sent;
        size_t urb = USBIP_URB_HDR + (is_out(c) ? c->opt->size : 0);
        while (c->tx_len && c->tx_done >= urb) {
            c->tx_done -= urb;
            c->tx_head++, c->tx_len--;
        }
    }
}

static void check_descriptor(struct client *c)
{
    if (!c->have_first) {
        if (c->seen_len < 8 || c->seen[0] != 18 || c->seen[1] != 1)
            die(EXIT_PROTOCOL, "that is no device descriptor");
        memcpy(c->first, c->seen, sizeof c->first);
        c->have_first = true;
    }
    if (memcmp(c->first, c->seen, c->seen_len))
        die(EXIT_PROTOCOL, "the device descriptor changed");
}

static void complete(struct client *c, const uint8_t *h, uint64_t now)
{
    uint32_t seqnum = get32(h + H_SEQNUM), actual = get32(h + R_ACTUAL);
    struct slot *s = &c->slots[seqnum & c->mask];
    if (get32(h + H_COMMAND) != USBIP_RET_SUBMIT)
        die(EXIT_PROTOCOL, "a reply is no RET_SUBMIT");
    if (!seqnum || s->seqnum != seqnum)
        die(EXIT_PROTOCOL, "a reply to a URB that is not in flight");
    if (actual > c->opt->size)
        die(EXIT_PROTOCOL, "a reply carries more than was asked for");
    s->seqnum = 0;
    c->outstanding--;
    c->completed++;
    c->bytes += actual;
    c->failed += get32(h + R_STATUS) != 0;
    c->short_urbs += actual < c->opt->size;
    if (c->nsamples < MAX_SAMPLES)
        c->samples[c->nsamples++] = (uint32_t)(now - s->sent_ns);

    c->rx_skip = is_out(c) ? 0 : actual;
    c->seen_len = 0;
    c->seen_want = c->opt->kind != CONTROL_IN ? 0 : actual < sizeof c->seen ? actual : sizeof c->seen;
}

/* Parses all that is in the receive buffer. */
static void parse(struct client *c, uint64_t now)
{
    size_t at = 0;
    for (;;) {
        if (c->rx_skip) {
            size_t n = c->rx_len - at < c->rx_skip ? c->rx_len - at : c->rx_skip;
            if (c->seen_len < c->seen_want && n) {
                size_t k = c->seen_want - c->seen_len < n ? c->seen_want - c->seen_len : n;
                memcpy(c->seen + c->seen_len, c->rx + at, k);
                c->seen_len += k;
                if (c->seen_len == c->seen_want)
                    check_descriptor(c);
            }
            at += n;
            c->rx_skip -= n;
            if (c->rx_skip)
                break;
        }
        if (c->rx_len - at < USBIP_URB_HDR)
            break;
        complete(c, c->rx + at, now);
        at += USBIP_URB_HDR;
    }
    memmove(c->rx, c->rx + at, c->rx_len - at);
    c->rx_len -= at;
}

/* Waits for a reply, and for room to send while something is unsent. */
static void receive(struct client *c)
{
    for (;;) {
        int flags = c->tx_len ? MSG_DONTWAIT : 0;
        ssize_t n = recv(c->fd, c->rx + c->rx_len, RX_BUFFER - c->rx_len, flags);
        if (n > 0) {
            c->rx_len += (size_t)n;
            c->heard_ns = now_ns();
            parse(c, c->heard_ns);
            return;
        }
        if (!n)
            die(1, "the server closed the connection");
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN)
            die_errno("recv");
        if (now_ns() - c->heard_ns > (STALL_SECONDS - 1) * 1000000000ull)
            die(EXIT_STALLED, "the server went silent");
        if (c->tx_len) {
            struct pollfd p = {.fd = c->fd, .events = POLLIN | POLLOUT};
            poll(&p, 1, STALL_SECONDS * 1000);
            return;
        }
    }
}

static void reset_counters(struct client *c)
{
    c->completed = c->bytes = c->failed = c->short_urbs = 0;
    c->nsamples = 0;
}

/* Keeps the pipeline full until `count` URBs were submitted or the time is up,
 * then drains it. */
static double run(struct client *c, uint64_t count, double seconds)
{
    reset_counters(c);
    uint64_t start = c->heard_ns = now_ns(), now = start, end = start + (uint64_t)(seconds * 1e9), submitted = 0;
    while (c->outstanding || (submitted < count && now < end)) {
        while (submitted < count && now < end && c->outstanding < c->opt->depth &&
               !c->slots[c->next_seqnum & c->mask].seqnum) {
            submit(c, now);
            submitted++;
        }
        flush(c);
        receive(c);
        now = now_ns();
    }
    return (double)(now_ns() - start) / 1e9;
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static double percentile_us(const struct client *c, double p)
{
    if (!c->nsamples)
        return 0;
    return c->samples[(size_t)(p * (double)(c->nsamples - 1))] / 1e3;
}

static void report(struct client *c, double s, uint64_t server_ns, uint64_t own_ns)
{
    double n = c->completed ? (double)c->completed : 1;
    qsort(c->samples, c->nsamples, sizeof *c->samples, by_value);
    printf("%s\t%s\t%u\t%u\t%llu\t%.3f\t%.0f\t%.1f\t%.1f\t%.1f\t%.1f\t%.2f\t%.2f\t%llu\t%llu\n", c->opt->label,
           c->opt->kind_name, c->opt->size, c->opt->depth, (unsigned long long)c->completed, s,
           (double)c->completed / s, (double)c->bytes / s / 1e6, percentile_us(c, .5), percentile_us(c, .99),
           percentile_us(c, 1), (double)server_ns / n / 1e3, (double)own_ns / n / 1e3,
           (unsigned long long)c->failed, (unsigned long long)c->short_urbs);
}

/* ---- the run ------------------------------------------------------------ */

static void *need(void *p)
{
    if (!p)
        die(1, "out of memory");
    return p;
}

int main(int argc, char **argv)
{
    struct options o = parse_options(argc, argv);
    struct client c = {.opt = &o, .next_seqnum = 1};
    for (c.mask = 1; c.mask < o.depth * 4; c.mask <<= 1) {}
    c.slots = need(calloc(c.mask, sizeof *c.slots));
    c.tx = need(calloc(c.mask, sizeof *c.tx));
    c.mask--;
    c.payload = need(malloc(o.size + 1));
    for (unsigned i = 0; i < o.size; i++)
        c.payload[i] = (uint8_t)(i % 63); /* the pattern of the kernel's g_zero */
    c.rx = need(malloc(RX_BUFFER));
    c.samples = need(malloc(MAX_SAMPLES * sizeof *c.samples));

    import(&c);
    run(&c, o.warmup, o.seconds);
    uint64_t server = o.server_pid ? process_cpu_ns(o.server_pid) : 0, own = own_cpu_ns();
    double seconds = run(&c, o.count, o.seconds);
    own = own_cpu_ns() - own;
    if (o.server_pid)
        server = process_cpu_ns(o.server_pid) - server;
    report(&c, seconds, server, own);
    close(c.fd);
    free(c.slots);
    free(c.tx);
    free(c.payload);
    free(c.rx);
    free(c.samples);
    return 0;
}
