"""The executable of dist/ with a real device: claim, serve, kill, restart.  Runs in the guest."""

import os
import signal
import stat
import sys
from pathlib import Path
from typing import Final

from tests.e2e.guest import client
from tests.e2e.guest.command import wait_for_state
from tests.e2e.guest.daemon import kill, wait_until_ended
from tests.e2e.guest.gadget import Gadget, disk
from tests.e2e.guest.scenario import Scenario, check
from tests.e2e.guest.server import Usbipd, credentials, family_of
from tests.e2e.guest.system import run, wait_for
from tests.e2e.guest.usb import UsbDevice, wait_for_driver

DIST: Final = Path(__file__).resolve().parents[3] / "dist"
UNPACKED_IN: Final = Path("/var/tmp")
MIB: Final = 1024 * 1024
DATA: Final = os.urandom(4 * MIB)

SCENARIO: Final = Scenario()
step = SCENARIO.step()


class World:
    """State passed between steps."""

    daemon: Usbipd
    device: UsbDevice  # on the host


WORLD: Final = World()


@step
def executable_takes_a_device_from_its_driver() -> None:
    # The guest's own: the host's may have files of executables that run on the host.
    run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", UNPACKED_IN)
    stick = Gadget(disk(Path("/run/stick.img"), 16 * MIB), serial="E2E00000000B")
    stick.plug()
    WORLD.device = stick.wait_until_plugged()
    wait_for_driver(WORLD.device, "usb-storage")
    WORLD.daemon = Usbipd(programs=DIST)
    WORLD.daemon.start()
    WORLD.daemon.bind(WORLD.device.busid)
    wait_for("no block device of the gadget", lambda: WORLD.device.block_device() is None)


@step
def unprivileged_processes_use_files_of_root() -> None:
    [files] = _unpacked()
    mode = stat.S_IMODE(files.stat().st_mode)
    check(mode == 0o700 and files.owner() == "root", f"{files} belongs to {files.owner()}, mode {mode:o}")
    for process in WORLD.daemon.processes():
        uids = set(credentials(process["pid"])["Uid"].split())
        check((uids == {"0"}) == (process["role"] == "extension"), f"{process['role']} has uids {uids}")


@step
def stock_client_writes_to_the_device() -> None:
    attached = _attach()
    with _disk(attached).open("wb") as file:
        file.write(DATA)
        file.flush()
        os.fsync(file.fileno())
    client.detach(attached)


@step
def killed_worker_is_replaced() -> None:
    attached = _attach()
    [old] = [process["pid"] for process in WORLD.daemon.processes() if process["role"] == "worker"]
    kill([old])
    client.wait_until_gone(attached)
    _check_data()


@step
def killed_launcher_stops_the_daemon() -> None:
    """The device returns to its driver, as after SIGTERM."""
    family = list(family_of(WORLD.daemon.process.pid))
    check(len(family) == 4, f"launcher, extension, server and worker are {family}")
    WORLD.daemon.process.send_signal(signal.SIGKILL)
    WORLD.daemon.process.wait()
    wait_until_ended(family)
    wait_for_driver(WORLD.device, "usb-storage")
    check(len(_unpacked()) == 1, "its files still exist")


@step
def restarted_daemon_claims_the_bound_device() -> None:
    [left] = _unpacked()
    WORLD.daemon.start()
    check(left not in _unpacked(), f"{left} still exists")
    _check_data()


@step
def daemon_stops_and_leaves_nothing() -> None:
    WORLD.daemon.unbind(WORLD.device.busid)
    wait_for_driver(WORLD.device, "usb-storage")
    WORLD.daemon.stop()
    check(not _unpacked(), f"files are left: {_unpacked()}")


def _unpacked() -> list[Path]:
    return list(UNPACKED_IN.glob("_MEI*"))


def _attach() -> UsbDevice:
    wait_for_state(WORLD.device.busid, "shared")
    return client.attach(WORLD.device.busid)


def _disk(attached: UsbDevice) -> Path:
    return wait_for("a block device of the attached device", attached.block_device)


def _check_data() -> None:
    attached = _attach()
    with _disk(attached).open("rb") as file:
        check(file.read(len(DATA)) == DATA, "the data on the disk differ from those written")
    client.detach(attached)


if __name__ == "__main__":
    sys.exit(SCENARIO.run())
