"""Notifies the service manager of start and stop, with the protocol of sd_notify(3).  Runs in the extension.

Without NOTIFY_SOCKET, as in a terminal or under launchd, it does nothing.

The unit accepts notifications of its main process only (NotifyAccess=main), because a compromised worker is
in the same control group.  If the main process is the launcher, root sends in its name, as `systemd-notify
--pid=` does.
"""

import logging
import os
import socket
import struct
import sys
from typing import Final

from usbipd import frozen

_LOG: Final = logging.getLogger(__name__)

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
"""sd_notify(3), "Well-known assignments"."""


def notify(state: str, **more: str) -> None:
    """Send `state` and the assignments of `more`, one per line.

    A failure is only logged: the manager gives up a start that was not confirmed.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    lines = [state, *(f"{name}={value}" for name, value in more.items())]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        try:
            # @ stands for the NUL of an abstract address (sd_notify(3), unix(7))
            manager.connect(address.replace("@", "\0", 1))
            _send(manager, "\n".join(lines).encode())
        except OSError as error:
            _LOG.warning("cannot send %s to the service manager at %s: %s", state, address, error.strerror)


def _send(manager: socket.socket, message: bytes) -> None:
    """Send as the main process of the service, if that is our launcher and the kernel allows it.

    Raises `OSError`.
    """
    if sys.platform == "linux" and frozen.IS_FROZEN:
        # unix(7), SCM_CREDENTIALS: struct ucred; the pid of another process needs CAP_SYS_ADMIN
        credentials = struct.pack("=iII", frozen.launcher(), os.getuid(), os.getgid())
        try:
            manager.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)])
        except (PermissionError, ProcessLookupError):  # an ordinary user's daemon; the launcher was killed
            pass
        else:
            return
    manager.send(message)
