"""The kernel's own tests of a USB device: the driver usbtest, through usbfs.  Runs in the guest.

Source: drivers/usb/misc/usbtest.c.
"""

import errno
import fcntl
import os
import struct
import time
from collections.abc import Mapping
from ctypes import addressof, create_string_buffer
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.e2e.guest import system
from tests.e2e.guest.usb import UsbDevice

GADGET_ZERO: Final = "0525:a4a0"

# drivers/usb/misc/usbtest.c, struct usbtest_param_32: number, iterations, length, vary, sglen, duration
_PARAMETERS: Final = struct.Struct("IIIIIii")
_USBTEST_REQUEST: Final = 0xC01C5564  # the same, _IOWR('U', 100, struct usbtest_param_32)
_WRAPPER: Final = struct.Struct("iiP")  # include/uapi/linux/usbdevice_fs.h, struct usbdevfs_ioctl
_USBDEVFS_IOCTL: Final = 0xC0105512  # the same, _IOWR('U', 18, struct usbdevfs_ioctl)
PASSED: Final = "passed"
UNSUPPORTED: Final = os.strerror(errno.EOPNOTSUPP)
"""The device lacks the endpoints or requests for this test."""

_PATTERN: Final = Path("/sys/module/usbtest/parameters/pattern")
_MOD63: Final = "1"  # byte i of each packet is i % 63


@dataclass(frozen=True)
class Test:
    """The parameters of one of its tests."""

    iterations: int
    length: int = 0  # bytes
    vary: int = 0  # bytes by which the next transfer is longer, modulo `length`
    sglen: int = 0  # queued transfers


CONTROL_QUEUE: Final = 10
LAST_WORDS: Final = 0.3
"""Seconds.  After the end of that test, its last completion may still be about to release a lock on the stack
of the ioctl (ctrl_complete): system calls of this thread may fail meanwhile."""

QUEUE: Final = 8
STEP: Final = 1024
"""A whole number of packets at any speed: a source that fills each packet babbles when less is requested."""
TESTS: Final[Mapping[int, Test]] = {
    0: Test(1),  # does nothing
    1: Test(50, 1024),  # bulk writes
    2: Test(50, 1024),  # bulk reads
    3: Test(50, 1024, vary=421),  # bulk writes of varying length
    4: Test(50, 8192, vary=STEP),  # bulk reads of varying length
    5: Test(8, 4096, sglen=QUEUE),  # queued bulk writes
    6: Test(8, 4096, sglen=QUEUE),  # queued bulk reads
    7: Test(8, 4096, vary=421, sglen=QUEUE),  # queued bulk writes of varying length
    8: Test(8, 8192, vary=STEP, sglen=QUEUE),  # queued bulk reads of varying length
    9: Test(10),  # requests of USB 2.0, chapter 9
    11: Test(50, 1024),  # reads that are unlinked
    12: Test(50, 1024),  # writes that are unlinked
    13: Test(20),  # halting endpoints and clearing halts
    14: Test(50, 256, vary=1),  # control writes, read back
    15: Test(8, 1024, sglen=QUEUE),  # isochronous writes
    16: Test(8, 1024, sglen=QUEUE),  # isochronous reads
    17: Test(20, 1024),  # as 1, from an odd address
    18: Test(20, 1024),  # as 2, to an odd address
    19: Test(20, 1024),  # as 17, mapped before
    20: Test(20, 1024),  # as 18, mapped before
    21: Test(50, 256, vary=1),  # as 14, from an odd address
    22: Test(8, 1024, sglen=QUEUE),  # as 15, from an odd address
    23: Test(8, 1024, sglen=QUEUE),  # as 16, to an odd address
    24: Test(20, 512, sglen=32),  # unlinks from a queue of writes
    25: Test(20, 64),  # interrupt writes
    26: Test(20, 64),  # interrupt reads
    29: Test(20, 1024),  # data toggles between bulk writes
    CONTROL_QUEUE: Test(10, sglen=32),  # queued control transfers, of which some stall
}
"""Without 27 and 28, which are 5 and 6 with timing, and do not check the data."""


def load(hardware_id: str | None = None) -> None:
    """Load the driver, for gadget zero or for the devices `hardware_id`, then without vendor requests."""
    options = []
    if hardware_id is not None:
        vendor, _, product = hardware_id.partition(":")
        # alt: without it, the driver would not look for endpoints
        options = [f"vendor=0x{vendor}", f"product=0x{product}", "alt=0"]
    system.run("modprobe", "-r", "usbtest")
    system.run("modprobe", "usbtest", *options)


def run(device: UsbDevice, tests: Mapping[int, Test]) -> dict[int, str]:
    """The result of each test of `device`, which the driver holds: PASSED or an error message."""
    _PATTERN.write_text(_MOD63)
    usbfs = os.open(device.node, os.O_RDWR)
    try:
        return {number: _run(usbfs, number, test) for number, test in tests.items()}
    finally:
        os.close(usbfs)


def _run(usbfs: int, number: int, test: Test) -> str:
    packed = _PARAMETERS.pack(number, test.iterations, test.length, test.vary, test.sglen, 0, 0)
    parameters = create_string_buffer(packed, len(packed))
    interface = 0
    request = struct.unpack("i", struct.pack("I", _USBTEST_REQUEST))[0]
    start = time.monotonic()
    try:
        fcntl.ioctl(usbfs, _USBDEVFS_IOCTL, _WRAPPER.pack(interface, request, addressof(parameters)))
        result = PASSED
    except OSError as error:
        result = os.strerror(error.errno or 0)
    end = time.monotonic()
    if number == CONTROL_QUEUE:
        while time.monotonic() < end + LAST_WORDS:  # without system calls: the clock is read in user space
            pass
    print(f"usbtest {number}: {result}, {end - start:.2f} s", flush=True)
    return result
