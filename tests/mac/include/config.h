/* Results of libusb's configure on a Mac, for its darwin backend on Linux.  Included before everything else. */
#ifndef SOFTWARE_MAC_CONFIG_H
#define SOFTWARE_MAC_CONFIG_H

#define _GNU_SOURCE 1
#define DEFAULT_VISIBILITY __attribute__((visibility("default")))
#define ENABLE_LOGGING 1
#define HAVE_NFDS_T 1
#define HAVE_STRUCT_TIMESPEC 1
#define HAVE_SYS_TIME_H 1
#define PLATFORM_POSIX 1
#define PRINTF_FORMAT(a, b) __attribute__((__format__(__printf__, a, b)))

#include <AvailabilityMacros.h>
#include <errno.h>
#include <pthread.h>

/* On macOS a thread names itself, with one argument. */
#define pthread_setname_np(name) pthread_setname_np(pthread_self(), "libusb-hotplug")

#endif
