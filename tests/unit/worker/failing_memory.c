/*
 * The allocator of glibc, in front of which the pump and the fake libusb can be told that there is no memory.  Runs in
 * tests, by LD_PRELOAD: memory_cases.py.  Only calls from these two libraries count, so that neither Python nor the
 * test meets a failure that is not meant for it.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void __libc_free(void *memory);

static long calls;          /* since memory_fails */
static long first_failing;
static long failing;        /* so many from there on */
static int until_freed;     /* all do, until something is freed */

/* Of the calls from now on, counted from 1, `many` fail from `first` on. */
void memory_fails(long first, long many)
{
    calls = 0;
    first_failing = first;
    failing = many;
    until_freed = 0;
}

/* All calls fail until the pump has freed something. */
void memory_fails_until_freed(void) { until_freed = 1; }

long memory_calls(void) { return calls; }

static int is_ours(const void *caller)
{
    Dl_info info;
    if (!dladdr(caller, &info) || info.dli_fname == NULL)
        return 0;
    return strstr(info.dli_fname, "/_pump.") != NULL || strstr(info.dli_fname, "/libusb-1.0.so") != NULL;
}

static int fails(const void *caller)
{
    if (!is_ours(caller))
        return 0;
    calls++;
    return until_freed || (calls >= first_failing && calls < first_failing + failing);
}

void free(void *memory)
{
    if (until_freed && memory != NULL && is_ours(__builtin_return_address(0)))
        until_freed = 0;
    __libc_free(memory);
}

void *malloc(size_t size)
{
    if (!fails(__builtin_return_address(0)))
        return __libc_malloc(size);
    errno = ENOMEM;
    return NULL;
}

void *calloc(size_t count, size_t size)
{
    if (!fails(__builtin_return_address(0)))
        return __libc_calloc(count, size);
    errno = ENOMEM;
    return NULL;
}

int posix_memalign(void **memory, size_t alignment, size_t size)
{
    if (fails(__builtin_return_address(0)))
        return ENOMEM;
    *memory = __libc_memalign(alignment, size);
    return *memory == NULL ? ENOMEM : 0;
}
