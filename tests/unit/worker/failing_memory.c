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

static long calls;          /* since memory_fails */
static long first_failing;
static long failing;        /* so many from there on */

/* Of the calls from now on, counted from 1, `many` fail from `first` on. */
void memory_fails(long first, long many)
{
    calls = 0;
    first_failing = first;
    failing = many;
}

long memory_calls(void) { return calls; }

static int fails(const void *caller)
{
    Dl_info info;
    if (!dladdr(caller, &info) || info.dli_fname == NULL)
        return 0;
    if (strstr(info.dli_fname, "/_pump.") == NULL && strstr(info.dli_fname, "/libusb-1.0.so") == NULL)
        return 0;
    calls++;
    return calls >= first_failing && calls < first_failing + failing;
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
