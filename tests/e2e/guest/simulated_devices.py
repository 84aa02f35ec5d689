"""Simulated devices, each in its typical use.  Runs in the guest.

Our daemon offers them, the kernel attaches them over 127.0.0.1, its class drivers and tools use them.
"""

import hashlib
import os
import sys
import time
from functools import cache
from pathlib import Path
from typing import Final

from tests.e2e.guest import client, v4l2
from tests.e2e.guest.scenario import Scenario, check
from tests.e2e.guest.server import Usbipd
from tests.e2e.guest.streams import check_same, check_tty_echoes
from tests.e2e.guest.system import JOB, PATIENCE, run, wait_for
from tests.e2e.guest.usb import UsbDevice
from tests.e2e.guest.uses import Loopback, check_tone, check_typing
from usbipd.simulated import camera

KIB: Final = 1024
MIB: Final = 1024 * KIB

PRODUCTS: Final = {
    "mass-storage": "Simulated disk",
    "keyboard": "Simulated keyboard",
    "serial": "Simulated serial port",
    "loopback": "Simulated loopback",
    "audio": "Simulated microphone",
    "camera": "Simulated camera",
}
"""Names for --simulate, and the products."""

SERVER: Final = Usbipd("--simulate", ",".join(PRODUCTS))
BUSIDS: Final[dict[str, str]] = {}  # on the server, by name
HARDWARE_IDS: Final[dict[str, str]] = {}
ATTACHED: Final[dict[str, UsbDevice]] = {}

SCENARIO: Final = Scenario()
step = SCENARIO.step


@step()
def daemon_starts() -> None:
    SERVER.start()


@step()
def list_shows_simulated_devices() -> None:
    devices = {device["product"]: device for device in SERVER.devices()}
    check(sorted(devices) == sorted(PRODUCTS.values()), f"usbipd lists {sorted(devices)}")
    for name, product in PRODUCTS.items():
        device = devices[product]
        check(device["simulated"], f"{product} is not shown as simulated")
        check(device["state"] == "shared", f"{product} is {device['state']}, not shared")
        BUSIDS[name] = device["busid"]
        HARDWARE_IDS[name] = f"{device['vendor_id']:04x}:{device['product_id']:04x}"


@step()
def stock_client_lists_simulated_devices() -> None:
    listing = client.listed()
    for name, busid in BUSIDS.items():
        check(f"{busid}: " in listing and HARDWARE_IDS[name] in listing, f"usbip list does not show {name}")


# ---- mass storage ------------------------------------------------------------------------------------------

MOUNT_POINT: Final = Path("/run/mnt")


@step("mass-storage")
def disk_attaches() -> None:
    _attach("mass-storage", "usb-storage")


@step("mass-storage")
def disk_takes_a_file_system() -> None:
    run("mkfs.ext4", "-q", _disk())


@step("mass-storage")
def disk_keeps_its_data_over_a_remount() -> None:
    data = os.urandom(16 * MIB)
    MOUNT_POINT.mkdir()
    run("mount", "-t", "ext4", _disk(), MOUNT_POINT)
    (MOUNT_POINT / "data").write_bytes(data)
    run("umount", MOUNT_POINT)
    Path("/proc/sys/vm/drop_caches").write_text("3\n")  # read from the disk, not from the page cache
    run("mount", "-t", "ext4", "-o", "ro", _disk(), MOUNT_POINT)
    found = hashlib.sha256((MOUNT_POINT / "data").read_bytes()).hexdigest()
    run("umount", MOUNT_POINT)
    check(found == hashlib.sha256(data).hexdigest(), "sha256 differs from that of the data written")


def _disk() -> Path:
    return wait_for("a block device of the disk", ATTACHED["mass-storage"].block_device)


# ---- keyboard ----------------------------------------------------------------------------------------------


@step("keyboard")
def keyboard_attaches() -> None:
    _attach("keyboard", "usbhid")


@step("keyboard")
def keyboard_types_its_text() -> None:
    check_typing(ATTACHED["keyboard"])


# ---- serial port -------------------------------------------------------------------------------------------


@step("serial")
def serial_port_attaches() -> None:
    _attach("serial", "cdc_acm")


@step("serial")
def serial_port_echoes() -> None:
    check_tty_echoes(ATTACHED["serial"])


# ---- loopback ----------------------------------------------------------------------------------------------


@step("loopback")
def loopback_attaches() -> None:
    _attach("loopback", None)


@step("loopback")
def loopback_returns_one_mib() -> None:
    _loopback().check_echo(MIB)


@step("loopback")
def loopback_sources_its_pattern() -> None:
    _loopback().check_source(MIB)


@step("loopback")
def loopback_sinks_one_mib() -> None:
    _loopback().check_sink(MIB)


@cache  # one handle for all steps: a second one could not claim the interfaces
def _loopback() -> Loopback:
    return Loopback(ATTACHED["loopback"])


# ---- audio -------------------------------------------------------------------------------------------------


@step("audio")
def audio_source_attaches() -> None:
    _attach("audio", "snd-usb-audio")


@step("audio")
def audio_source_is_an_unbroken_tone() -> None:
    check_tone(ATTACHED["audio"], JOB / "tone.wav")


# ---- camera ------------------------------------------------------------------------------------------------

FRAMES: Final = 12


@step("camera")
def camera_attaches() -> None:
    run("modprobe", "uvcvideo")
    _attach("camera", "uvcvideo")


@step("camera")
def camera_sends_its_picture() -> None:
    """Each frame is complete and none is missing, also when the stream is started a second time."""
    node = wait_for("a video device of the camera", ATTACHED["camera"].video_device)
    for _ in range(2):
        form, frames = v4l2.capture(node, FRAMES)
        check(form == (camera.WIDTH, camera.HEIGHT, v4l2.YUYV), f"the format is {form}")
        first = int.from_bytes(frames[0][:4], "little")
        print(f"frames {first} to {first + FRAMES - 1}")
        for number, frame in enumerate(frames, first):
            check_same(frame, camera.frame(number))


# ---- the end -----------------------------------------------------------------------------------------------


@step("end")
def stock_client_detaches_all() -> None:
    for name in list(ATTACHED):
        client.detach(ATTACHED.pop(name))


@step("end")
def status_shows_all_devices_free() -> None:
    deadline = time.monotonic() + PATIENCE
    while busy := {d["busid"]: d["state"] for d in SERVER.devices() if d["state"] != "shared"}:
        check(time.monotonic() < deadline, f"after detach some devices are not free: {busy}")


@step("end")
def daemon_stops_and_leaves_nothing() -> None:
    SERVER.stop()


def _attach(name: str, driver: str | None) -> None:
    """Attach the device and wait for `driver` to take its first interface."""
    device = client.attach(BUSIDS[name], HARDWARE_IDS[name])
    ATTACHED[name] = device
    if driver is not None:
        wait_for(f"{driver} taking {device.busid}", lambda: device.driver() == driver)


if __name__ == "__main__":
    sys.exit(SCENARIO.run())
