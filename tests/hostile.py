"""A compromised worker or server: confines itself, then tries everything that must be denied.

    python -m tests.hostile PLAN      a `Plan` as JSON; prints a `Result` as JSON

Run by tests/unit/test_confinement.py, and in the virtual machine under the limits of the installed service.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import pty
import resource
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import msgspec

from usbipd import confinement, log
from usbipd.ipc.children import Confinement


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The actions to try."""

    order: Confinement | None
    accepts: bool = False
    victims: dict[str, int] = {}
    """Processes by role; they must survive."""
    sabotage: str = ""
    """Python code that first removes a part of the confinement."""
    foreign: bool = True
    """Whether to try system calls of other architectures: a service without permission is killed."""
    aborts: bool = False
    """Whether to exit by abort(3)."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome."""

    user: str
    lacks: str | None
    succeeded: list[str]
    """Acts that succeeded and must not."""
    refused: dict[str, str]
    """Acts that failed, with the name of the errno."""
    broken: list[str]
    """Acts that a worker needs, and that failed."""


_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
_IS_X86: Final = platform.machine() == "x86_64"

# include/uapi/asm-generic/unistd.h; x86_64 has the same from 424 on
_CALLS: Final = (
    {
        "ptrace": 101, "process_vm_readv": 310, "open_by_handle_at": 304, "bpf": 321, "perf_event_open": 298,
        "userfaultfd": 323, "keyctl": 250, "add_key": 248, "setns": 308, "mount": 165, "tkill": 200,
        "tgkill": 234, "rt_sigqueueinfo": 129, "ioprio_set": 251, "fork": 57, "vfork": 58, "shmget": 29,
        "memfd_create": 319, "execveat": 322, "getpid": 39, "move_pages": 279, "shmat": 30, "shmctl": 31,
    }
    if _IS_X86
    else {
        "ptrace": 117, "process_vm_readv": 270, "open_by_handle_at": 265, "bpf": 280, "perf_event_open": 241,
        "userfaultfd": 282, "keyctl": 219, "add_key": 217, "setns": 268, "mount": 40, "tkill": 130,
        "tgkill": 131, "rt_sigqueueinfo": 138, "ioprio_set": 30, "shmget": 194, "memfd_create": 279,
        "execveat": 281, "move_pages": 239, "shmat": 196, "shmctl": 195,
    }
) | {"io_uring_setup": 425, "pidfd_open": 434, "clone3": 435, "openat2": 437, "pidfd_getfd": 438}  # fmt: skip

PTRACE_ATTACH: Final = 16
SECCOMP_OF_ALL: Final = ("x32", "int80")


def call(name: str, *arguments: object) -> int:
    """A system call.  Raises `OSError`."""
    result: int = _LIBC.syscall(
        *(ctypes.c_long(each) if isinstance(each, int) else each for each in (_CALLS[name], *arguments))
    )
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Belongings:
    """What the process holds before it is confined, as a worker holds its device and its channel."""

    def __init__(self) -> None:
        self.tcp = socket.socket()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.other_listener = socket.create_server(("127.0.0.1", 0))
        self.memory = _shared_memory()
        """A System V segment, as another program might have; it is freed with this process."""
        self.channel, self.extension = socket.socketpair()
        self.client, self.server = _connection()
        self.terminal, self._keyboard = pty.openpty()
        self.disk = _disk()
        self.log = os.dup(2)
        self.running = threading.Event()
        self.stop = threading.Event()
        self.from_thread: list[str] = []
        self.thread = threading.Thread(target=self._live)

    def start_thread(self) -> None:
        self.thread.start()
        self.running.wait()

    def _live(self) -> None:
        """Like libusb's thread for hotplug events: it starts before, and is confined as well."""
        self.running.set()
        self.stop.wait()
        for name, act in (
            ("socket", partial(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)),
            ("file", partial(os.open, "/etc/passwd", os.O_RDONLY)),
            ("signal", partial(os.kill, os.getppid(), 0)),
            ("root", partial(os.setuid, 0)),
        ):
            try:
                act()
            except OSError:
                continue
            self.from_thread.append(f"in a thread: {name}")


def _shared_memory() -> int:
    segment = call("shmget", 0, 4096, 0o1600)
    call("shmat", segment, 0, 0)
    call("shmctl", segment, 0, 0)  # IPC_RMID: frees it when the last process detaches
    return segment


def _disk() -> int:
    with tempfile.TemporaryFile() as file:
        file.write(b"block")
        file.flush()
        return os.dup(file.fileno())


def _connection() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


