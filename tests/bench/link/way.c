/* One direction of an emulated link.  Runs in tests/bench/link/wire.c; way.h says what it does. */
#include "way.h"

#include <stdlib.h>
#include <string.h>

struct packet {
    uint64_t leaves; /* its last bit is on the link; until then it is queued */
    uint64_t arrives;
    size_t length;
    uint8_t bytes[MTU];
};

struct way {
    struct conditions is;
    uint64_t random; /* state of the generator, never 0 */
    uint64_t free_at, last_arrival;
    uint64_t queued; /* bytes of the packets from `waiting` on */
    size_t first, waiting, end; /* counted from the start: oldest, oldest that is queued, next; first <= waiting <= end */
    struct packet ring[MAX_PACKETS];
};

struct way *way_new(const struct conditions *conditions, uint64_t seed)
{
    struct way *way = calloc(1, sizeof *way);
    if (way) {
        way->is = *conditions;
        way->random = seed * 2 + 1;
    }
    return way;
}

void way_free(struct way *way)
{
    free(way);
}

static struct packet *at(struct way *way, size_t count)
{
    return &way->ring[count % MAX_PACKETS];
}

/* 0 to 1, 1 excluded.  xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators", 2016. */
static double chance(struct way *way)
{
    uint64_t x = way->random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    way->random = x;
    return (double)((x * 2685821657736338717u) >> 11) / (double)(1ull << 53);
}

static void leave(struct way *way, uint64_t now)
{
    while (way->waiting != way->end && at(way, way->waiting)->leaves <= now)
        way->queued -= at(way, way->waiting++)->length;
}

bool way_put(struct way *way, uint64_t now, const void *bytes, size_t length)
{
    leave(way, now);
    if (chance(way) < way->is.loss)
        return false;
    if (length > MTU || way->queued + length > way->is.queue || way->end - way->first == MAX_PACKETS)
        return false;
    struct packet *packet = at(way, way->end++);
    memcpy(packet->bytes, bytes, length);
    packet->length = length;
    way->queued += length;
    if (way->free_at < now)
        way->free_at = now;
    if (way->is.mbit_s > 0)
        way->free_at += (uint64_t)((double)(length + FRAMING) * 8e3 / way->is.mbit_s);
    packet->leaves = way->free_at;
    packet->arrives = packet->leaves + way->is.delay_ns + (uint64_t)(chance(way) * (double)way->is.jitter_ns);
    if (packet->arrives < way->last_arrival)
        packet->arrives = way->last_arrival;
    way->last_arrival = packet->arrives;
    return true;
}

uint64_t way_next(const struct way *way)
{
    return way->first == way->end ? UINT64_MAX : way->ring[way->first % MAX_PACKETS].arrives;
}

const void *way_take(struct way *way, uint64_t now, size_t *length)
{
    leave(way, now);
    if (way_next(way) > now)
        return NULL;
    struct packet *packet = at(way, way->first++);
    *length = packet->length;
    return packet->bytes;
}

void way_stall(struct way *way, uint64_t now, uint64_t ns)
{
    leave(way, now);
    way->free_at = (way->free_at < now ? now : way->free_at) + ns;
    way->last_arrival += ns;
    for (size_t i = way->first; i != way->end; i++) {
        at(way, i)->arrives += ns;
        if (i >= way->waiting)
            at(way, i)->leaves += ns;
    }
}
