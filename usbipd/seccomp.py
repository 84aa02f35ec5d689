"""The seccomp filter that denies system calls to a confined process.  Runs in the server and the workers.

Linux only, on the two architectures whose call numbers are listed here.  A short list of denials, not of
permissions: a newer libc, libusb or Python that uses another harmless call keeps working.  It denies what the
process does not need, independent of its user and its namespaces: opening files, affecting another process,
starting a program or a thread.  It applies to all threads, including libusb's.

The program is classic BPF (Documentation/networking/filter.rst in Linux); a denied call fails with EPERM.
"""

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Mapping
from typing import Final

_Numbers = Mapping[str, tuple[int, int | None]]
"""The number of each call on x86_64 (arch/x86/entry/syscalls/syscall_64.tbl) and on aarch64, which has only
the newer of two similar calls (include/uapi/asm-generic/unistd.h)."""

_ARCHITECTURES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""By uname's machine: the column in the tables below, and AUDIT_ARCH_* of include/uapi/linux/audit.h."""

_SOCKETS: Final[_Numbers] = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
}
"""All sockets are open already or arrive with a message."""

_ACCEPT: Final[_Numbers] = {"accept": (43, 202), "accept4": (288, 242)}
"""For workers only."""

_FILES: Final[_Numbers] = {
    "open": (2, None),
    "creat": (85, None),
    "openat": (257, 56),
    "openat2": (437, 437),
    "open_by_handle_at": (304, 265),
    "memfd_create": (319, 279),
    "mq_open": (240, 180),
}
"""Files, old and new."""

_PATHS: Final[_Numbers] = {
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "truncate": (76, 45),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
}
"""Changes of files without opening them.  A daemon of an ordinary user could rename its log to a file that
this user's shell reads.  Landlock denies most of these, but not every kernel has it."""

_SHARED: Final[_Numbers] = {
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
}
"""System V IPC (svipc(7)): memory of other programs that is not a file and outlives them."""

_PROCESSES: Final[_Numbers] = {
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "setpriority": (141, 140),
    "setpgid": (109, 154),
    "setsid": (112, 157),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
}
"""Signal, slow down or inspect another process, or leave the group that the extension kills.  The kernel
refuses most of it across users anyway, but a daemon of an ordinary user has only one."""

_PROGRAMS: Final[_Numbers] = {
    "fork": (57, None),
    "vfork": (58, None),
    "clone": (56, 220),
    "clone3": (435, 435),
    "execve": (59, 221),
    "execveat": (322, 281),
}
"""No threads either: those that libusb needs already run."""

_KERNEL: Final[_Numbers] = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
}
"""Large parts of the kernel that the process does not use and that have most of the vulnerabilities.  A user
namespace (unshare) would expose more of them; io_uring makes system calls that no filter sees."""

_OF_ITSELF: Final = {"tgkill": (234, 131), "prlimit64": (302, 261)}
"""Allowed if the first argument is the process's own pid or 0: abort(3) and getrlimit(3)."""

_COMMANDS: Final = {"ioctl": (16, 29), "fcntl": (72, 25)}
_DENIED_COMMANDS: Final = (0x5410, 0x5412, 0x541C, 0x8901, 0x8902, 8, 15)
"""Denied as their second argument.  TIOCSPGRP, TIOCSTI and TIOCLINUX (include/uapi/asm-generic/ioctls.h,
tiocl.h) read or insert input of the terminal that is the process's stderr; FIOSETOWN, SIOCSPGRP, F_SETOWN and
F_SETOWN_EX (sockios.h, fcntl.h) make the kernel send a signal to another process."""

_FLAGS_FOURTH: Final = {"sendto": (44, 206), "sendmmsg": (307, 269)}
_FLAGS_THIRD: Final = {"sendmsg": (46, 211)}
_FASTOPEN: Final = 0x20000000
"""MSG_FASTOPEN (include/linux/socket.h) connects a socket without connect(2); denied in the flags of these
calls.  It could connect a listener after shutdown(2), which is still in the host's network namespace."""

_X32: Final = 0x40000000  # __X32_SYSCALL_BIT, arch/x86/include/uapi/asm/unistd.h: a second set of numbers

_SECCOMP: Final = (317, 277)
_SET_MODE_FILTER: Final = 1  # include/uapi/linux/seccomp.h, as the following
_FLAG_TSYNC: Final = 1
_FLAG_SPEC_ALLOW: Final = 4
_ALLOW: Final = 0x7FFF0000
_DENY: Final = 0x00050000 | errno.EPERM
_NUMBER: Final = 0  # offsets in struct seccomp_data
_ARCHITECTURE: Final = 4
_FIRST_ARGUMENT: Final = 16  # of 64 bits each, the low word first on both architectures
_SECOND_ARGUMENT: Final = 24
_THIRD_ARGUMENT: Final = 32
_FOURTH_ARGUMENT: Final = 40

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS, include/uapi/linux/bpf_common.h, as the following
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_HAS: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_INSTRUCTION: Final = struct.Struct("=HBBI")  # struct sock_filter: code, jump if true, jump if false, value

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))  # struct sock_fprog


