# Memory of URBs: a pool that one client can make grow to its budget and not beyond.  Runs in workers.
#
# An Urb comes from a free list of at most MAX_URBS; data of up to INLINE_DATA bytes lies inside it.  Larger data
# gets a buffer of a size class, a power of two from 1 KiB to 32 MiB.  Buffers in use and buffers kept for the next
# URB count against the same budget, so the worker's memory for one client is at most
#     budget + MAX_URBS * (sizeof(Urb) + the backend's transfer).
# Large buffers are memory that the device reaches without a copy, where the backend has such memory, up to
# DEVICE_MEMORY: all programs of a host share usbfs' 16 MiB (usbfs_memory_mb, drivers/usb/core/devio.c), from which
# other URBs take their memory only while they are in flight, but this one as long as it is kept.  So what is kept of
# it goes back when the client has been silent for DEVICE_IDLE, or as soon as the host's stack lacks memory.
#
# Where the system has no memory, what is kept is freed; if that is not enough, the URB is answered with -ENOMEM.  It
# takes memory to answer, too, so each pump has one spare URB for such SUBMITs, with room for isochronous descriptors,
# and one for UNLINKs, whose answer may have to wait for the device.  While a spare is on its way the next message
# that needs it waits, as with a budget that is used up: the end of the spare's answer goes on with it.
#
# When the client leaves, all of it goes back to the system.  Nothing is zeroed: what leaves the process is only what
# the device wrote.

cdef extern from *:
    """
    /* free() alone keeps what a busy client needed: glibc holds up to twice the largest block that it ever freed
       (mallopt(3), M_TRIM_THRESHOLD).  Other C libraries are left to their own ways. */
    #include <stdlib.h>
    #ifdef __GLIBC__
    #include <malloc.h>
    static void return_freed_memory(void) { malloc_trim(0); }
    #else
    static void return_freed_memory(void) {}
    #endif
    """
    void return_freed_memory() nogil


cdef inline size_t pool_iso_room(uint32_t packets) noexcept nogil:
    """Bytes behind an isochronous URB's data: the descriptors as they come and go, then as IsoPacket, aligned."""
    return <size_t>packets * (ISO_DESCRIPTOR_SIZE + sizeof(IsoPacket)) + sizeof(IsoPacket)


cdef inline size_t pool_class_size(int k) noexcept nogil:
    return HEADROOM + (<size_t>SMALLEST_CLASS << k)


cdef inline size_t pool_device_size(int k) noexcept nogil:
    return (pool_class_size(k) + PAGE - 1) & ~<size_t>(PAGE - 1)


cdef void pool_return_device_memory(Pool *pool) noexcept nogil:
    """Gives the kept buffers that are the backend's back to it."""
    cdef int k
    cdef Block *block
    for k in range(SIZE_CLASSES):
        while pool.kept_device[k] != NULL:
            block = pool.kept_device[k]
            pool.kept_device[k] = block.next
            pool.allocated -= pool_device_size(k)
            pool.device_memory -= pool_device_size(k)
            pool.backend.release(pool.backend, block, pool_device_size(k))
    pool.device_kept = 0


cdef void pool_trim(Pool *pool) noexcept nogil:
    """Frees the kept buffers."""
    cdef int k
    cdef Block *block
    if pool.device_kept:
        pool_return_device_memory(pool)
    for k in range(SIZE_CLASSES):
        while pool.kept[k] != NULL:
            block = pool.kept[k]
            pool.kept[k] = block.next
            pool.allocated -= pool_class_size(k)
            free(block)


cdef void *pool_take_device_memory(Pool *pool, int k) noexcept nogil:
    """A buffer of the size class from the backend, or NULL."""
    cdef void *memory = pool.kept_device[k]
    if memory != NULL:
        pool.kept_device[k] = pool.kept_device[k].next
        pool.device_kept -= pool_device_size(k)
        return memory
    if (pool.backend.allocate == NULL or pool.device_memory_ends or k < DEVICE_CLASS
            or pool.device_memory + pool_device_size(k) > <size_t>DEVICE_MEMORY
            or pool.allocated + pool_device_size(k) > pool.budget):
        return NULL
    memory = pool.backend.allocate(pool.backend, pool_device_size(k))
    if memory == NULL:
        pool.device_memory_ends = True
        return NULL
    pool.allocated += pool_device_size(k)
    pool.device_memory += pool_device_size(k)
    return memory


