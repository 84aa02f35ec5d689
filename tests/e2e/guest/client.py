"""The stock USB/IP client: Debian's `usbip` and the kernel's vhci-hcd.  Runs in the guest."""

import re
from pathlib import Path
from typing import Final

from tests.e2e.guest.scenario import StepError
from tests.e2e.guest.system import run, wait_for
from tests.e2e.guest.usb import CLIENT, UsbDevice, wait_until_plugged, wait_until_unplugged

SERVER: Final = "127.0.0.1"
STATUS: Final = Path("/sys/devices/platform/vhci_hcd.0/status")
FREE: Final = "004"  # drivers/usb/usbip/usbip_common.h, VDEV_ST_NULL


def listed() -> str:
    """What `usbip list` prints of the server."""
    return run("usbip", "list", "-r", SERVER)


def attach(busid: str, hardware_id: str) -> UsbDevice:
    """Attach the server's device; the device as this kernel has it then."""
    run("usbip", "attach", "-r", SERVER, "-b", busid)
    return wait_until_plugged(CLIENT, hardware_id)


def detach(device: UsbDevice) -> None:
    """Detach what `attach` returned, and wait until it has gone and its port is free."""
    hardware_id = device.hardware_id
    port = _port(device)
    run("usbip", "detach", "-p", str(port))
    wait_until_unplugged(CLIENT, hardware_id)
    wait_for(f"port {port} of vhci-hcd free", lambda: _ports()[port][0] == FREE)


def _port(device: UsbDevice) -> int:
    for port, (_state, busid) in _ports().items():
        if busid == device.busid:
            return port
    raise StepError(f"vhci-hcd has no device {device.busid}: {_ports()}")


def _ports() -> dict[int, tuple[str, str]]:
    """State and busid of each port of the first controller.  The file must be read in one go."""
    line = re.compile(r"^[hs]s +(\d+) +(\d+) +\d+ +[0-9a-f]+ +\d+ +(\S+)$", re.MULTILINE)
    return {int(port): (state, busid) for port, state, busid in line.findall(STATUS.read_text())}
