/*
 * Python with AddressSanitizer, UndefinedBehaviorSanitizer, LeakSanitizer and libFuzzer inside.  It takes the place of
 * python in the environment that build.py makes, so that whatever the suite starts with sys.executable runs under them,
 * however clean its environment is and whoever it becomes.
 *
 * A report of any process goes into a file of its own in REPORTS and ends that process with EXIT_CODE.
 */

#define _GNU_SOURCE
#include <Python.h>
#include <sys/prctl.h>
#include <unistd.h>

/* Of the stack of an allocation two functions are kept, malloc and its caller: so a line of leaks.txt means what that
 * caller allocated, and never what one of our own modules did below it.  ASAN_OPTIONS=malloc_context_size=30 shows all. */
const char *__asan_default_options(void)
{
    return "log_path=" REPORTS "/report:exitcode=" EXIT_CODE ":external_symbolizer_path=" SYMBOLIZER
           ":malloc_context_size=2:allocator_may_return_null=1:quarantine_size_mb=2";
}

const char *__lsan_default_options(void) { return "suppressions=" SUPPRESSIONS ":print_suppressions=0"; }
const char *__ubsan_default_options(void) { return "print_stacktrace=1"; }

/* Asked when the process ends.  Of a process that has changed its user the kernel lets nobody look at the memory, unless
 * it says that it agrees; not even then if it has kept a way back.  And the server, in its empty root, lacks the /proc
 * that looking takes; it has no module of ours. */
int __lsan_is_turned_off(void)
{
    uid_t real, effective, saved;
    prctl(PR_SET_DUMPABLE, 1);
    return getresuid(&real, &effective, &saved) != 0 || real != saved || access("/proc/self/task", R_OK) != 0;
}

int main(int argc, char **argv)
{
    PyPreConfig config;
    PyPreConfig_InitPythonConfig(&config);
    config.allocator = PYMEM_ALLOCATOR_MALLOC; /* each object by itself: pymalloc's arenas hide them */
    PyStatus status = Py_PreInitialize(&config);
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
    return Py_BytesMain(argc, argv);
}