def deny(*, accepts: bool) -> bool:
    """Deny these system calls for good, in all threads; `accepts` keeps accept(2).

    Returns whether this kernel and architecture support the filter.  Needs no_new_privs.  Raises `OSError` if
    the kernel supports filters but refuses this one.
    """
    here = _here()
    if here is None:
        return False
    column, audit = here
    code = _program(column, audit, os.getpid(), accepts=accepts)
    filter_ = _Program(len(code) // _INSTRUCTION.size, code)
    # SPEC_ALLOW: otherwise kernels before 5.16 slow the process down to protect secrets that it might keep
    # from its own code.  It has none.  The flag exists since Linux 4.17.
    result = -1
    for flags in (_FLAG_TSYNC | _FLAG_SPEC_ALLOW, _FLAG_TSYNC):
        numbers = (_SECCOMP[column], _SET_MODE_FILTER, flags)
        result = _LIBC.syscall(*map(ctypes.c_long, numbers), ctypes.byref(filter_))
        if result == 0:
            return True
        if result > 0 or ctypes.get_errno() != errno.EINVAL:
            break
    if result > 0:
        raise OSError(errno.EAGAIN, f"thread {result} refuses the seccomp filter")
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL):  # built without filters, or emulated
        return False
    raise OSError(number, f"seccomp: {os.strerror(number)}")


def _here() -> tuple[int, int] | None:
    return _ARCHITECTURES.get(os.uname().machine) if sys.maxsize > 1 << 32 else None


def _program(column: int, audit: int, pid: int, *, accepts: bool) -> bytes:
    """The filter.  It denies all calls of other architectures, which a process can also make (int 0x80)."""
    groups = [_SOCKETS, _FILES, _PATHS, _SHARED, _PROCESSES, _PROGRAMS, _KERNEL]
    groups += [] if accepts else [_ACCEPT]
    denied = [numbers[column] for group in groups for numbers in group.values()]
    # (code, value, label to jump to if true, if false); None is the next instruction.  A string is a label.
    lines: list[tuple[int, int, str | None, str | None] | str] = [
        (_LOAD, _ARCHITECTURE, None, None),
        (_EQUAL, audit, None, "deny"),
        (_LOAD, _NUMBER, None, None),
        *((_EQUAL, numbers[column], "by command", None) for numbers in _COMMANDS.values()),
        (_AT_LEAST, _X32, "deny", None),
        *((_EQUAL, numbers[column], "by process", None) for numbers in _OF_ITSELF.values()),
        *((_EQUAL, numbers[column], "by third", None) for numbers in _FLAGS_THIRD.values()),
        *((_EQUAL, numbers[column], "by fourth", None) for numbers in _FLAGS_FOURTH.values()),
        *((_EQUAL, number, "deny", None) for number in denied if number is not None),
        (_RETURN, _ALLOW, None, None),
        "by command",
        (_LOAD, _SECOND_ARGUMENT, None, None),
        *((_EQUAL, command, "deny", None) for command in _DENIED_COMMANDS),
        (_RETURN, _ALLOW, None, None),
        "by third",
        (_LOAD, _THIRD_ARGUMENT, None, None),
        (_HAS, _FASTOPEN, "deny", "allow"),
        "by fourth",
        (_LOAD, _FOURTH_ARGUMENT, None, None),
        (_HAS, _FASTOPEN, "deny", "allow"),
        "by process",
        (_LOAD, _FIRST_ARGUMENT, None, None),
        (_EQUAL, 0, "allow", None),
        (_EQUAL, pid, "allow", "deny"),
        "allow",
        (_RETURN, _ALLOW, None, None),
        "deny",
        (_RETURN, _DENY, None, None),
    ]
    places: dict[str, int] = {}
    instructions: list[tuple[int, int, str | None, str | None]] = []
    for line in lines:
        if isinstance(line, str):
            places[line] = len(instructions)
        else:
            instructions.append(line)

    def distance(label: str | None, index: int) -> int:
        return 0 if label is None else places[label] - index - 1

    return b"".join(
        _INSTRUCTION.pack(code, distance(true, index), distance(false, index), value)
        for index, (code, value, true, false) in enumerate(instructions)
    )
