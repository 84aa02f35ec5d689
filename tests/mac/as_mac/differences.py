"""What cannot be as on a Mac where Linux is the kernel: names of usbipd's modules, and what they are here.

Runs in processes of a Mac.  Each entry is something that the software Mac does not test.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Final

from tests.mac.as_mac.facts import LAUNCH_DAEMON


@dataclass(frozen=True)
class Difference:
    """`change` makes the value that `name` has here of the one that it has on a Mac."""

    module: str
    name: str
    change: Callable[[Any], Any]
    reason: str


def _as_on_linux(function: FunctionType) -> FunctionType:
    """The same function, which sees the platform that it runs on."""
    return FunctionType(
        function.__code__,
        {**function.__globals__, "sys": sys, "os": os},
        function.__name__,
        function.__defaults__,
    )


DIFFERENCES: Final = (
    Difference(
        "usbipd.privileges",
        "peer_of",
        _as_on_linux,
        "LOCAL_PEERCRED and LOCAL_PEERPID are options of XNU's sockets",
    ),
    Difference(
        "usbipd.server.keepalive",
        "_RETRANSMISSION",
        lambda _: None,
        "TCP_RXT_CONNDROPTIME is an option of XNU's TCP",
    ),
    Difference(
        "usbipd.paths", "launch_daemon", lambda _: lambda: LAUNCH_DAEMON, "no test writes to /Library"
    ),
)
