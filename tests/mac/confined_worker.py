"""A worker with macOS's confinement, for tests.  A separate process.

    python -m tests.mac.confined_worker DESCRIPTOR SANDBOX

DESCRIPTOR is its end of the channel, SANDBOX the library built from sandbox.c.
"""

import ctypes
import os
import sys

from tests.as_mac import pretend
from usbipd.ipc import CHANNEL_DESCRIPTOR


def main(descriptor: int, library: str) -> int:
    os.dup2(descriptor, CHANNEL_DESCRIPTOR)
    os.close(descriptor)
    ctypes.CDLL("libgcc_s.so.1")  # glibc loads it when a thread exits, and cannot after chroot
    for each in ("libusb-1.0.so.0", library):  # both define functions of IOKit, and libusb needs its own
        ctypes.CDLL(each, mode=ctypes.RTLD_GLOBAL)
    real = sys.platform
    sys.platform = "darwin"  # the defaults of Claim and LibusbTransfers are set at import
    from usbipd import _claim, _pump  # noqa: F401

    sys.platform = real
    from usbipd import confinement, privileges
    from usbipd.worker import held_device, process

    pretend(confinement, privileges, held_device)
    return process.main(["20-2"])


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
