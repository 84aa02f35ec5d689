/* wire: a link between two new network namespaces, for kernels without netem.  Runs beside usbipd in
 * `make bench`.
 *
 *     wire DELAY_US JITTER_US MBIT_S LOSS QUEUE_BYTES SEED
 *
 * It makes the namespaces, with a TUN device in each, and moves packets between them as way.h says, in both directions
 * alike.  The first line of output has the numbers of two descriptors, of the server's namespace (address 192.0.2.1)
 * and of the client's (192.0.2.2): a program that enters /proc/PID/fd/NUMBER runs there.  A line `stall MS` on standard
 * input stops the network for so long.  It ends with standard input; namespaces and devices have no name outside and
 * end with the last process in them.
 */
#define _GNU_SOURCE
#include "way.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    EXIT_USAGE = 2,
    AT_ONCE = 64,          /* packets read from one side before the other has its turn */
    MAX_STALL_MS = 60000,
    PRIORITY = 1,          /* of SCHED_FIFO, the lowest: a network does not wait for a processor */
};

struct side {
    int namespace, tun;
    struct way *out; /* from here to the other side */
};

static void die(const char *what)
{
    fprintf(stderr, "wire: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int must(int result, const char *what)
{
    if (result < 0)
        die(what);
    return result;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- the two sides ------------------------------------------------------ */

static void bring_up(int any, const char *name, const char *address)
{
    struct ifreq r = {0};
    struct sockaddr_in a = {.sin_family = AF_INET};
    strncpy(r.ifr_name, name, IFNAMSIZ - 1);
    if (address) {
        inet_pton(AF_INET, address, &a.sin_addr);
        memcpy(&r.ifr_addr, &a, sizeof a);
        must(ioctl(any, SIOCSIFADDR, &r), "SIOCSIFADDR");
        inet_pton(AF_INET, "255.255.255.0", &a.sin_addr);
        memcpy(&r.ifr_netmask, &a, sizeof a);
        must(ioctl(any, SIOCSIFNETMASK, &r), "SIOCSIFNETMASK");
    }
    must(ioctl(any, SIOCGIFFLAGS, &r), "SIOCGIFFLAGS");
    r.ifr_flags |= IFF_UP;
    must(ioctl(any, SIOCSIFFLAGS, &r), "SIOCSIFFLAGS");
}

/* Makes a namespace, enters it, and makes its end of the link.  IFF_NO_PI without IFF_VNET_HDR: a packet a read, none
 * of them larger than the MTU, as on a real link. */
static struct side make_side(const char *address)
{
    struct side side;
    must(unshare(CLONE_NEWNET), "no new network namespace");
    side.namespace = must(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), "/proc/self/ns/net");
    side.tun = must(open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC), "/dev/net/tun");
    struct ifreq r = {.ifr_name = "wire"};
    r.ifr_flags = IFF_TUN | IFF_NO_PI;
    must(ioctl(side.tun, TUNSETIFF, &r), "TUNSETIFF");
    int any = must(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
    bring_up(any, "lo", NULL);
    bring_up(any, "wire", address);
    close(any);
    return side;
}

/* ---- packets and stalls ------------------------------------------------- */

static void read_packets(struct side *from)
{
    uint8_t packet[MTU];
    for (int i = 0; i < AT_ONCE; i++) {
        ssize_t length = read(from->tun, packet, sizeof packet);
        if (length < 0 && errno != EAGAIN && errno != EINTR)
            die("reading a packet");
        if (length <= 0)
            return;
        way_put(from->out, now_ns(), packet, (size_t)length);
    }
}

static void deliver(struct way *way, int to)
{
    size_t length;
    for (const void *packet; (packet = way_take(way, now_ns(), &length));)
        if (write(to, packet, length) < 0 && errno != EINVAL) /* EINVAL: the receiver takes no such packet */
            die("writing a packet");
}

/* False: standard input is at its end. */
static bool obey(struct side sides[2])
{
    static char line[64];
    static size_t used;
    ssize_t got = read(STDIN_FILENO, line + used, sizeof line - 1 - used);
    if (got <= 0)
        return false;
    used += (size_t)got;
    line[used] = 0;
    for (char *end; (end = strchr(line, '\n'));) {
        unsigned ms;
        *end = 0;
        if (sscanf(line, "stall %u", &ms) != 1 || ms > MAX_STALL_MS) {
            fprintf(stderr, "wire: no order: %s (stall MS, at most %d)\n", line, MAX_STALL_MS);
            exit(EXIT_USAGE);
        }
        for (int i = 0; i < 2; i++)
            way_stall(sides[i].out, now_ns(), ms * 1000000ull);
        used -= (size_t)(end + 1 - line);
        memmove(line, end + 1, used + 1);
    }
    return used < sizeof line - 1;
}

static void move_packets(struct side sides[2])
{
    for (;;) {
        uint64_t next = UINT64_MAX;
        for (int i = 0; i < 2; i++) {
            read_packets(&sides[i]);
            deliver(sides[i].out, sides[1 - i].tun);
            if (way_next(sides[i].out) < next)
                next = way_next(sides[i].out);
        }
        uint64_t now = now_ns(), left = next > now ? next - now : 0;
        struct timespec wait = {(time_t)(left / 1000000000u), (long)(left % 1000000000u)};
        struct pollfd polled[3] = {{sides[0].tun, POLLIN, 0}, {sides[1].tun, POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
        if (ppoll(polled, 3, next == UINT64_MAX ? NULL : &wait, NULL) < 0 && errno != EINTR)
            die("ppoll");
        if (polled[2].revents && !obey(sides))
            return;
    }
}

/* ---- command line ------------------------------------------------------- */

static double number(const char *text, double most)
{
    char *end;
    double value = strtod(text, &end);
    if (*end || end == text || !(value >= 0 && value <= most)) {
        fprintf(stderr, "wire: bad number %s (0 to %g)\n", text, most);
        exit(EXIT_USAGE);
    }
    return value;
}

int main(int argc, char **argv)
{
    if (argc != 7) {
        fputs("usage: wire DELAY_US JITTER_US MBIT_S LOSS QUEUE_BYTES SEED\n", stderr);
        return EXIT_USAGE;
    }
    struct conditions conditions = {
        .delay_ns = (uint64_t)(number(argv[1], 10e6) * 1e3),
        .jitter_ns = (uint64_t)(number(argv[2], 10e6) * 1e3),
        .mbit_s = number(argv[3], 1e5),
        .loss = number(argv[4], 1),
        .queue = (uint64_t)number(argv[5], MAX_PACKETS * (double)MTU),
    };
    uint64_t seed = (uint64_t)number(argv[6], 1e9);
    struct side sides[2] = {make_side("192.0.2.1"), make_side("192.0.2.2")};
    for (unsigned i = 0; i < 2; i++)
        if (!(sides[i].out = way_new(&conditions, 2 * seed + i)))
            die("out of memory");
    sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){PRIORITY}); /* refused: it is as good as it is */
    prctl(PR_SET_TIMERSLACK, 1);
    printf("%d %d\n", sides[0].namespace, sides[1].namespace);
    fflush(stdout);
    move_packets(sides);
    for (int i = 0; i < 2; i++)
        way_free(sides[i].out);
    return 0;
}
