"""Unknown behaviour of a Mac's kernel.  Runs in the kernel of a software Mac.

Each switch is one question.  Its default is the reported or likeliest behaviour; the product must work with
every value.
"""

from dataclasses import dataclass

from tests.mac.kernel import errors


@dataclass
class Switches:
    """The switches of a kernel; `Control.switch` changes them at run time, from the next event on."""

    abort_reports_bytes: bool = True
    """Whether the callback of an aborted transfer gets the number of moved bytes in arg0, or 0."""

    abort_reversed: bool = False
    """Whether aborted transfers of a pipe complete in reverse order, or in order of submission."""

    abort_code: int = errors.ABORTED
    """The code with which AbortPipe ends the transfers of a pipe.  IOUSBLib.h documents kIOReturnAborted."""

    clear_stall_code: int | None = errors.TRANSACTION_RETURNED
    """The code with which ClearPipeStallBothEnds ends pending transfers of the pipe; None: they stay."""

    stall_ends_queue: bool = False
    """Whether a STALL ends the transfers queued behind the stalled one, or they wait until it is cleared."""

    stalled_pipe_refuses: bool = True
    """Whether a transfer for a stalled pipe is refused at its submission (kIOUSBPipeStalled), or accepted and
    ended with that code."""

    capture_survives_owner: bool = False
    """Whether a captured device stays captured when its captor's user client is closed or its process dies;
    else it is enumerated again and its drivers are reattached.  Both have been reported."""

    plain_reenumeration_ends_capture: bool = True
    """Whether USBDeviceReEnumerate without a mask ends a capture whose owner has exited; with the mask
    kUSBReEnumerateReleaseDeviceMask it always ends."""

    capture_unconfigures: bool = True
    """Whether a capture leaves the device unconfigured, without interfaces."""

    storage_driver_stays: bool = False
    """Whether the mass-storage driver keeps its interface at a capture.  IOUSBLib.h documents that, but users
    have captured disks nevertheless.
    """

    reenumeration_changes_address: bool = True
    """Whether a device that is enumerated again gets another USB address."""

    reenumeration_seconds: float = 0.0
    """How long a device is absent when it is enumerated again; up to 1.7 s have been measured."""

    reenumeration_waits: bool = False
    """Whether USBDeviceReEnumerate returns once the device is present again, or immediately.  Stock libusb
    may release the interface meanwhile; with SOFTWARE_MAC_STRICT set, that aborts the process."""

    driver_seconds: float = 0.0
    """The delay between the arrival of a device and that of its drivers."""

    halted_at_first_use: bool = False
    """Whether bulk and interrupt endpoints are halted when a captured device's interface is first opened."""

    open_needs_root: bool = False
    """Whether only root can open a device or an interface (else kIOReturnNotPermitted)."""

    unplug_code: int = errors.NOT_RESPONDING
    """The code with which transfers of an unplugged device end: kIOReturnNotResponding, kIOReturnAborted or
    kIOReturnNoDevice."""

    sleep_ends_transfers: bool = True
    """Whether transfers end when the system sleeps (with kIOReturnNotResponding) or wait until it wakes."""

    wake_enumerates_again: bool = False
    """Whether devices are enumerated again when the system wakes, which also ends captures."""

    has_port_number: bool = True
    """Whether a device has the property PortNum; else its port is the data `port` (from macOS 26 on
    `usb-port-number`) of the entry above it."""

    macos_version: str = "15.4.0"
    """kern.osproductversion."""
