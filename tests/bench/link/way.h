/* One direction of an emulated link: when each packet arrives, and which never do.  Runs in tests/bench/link/wire.c.
 *
 * No clock, no socket: the caller says what time it is, so that a test can.  All times are nanoseconds of one clock that
 * never goes back.  A packet waits in a queue until the link is free, takes as long as the rate says, then travels for
 * delay plus a random part of jitter.  Packets never overtake each other.
 */
#ifndef WAY_H
#define WAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MTU = 1500,
    FRAMING = 38, /* bytes of Ethernet round a packet: preamble 8, header 14, checksum 4, gap 12 (IEEE 802.3) */
    MAX_PACKETS = 1 << 14, /* in one direction, queued and travelling */
};

struct conditions {
    uint64_t delay_ns, jitter_ns;
    double mbit_s;    /* 0: no limit */
    double loss;      /* the part of all packets that is lost at random, 0 to 1 */
    uint64_t queue;   /* bytes that may wait for the link to be free; what comes beyond is dropped */
};

struct way;

/* An empty direction.  NULL: out of memory. */
struct way *way_new(const struct conditions *conditions, uint64_t seed);
void way_free(struct way *way);

/* Puts a packet of at most MTU bytes in.  False: it is lost, or dropped. */
bool way_put(struct way *way, uint64_t now, const void *bytes, size_t length);

/* When the next packet arrives; UINT64_MAX: there is none. */
uint64_t way_next(const struct way *way);

/* Takes out the next packet if it has arrived, and says how long it is; NULL: none has.  Valid until the next put. */
const void *way_take(struct way *way, uint64_t now, size_t *length);

/* The network stands still for so long: what is queued or travelling arrives that much later, all of it. */
void way_stall(struct way *way, uint64_t now, uint64_t ns);

#endif
