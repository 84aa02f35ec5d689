"""Differences between the USB stacks of Linux and macOS when a device is claimed.  Runs in the extension.

Linux detaches the driver of each interface, and reattaches it later; the device keeps its address.  macOS
captures the whole device, and ends the capture by enumerating it again: the device disappears, and reappears
at the same port with another address up to 1.7 s later.
"""

import sys
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class UsbStack:
    """The properties of a platform's USB stack.  Times are in seconds."""

    keeps_address: bool
    """Whether a device keeps its USB address across a reset, so that another address means another device.
    If not, only the worker knows whether its device was unplugged; libusb reports that at once."""
    probes_interfaces: bool
    """Whether the host can scan for drivers of single interfaces; that is done after every claim.  If not,
    the whole device is enumerated again, and only after a worker that was killed: any change of the device
    causes an immediate retry of a failed claim."""
    release_time: float
    """For a worker to release its device before it is killed."""
    stop_time: float
    """The same when the daemon shuts down."""
    end_time: float
    """For a worker to release its device and exit after its channel was closed."""
    gone_time: float
    """For a worker to notice that its device was unplugged, and for a released device to reappear; longer
    than an enumeration takes."""


LINUX: Final = UsbStack(
    keeps_address=True,
    probes_interfaces=True,
    release_time=5.0,  # drivers look at the device before the worker answers
    stop_time=1.0,
    end_time=1.0,
    gone_time=2.0,
)

REENUMERATION_TIME: Final = 12.0
"""Longer than the 10 s after which libusb gives up (DARWIN_REENUMERATE_TIMEOUT_US in darwin_usb.c)."""

MACOS: Final = UsbStack(
    keeps_address=False,
    probes_interfaces=False,
    release_time=REENUMERATION_TIME,
    stop_time=REENUMERATION_TIME,
    end_time=REENUMERATION_TIME,
    gone_time=REENUMERATION_TIME,
)


def host_stack() -> UsbStack:
    """The USB stack of this platform."""
    return MACOS if sys.platform == "darwin" else LINUX