def acts(has: Belongings, victims: dict[str, int]) -> Iterator[tuple[str, Callable[[], object]]]:
    """What a compromised process tries, by name."""
    for who, pid in victims.items():
        yield f"kill {who} 0", partial(os.kill, pid, 0)
        yield f"kill {who} SIGSTOP", partial(os.kill, pid, signal.SIGSTOP)
        yield f"tkill {who}", partial(call, "tkill", pid, 0)
        yield f"tgkill {who}", partial(call, "tgkill", pid, pid, 0)
        yield f"sigqueue {who}", partial(call, "rt_sigqueueinfo", pid, 0, ctypes.create_string_buffer(128))
        yield f"pidfd_open {who}", partial(call, "pidfd_open", pid, 0)
        yield f"F_SETOWN {who}", partial(fcntl.fcntl, has.channel, fcntl.F_SETOWN, pid)
        yield f"ptrace {who}", partial(call, "ptrace", PTRACE_ATTACH, pid, 0, 0)
        yield f"process_vm_readv {who}", partial(_read_memory, pid)
        yield f"prlimit {who}", partial(resource.prlimit, pid, resource.RLIMIT_NOFILE, (4, 4))
        yield f"sched_setaffinity {who}", partial(os.sched_setaffinity, pid, {0})
        yield f"setpriority {who}", partial(os.setpriority, os.PRIO_PROCESS, pid, 19)
        yield f"ioprio_set {who}", partial(call, "ioprio_set", 1, pid, 3 << 13)
        yield f"move_pages {who}", partial(call, "move_pages", pid, 0, 0, 0, 0, 0)
        yield f"memory of {who}", partial(os.open, f"/proc/{pid}/mem", os.O_RDWR)
    yield "kill all", partial(os.kill, -1, 0)
    for family in ("INET", "INET6", "UNIX", "NETLINK", "PACKET", "VSOCK"):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
            yield (
                f"socket {family} {kind.name}",
                partial(socket.socket, getattr(socket, f"AF_{family}"), kind),
            )
    yield "socketpair", socket.socketpair
    yield "connect", partial(has.tcp.connect, ("127.0.0.1", 9))
    yield "bind", partial(has.tcp.bind, ("127.0.0.1", 0))
    yield "connect a listener by TCP Fast Open", partial(_fast_open, has)
    yield "connect the client's socket elsewhere", partial(has.client.connect, ("127.0.0.1", 9))
    for path in ("/etc/passwd", "/", "/dev/null", "/proc/self/mem", "/sys", "."):
        yield f"open {path}", partial(os.open, path, os.O_RDONLY)
    yield "create a file", partial(os.open, "/file", os.O_WRONLY | os.O_CREAT)
    yield "make a directory", partial(os.mkdir, "/directory")
    yield "openat2", partial(call, "openat2", -100, b"/", ctypes.create_string_buffer(24), 24)
    yield "open_by_handle_at", partial(call, "open_by_handle_at", -100, ctypes.create_string_buffer(64), 0)
    yield "memfd_create", partial(call, "memfd_create", b"name", 0)
    yield "shmget", _shared_memory
    yield "shmat", partial(call, "shmat", has.memory, 0, 0)
    yield "leave the group", partial(os.setpgid, 0, os.getppid())
    yield "lead a session", os.setsid
    for name, act in (
        ("rename", partial(os.rename, "/etc/passwd", "/etc/other")),
        ("remove", partial(os.unlink, "/nothing")),
        ("link", partial(os.link, "/etc/passwd", "/link")),
        ("symlink", partial(os.symlink, "/etc/passwd", "/link")),
        ("truncate", partial(os.truncate, "/nothing", 0)),
        ("chmod", partial(os.chmod, "/", 0o755)),
        ("chown", partial(os.chown, "/", -1, -1)),
        ("utime", partial(os.utime, "/")),
        ("setxattr", partial(os.setxattr, "/", "user.name", b"")),
        ("chmod of a log", partial(os.fchmod, has.log, 0o4755)),
    ):
        yield f"{name} by its path", act
    yield "fork", _fork
    yield "thread", threading.Thread(target=int).start
    yield "clone3", partial(call, "clone3", struct.pack("=11Q", *[0] * 11), 88)
    yield "execve", partial(os.execv, "/bin/true", ["true"])
    yield "execveat", partial(call, "execveat", sys.stdin.fileno(), b"", 0, 0, 0x1000)
    yield "unshare user", partial(_unshare, 0x10000000)
    yield "unshare network", partial(_unshare, 0x40000000)
    yield "setns", partial(call, "setns", has.log, 0)
    yield "mount", partial(call, "mount", b"none", b"/", b"tmpfs", 0, 0)
    yield "chroot", partial(os.chroot, "/")
    yield "io_uring_setup", partial(call, "io_uring_setup", 1, ctypes.create_string_buffer(120))
    yield "bpf", partial(call, "bpf", 0, struct.pack("=IIII", 2, 4, 4, 1) + bytes(56), 72)
    yield (
        "perf_event_open",
        partial(call, "perf_event_open", struct.pack("=II", 1, 64) + bytes(56), 0, -1, -1, 0),
    )
    yield "userfaultfd", partial(call, "userfaultfd", 1)
    yield "keyctl", partial(call, "keyctl", 0, -3, 1)
    yield "add_key", partial(call, "add_key", b"user", b"name", b"x", 1, -3)
    yield "TIOCSTI", partial(fcntl.ioctl, has.terminal, 0x5412, b"x")
    yield "TIOCSPGRP", partial(fcntl.ioctl, has.terminal, 0x5410, struct.pack("i", os.getpgrp()))
    yield "setuid 0", partial(os.setuid, 0)
    yield "setgid 0", partial(os.setgid, 0)
    yield "setgroups", partial(os.setgroups, [0])
    yield "more open files", partial(resource.setrlimit, resource.RLIMIT_NOFILE, (4096, 4096))


