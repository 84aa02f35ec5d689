/* The command line of usbip_load.  Runs beside usbipd in `make bench`. */
#define _GNU_SOURCE
#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 1024, MAX_SIZE = 16 << 20 };

static const char usage[] =
    "usage: usbip_load [options]\n"
    "  -H HOST  -p PORT  -b BUSID     server and device (127.0.0.1, 3240, 1-1)\n"
    "  -t control|bulk-out|bulk-in    what to submit (control: GET_DESCRIPTOR device)\n"
    "  -e EP  -s BYTES                endpoint number, size of a URB\n"
    "  -n COUNT  -T SECONDS           end after either (100000, 1)\n"
    "  -q DEPTH  -w COUNT             URBs in flight (1), URBs before the measured ones (1000)\n"
    "  -1                             one sendmsg per URB, as the kernel's vhci_hcd does\n"
    "  -P PID  -L LABEL               measure this process; first column of the line\n"
    "  -h                             print the column names and end\n";

static unsigned long number(const char *s, unsigned long max)
{
    char *end;
    errno = 0;
    unsigned long v = strtoul(s, &end, 0);
    if (errno || *end || end == s || v > max) {
        fprintf(stderr, "usbip_load: bad number %s (at most %lu)\n", s, max);
        exit(EXIT_USAGE);
    }
    return v;
}

static double duration(const char *s)
{
    char *end;
    double v = strtod(s, &end);
    if (*end || end == s || !(v > 0 && v <= 600)) {
        fprintf(stderr, "usbip_load: bad duration %s (at most 600 s)\n", s);
        exit(EXIT_USAGE);
    }
    return v;
}

static enum kind kind_of(const char *name)
{
    static const char *const names[] = {"control", "bulk-out", "bulk-in"};
    for (int i = 0; i < 3; i++)
        if (!strcmp(name, names[i]))
            return (enum kind)i;
    fputs(usage, stderr);
    exit(EXIT_USAGE);
}

struct options parse_options(int argc, char **argv)
{
    struct options o = {.host = "127.0.0.1", .port = "3240", .busid = "1-1", .label = "-",
                        .kind_name = "control", .depth = 1, .count = 100000, .warmup = 1000,
                        .seconds = 1};
    bool sized = false;
    for (int c; (c = getopt(argc, argv, "H:p:b:t:e:s:n:T:q:w:1P:L:h")) != -1;) {
        switch (c) {
        case 'H': o.host = optarg; break;
        case 'p': o.port = optarg; break;
        case 'b': o.busid = optarg; break;
        case 't': o.kind = kind_of(o.kind_name = optarg); break;
        case 'e': o.ep = (unsigned)number(optarg, 15); break;
        case 's': o.size = (unsigned)number(optarg, MAX_SIZE), sized = true; break;
        case 'n': o.count = number(optarg, 1000000000); break;
        case 'T': o.seconds = duration(optarg); break;
        case 'q': o.depth = (unsigned)number(optarg, MAX_DEPTH); break;
        case 'w': o.warmup = number(optarg, 1000000); break;
        case '1': o.per_urb = true; break;
        case 'P': o.server_pid = (int)number(optarg, 1 << 22); break;
        case 'L': o.label = optarg; break;
        case 'h':
            puts("label\tkind\tsize\tdepth\turbs\tseconds\turbs_s\tMB_s\tp50_us\tp99_us\tmax_us\t"
                 "server_cpu_us\tclient_cpu_us\tfailed\tshort");
            exit(0);
        default: fputs(usage, stderr); exit(EXIT_USAGE);
        }
    }
    if (!sized)
        o.size = o.kind == CONTROL_IN ? 18 : 512;
    if (optind < argc || !o.depth || (o.kind == CONTROL_IN && o.size > 65535)) {
        fputs(usage, stderr);
        exit(EXIT_USAGE);
    }
    return o;
}
