"""Drops rights of the server and the workers once they hold all that they need.  Runs in both.

The order matters, since each step may need what the next one takes away:

1. an empty root directory (chroot(2)); `leave_network` has entered a separate network namespace before;
2. limits: no new process (Linux: nor thread), no core dump, few open files in a worker;
3. root: the process becomes an unprivileged user (`privileges.drop`);
4. the sandbox of the system.  Linux: Landlock (`landlock.py`), then a list of system calls (`seccomp.py`).
   macOS, workers only: a profile of Seatbelt (`seatbelt.py`).

Root directory, namespace and user change need root; a daemon of an ordinary user has the rest.  A host may
lack a layer, so at the end the process attempts what must fail.  If an attempt succeeds, it exits; on macOS,
where only the profile can fail to hold, it reports that to the extension, and exits only if the sandbox is
required.
"""

import ctypes
import functools
import logging
import os
import resource
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, NoReturn

from usbipd import landlock, privileges, seatbelt, seccomp
from usbipd.errors import UsbipdError
from usbipd.ipc.children import Confinement

_LOG: Final = logging.getLogger(__name__)

OPEN_FILES_OF_A_WORKER: Final = 32
"""A worker needs about fifteen: standard ones, channel, client, log, libusb's or a simulated disk's."""

_CLONE_NEWNET: Final = 0x40000000  # Linux include/uapi/linux/sched.h
_PR_SET_NO_NEW_PRIVS: Final = 38  # Linux include/uapi/linux/prctl.h

_NO_FILTER: Final = "this kernel or architecture has no seccomp filter"

# Loaded now: after chroot no library can be loaded.
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def leave_network() -> None:
    """Enter a separate, empty network namespace; without CAP_SYS_ADMIN, stay in this one.

    Applies to the calling thread and the threads that it starts later.  Open sockets stay in their old
    namespace.
    """
    if sys.platform == "linux" and _LIBC.unshare(_CLONE_NEWNET) != 0:
        _LOG.debug("no separate network namespace: %s", os.strerror(ctypes.get_errno()))


class Confined(NamedTuple):
    """The result of `confine`."""

    user: str
    """The name of the user of this process."""
    lacks: str | None = None
    """The layer of this system that is missing or does not hold, as text; None if all hold."""


def confine(order: Confinement | None, *, open_files: int | None, accepts: bool) -> Confined:
    """Drop all rights that `order` lists, for good; None keeps all.

    `open_files` limits them from now on (None: no new limit); `accepts` keeps accept(2).  Raises
    `UsbipdError` if the root directory cannot be entered or a sandbox that is required is missing;
    `SystemExit` if another step or the proof fails: no process runs half confined.
    """
    if order is None:
        return Confined(privileges.user_name(os.geteuid()))
    if order.root is not None:
        _enter(order.root)
    try:
        _limit(open_files)
        user = privileges.drop(order.run_as)
        if sys.platform == "linux":
            lacks = _restrict_on_linux(order, accepts=accepts)
        elif accepts:  # without a profile: if accept(2) failed under it, there would be no daemon
            lacks = None
        else:
            lacks = _restrict_on_macos(order)
    except OSError as error:
        _LOG.critical("cannot drop rights: %s", error)
        raise SystemExit(1) from error
    if lacks is not None and order.sandbox == "require":
        raise UsbipdError(
            f"it cannot be confined as required: {lacks}",
            code="not-confined",
            advice='set confine = "auto" in usbipd.toml to run without it',
        )
    return Confined(user, lacks)


def _restrict_on_linux(order: Confinement, *, accepts: bool) -> str | None:
    """Returns what is missing.  Raises `OSError`, `SystemExit`."""
    if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    abi = landlock.restrict()
    is_filtered = seccomp.deny(accepts=accepts)
    filtered = "in force" if is_filtered else "absent"
    _LOG.debug("confined: Landlock ABI %d (0: absent), seccomp %s", abi, filtered)
    # A daemon of an ordinary user without the filter has nothing to prove.
    if order.run_as is not None or is_filtered:
        works = _what_works(_attempts(is_filtered))
        if works is not None:
            _fail(works)
    return None if is_filtered else _NO_FILTER


def _restrict_on_macos(order: Confinement) -> str | None:
    """Returns what is missing."""
    if order.sandbox == "off":
        return None
    try:
        seatbelt.restrict()
    except OSError as error:
        return f"this Mac refuses the Seatbelt profile: {error.strerror}"
    works = _what_works(seatbelt.attempts())
    if works is not None:
        return f"the Seatbelt profile does not hold: it can still {works}"
    _LOG.debug("confined: Seatbelt profile in force")
    return None


def _enter(directory: str) -> None:
    """Make the empty `directory` the root directory.  Raises `UsbipdError`."""
    try:
        os.chroot(directory)
        os.chdir("/")
        left = os.listdir("/")  # noqa: PTH208 - names are all we need
    except OSError as error:
        raise UsbipdError(f"cannot chroot to {directory}: {error.strerror}", code="chroot") from error
    if left:
        raise UsbipdError(f"the chroot {directory} is not empty: {', '.join(left)}", code="chroot")


def _limit(open_files: int | None) -> None:
    """Raises `OSError`."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # data of clients and devices stays off the disk
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))  # counts threads; running ones stay
    if open_files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))


def _what_works(attempts: Iterable[tuple[str, Callable[[], None]]]) -> str | None:
    """Attempts what must fail; returns the first that succeeds."""
    for what, attempt in attempts:
        try:
            attempt()
        except OSError:
            continue
        return what
    return None


def _attempts(is_filtered: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    yield "open a file", lambda: os.close(os.open("/etc/passwd", os.O_RDONLY))
    yield "signal the extension", functools.partial(os.kill, os.getppid(), 0)
    yield "reach the network", _reach_network
    if is_filtered:  # without it kill(-1) always succeeds, and a socket can be opened but reaches nothing
        yield "signal all processes", functools.partial(os.kill, -1, 0)
        for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
            yield f"open a socket of {family.name}", functools.partial(_open_socket, family)


def _open_socket(family: socket.AddressFamily) -> None:
    socket.socket(family, socket.SOCK_DGRAM).close()


def _reach_network() -> None:
    """Find a route to this host; a datagram socket sends nothing for that."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect(("127.0.0.1", 9))


def _fail(what: str) -> NoReturn:
    _LOG.critical("confined, and can still %s", what)
    raise SystemExit(1)
