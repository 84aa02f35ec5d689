"""Which client gets which device, and who may change that: cases that need a real kernel.  Runs in the guest.

Two identical devices; users of this host, as identified by the kernel; devices in use on this host; a device
that becomes a different one.
"""

import concurrent.futures
import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tests.e2e.guest import client
from tests.e2e.guest.command import ROOT, User, ask, call, check_doctor, listed, wait_for_state
from tests.e2e.guest.disk import Disk
from tests.e2e.guest.gadget import LOOPBACK, Gadget, disk
from tests.e2e.guest.scenario import Scenario, check
from tests.e2e.guest.server import Usbipd
from tests.e2e.guest.system import run, wait_for
from tests.e2e.guest.usb import UsbDevice, wait_for_driver

MIB: Final = 1024 * 1024
DISK_SIZE: Final = 16 * MIB

SCENARIO: Final = Scenario()
step = SCENARIO.step

DAEMON: Final = Usbipd()


@step()
def daemon_starts() -> None:
    DAEMON.start()


# ---- two identical devices ---------------------------------------------------------------------------------

TWINS: Final[dict[str, tuple[Gadget, Path]]] = {}
"""Backing files by busid."""


@step("twins")
def identical_devices_are_told_apart_by_port() -> None:
    for port in (0, 1):
        backing = Path(f"/run/twin{port}.img")
        backing.write_bytes(random.randbytes(2 * MIB))
        twin = Gadget(disk(backing), port=port)
        twin.plug()
        device = twin.wait_until_plugged()
        wait_for_driver(device, "usb-storage")
        TWINS[device.busid] = twin, backing
    first, second = TWINS
    ask("bind", "--busid", first)
    ids = {busid: (listed(busid) or {})["serial"] for busid in TWINS}
    check(set(ids.values()) == {None}, f"the serial numbers are {ids}")
    wait_for_state(first, "shared")
    wait_for_state(second, "not shared")
    check(
        UsbDevice(second).driver() == "usb-storage", "bind also claimed the second of two identical devices"
    )
    ask("bind", "--busid", second)
    wait_for_state(second, "shared")


@step("twins")
def two_concurrent_clients_each_get_their_own_data() -> None:
    attached = [client.attach(busid) for busid in TWINS]  # in sequence: usbip(8) loops when it loses a port
    for busid in TWINS:
        wait_for_state(busid, "attached")
    with concurrent.futures.ThreadPoolExecutor() as clients:
        list(clients.map(_check_own_data, attached, [backing for _twin, backing in TWINS.values()]))
    for device in attached:
        client.detach(device)


