/*
 * Python with AddressSanitizer, UndefinedBehaviorSanitizer, LeakSanitizer and libFuzzer inside.  It replaces python in
 * the environment that build.py creates, so that everything the suite starts with sys.executable runs under them, also
 * with an empty environment or as another user.
 *
 * A report of any process goes into a separate file in REPORTS and ends that process with EXIT_CODE.
 */

#define _GNU_SOURCE
#include <Python.h>
#include <fcntl.h>
#include <sanitizer/common_interface_defs.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

/* Only two functions of an allocation's stack are kept, malloc and its caller, so a line of leaks.txt matches only
 * what that caller allocated, never what one of our modules did below it.  ASAN_OPTIONS=malloc_context_size=30 shows all. */
const char *__asan_default_options(void)
{
    return "log_path=" REPORTS "/report:exitcode=" EXIT_CODE ":external_symbolizer_path=" SYMBOLIZER
           ":malloc_context_size=2:allocator_may_return_null=1:quarantine_size_mb=2";
}

const char *__lsan_default_options(void) { return "suppressions=" SUPPRESSIONS ":print_suppressions=0"; }
const char *__ubsan_default_options(void) { return "print_stacktrace=1"; }

/* Called when the process exits.  The memory of a process that has changed its user can be examined only if it
 * makes itself dumpable, and not even then if it kept a saved user.  The check needs /proc and a thread, which a confined
 * process cannot have: server and workers of daemons are left out.  tests/unit/worker tests their modules. */
int __lsan_is_turned_off(void)
{
    uid_t real, effective, saved;
    struct rlimit threads;
    prctl(PR_SET_DUMPABLE, 1);
    int tasks = open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (tasks >= 0)
        close(tasks);
    return getresuid(&real, &effective, &saved) != 0 || real != saved || tasks < 0
           || getrlimit(RLIMIT_NPROC, &threads) != 0 || threads.rlim_cur == 0;
}

/* A confined worker could not open its report file, so it is opened at the start; an empty file is no report. */
static void open_report(int argc, char **argv)
{
    char path[sizeof REPORTS + 32];
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "@worker") == 0) {
            snprintf(path, sizeof path, "%s/report.%d", REPORTS, (int)getpid());
            int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
            if (file >= 0)
                __sanitizer_set_report_fd((void *)(intptr_t)file);
        }
}

int main(int argc, char **argv)
{
    open_report(argc, argv);
    PyPreConfig config;
    PyPreConfig_InitPythonConfig(&config);
    config.allocator = PYMEM_ALLOCATOR_MALLOC; /* each object separately: pymalloc's arenas hide them */
    PyStatus status = Py_PreInitialize(&config);
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
    return Py_BytesMain(argc, argv);
}
