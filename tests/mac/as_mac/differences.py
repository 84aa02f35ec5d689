"""Differences from a Mac, since the kernel is Linux: names in usbipd's modules, and their replacements.

Runs in processes of a Mac.  The software Mac does not test these entries.
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
    """`change` turns the value of `name` on a Mac into its value here."""

    module: str
    name: str
    change: Callable[[Any], Any]
    reason: str


def _as_on_linux(function: FunctionType) -> FunctionType:
    """The same function, which sees the real platform."""
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
        "usbipd.paths", "launch_daemon", lambda _: lambda: LAUNCH_DAEMON, "tests do not write to /Library"
    ),
)
