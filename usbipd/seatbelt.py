"""Seatbelt, the sandbox of macOS: what a worker can no longer do once it has its device.  Runs in workers.

`sandbox_init(3)` with flags 0 takes a profile as text.  Apple calls it deprecated and documents no profile;
browsers and Apple's own services use it.  The profile denies what a worker has no need for and allows the
rest, as the list of system calls on Linux does (`seccomp.py`): a newer macOS that checks one more harmless
operation keeps working.  An operation that this macOS does not know is left out, since one unknown name makes
it refuse the whole profile.  So what counts is the proof: `attempts`.
"""

import ctypes
import errno
import functools
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

DENIED: Final = (
    "file*",  # open descriptors keep working; fstat(2) of a file and ftruncate(2) do not
    "network*",  # connect, bind, listen, accept: the client's socket is connected
    "system-socket",
    "process-exec*",
    "process-fork",
    "mach-lookup",  # services of the system
    "mach-register",
    "ipc-posix*",
    "ipc-sysv*",
    "iokit-open",
    "iokit-open-user-client",
    "iokit-open-service",
    "iokit-set-properties",
    "sysctl-write",
    "job-creation",
    "lsopen",
    "appleevent-send",
    "user-preference*",
    "nvram*",
)
"""Operations that are denied.  tests/unit/test_seatbelt.py says where each name is from."""

DENIED_BUT_FOR_SELF: Final = ("signal", "process-info*")
"""Operations on processes; the own one stays allowed: abort(3)."""

USER_CLIENTS: Final = (
    "AppleUSBHostDeviceUserClient",  # as ioreg(8) shows them, and the entitlements of Apple's services
    "AppleUSBHostInterfaceUserClient",
    "IOUSBDeviceUserClientV2",  # IOUSBFamily, IOUSBUserClient.h; what com.apple.security.device.usb allows
    "IOUSBInterfaceUserClientV2",
    "IOUSBInterfaceUserClientV3",
)
"""What the worker still opens: its device after a re-enumeration, its interfaces after SET_CONFIGURATION."""

SERVICES: Final = ("IOUSBHostDevice", "IOUSBHostInterface", "IOUSBDevice", "IOUSBInterface")
"""Where macOS asks for the service as well as for the user client."""


def _classes(names: tuple[str, ...], filter_: str) -> str:
    return " ".join(f'({filter_} "{name}")' for name in names)


def _if_known(operation: str, rule: str) -> str:
    """`defined?` is of the profile's language, a Scheme; browsers use it so."""
    return f"(if (defined? '{operation}) {rule})"


def _profile() -> str:
    clients = _classes(USER_CLIENTS, "iokit-user-client-class")
    services = _classes(SERVICES, "iokit-registry-entry-class")
    return "\n".join(
        [
            "(version 1)",
            "(allow default)",
            *(_if_known(each, f"(deny {each})") for each in (*DENIED, *DENIED_BUT_FOR_SELF)),
            # the last rule that fits decides
            *(_if_known(each, f"(allow {each} (target self))") for each in DENIED_BUT_FOR_SELF),
            _if_known("iokit-open", f"(allow iokit-open {clients})"),
            _if_known("iokit-open-user-client", f"(allow iokit-open-user-client {clients})"),
            _if_known("iokit-open-service", f"(allow iokit-open-service {services})"),
            "",
        ]
    )


PROFILE: Final = _profile()

_ROOT_DOMAIN: Final = b"IOPMrootDomain"
"""The driver of power management, to which every process may connect (IOPMLib.h)."""

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
if sys.platform == "darwin":
    # Now, since after chroot there is nothing to load from: sandbox_init compiles the profile with the first.
    with suppress(OSError):
        ctypes.CDLL("/usr/lib/libsandbox.1.dylib")
    ctypes.CDLL("/System/Library/Frameworks/IOKit.framework/IOKit", mode=ctypes.RTLD_GLOBAL)


def restrict() -> None:
    """Deny all that for good, in all threads.  Raises `OSError` if this macOS refuses the profile."""
    problem = ctypes.c_char_p()
    try:
        sandbox_init = _LIBC.sandbox_init
    except AttributeError:
        raise OSError(errno.ENOSYS, "there is no sandbox_init") from None
    if sandbox_init(PROFILE.encode(), ctypes.c_uint64(0), ctypes.byref(problem)) != 0:
        said = (problem.value or b"no reason given").decode(errors="replace")
        raise OSError(ctypes.get_errno(), f"sandbox_init: {said}")


def attempts() -> Iterator[tuple[str, Callable[[], None]]]:
    """What must fail from then on.  All of it leaves nothing behind where it does not."""
    yield "open a file", lambda: os.close(os.open("/", os.O_RDONLY))
    yield "write to a file", lambda: os.close(os.open("/dev/null", os.O_WRONLY))
    yield "signal the extension", functools.partial(os.kill, os.getppid(), 0)
    yield "reach the network", _reach_network
    yield "bind a socket", _bind
    yield "start a program", _execute
    yield "start a process", _fork
    yield "open another driver", _connect_to_driver


def _reach_network() -> None:
    """Find a route to this host; a datagram socket sends nothing for that."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect(("127.0.0.1", 9))


def _bind() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.bind(("127.0.0.1", 0))


def _fork() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _execute() -> None:
    os.waitpid(os.posix_spawn("/usr/bin/true", ["true"], {}), 0)


def _connect_to_driver() -> None:
    """IOServiceOpen (IOKitLib.h) of a driver that is none of USB's."""
    try:
        matching, find, connect, close, release = (
            getattr(_LIBC, name)
            for name in (
                "IOServiceMatching",
                "IOServiceGetMatchingService",
                "IOServiceOpen",
                "IOServiceClose",
                "IOObjectRelease",
            )
        )
        task = ctypes.c_uint.in_dll(_LIBC, "mach_task_self_")
    except (AttributeError, ValueError):
        raise OSError(errno.ENOSYS, "there is no IOKit") from None
    matching.restype = ctypes.c_void_p
    find.restype = ctypes.c_uint  # io_service_t; 0: none
    service = ctypes.c_uint(find(0, ctypes.c_void_p(matching(_ROOT_DOMAIN))))
    connection = ctypes.c_uint()
    result = connect(service, task, 0, ctypes.byref(connection)) if service else -1
    release(service)
    if result != 0:
        raise OSError(errno.EPERM, f"IOServiceOpen: {result & 0xFFFFFFFF:#x}")
    close(connection)