def foreign_acts() -> Iterator[tuple[str, Callable[[], object]]]:
    """System calls by the numbers of other architectures that the processor may support."""
    if _IS_X86:
        yield "x32", _x32
        yield "int80", _int80


def _fast_open(has: Belongings) -> None:
    """A listener that was shut down can be connected without connect(2)."""
    has.listener.shutdown(socket.SHUT_RD)
    has.listener.sendto(b"x", socket.MSG_FASTOPEN, has.other_listener.getsockname())


def _read_memory(pid: int) -> None:
    buffer = ctypes.create_string_buffer(8)
    vector = struct.pack("=QQ", ctypes.addressof(buffer), 8)
    call("process_vm_readv", pid, vector, 1, vector, 1, 0)


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _unshare(what: int) -> None:
    if _LIBC.unshare(what) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def _x32() -> None:
    """A call by its number in the x32 table."""
    if _LIBC.syscall(ctypes.c_long(0x40000000 + _CALLS["getpid"])) < 0:
        raise OSError(ctypes.get_errno(), "x32")


def _int80() -> None:
    """A call of the 32-bit architecture: getpid, by its number there."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("b814000000 cd80 c3"))  # mov eax, 20; int 0x80; ret
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    result = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    if result < 0:
        raise OSError(-result, "int 0x80")


def needs(has: Belongings) -> Iterator[tuple[str, Callable[[], object]]]:
    """What a worker must still be able to do, by name."""
    yield "messages with a descriptor", partial(_pass_descriptor, has)
    yield "its client", partial(_exchange, has)
    yield "its disk", partial(os.pread, has.disk, 5, 0)
    yield "a new log", partial(os.dup2, has.log, has.terminal)
    yield "memory", partial(mmap.mmap, -1, 1 << 20)
    yield "random numbers", partial(os.urandom, 8)
    yield "its limits", partial(resource.getrlimit, resource.RLIMIT_NOFILE)
    yield "a signal to itself", partial(signal.pthread_kill, threading.get_ident(), 0)


def _pass_descriptor(has: Belongings) -> None:
    socket.send_fds(has.extension, [b"x"], [has.log])
    _data, [descriptor], _flags, _address = socket.recv_fds(has.channel, 1, 1)
    os.close(descriptor)


def _exchange(has: Belongings) -> None:
    has.client.sendall(b"to")
    poll = select.poll()
    poll.register(has.server, select.POLLIN)
    assert poll.poll(1000)
    assert has.server.recv(2) == b"to"
    has.server.shutdown(socket.SHUT_RDWR)
    assert has.client.recv(1) == b""


def main(argument: str) -> int:
    plan = msgspec.json.decode(argument, type=Plan)
    log.configure("hostile", level="debug")
    exec(plan.sabotage, {"confinement": confinement, "os": os})
    has = Belongings()
    confinement.leave_network()
    has.start_thread()
    try:
        user, lacks = confinement.confine(
            plan.order, open_files=confinement.OPEN_FILES_OF_A_WORKER, accepts=plan.accepts
        )
        succeeded, refused, broken = _try_all(has, plan)
    finally:
        has.stop.set()
        has.thread.join()
    succeeded += has.from_thread
    result = Result(user=user, lacks=lacks, succeeded=succeeded, refused=refused, broken=broken)
    print(msgspec.json.encode(result).decode(), flush=True)
    if plan.aborts:
        os.abort()
    return 0


def _try_all(has: Belongings, plan: Plan) -> tuple[list[str], dict[str, str], list[str]]:
    succeeded, refused, broken = [], {}, []
    for name, act in (*acts(has, plan.victims), *(foreign_acts() if plan.foreign else ())):
        try:
            act()
        except OSError as error:
            refused[name] = errno.errorcode.get(error.errno or 0, str(error))
        except (RuntimeError, ValueError):  # of threading and resource, which set no errno
            refused[name] = "EPERM"
        else:
            succeeded.append(name)
    for name, act in needs(has):
        try:
            act()
        except (OSError, AssertionError) as error:
            broken.append(f"{name}: {error!r}")
    return succeeded, refused, broken


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
