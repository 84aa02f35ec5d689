"""A real device: bound, used by a stock client, released.  Runs in the guest.

The device is a mass-storage gadget on dummy_hcd, the client is this same kernel over 127.0.0.1.  With
`--kernel-server` the kernel's own server replaces our daemon, and steps that query our daemon pass without
doing anything.
"""

import hashlib
import os
import sys
from pathlib import Path
from typing import Final

from tests.e2e.guest import client, gadget
from tests.e2e.guest.scenario import Scenario, check
from tests.e2e.guest.server import KernelServer, Server, Usbipd, credentials
from tests.e2e.guest.system import run, wait_for
from tests.e2e.guest.usb import UsbDevice
from usbipd.worker_uids import DEFAULT_UIDS

MIB: Final = 1024 * 1024
DISK_SIZE: Final = 56 * MIB
DATA_SIZE: Final = 32 * MIB
MOUNT_POINT: Final = Path("/run/mnt")
DATA: Final = MOUNT_POINT / "data"
FIRST_WORKER: Final = DEFAULT_UIDS.partition("-")[0]
"""The user id of the first worker; ids without a name are shown as numbers."""

SCENARIO: Final = Scenario()
step = SCENARIO.step()


class World:
    """State passed between steps."""

    server: Server
    stick: gadget.Gadget
    device: UsbDevice  # on the host
    attached: UsbDevice  # on the client
    sha256: str


WORLD: Final = World()


@step
def host_driver_owns_device() -> None:
    WORLD.stick = gadget.Gadget(gadget.disk(Path("/run/stick.img"), DISK_SIZE), serial="E2E000000001")
    WORLD.stick.plug()
    WORLD.device = WORLD.stick.wait_until_plugged()
    disk = wait_for("a block device of the gadget", WORLD.device.block_device)
    print(f"{WORLD.device.busid} is {disk}")
    _check_driver("usb-storage")


@step
def daemon_starts() -> None:
    WORLD.server.start()


@step
def list_shows_device_with_its_driver() -> None:
    if isinstance(WORLD.server, Usbipd):
        device = WORLD.server.listed_device(WORLD.device.busid)
        _check_fields(device, vendor_id=0x1D6B, product_id=0x0104, state="not shared", simulated=False)
        _check_fields(device, manufacturer="Acme", product="Stick", speed="high", drivers=["usb-storage"])


@step
def bind_takes_device_from_its_driver() -> None:
    WORLD.server.bind(WORLD.device.busid)
    wait_for("no block device of the gadget", lambda: WORLD.device.block_device() is None)
    driver = WORLD.device.driver()
    print(f"{WORLD.device.busid} has the driver {driver}")
    check(driver != "usb-storage", "after bind the device still has the driver usb-storage")


@step
def status_shows_device_shared() -> None:
    if isinstance(WORLD.server, Usbipd):
        _check_fields(WORLD.server.device(WORLD.device.busid), state="shared", client=None, error=None)


@step
def extension_is_root_server_and_worker_are_not() -> None:
    if not isinstance(WORLD.server, Usbipd):
        return
    processes = WORLD.server.processes()
    users = {process["role"]: process["user"] for process in processes}
    expected = {"extension": "root", "server": "usbipd", "worker": FIRST_WORKER}
    check(users == expected, f"processes run as {users}, not as {expected}")
    user = Path("/etc/passwd").read_text().partition("\nusbipd:x:")[2].partition(":")[0]
    for process in processes:
        facts = credentials(process["pid"])
        names = ("Uid", "Gid", "Groups", "CapPrm", "NoNewPrivs", "Seccomp")
        print(process["role"], process["pid"], *(f"{name}={facts.get(name)}" for name in names))
        expected_uid = {"extension": "0", "server": user, "worker": FIRST_WORKER}[process["role"]]
        uids = set(facts["Uid"].split())  # real, effective, saved, file system
        check(uids == {expected_uid}, f"{process['role']}: uids {facts['Uid']}, not all {expected_uid}")
        if process["role"] != "extension":
            check(facts["NoNewPrivs"] == "1", f"{process['role']}: may get new privileges")
            check(int(facts["CapPrm"], 16) == 0, f"{process['role']}: has capabilities {facts['CapPrm']}")
            check(facts["Groups"] in ("", expected_uid), f"{process['role']}: is in groups {facts['Groups']}")


@step
def stock_client_lists_device() -> None:
    listing = client.listed()
    check(f"{WORLD.device.busid}: " in listing, f"usbip list does not show {WORLD.device.busid}")
    check(gadget.MASS_STORAGE in listing, f"usbip list does not show {gadget.MASS_STORAGE}")


