"""Seatbelt, the sandbox of macOS: confines a worker once it has its device.  Runs in workers.

`sandbox_init(3)` with flags 0 takes a profile as text.  Apple calls it deprecated and documents no profile;
browsers and Apple's own services use it.  The profile denies what a worker does not need and allows the rest,
like the list of system calls on Linux (`seccomp.py`): a newer macOS that checks another harmless operation
keeps working.  The profile omits operations that this macOS does not know, since one unknown name makes it
refuse the whole profile.  So only the proof counts: `attempts`.
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
"""Denied operations.  tests/unit/test_seatbelt.py has the source of each name."""

DENIED_BUT_FOR_SELF: Final = ("signal", "process-info*")
"""Operations on processes, allowed on the process itself: abort(3)."""

USER_CLIENTS: Final = (
    "AppleUSBHostDeviceUserClient",  # names from ioreg(8) and the entitlements of Apple's services
    "AppleUSBHostInterfaceUserClient",
    "IOUSBDeviceUserClientV2",  # IOUSBFamily, IOUSBUserClient.h; allowed by com.apple.security.device.usb
    "IOUSBInterfaceUserClientV2",
    "IOUSBInterfaceUserClientV3",
)
"""Classes that the worker opens later: its device after a re-enumeration, its interfaces after
SET_CONFIGURATION."""

SERVICES: Final = ("IOUSBHostDevice", "IOUSBHostInterface", "IOUSBDevice", "IOUSBInterface")
"""For a macOS that checks the service as well as the user client."""


def _classes(names: tuple[str, ...], filter_: str) -> str:
    return " ".join(f'({filter_} "{name}")' for name in names)


def _if_known(operation: str, rule: str) -> str:
    """`defined?` belongs to the language of profiles, a Scheme; browsers use it the same way."""
    return f"(if (defined? '{operation}) {rule})"


def _profile() -> str:
    clients = _classes(USER_CLIENTS, "iokit-user-client-class")
    services = _classes(SERVICES, "iokit-registry-entry-class")
    return "\n".join(
        [
            "(version 1)",
            "(allow default)",
            *(_if_known(each, f"(deny {each})") for each in (*DENIED, *DENIED_BUT_FOR_SELF)),
            # the last matching rule decides
            *(_if_known(each, f"(allow {each} (target self))") for each in DENIED_BUT_FOR_SELF),
            _if_known("iokit-open", f"(allow iokit-open {clients})"),
            _if_known("iokit-open-user-client", f"(allow iokit-open-user-client {clients})"),
            _if_known("iokit-open-service", f"(allow iokit-open-service {services})"),
            "",
        ]
    )


PROFILE: Final = _profile()

_ROOT_DOMAIN: Final = b"IOPMrootDomain"
"""The driver of power management, to which every process can connect (IOPMLib.h)."""

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
if sys.platform == "darwin":
    # Loaded now: after chroot no library can be loaded.  sandbox_init compiles the profile with the first.
    with suppress(OSError):
        ctypes.CDLL("/usr/lib/libsandbox.1.dylib")
    ctypes.CDLL("/System/Library/Frameworks/IOKit.framework/IOKit", mode=ctypes.RTLD_GLOBAL)


def restrict() -> None:
    """Apply the profile for good, to all threads.  Raises `OSError` if this macOS refuses it."""
    problem = ctypes.c_char_p()
    try:
        sandbox_init = _LIBC.sandbox_init
    except AttributeError:
        raise OSError(errno.ENOSYS, "sandbox_init does not exist") from None
    if sandbox_init(PROFILE.encode(), ctypes.c_uint64(0), ctypes.byref(problem)) != 0:
        said = (problem.value or b"no reason given").decode(errors="replace")
        raise OSError(ctypes.get_errno(), f"sandbox_init: {said}")


def attempts() -> Iterator[tuple[str, Callable[[], None]]]:
    """Actions that must fail from then on.  One that succeeds leaves nothing behind."""
    yield "open a file", lambda: os.close(os.open("/", os.O_RDONLY))
    yield "write to a file", lambda: os.close(os.open("/dev/null", os.O_WRONLY))
    yield "signal the extension", functools.partial(os.kill, os.getppid(), 0)
    yield "reach the network", _reach_network
    yield "bind a socket", _bind
    yield "start a program", _execute
    yield "start a process", _fork
    yield "open another driver", _connect_to_driver


def _reach_network() -> None:
    """Find a route to this host; a datagram socket sends no packet for it."""
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
    """IOServiceOpen (IOKitLib.h) of a driver outside USB."""
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
        raise OSError(errno.ENOSYS, "IOKit is not loaded") from None
    matching.restype = ctypes.c_void_p
    find.restype = ctypes.c_uint  # io_service_t; 0 if not found
    service = ctypes.c_uint(find(0, ctypes.c_void_p(matching(_ROOT_DOMAIN))))
    connection = ctypes.c_uint()
    result = connect(service, task, 0, ctypes.byref(connection)) if service else -1
    release(service)
    if result != 0:
        raise OSError(errno.EPERM, f"IOServiceOpen: {result & 0xFFFFFFFF:#x}")
    close(connection)
