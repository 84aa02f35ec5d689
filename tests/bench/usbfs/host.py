"""The files of a host with one USB device, as libusb reads them: what usbfs.c serves.  Runs in the bench.

The device is high speed, with bulk endpoints 0x81 and 0x01 in the one setting of its one interface.
"""

import struct
from pathlib import Path
from typing import Final

BUSID: Final = "1-1"  # these three as in usbfs.c
BUSNUM: Final = 1
DEVNUM: Final = 2

# USB 2.0 tables 9-8, 9-10, 9-12 and 9-13
_DEVICE: Final = struct.pack(
    "<BBHBBBBHHHBBBB", 18, 1, 0x0200, 0xFF, 0, 0, 64, 0x1D6B, 0x0104, 0x0100, 0, 0, 0, 1
)
_ENDPOINTS: Final = b"".join(struct.pack("<BBBBHB", 7, 5, address, 2, 512, 0) for address in (0x81, 0x01))
_INTERFACE: Final = struct.pack("<BBBBBBBBB", 9, 4, 0, 0, 2, 0xFF, 0, 0, 0)
_CONFIGURATION: Final = (
    struct.pack("<BBHBBBBB", 9, 2, 9 + len(_INTERFACE + _ENDPOINTS), 1, 1, 0, 0x80, 50)
    + _INTERFACE
    + _ENDPOINTS
)


def fill(root: Path) -> None:
    """Puts the files below `root`, which is $USBFS_ROOT of the processes that see this host."""
    device = root / "sys/bus/usb/devices" / BUSID
    device.mkdir(parents=True, exist_ok=True)
    attributes = {"busnum": BUSNUM, "devnum": DEVNUM, "speed": 480, "bConfigurationValue": 1}
    for name, value in attributes.items():
        (device / name).write_text(f"{value}\n")
    (device / "descriptors").write_bytes(_DEVICE + _CONFIGURATION)
    node = root / "dev/bus/usb" / f"{BUSNUM:03}" / f"{DEVNUM:03}"
    node.parent.mkdir(parents=True, exist_ok=True)
    node.touch()
