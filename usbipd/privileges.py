"""Changes the user of a process and identifies peers.  Used by the extension, the server and the workers.

The server, and on Linux the workers, drop their rights once, early: supplementary groups, group, user, in
this order, because each step needs rights that the next one drops.  Afterwards the process proves that it
cannot become root again, or exits.
"""

import contextlib
import ctypes
import grp
import logging
import os
import pwd
import socket
import struct
import sys
from collections.abc import Callable
from typing import Final

import msgspec

from usbipd.errors import UsageError
from usbipd.ipc.message import Message

_LOG: Final = logging.getLogger(__name__)

DEFAULT_USER: Final = "_usbipd" if sys.platform == "darwin" else "usbipd"
_FALLBACK_USER: Final = "nobody"
ADMIN_GROUP: Final = "admin" if sys.platform == "darwin" else "usbipd"
"""Members may bind, unbind, detach and release."""
GROUPS_OF_ROOT: Final = frozenset({0, 80} if sys.platform == "darwin" else ())
"""Groups whose members can become root anyway: macOS's `wheel` and `admin`, which may write some directories
of the system.  None on Linux, where the group's permissions may come from an ACL (acl(5)) for any user."""

_SO_PEERGROUPS: Final = 59  # Linux include/uapi/asm-generic/socket.h; all groups of the peer as gid_t[]
_LONGEST_OPTION: Final = 1024  # CPython Modules/socketmodule.c, sock_getsockopt
_SOL_LOCAL: Final = 0  # macOS <sys/un.h>
_LOCAL_PEERCRED: Final = 0x001  # macOS <sys/un.h>; struct xucred
_LOCAL_PEERPID: Final = 0x002  # macOS <sys/un.h>
_XUCRED: Final = struct.Struct("=IIh2x16I")  # macOS <sys/ucred.h>: version, uid, ngroups, groups[NGROUPS]

# Loaded now: after chroot no library can be loaded.
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class RunAs(Message, frozen=True):
    """The unprivileged user that a process becomes after its start; sent only if the extension is root."""

    user: str
    uid: int
    gid: int


class Peer(msgspec.Struct, frozen=True):
    """The process at the other end of a Unix socket, as the kernel reports it."""

    uid: int
    pid: int
    groups: frozenset[int]

    @property
    def name(self) -> str:
        return user_name(self.uid)


def peer_of(connection: socket.socket) -> Peer:
    """The process that connected `connection` (or made the socketpair).  Raises `OSError`."""
    if sys.platform == "darwin":
        raw = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED.size)
        _version, uid, count, *groups = _XUCRED.unpack(raw)
        pid = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID)
        return Peer(uid, pid, frozenset(groups[:count]))
    pid, uid, gid = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _LONGEST_OPTION)
    except OSError:  # more groups than fit: only its primary group counts
        raw = b""
    return Peer(uid, pid, frozenset({gid, *struct.unpack(f"={len(raw) // 4}I", raw)}))


def user_name(uid: int) -> str:
    """The name of `uid`, or the number if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def admin_group() -> int | None:
    """The id of the group whose members may bind; None if the host has no such group."""
    try:
        return grp.getgrnam(ADMIN_GROUP).gr_gid
    except KeyError:
        return None


def find_run_as(configured: str | None) -> RunAs | None:
    """The user of the server: the `user` of the configuration or the platform's default.

    None unless we are root: otherwise there are no rights to drop.  Raises `UsageError` if that user does not
    exist or is root.
    """
    if os.geteuid() != 0:
        return None
    if configured is not None:
        return find_user(configured)
    found = find_default_user()
    if found.user != DEFAULT_USER:
        _LOG.warning("no user %r on this host: the server runs as %s", DEFAULT_USER, found.user)
    return found


def find_default_user() -> RunAs:
    """Raises `UsageError` if this host has no such user, or if it is root."""
    for name in (DEFAULT_USER, _FALLBACK_USER):
        with contextlib.suppress(KeyError):
            return _run_as(pwd.getpwnam(name))
    raise UsageError(
        f"this host has no user {DEFAULT_USER!r} that the server could run as, nor {_FALLBACK_USER!r}",
        code="bad-user",
        advice=f'create the user {DEFAULT_USER}, or name an unprivileged one in usbipd.toml: user = "NAME"',
    )


def find_user(name: str) -> RunAs:
    """Raises `UsageError` if this user does not exist or is root."""
    try:
        return _run_as(pwd.getpwnam(name))
    except (KeyError, ValueError):  # ValueError: a NUL in it
        raise UsageError(
            f"no user {name!r} on this host: name an unprivileged user or create it", code="bad-user"
        ) from None


def _run_as(user: pwd.struct_passwd) -> RunAs:
    """Raises `UsageError` for root."""
    if user.pw_uid == 0 or user.pw_gid == 0:
        raise UsageError(
            f"user {user.pw_name!r} has root's user or group id: name an unprivileged user", code="bad-user"
        )
    return RunAs(user=user.pw_name, uid=user.pw_uid, gid=user.pw_gid)


def drop(run_as: RunAs | None) -> str:
    """Become `run_as` for good; None drops nothing.  Returns the name of our user.

    Raises `SystemExit` if a step or the proof fails: no process runs with half its rights dropped.
    """
    if run_as is None:
        return user_name(os.geteuid())
    try:
        os.setgroups([])
        os.setgid(run_as.gid)
        os.setuid(run_as.uid)
    except OSError as error:
        _LOG.critical("cannot become user %s: %s", run_as.user, error)
        raise SystemExit(1) from error
    _prove(run_as)
    return run_as.user


def _prove(run_as: RunAs) -> None:
    """Attempt to become root again; exit if that works or if any right of root is left."""
    uids: tuple[int, ...] = (os.getuid(), os.geteuid())
    gids: tuple[int, ...] = (os.getgid(), os.getegid())
    if sys.platform != "darwin":  # macOS cannot report saved ids; the attempts below reveal them
        uids, gids = os.getresuid(), os.getresgid()
    left = _groups() - {run_as.gid}  # macOS counts the group itself
    if set(uids) != {run_as.uid} or set(gids) != {run_as.gid} or left:
        _LOG.critical("became %s but still has uids %s, gids %s, groups %s", run_as.user, uids, gids, left)
        raise SystemExit(1)
    attempts: tuple[tuple[str, Callable[[int], None]], ...] = (
        ("setuid", os.setuid),
        ("seteuid", os.seteuid),
        ("setgid", os.setgid),
        ("setegid", os.setegid),
    )
    for name, attempt in attempts:
        try:
            attempt(0)
        except PermissionError:
            continue
        _LOG.critical("%s(0) still succeeds as user %s", name, run_as.user)
        raise SystemExit(1)


def _groups() -> set[int]:
    """The supplementary groups that the kernel has for this process.  Raises `OSError`.

    Not os.getgroups(): on macOS it asks the directory service for the user's groups, whatever setgroups(2)
    did (Python uses getgroups$DARWIN_EXTSN).  The function without the suffix asks the kernel.
    """
    count = _LIBC.getgroups(0, None)
    groups = (ctypes.c_uint32 * max(count, 1))()
    count = _LIBC.getgroups(len(groups), groups)
    if count < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return set(groups[:count])