@step
def stock_client_attaches_device() -> None:
    WORLD.attached = client.attach(WORLD.device.busid, gadget.MASS_STORAGE)
    disk = _attached_disk()
    check(WORLD.attached.driver() == "usb-storage", "the client's usb-storage did not claim the device")
    size = int(Path(f"/sys/block/{disk.name}/size").read_text()) * 512
    check(size == DISK_SIZE, f"the client sees a disk of {size} bytes, not {DISK_SIZE}")


@step
def status_shows_device_attached() -> None:
    if isinstance(WORLD.server, Usbipd):
        device = WORLD.server.device(WORLD.device.busid)
        _check_fields(device, state="attached")
        check(str(device["client"]).startswith("127.0.0.1"), f"client is {device['client']}, not 127.0.0.1")
        offered = [device["busid"] for device in WORLD.server.devices()]
        check(WORLD.attached.busid not in offered, "the imported device is offered again")


@step
def attached_disk_takes_a_file_system() -> None:
    run("mkfs.ext4", "-q", _attached_disk())


@step
def attached_disk_takes_32_mib() -> None:
    _mount(_attached_disk())
    data = os.urandom(DATA_SIZE)
    WORLD.sha256 = hashlib.sha256(data).hexdigest()
    with DATA.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    run("umount", MOUNT_POINT)
    print(f"{DATA_SIZE} bytes, sha256 {WORLD.sha256}")


@step
def stock_client_detaches_device() -> None:
    client.detach(WORLD.attached)


@step
def second_attach_reads_same_data() -> None:
    WORLD.attached = client.attach(WORLD.device.busid, gadget.MASS_STORAGE)
    _check_data(_attached_disk())


@step
def stock_client_detaches_device_again() -> None:
    client.detach(WORLD.attached)


@step
def unbind_returns_device_to_its_driver() -> None:
    WORLD.server.unbind(WORLD.device.busid)
    wait_for("a block device of the gadget", WORLD.device.block_device)
    _check_driver("usb-storage")


@step
def host_reads_same_data() -> None:
    _check_data(wait_for("a block device of the gadget", WORLD.device.block_device))


@step
def list_shows_device_not_shared() -> None:
    if isinstance(WORLD.server, Usbipd):
        device = WORLD.server.listed_device(WORLD.device.busid)
        _check_fields(device, state="not shared", drivers=["usb-storage"])


@step
def unbind_disconnects_an_attached_client() -> None:
    WORLD.server.bind(WORLD.device.busid)
    attached = client.attach(WORLD.device.busid, gadget.MASS_STORAGE)
    WORLD.server.unbind(WORLD.device.busid)
    client.wait_until_gone(attached)
    wait_for("a block device of the gadget", WORLD.device.block_device)
    _check_driver("usb-storage")


@step
def unplugging_closes_the_connection() -> None:  # rule("unplug-closes")
    WORLD.server.bind(WORLD.device.busid)
    attached = client.attach(WORLD.device.busid, gadget.MASS_STORAGE)
    WORLD.stick.unplug()
    client.wait_until_gone(attached)
    if isinstance(WORLD.server, Usbipd):
        devices = [device["busid"] for device in WORLD.server.devices()]
        check(WORLD.device.busid not in devices, f"the list still shows {WORLD.device.busid}")


@step
def daemon_stops_and_leaves_nothing() -> None:
    WORLD.server.stop()


def _attached_disk() -> Path:
    return wait_for("a block device of the attached device", WORLD.attached.block_device)


def _check_driver(expected: str) -> None:
    driver = WORLD.device.driver()
    check(driver == expected, f"the device has the driver {driver}, not {expected}")


def _check_fields(device: dict[str, object], **expected: object) -> None:
    found = {name: device.get(name, "(missing)") for name in expected}
    check(found == expected, f"the device has {found}, not {expected}")


def _mount(disk: Path, *options: str) -> None:
    MOUNT_POINT.mkdir(exist_ok=True)
    run("mount", "-t", "ext4", *options, disk, MOUNT_POINT)


def _check_data(disk: Path) -> None:
    _mount(disk, "-o", "ro")
    with DATA.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    run("umount", MOUNT_POINT)
    check(found == WORLD.sha256, f"sha256 is {found}, not {WORLD.sha256}")


if __name__ == "__main__":
    WORLD.server = KernelServer() if "--kernel-server" in sys.argv else Usbipd()
    sys.exit(SCENARIO.run())
