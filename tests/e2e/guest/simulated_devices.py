"""Simulated devices, each used as people use such a device.  Runs in the guest.

Our daemon offers them, the kernel attaches them by 127.0.0.1, its class drivers and its tools use them.
"""

import array
import hashlib
import math
import os
import sys
import time
import wave
from functools import cache
from pathlib import Path
from typing import Final

import usb.core  # type: ignore[import-untyped]

from tests.e2e.guest import client, v4l2
from tests.e2e.guest.keys import grabbed, key_events
from tests.e2e.guest.scenario import Scenario, StepError, check
from tests.e2e.guest.server import Usbipd
from tests.e2e.guest.streams import Background, check_same, check_tty_echoes
from tests.e2e.guest.system import JOB, PATIENCE, run, wait_for
from tests.e2e.guest.usb import UsbDevice
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
"""Names for --simulate, and what the devices call themselves."""

SERVER: Final = Usbipd("--simulate", ",".join(PRODUCTS))
BUSIDS: Final[dict[str, str]] = {}  # at the server, by name
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
def disk_returns_what_was_written_after_remount() -> None:
    data = os.urandom(16 * MIB)
    MOUNT_POINT.mkdir()
    run("mount", "-t", "ext4", _disk(), MOUNT_POINT)
    (MOUNT_POINT / "data").write_bytes(data)
    run("umount", MOUNT_POINT)
    Path("/proc/sys/vm/drop_caches").write_text("3\n")  # the disk, not this kernel's memory, shall answer
    run("mount", "-t", "ext4", "-o", "ro", _disk(), MOUNT_POINT)
    found = hashlib.sha256((MOUNT_POINT / "data").read_bytes()).hexdigest()
    run("umount", MOUNT_POINT)
    check(found == hashlib.sha256(data).hexdigest(), "sha256 is not that of what was written")


def _disk() -> Path:
    return wait_for("a block device of the disk", ATTACHED["mass-storage"].block_device)


# ---- keyboard ----------------------------------------------------------------------------------------------

# include/uapi/linux/input-event-codes.h, KEY_U, KEY_S, ...
KEYS: Final = {22: "u", 31: "s", 48: "b", 23: "i", 25: "p", 32: "d", 28: "\n"}
TEXT: Final = "usbipd\n"


@step("keyboard")
def keyboard_attaches() -> None:
    _attach("keyboard", "usbhid")


@step("keyboard")
def keyboard_types_its_text() -> None:
    node = wait_for("an event device of the keyboard", ATTACHED["keyboard"].event_device)
    typed = ""
    down = None
    with grabbed(node) as events:
        for code, value in key_events(events):
            check(code in KEYS, f"key code {code} came after {typed!r}")
            if value == 1:
                check(down is None, f"key code {code} went down while {down} was down")
                typed += KEYS[code]
                down = code
            else:
                check(down in (code, None), f"key code {code} went up, but {down} was down")
                check(down is not None or not typed, f"key code {code} went up twice")
                down = None
            if len(typed) >= 2 * len(TEXT):
                break
    print(f"typed: {typed!r}")
    check(typed in 4 * TEXT, f"the keyboard typed {typed!r}, not {TEXT!r} over and over")


# ---- serial port -------------------------------------------------------------------------------------------


@step("serial")
def serial_port_attaches() -> None:
    _attach("serial", "cdc_acm")


@step("serial")
def serial_port_echoes() -> None:
    check_tty_echoes(ATTACHED["serial"])


# ---- loopback ----------------------------------------------------------------------------------------------

SOURCE_IN, SINK_OUT, LOOPBACK_IN, LOOPBACK_OUT = 0x81, 0x01, 0x82, 0x02
URB_SIZE: Final = 16 * KIB  # what libusb asks of usbfs at once: linux_usbfs.h, MAX_BULK_BUFFER_LENGTH
MAX_PACKET: Final = 512  # high speed
USB_TIMEOUT: Final = int(PATIENCE * 1000)  # ms


@step("loopback")
def loopback_attaches() -> None:
    _attach("loopback", None)


@step("loopback")
def loopback_returns_one_mib() -> None:
    device = _open_loopback()
    sent = os.urandom(MIB)
    received = bytearray()
    with Background(lambda: check(device.write(LOOPBACK_OUT, sent, USB_TIMEOUT) == MIB, "a short write")):
        while len(received) < len(sent):
            received += device.read(LOOPBACK_IN, URB_SIZE, USB_TIMEOUT)
    check_same(bytes(received), sent)


@step("loopback")
def loopback_sources_its_pattern() -> None:
    device = _open_loopback()
    pattern = bytes(index % MAX_PACKET % 63 for index in range(URB_SIZE))  # as Linux's g_zero does
    for _ in range(MIB // URB_SIZE):
        check_same(bytes(device.read(SOURCE_IN, URB_SIZE, USB_TIMEOUT)), pattern)


@step("loopback")
def loopback_sinks_one_mib() -> None:
    taken = _open_loopback().write(SINK_OUT, bytes(MIB), USB_TIMEOUT)
    check(taken == MIB, f"the sink took {taken} bytes of {MIB}")


@cache  # one handle for all steps: a second one could not claim the interfaces
def _open_loopback() -> usb.core.Device:
    busnum, devnum = (int((ATTACHED["loopback"].path / name).read_text()) for name in ("busnum", "devnum"))
    device = usb.core.find(bus=busnum, address=devnum)
    check(device is not None, f"libusb does not see {ATTACHED['loopback'].busid}")
    return device


# ---- audio -------------------------------------------------------------------------------------------------

RATE: Final = 48000
TONE: Final = 440
SECONDS: Final = 2


@step("audio")
def audio_source_attaches() -> None:
    _attach("audio", "snd-usb-audio")


@step("audio")
def audio_source_is_an_unbroken_tone() -> None:
    node = wait_for("a sound card of the audio source", ATTACHED["audio"].capture_device)
    card = node.name.removeprefix("pcmC").partition("D")[0]
    recording = JOB / "tone.wav"
    form = ["-f", "S16_LE", "-r", str(RATE), "-c", "2", "-d", str(SECONDS)]
    run("arecord", "-q", "-D", f"hw:{card},0", *form, recording)
    with wave.open(str(recording)) as file:
        samples = array.array("h", file.readframes(file.getnframes()))
    left = samples[0::2]
    check(len(left) == SECONDS * RATE, f"{len(left)} samples, not {SECONDS * RATE}")
    check(left == samples[1::2], "left and right differ")
    check(max(left) > 8192 and min(left) < -8192, f"too soft: from {min(left)} to {max(left)}")
    # A sine of frequency f has s[n+1] = 2 cos(2 pi f / rate) s[n] - s[n-1]; rounding to whole numbers adds
    # at most 1/2 + 1 + 1/2.  A gap, a repeated packet or another frequency breaks it.
    factor = 2 * math.cos(2 * math.pi * TONE / RATE)
    for index in range(1, len(left) - 1):
        if abs(left[index + 1] - factor * left[index] + left[index - 1]) > 2.01:
            around = list(left[max(index - 3, 0) : index + 4])
            raise StepError(f"no {TONE} Hz at sample {index} ({index / RATE:.4f} s): {around}")


# ---- camera ------------------------------------------------------------------------------------------------

FRAMES: Final = 12


@step("camera")
def camera_attaches() -> None:
    run("modprobe", "uvcvideo")
    _attach("camera", "uvcvideo")


@step("camera")
def camera_shows_its_picture() -> None:
    """Each frame is whole and none is left out, also when the stream is started a second time."""
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
