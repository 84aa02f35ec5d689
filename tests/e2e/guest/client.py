"""The stock USB/IP client: Debian's `usbip` and the kernel's vhci-hcd.  Runs in the guest."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.e2e.guest.scenario import StepError, check
from tests.e2e.guest.system import run, wait_for
from tests.e2e.guest.usb import UsbDevice

SERVER: Final = "127.0.0.1"
TCP_PORT: Final = 3240
STATUS: Final = Path("/sys/devices/platform/vhci_hcd.0/status")
RECORDS: Final = Path("/run/vhci_hcd")  # tools/usb/usbip/libsrc/vhci_driver.h, VHCI_STATE_PATH
FREE, USED = "004", "006"  # drivers/usb/usbip/usbip_common.h, VDEV_ST_NULL and VDEV_ST_USED


def listed(server: str = SERVER) -> str:
    """The output of `usbip list` for the server."""
    return run("usbip", "list", "-r", server)


def attach(
    busid: str,
    hardware_id: str | None = None,
    *,
    server: str = SERVER,
    tcp_port: int = TCP_PORT,
    via: Sequence[str] = (),
) -> UsbDevice:
    """Attach the server's device; returns it as this kernel sees it, once its interfaces exist.

    `via` is a command prefix that makes the connection from elsewhere.  Raises `StepError`, also if the
    device is not `hardware_id`.
    """
    run(*via, "usbip", "--tcp-port", str(tcp_port), "attach", "-r", server, "-b", busid)
    port = _port_of_server_device(busid)
    device = wait_for(f"{busid} of the server on port {port} of vhci-hcd", lambda: _device_on(port))
    found = device.hardware_id
    check(hardware_id in (None, found), f"{busid} of the server is {found} here, not {hardware_id}")
    return device


def detach(device: UsbDevice) -> None:
    """Detach what `attach` returned, and wait until it is removed and its port is free."""
    port = _port(device)
    run("usbip", "detach", "-p", str(port))
    wait_until_gone(device, port)


def wait_until_gone(device: UsbDevice, port: int | None = None) -> None:
    """Wait until an attached device is removed, for whatever reason, and no port of vhci-hcd has it."""
    wait_for(f"no device {device.busid} on vhci-hcd", lambda: not device.path.exists())
    wait_for(f"no port of vhci-hcd with {device.busid}", lambda: not _is_on_a_port(device))
    if port is not None:
        wait_for(f"port {port} of vhci-hcd free", lambda: _ports()[port][0] == FREE)


def _is_on_a_port(device: UsbDevice) -> bool:
    return any(busid == device.busid for _state, busid in _ports().values())


def _device_on(port: int) -> UsbDevice | None:
    state, busid = _ports()[port]
    device = UsbDevice(busid)
    return device if state == USED and device.is_configured else None


def _port(device: UsbDevice) -> int:
    for port, (_state, busid) in _ports().items():
        if busid == device.busid:
            return port
    raise StepError(f"vhci-hcd has no device {device.busid}: {_ports()}")


def _port_of_server_device(busid: str) -> int:
    """The port of the latest `usbip attach`: the tool leaves a record of each.

    Records of free ports are stale.
    """
    for port, (state, _busid) in _ports().items():
        record = RECORDS / f"port{port}"
        if state != FREE and record.exists() and record.read_text().split()[2:] == [busid]:
            return port
    raise StepError(f"vhci-hcd has no device of the server's {busid}: {_ports()}")


def _ports() -> dict[int, tuple[str, str]]:
    """State and busid of each port of the first controller.  The file must be read in one go."""
    line = re.compile(r"^[hs]s +(\d+) +(\d+) +\d+ +[0-9a-f]+ +\d+ +(\S+)$", re.MULTILINE)
    return {int(port): (state, busid) for port, state, busid in line.findall(STATUS.read_text())}
