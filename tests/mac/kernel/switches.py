"""What a Mac's kernel does and this project does not know.  Runs in the kernel of a software Mac.

Each switch is one question.  Its default is what is reported, or what is likeliest; the product has to be
right with every value.
"""

from dataclasses import dataclass

from tests.mac.kernel import errors


@dataclass
class Switches:
    """One set for a kernel; `Control.switch` changes it while it runs, from the next event on."""

    abort_reports_bytes: bool = True
    """Whether the callback of an aborted transfer gets in arg0 how many bytes were moved, or 0."""

    abort_reversed: bool = False
    """Whether aborted transfers of a pipe complete last first, rather than in the order of their submission.
    """

    abort_code: int = errors.ABORTED
    """With which code AbortPipe ends the transfers of a pipe.  IOUSBLib.h documents kIOReturnAborted."""

    clear_stall_code: int | None = errors.TRANSACTION_RETURNED
    """With which code ClearPipeStallBothEnds ends the transfers that wait on the pipe; None: they stay."""

    stall_ends_queue: bool = False
    """Whether a STALL ends the transfers queued behind the one that met it, or they wait until it is cleared.
    """

    stalled_pipe_refuses: bool = True
    """Whether a transfer for a pipe that met a STALL is refused when it is submitted (kIOUSBPipeStalled), or
    accepted and ended with that code."""

    capture_survives_owner: bool = False
    """Whether a captured device stays captured when the user client that has captured it is closed, or its
    process dies; else it is enumerated again and gets its drivers back.  Both have been reported."""

    plain_reenumeration_ends_capture: bool = True
    """Whether USBDeviceReEnumerate without a mask ends a capture whose owner is gone; with the mask
    kUSBReEnumerateReleaseDeviceMask it ends in any case."""

    capture_unconfigures: bool = True
    """Whether a capture leaves the device unconfigured, without interfaces."""

    storage_driver_stays: bool = False
    """Whether the driver of mass storage stays at a capture and keeps its interface.  IOUSBLib.h documents
    that, and people have captured disks nevertheless.
    """

    reenumeration_changes_address: bool = True
    """Whether a device that is enumerated again gets another USB address."""

    reenumeration_seconds: float = 0.0
    """How long a device is away when it is enumerated again; up to 1.7 s have been measured."""

    reenumeration_waits: bool = False
    """Whether USBDeviceReEnumerate returns when the device is there again, or at once.  libusb without
    our patches may release the interface meanwhile; with SOFTWARE_MAC_STRICT set, that ends the process."""

    driver_seconds: float = 0.0
    """How long after a device its drivers arrive."""

    halted_at_first_use: bool = False
    """Whether bulk and interrupt endpoints are halted when a captured device's interface is opened first."""

    open_needs_root: bool = False
    """Whether a program without root is refused when it opens a device or an interface
    (kIOReturnNotPermitted).
    """

    unplug_code: int = errors.NOT_RESPONDING
    """With which code transfers end whose device is unplugged: kIOReturnNotResponding, kIOReturnAborted or
    kIOReturnNoDevice."""

    sleep_ends_transfers: bool = True
    """Whether transfers end when the system sleeps (with kIOReturnNotResponding) or wait for its waking."""

    wake_enumerates_again: bool = False
    """Whether devices are enumerated again when the system wakes, which ends captures, too."""

    has_port_number: bool = True
    """Whether a device has the property PortNum; else its port is the data `port` (from macOS 26 on
    `usb-port-number`) of the entry above it."""

    macos_version: str = "15.4.0"
    """kern.osproductversion."""
