/* The command line of usbip_load.  Runs beside usbipd in `make bench`. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

enum { EXIT_USAGE = 2, EXIT_STALLED = 3, EXIT_PROTOCOL = 4 };

enum kind { CONTROL_IN, BULK_OUT, BULK_IN };

struct options {
    const char *host, *port, *busid, *label;
    enum kind kind;
    const char *kind_name;
    unsigned ep, size, depth;
    uint64_t count, warmup;
    double seconds;
    bool per_urb;
    int server_pid;
};

/* Ends the program with EXIT_USAGE and a message when the command line is wrong. */
struct options parse_options(int argc, char **argv);

#endif
