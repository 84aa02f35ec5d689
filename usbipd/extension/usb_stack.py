"""How a host's USB stack treats a device that is claimed and released.  Runs in the extension.

Linux detaches the driver of each interface, and reattaches it later; the device keeps its address.  macOS
captures the whole device, and ends that by enumerating it again: the device leaves, and arrives at the same
port under another address, up to 1.7 s later.
"""

import sys
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class UsbStack:
    """What the platforms do differently.  Times are seconds."""

    keeps_address: bool
    """Whether a device that is reset keeps its USB address, so that another address means another device.
    Without that, only the worker knows whether its device has left; libusb reports that at once."""
    probes_interfaces: bool
    """Whether the host scans for drivers of single interfaces; that is done after every claim.  Otherwise the
    whole device is enumerated again, and only after a worker that was killed: a change of the device makes a
    claim that has failed try again at once."""
    release_time: float
    """For a worker to release its device, before it is killed."""
    stop_time: float
    """The same when the whole daemon stops."""
    end_time: float
    """For a worker to exit when its channel is closed: it still has to release its device."""
    gone_time: float
    """For a worker to notice that its device has been removed, and for a released device to come back; longer
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
    """That of this platform."""
    return MACOS if sys.platform == "darwin" else LINUX
