"""Tells the service manager how far the daemon is, by the protocol of sd_notify(3).  Runs in the extension.

Where no NOTIFY_SOCKET names its socket, as in a terminal and under launchd, nobody is told.
"""

import logging
import os
import socket
from typing import Final

_LOG: Final = logging.getLogger(__name__)

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
"""sd_notify(3), "Well-known assignments"."""


def tell(state: str, **more: str) -> None:
    """Send `state` and the assignments of `more`, one a line.

    That it cannot be sent is logged and no more: the manager gives up a start that it does not hear of.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    lines = [state, *(f"{name}={value}" for name, value in more.items())]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        try:
            # @ stands for the NUL of an abstract address (sd_notify(3), unix(7))
            manager.sendto("\n".join(lines).encode(), address.replace("@", "\0", 1))
        except OSError as error:
            _LOG.warning("cannot tell the service manager at %s %s: %s", address, state, error.strerror)