def _check_own_data(attached: UsbDevice, backing: Path) -> None:
    """Read the whole disk, overwrite it, and check the backing file."""
    node = wait_for(f"a block device of {attached.busid}", attached.block_device)
    found = node.read_bytes()
    check(found == backing.read_bytes(), f"{node} differs from {backing}")
    data = random.randbytes(len(found))
    with node.open("wb", buffering=0) as blocks:
        for start in range(0, len(data), MIB // 4):
            blocks.write(data[start : start + MIB // 4])
        os.fsync(blocks.fileno())
    check(backing.read_bytes() == data, f"data written to {node} is not in {backing}")


@step("twins")
def unbind_of_one_leaves_the_other_shared() -> None:
    first, second = TWINS
    ask("unbind", "--busid", first)
    wait_for_driver(UsbDevice(first), "usb-storage")
    wait_for_state(first, "not shared")
    wait_for_state(second, "shared")
    for twin, _backing in TWINS.values():
        _remove(twin)


# ---- users of this host ------------------------------------------------------------------------------------

GROUP: Final = 64240  # the group usbipd: vm/guest_init.sh
MEMBER: Final = User("member", 64241, 64241, (64241, GROUP))
OTHER: Final = User("other", 64242, 64242, (64242,))
SERVICE: Final = User("usbipd", GROUP, GROUP)
"""The user of server and workers."""


@step("users")
def all_users_have_read_access() -> None:
    for directory in (*Path(sys.prefix).parents, *Path(sys.base_prefix).parents):
        directory.chmod(directory.stat().st_mode | 0o011)  # root's Python may be in root's home
    with _stick() as busid:
        for user in (ROOT, MEMBER, OTHER, SERVICE):
            for verb, shows in (
                ("list", "devices"),
                ("status", "status"),
                ("history", "entries"),
                ("doctor", "checks"),
            ):
                outcome = call(verb, "--json", user=user)
                check(shows in outcome.document, f"{verb} does not show {shows} to {user.name}")
                check(
                    outcome.code == 0 or verb == "doctor", f"{verb} exits with {outcome.code} for {user.name}"
                )
        check(listed(busid) is not None, f"{busid} is not listed")


@step("users")
def root_and_the_group_may_change_bindings() -> None:
    with _stick() as busid:
        for user in (ROOT, MEMBER):
            outcome = call("bind", "--json", "--busid", busid, user=user)
            check(outcome.code == 0, f"{user.name} may not bind: {outcome.stdout}")
            binding = outcome.document["binding"]
            print(f"bound by {binding['created_by']}")
            attached = client.attach(busid)
            outcome = call("detach", "--json", "--busid", busid, user=user)
            check(outcome.code == 0, f"{user.name} may not detach: {outcome.stdout}")
            client.wait_until_gone(attached)
            wait_for_state(busid, "shared")
            outcome = call("unbind", "--json", "--busid", busid, user=user)
            check(outcome.code == 0, f"{user.name} may not unbind: {outcome.stdout}")
            wait_for_driver(UsbDevice(busid), "usb-storage")


@step("users")
def no_other_user_may_change_bindings() -> None:
    with _stick() as busid:
        for user in (OTHER, SERVICE):
            _check_refused(user, "bind", busid)
        check(UsbDevice(busid).driver() == "usb-storage", "a refused bind claimed the device")
        ask("bind", "--busid", busid)
        attached = client.attach(busid)
        for user in (OTHER, SERVICE):
            for verb in ("detach", "unbind"):
                _check_refused(user, verb, busid)
            outcome = call("unbind", "--json", "--all", user=user)
            check(outcome.error == "not-permitted", f"unbind --all by {user.name}: {outcome.stdout}")
        wait_for_state(busid, "attached")
        client.detach(attached)


def _check_refused(user: User, verb: str, busid: str) -> None:
    outcome = call(verb, "--json", "--busid", busid, user=user)
    check(outcome.code == 1, f"{verb} by {user.name} exited with {outcome.code}, not 1")
    check(outcome.error == "not-permitted", f"{verb} by {user.name}: {outcome.stdout}")
    words = outcome.stderr
    check(
        "permission denied" in words and "sudo" in words, f"{verb} prints only this to {user.name}: {words}"
    )


@step("users")
def installed_command_refuses_alike() -> None:
    """The installed command, started by that user: the commands above are forks of this process."""
    command: list[str | Path] = [Path(sys.prefix) / "bin" / "usbipd", "unbind", "--all"]
    done = subprocess.run(
        command,
        user=OTHER.uid,
        group=OTHER.gid,
        extra_groups=OTHER.groups,
        capture_output=True,
        text=True,
        cwd="/",
    )
    check(done.returncode == 1 and "permission denied" in done.stderr, f"{done.returncode}: {done.stderr}")


# ---- devices in use on this host ---------------------------------------------------------------------------

MOUNT_POINTS: Final = (Path("/run/mnt/here"), Path("/run/mnt/there too"))


@step("mounted")
def mounted_device_is_refused_with_its_mount_points() -> None:
    with _stick() as busid:
        here, there = map(Disk, MOUNT_POINTS)
        here.make(UsbDevice(busid))
        here.mount(UsbDevice(busid))
        there.mount(UsbDevice(busid))
        data = random.randbytes(3 * MIB)
        (here.mount_point / "data").write_bytes(data)  # not yet flushed to the device

        outcome = call("bind", "--json", "--busid", busid)
        message = outcome.document["error"]["message"]
        check(
            outcome.code == 1 and all(str(path) in message for path in MOUNT_POINTS),
            f"bind prints: {message}",
        )
        check("--force" in outcome.stderr, f"the advice is {outcome.stderr}")
        check(all(path.is_mount() for path in MOUNT_POINTS), "a refused bind unmounted something")
        check(UsbDevice(busid).driver() == "usb-storage", "a refused bind claimed the device")

        with (here.mount_point / "data").open("rb") as file:  # a process uses it
            outcome = call("bind", "--json", "--force", "--busid", busid)
            message = outcome.document["error"]["message"]
            check(outcome.code == 1 and str(MOUNT_POINTS[0]) in message, f"bind --force prints: {message}")
            check(file.read() == data, "the file has changed")

        outcome = call("bind", "--json", "--force", "--busid", busid)
        check(outcome.code == 0, f"bind --force exited with {outcome.code}: {outcome.stdout}")
        check(not any(path.is_mount() for path in MOUNT_POINTS), "it is still mounted")
        wait_for_state(busid, "shared")

        attached = client.attach(busid)
        node = wait_for("a block device of the attached device", attached.block_device)
        run("e2fsck", "-f", "-n", node)  # -n: repairs nothing, so it must find no errors
        here.mount(attached)
        found = (here.mount_point / "data").read_bytes()
        here.unmount()
        client.detach(attached)
        expected, sha256 = (hashlib.sha256(each).hexdigest() for each in (data, found))
        check(sha256 == expected, f"sha256 is {sha256}, not {expected}: bind --force lost data")


HOLDER: Final = """
import sys, usb.core, usb.util
while (device := usb.core.find(idVendor=int(sys.argv[1], 16), idProduct=int(sys.argv[2], 16))) is None:
    pass
usb.util.claim_interface(device, 0)
print("held", flush=True)
sys.stdin.read()
"""
"""A program that waits for a device, claims it, and holds it until end of file on stdin."""
GIZMO: Final = "1d6b:0a0a"


@step("held")
def program_that_holds_a_device_is_named() -> None:
    with _gadget(Gadget(LOOPBACK, hardware_id=GIZMO, product="Gizmo")) as busid:
        with _holder() as pid:
            outcome = call("bind", "--json", "--busid", busid)
            message = outcome.document["error"]["message"]
            check(
                outcome.code == 1 and str(pid) in message,
                f"process {pid} holds it, but bind prints: {message}",
            )
            check(outcome.error == "LIBUSB_ERROR_BUSY", f"the error is {outcome.error}")
            wait_for_state(busid, "not shared")
            check(ask("list")["bindings"] == [], "a failed bind has created a binding")
        ask("bind", "--busid", busid)
        wait_for_state(busid, "shared")


@step("held")
def failed_claim_is_retried_until_it_succeeds() -> None:
    ask("bind", "--hardware-id", GIZMO)
    gizmo = Gadget(LOOPBACK, hardware_id=GIZMO, product="Gizmo")
    with ExitStack() as held:
        with _daemon_stopped():  # so that the program claims first
            pid = held.enter_context(_holder(gizmo.plug))
        busid = gizmo.wait_until_plugged().busid
        device = wait_for_state(busid, "failed")
        print(f"failed: {device['error']}: {device['advice']}, next try at {device['next_try']}")
        check(str(pid) in str(device["error"]), f"process {pid} holds it; the reason is {device['error']}")
        check(device["advice"] and device["next_try"], "advice or time of the next try is missing")
    wait_for_state(busid, "shared")
    _remove(gizmo)


@contextmanager
def _daemon_stopped() -> Iterator[None]:
    """The extension is suspended during a `with` block."""
    DAEMON.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        DAEMON.process.send_signal(signal.SIGCONT)


@contextmanager
def _holder(begin: Callable[[], None] = lambda: None) -> Iterator[int]:
    """The pid of a program that holds the gizmo.  `begin` is called once it runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *GIZMO.split(":")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        begin()
        check(process.stdout.readline() == "held\n", "the program could not claim the device")
        yield process.pid
        process.stdin.close()


# ---- a device that becomes a different one -----------------------------------------------------------------

BOOTLOADER, PROGRAM, STRANGER = "1d6b:0b00", "1d6b:0b01", "1d6b:0b02"


@step("bootloader")
def device_that_becomes_a_bound_one_is_claimed() -> None:
    with _stick(BOOTLOADER, wait=False) as busid:
        gadget = GADGETS[busid]
        ask("bind", "--hardware-id", PROGRAM)  # not present yet
        ask("bind", "--busid", busid)
        _check_shared(busid, BOOTLOADER)
        for hardware_id in (PROGRAM, BOOTLOADER, PROGRAM):
            _become(gadget, hardware_id)
            _check_shared(busid, hardware_id)


@step("bootloader")
def device_that_becomes_an_unbound_one_is_left_to_the_host() -> None:
    with _stick(BOOTLOADER, wait=False) as busid:
        gadget = GADGETS[busid]
        ask("bind", "--hardware-id", PROGRAM)
        ask("bind", "--busid", busid)
        _check_shared(busid, BOOTLOADER)
        attached = client.attach(busid)
        _become(gadget, STRANGER)
        client.wait_until_gone(attached)
        wait_for_state(busid, "not shared")
        wait_for_driver(UsbDevice(busid), "usb-storage")
        bindings = [f"{each['vendor_id']:04x}:{each['product_id']:04x}" for each in ask("list")["bindings"]]
        check(sorted(bindings) == sorted([BOOTLOADER, PROGRAM]), f"the bindings are {bindings}")
        _become(gadget, BOOTLOADER)
        _check_shared(busid, BOOTLOADER)


def _become(gadget: Gadget, hardware_id: str) -> None:
    gadget.unplug()
    gadget.become(hardware_id)
    gadget.plug()


def _check_shared(busid: str, hardware_id: str) -> None:
    wait_for(f"{busid} to be {hardware_id}", lambda: UsbDevice(busid).hardware_id == hardware_id)
    wait_for_driver(UsbDevice(busid), "usbfs")
    device = wait_for_state(busid, "shared")
    found = f"{device['vendor_id']:04x}:{device['product_id']:04x}"
    check(found == hardware_id, f"{busid} is shared as {found}, not {hardware_id}")


# ---- the end -----------------------------------------------------------------------------------------------


@step("end")
def doctor_finds_no_fault() -> None:
    check_doctor()


@step("end")
def history_is_complete() -> None:
    entries = ask("history", "--limit", "1000")["entries"]
    events = {entry["event"] for entry in entries}
    expected = {
        "started",
        "bound",
        "claimed",
        "attached",
        "detached",
        "released",
        "unbound",
        "unplugged",
        "failed",
    }
    check(events == expected, f"the history contains {sorted(events)}")


@step("end")
def daemon_stops_and_leaves_nothing() -> None:
    DAEMON.stop()


GADGETS: Final[dict[str, Gadget]] = {}
"""Gadgets that are plugged in during a `with` block, by busid."""


@contextmanager
def _stick(hardware_id: str = "1d6b:0104", *, wait: bool = True) -> Iterator[str]:
    """The busid of a disk at port 0, driven by usb-storage.  At the end it is unbound and removed."""
    gadget = Gadget(disk(Path("/run/stick.img"), DISK_SIZE), hardware_id=hardware_id, serial="E2E")
    with _gadget(gadget) as busid:
        if wait:
            wait_for_driver(UsbDevice(busid), "usb-storage")
        yield busid


@contextmanager
def _gadget(gadget: Gadget) -> Iterator[str]:
    gadget.plug()
    busid = gadget.wait_until_plugged().busid
    wait_for(f"{busid} in the list", lambda: listed(busid))
    GADGETS[busid] = gadget
    try:
        yield busid
    finally:
        del GADGETS[busid]
        _remove(gadget)


def _remove(gadget: Gadget) -> None:
    if ask("list")["bindings"]:
        ask("unbind", "--all")
    gadget.unplug()
    gadget.wait_until_unplugged()
    gadget.remove()


if __name__ == "__main__":
    sys.exit(SCENARIO.run())
