/* Seatbelt's sandbox_init for Linux: applies the parts of a profile that seccomp(2) can deny.  Preloaded into workers of
 * tests.  Also has enough of IOKit to show whether a process may connect to a driver.
 *
 * sandbox_init(3) of macOS: with flags 0 the profile is text; 0 is success, else *error is a text that
 * sandbox_free_error frees.  This one supports profiles whose rules name one operation each, like that of
 * usbipd/seatbelt.py; a denied operation is denied entirely, and a denied call fails with EPERM, as on macOS.
 *
 *     SANDBOX_REFUSES=1            every profile is refused
 *     SANDBOX_LEAVES="OP OP ..."   these operations are not denied, whatever the profile says
 */

#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __x86_64__
#define ARCHITECTURE AUDIT_ARCH_X86_64
#else
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

enum {
	ALWAYS,
	UNLESS_THREAD, /* clone(2), if its flags are those of a new process */
	UNLESS_SELF,   /* kill(2), if its pid is another's */
};

static const struct rule {
	const char *operation;
	int call;
	int when;
	int error;
} rules[] = {
	{ "file*", SYS_openat, ALWAYS, EPERM },
	{ "file*", SYS_openat2, ALWAYS, EPERM },
	{ "network*", SYS_connect, ALWAYS, EPERM },
	{ "network*", SYS_bind, ALWAYS, EPERM },
	{ "network*", SYS_listen, ALWAYS, EPERM },
	{ "network*", SYS_accept, ALWAYS, EPERM },
	{ "network*", SYS_accept4, ALWAYS, EPERM },
	{ "process-exec*", SYS_execve, ALWAYS, EPERM },
	{ "process-exec*", SYS_execveat, ALWAYS, EPERM },
	{ "process-fork", SYS_clone, UNLESS_THREAD, EPERM },
	{ "process-fork", SYS_clone3, ALWAYS, ENOSYS }, /* its flags are in memory; glibc then calls clone(2) */
	{ "signal", SYS_kill, UNLESS_SELF, EPERM },
#ifdef __x86_64__
	{ "file*", SYS_open, ALWAYS, EPERM },
	{ "file*", SYS_creat, ALWAYS, EPERM },
	{ "process-fork", SYS_fork, ALWAYS, EPERM },
	{ "process-fork", SYS_vfork, ALWAYS, EPERM },
#endif
};

static const char *in_force = ""; /* the profile */

enum { RULES = sizeof rules / sizeof rules[0], LONGEST = 4 + 5 * RULES };

static int refuse(char **error, const char *text)
{
	*error = strdup(text);
	errno = EPERM;
	return -1;
}

/* Whether `words` has the word. */
static int has_word(const char *words, const char *word)
{
	size_t length = strlen(word);

	for (const char *found = words; found && (found = strstr(found, word)); found += length)
		if ((found == words || found[-1] == ' ') && (found[length] == ' ' || found[length] == '\0'))
			return 1;
	return 0;
}

/* Whether the profile has "(deny OPERATION)". */
static int denies(const char *profile, const char *operation)
{
	char rule[64];
	int length = snprintf(rule, sizeof rule, "(deny %s", operation);

	for (const char *found = profile; (found = strstr(found, rule)); found += length)
		if (found[length] == ')')
			return !has_word(getenv("SANDBOX_LEAVES"), operation);
	return 0;
}

/* The instructions for one call; returns how many. */
static unsigned add(struct sock_filter *to, const struct rule *rule)
{
	const uint32_t number = offsetof(struct seccomp_data, nr), first = offsetof(struct seccomp_data, args);
	unsigned n = 0;

	to[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, number);
	if (rule->when == ALWAYS) {
		to[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, rule->call, 0, 1);
	} else {
		to[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, rule->call, 0, 3);
		to[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, first);
		if (rule->when == UNLESS_THREAD)
			to[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, CLONE_THREAD, 1, 0);
		else
			to[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, getpid(), 1, 0);
	}
	to[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | rule->error);
	return n;
}

int sandbox_init(const char *profile, uint64_t flags, char **error)
{
	struct sock_filter code[LONGEST];
	struct sock_fprog program = { 0, code };
	unsigned n = 0;

	if (getenv("SANDBOX_REFUSES"))
		return refuse(error, "profile refused");
	if (flags != 0 || strncmp(profile, "(version 1)\n(allow default)\n", 28) != 0)
		return refuse(error, "unsupported profile");
	code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
	code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0);
	code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	for (size_t i = 0; i < RULES; i++)
		if (denies(profile, rules[i].operation))
			n += add(code + n, &rules[i]);
	code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	program.len = n;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
	    || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) != 0)
		return refuse(error, strerror(errno));
	in_force = strdup(profile);
	return 0;
}

void sandbox_free_error(char *error)
{
	free(error);
}

/* IOKitLib.h: one driver, to which every process may connect unless a profile denies it.  No driver is behind it, so
 * this denial protects nothing. */

uint32_t mach_task_self_ = 1;

void *IOServiceMatching(const char *name)
{
	return strdup(name);
}

uint32_t IOServiceGetMatchingService(uint32_t port, void *matching)
{
	uint32_t found = port == 0 && strcmp(matching, "IOPMrootDomain") == 0 ? 2 : 0;

	free(matching);
	return found;
}

int IOServiceOpen(uint32_t service, uint32_t task, uint32_t type, uint32_t *connection)
{
	if (service != 2 || task != mach_task_self_ || type != 0)
		return (int)0xe00002c2; /* kIOReturnBadArgument */
	if (denies(in_force, "iokit-open") && denies(in_force, "iokit-open-user-client"))
		return (int)0xe00002e2; /* kIOReturnNotPermitted */
	*connection = 3;
	return 0;
}

int IOServiceClose(uint32_t connection)
{
	return connection == 3 ? 0 : (int)0xe00002c2;
}

int IOObjectRelease(uint32_t object)
{
	return object == 2 ? 0 : (int)0xe00002c2;
}