cdef uint8_t *pool_take_buffer(Pool *pool, size_t size, Urb *urb) noexcept nogil:
    """HEADROOM + `size` bytes for the URB, or NULL when that would break the budget."""
    cdef int k = 0
    cdef void *memory = NULL
    while (<size_t>SMALLEST_CLASS << k) < size:
        k += 1
    urb.size_class = k
    memory = pool_take_device_memory(pool, k)
    urb.device_memory = memory != NULL
    if memory != NULL:
        return <uint8_t *>memory
    if pool.kept[k] != NULL:
        memory = pool.kept[k]
        pool.kept[k] = pool.kept[k].next
        return <uint8_t *>memory
    if pool.allocated + pool_class_size(k) > pool.budget:
        pool_trim(pool)
        if pool.allocated + pool_class_size(k) > pool.budget:
            return NULL
    if posix_memalign(&memory, CACHE_LINE, pool_class_size(k)) != 0:
        pool_trim(pool)
        if posix_memalign(&memory, CACHE_LINE, pool_class_size(k)) != 0:
            pool.lacks_memory = True
            return NULL
    pool.allocated += pool_class_size(k)
    return <uint8_t *>memory


cdef Urb *pool_make_urb(Pool *pool) noexcept nogil:
    cdef Urb *urb = <Urb *>calloc(1, sizeof(Urb))
    if urb == NULL:
        pool_trim(pool)
        urb = <Urb *>calloc(1, sizeof(Urb))
    return urb


cdef Urb *pool_take(Pool *pool, size_t size) noexcept nogil:
    """An URB with `size` bytes of data, or NULL: the client has all that it may have, or `lacks_memory`."""
    cdef Urb *urb = pool.free_urbs
    cdef uint8_t *buffer
    pool.lacks_memory = False
    if pool.urbs >= MAX_URBS:
        return NULL
    if urb != NULL:
        pool.free_urbs = urb.next
    else:
        urb = pool_make_urb(pool)
        if urb == NULL:
            pool.lacks_memory = True
            return NULL
    if size <= INLINE_DATA:
        urb.size_class = -1
        buffer = urb.storage
    else:
        buffer = pool_take_buffer(pool, size, urb)
        if buffer == NULL:
            urb.next = pool.free_urbs
            pool.free_urbs = urb
            return NULL
    pool.urbs += 1
    urb_begin(urb, buffer)
    return urb


cdef int pool_make_spares(Pool *pool) except -1:
    cdef int i
    pool.spare_buffer = <uint8_t *>malloc(HEADROOM + pool_iso_room(MAX_ISO_PACKETS))
    if pool.spare_buffer == NULL:
        raise MemoryError
    for i in range(SPARES):
        pool.spares[i] = <Urb *>calloc(1, sizeof(Urb))
        if pool.spares[i] == NULL:
            raise MemoryError
        pool.spares[i].size_class = SPARE
    return 0


cdef void pool_free_spares(Pool *pool) noexcept nogil:
    cdef int i
    for i in range(SPARES):
        free(pool.spares[i])
    free(pool.spare_buffer)


cdef Urb *pool_take_spare(Pool *pool, int use) noexcept nogil:
    """The URB that takes no memory, or NULL: it is on its way.  FOR_SUBMIT it has room for descriptors, not data."""
    cdef Urb *urb = pool.spares[use]
    if urb.state != URB_FREE:
        return NULL
    urb_begin(urb, pool.spare_buffer if use == FOR_SUBMIT else urb.storage)
    return urb


cdef void pool_give(Pool *pool, Urb *urb) noexcept nogil:
    cdef Block *block
    cdef Block **kept
    if urb.size_class == SPARE:
        urb.state = URB_FREE
        return
    if urb.size_class >= 0:
        block = <Block *>(urb.data - HEADROOM)
        kept = &pool.kept[urb.size_class]
        if urb.device_memory:
            kept = &pool.kept_device[urb.size_class]
            pool.device_kept += pool_device_size(urb.size_class)
        block.next = kept[0]
        kept[0] = block
    urb.state = URB_FREE
    urb.next = pool.free_urbs
    pool.free_urbs = urb
    pool.urbs -= 1


cdef void pool_give_all(Pool *pool, Urb *urb) noexcept nogil:
    """The URB, and those that its `next` links to it; NULL: none."""
    cdef Urb *following
    while urb != NULL:
        following = urb.next
        pool_give(pool, urb)
        urb = following


cdef void pool_empty(Pool *pool, Backend *backend) noexcept nogil:
    """Gives everything back to the system; no URB may be in use."""
    cdef Urb *urb
    pool_trim(pool)
    pool.device_memory_ends = False
    while pool.free_urbs != NULL:
        urb = pool.free_urbs
        pool.free_urbs = urb.next
        backend.forget(backend, urb)
        free(urb)
    return_freed_memory()
