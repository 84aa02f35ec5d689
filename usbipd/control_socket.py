"""The path of the control socket, through which a command reaches the extension.  Used by both.

Root's daemon uses a fixed directory, so that every local user finds its socket.  A daemon run by any other
user (development) uses a private directory of that user.  No path depends on the home of the user who ran
sudo.  Paths are text: every command needs this module, and importing pathlib takes time.
"""

import os
import socket
import sys
from typing import Final

CONTROL_SOCKET: Final = "control.sock"

MAX_SOCKET_PATH: Final = 103
"""Bytes of a Unix socket's path: sizeof(sun_path) - 1, the smaller one (macOS <sys/un.h>; Linux has 107)."""


def system_runtime_directory() -> str:
    """The directory of root's daemon."""
    return "/var/run/usbipd" if sys.platform == "darwin" else "/run/usbipd"


def runtime_directory() -> str:
    """The directory of a daemon that this user starts; it need not exist."""
    if os.geteuid() == 0:
        return system_runtime_directory()
    session = os.environ.get("XDG_RUNTIME_DIR", "")
    if session.startswith("/") and _is_ours(session):  # after `su` it may belong to another user
        return os.path.join(session, "usbipd")
    temporary = os.environ.get("TMPDIR", "")
    if not temporary.startswith("/"):
        temporary = "/tmp"  # noqa: S108 - no user is trusted there: see `_is_ours`, and `RuntimeFiles.prepare`
    return os.path.join(temporary, f"usbipd-{os.geteuid()}")


def own_control_socket() -> str:
    """The socket of a daemon that this user starts; it need not exist."""
    return os.path.join(runtime_directory(), CONTROL_SOCKET)


def usual_control_socket() -> str:
    """The socket on which a daemon may answer: that of this user if it exists, else root's.

    Ignores a socket in the usual place that another user created.
    """
    own = own_control_socket()
    return own if _is_ours(own) else system_control_socket()


def system_control_socket() -> str:
    """The socket of root's daemon; it need not exist."""
    return os.path.join(system_runtime_directory(), CONTROL_SOCKET)


def has_listener(path: str) -> bool:
    """Whether a program listens on the Unix socket `path`; also True if that is unknown.

    A socket is stale only if it refuses a connection or no longer exists (connect(2)).  Does not block.
    """
    with socket.socket(socket.AF_UNIX) as trial:
        trial.setblocking(False)
        try:
            trial.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # such as EAGAIN, a full queue, and EPROTOTYPE, a socket of another type
            pass
    return True


def _is_ours(path: str) -> bool:
    """Whether `path` exists and belongs to this user."""
    try:
        return os.lstat(path).st_uid == os.geteuid()
    except OSError:
        return False
