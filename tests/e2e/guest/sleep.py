"""Devices stay shared when the host sleeps and wakes up.  Runs in the guest.

The kernel's own test of suspend suspends every device and wakes up after five seconds
(Documentation/power/basic-pm-debugging.rst, pm_test).  This guest then loses access to the host's files.
"""

import random
import sys
from pathlib import Path
from typing import Final

from tests.e2e.guest import client, memory_root
from tests.e2e.guest.command import ask, listed, wait_for_state
from tests.e2e.guest.gadget import Gadget, disk
from tests.e2e.guest.scenario import Scenario, check
from tests.e2e.guest.server import LOG, Usbipd
from tests.e2e.guest.system import wait_for
from tests.e2e.guest.usb import UsbDevice, wait_for_driver

MIB: Final = 1024 * 1024
HARDWARE_IDS: Final = ("1d6b:0104", "1d6b:0105")
LOSES_POWER: Final = "b"  # drivers/usb/core/quirks.c: USB_QUIRK_RESET_RESUME

SCENARIO: Final = Scenario()
step = SCENARIO.step

DAEMON: Final = Usbipd()
BACKINGS: Final[dict[str, Path]] = {}
"""The backing file of each stick, by busid."""


@step()
def two_sticks_are_shared() -> None:
    """The second one loses power while the host sleeps, and is reset on wake-up."""
    quirk = f"{HARDWARE_IDS[1]}:{LOSES_POWER}"
    Path("/sys/module/usbcore/parameters/quirks").write_text(quirk)
    DAEMON.start()
    for port, hardware_id in enumerate(HARDWARE_IDS):
        backing = Path(f"/run/stick{port}.img")
        backing.write_bytes(random.randbytes(2 * MIB))
        stick = Gadget(disk(backing), port=port, hardware_id=hardware_id)
        stick.plug()
        device = stick.wait_until_plugged()
        wait_for_driver(device, "usb-storage")
        ask("bind", "--busid", device.busid)
        wait_for_state(device.busid, "shared")
        BACKINGS[device.busid] = backing
        _check_data(device.busid)


@step()
def host_sleeps_and_wakes_up() -> None:
    Path("/sys/power/pm_test").write_text("devices")
    Path("/sys/power/state").write_text("freeze")
    print("awake again", flush=True)


@step("shared")
def both_are_still_shared() -> None:
    for busid in BACKINGS:
        wait_for_driver(UsbDevice(busid), "usbfs")
        wait_for_state(busid, "shared")
        print(listed(busid))


@step("shared")
def both_can_be_attached() -> None:
    for busid in BACKINGS:
        _check_data(busid)


@step("end")
def unbind_returns_both_to_their_driver() -> None:
    ask("unbind", "--all")
    for busid in BACKINGS:
        wait_for_driver(UsbDevice(busid), "usb-storage")


@step("end")
def daemon_stops_and_leaves_nothing() -> None:
    DAEMON.stop()


def _check_data(busid: str) -> None:
    attached = client.attach(busid)
    node = wait_for(f"a block device of {attached.busid}", attached.block_device)
    check(node.read_bytes() == BACKINGS[busid].read_bytes(), f"the data on {busid} have changed")
    client.detach(attached)
    wait_for_state(busid, "shared")


if __name__ == "__main__":
    memory_root.enter()
    STATUS = SCENARIO.run()
    if STATUS:  # the file cannot be reached later
        print(LOG.read_text(), flush=True)
    sys.exit(STATUS)
