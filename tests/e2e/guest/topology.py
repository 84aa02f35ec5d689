"""Devices at different ports, used from different addresses.  Runs in the guest.

QEMU's own devices on an emulated xHCI controller: a loudspeaker, which uses isochronous transfers, and a
chain of hubs.  Several devices and clients at the same time, over IPv4 and IPv6.
"""

import random
import sys
import time
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Final

from tests.e2e.guest import client, gadget
from tests.e2e.guest.command import Document, ask, call, listed, wait_for_state
from tests.e2e.guest.disk import check_file_system
from tests.e2e.guest.gadget import Gadget
from tests.e2e.guest.monitor import Monitor
from tests.e2e.guest.scenario import Scenario, StepError, check
from tests.e2e.guest.server import Usbipd
from tests.e2e.guest.sharing import attached, attached_gadget
from tests.e2e.guest.streams import Background, check_tty_echoes
from tests.e2e.guest.system import JOB, run, wait_for
from tests.e2e.guest.usb import UsbDevice, wait_for_driver, wait_until_plugged, wait_until_unplugged

KIB: Final = 1024
MIB: Final = 1024 * KIB

CONTROLLER: Final = "0000:00:10.0"
HUBS: Final = ("2", "2.1", "2.1.1", "2.1.1.1")
"""Ports of the hubs: each is plugged into port 1 of the previous one."""
SPEAKER_BUFFER: Final = 384_000
"""Bytes, 2 s: data that arrive faster than they are played must not be lost."""

HARDWARE: Final = (
    *("-device", "qemu-xhci,id=usb,addr=0x10"),
    # Without QEMU's mixer, the file has the samples as received.
    *("-audiodev", "wav,id=speaker,path=played.wav,out.mixing-engine=off"),
    *("-device", f"usb-audio,bus=usb.0,port=1,audiodev=speaker,buffer={SPEAKER_BUFFER}"),
    *(word for port in HUBS for word in ("-device", f"usb-hub,bus=usb.0,port={port},id=hub{port}")),
)
"""Added hardware, see `Machine`."""

SCENARIO: Final = Scenario()
step = SCENARIO.step

DAEMON: Final = Usbipd(
    *("--simulate", "mass-storage:size=8M,serial", "--real-devices"),
    *("--listen", "127.0.0.1", "--listen", "::1"),
)


@step()
def daemon_starts() -> None:
    run("modprobe", "xhci-pci")
    DAEMON.start()


# ---- audio -------------------------------------------------------------------------------------------------

SPEAKER: Final = "46f4:0002"  # QEMU, hw/usb/dev-audio.c
RATE: Final = 48_000
FRAME: Final = 4  # bytes: 16 bits left, 16 bits right
SECONDS: Final = 3
PATIENT_BUFFER: Final = 10 * SECONDS * RATE
"""Frames."""


def noise() -> bytes:
    """The sound to play: no two parts are alike."""
    return random.Random(RATE).randbytes(SECONDS * RATE * FRAME)


@step("audio")
def loudspeaker_plays() -> None:
    """The host checks the output: test_topology.py."""
    speaker = wait_until_plugged(CONTROLLER, SPEAKER)
    with attached(speaker, ["snd-usb-audio"] * 2) as there:
        node = wait_for("a sound card of the loudspeaker", there.playback_device)
        card = node.name.removeprefix("pcmC").partition("D")[0]
        sound = Path("/run/noise")
        sound.write_bytes(noise())
        form = ["-t", "raw", "-f", "S16_LE", "-r", str(RATE), "-c", "2"]
        # The kernel gives up when playing takes 1.1 times the length of its buffer, which happens here.
        buffer = [f"--buffer-size={PATIENT_BUFFER}", f"--period-size={PATIENT_BUFFER // 64}"]
        start = time.monotonic()
        run("aplay", "-D", f"hw:{card},0", *form, *buffer, sound)
        print(f"{SECONDS} s of sound took {time.monotonic() - start:.1f} s")
        device = next(each for each in ask("status")["status"]["devices"] if each["busid"] == speaker.busid)
        print(device)


# ---- a device behind hubs ----------------------------------------------------------------------------------

STICK: Final = "46f4:0001"  # QEMU, hw/usb/dev-storage-classic.c
BEHIND_HUBS: Final = f"{HUBS[-1]}.1"
IMAGE: Final = JOB / "stick.img"


@step("hubs")
def stick_behind_four_hubs_is_listed() -> None:
    with IMAGE.open("wb") as blocks:
        blocks.truncate(8 * MIB)
    file = {"driver": "file", "filename": IMAGE.name}
    _monitor().execute("blockdev-add", driver="raw", node_name="stick", file=file)
    stick = _plug_stick()
    _bus, _, ports = stick.busid.partition("-")
    check(ports == BEHIND_HUBS, f"the busid is {stick.busid}, not BUS-{BEHIND_HUBS}")
    check(f"{stick.busid}: " not in client.listed(), "an unbound device is shown to clients")


@step("hubs")
def stick_behind_four_hubs_keeps_a_file_system() -> None:
    stick = wait_until_plugged(CONTROLLER, STICK)
    with attached(stick, ["usb-storage"]) as there:
        check(f"{stick.busid}: " in client.listed(), f"usbip list does not show {stick.busid}")
        check_file_system(there, Path("/run/mnt"), 2 * MIB)


@step("hubs")
def stick_replugged_at_the_last_hub_is_shared_again() -> None:
    stick = wait_until_plugged(CONTROLLER, STICK)
    ask("bind", "--busid", stick.busid)
    for _ in range(2):
        wait_for_driver(stick, "usbfs")  # it is shown as shared before that
        wait_for_state(stick.busid, "shared")
        there = client.attach(stick.busid, STICK)
        node = wait_for("a block device of the stick", there.block_device)
        check(node.read_bytes() == IMAGE.read_bytes(), f"{node} differs from the stick's image")
        _unplug("stick", STICK)
        client.wait_until_gone(there)
        check(listed(stick.busid) is None, f"{stick.busid} is still listed")
        check(_plug_stick().busid == stick.busid, "the busid has changed")


@step("hubs")
def hubs_cannot_be_shared() -> None:
    hub = next(path for path in Path("/sys/bus/usb/devices").glob(f"*-{HUBS[-1]}"))
    check(listed(hub.name) is None, "a hub is listed")
    outcome = call("bind", "--json", "--busid", hub.name)
    check(outcome.code == 1 and UsbDevice(hub.name).driver() == "hub", f"bind of a hub: {outcome.stdout}")


@cache  # one for all steps: QEMU greets only once
def _monitor() -> Monitor:
    return Monitor()


def _plug_stick() -> UsbDevice:
    _monitor().execute(
        "device_add", driver="usb-storage", id="stick", drive="stick", bus="usb.0", port=BEHIND_HUBS
    )
    return wait_until_plugged(CONTROLLER, STICK)


def _unplug(name: str, hardware_id: str) -> None:
    _monitor().execute("device_del", id=name)
    wait_until_unplugged(CONTROLLER, hardware_id)


# ---- several devices, clients and families of addresses ----------------------------------------------------

FAMILIES: Final = ("127.0.0.1", "::1")
MOUNTS: Final = Path("/run/mnt")


@step("families")
def four_clients_work_concurrently_over_ipv4_and_ipv6() -> None:
    """Two real disks at two speeds, a simulated disk and a simulated serial port."""
    simulated = {each["product"]: each["busid"] for each in ask("list")["devices"] if each["simulated"]}
    busids = [simulated["Simulated disk"], simulated["Simulated serial port"]]
    for busid in busids:
        check(all(f"{busid}: " in client.listed(family) for family in FAMILIES), f"{busid} is not listed")
    with ExitStack() as stack:
        disks, ports = (
            [client.attach(busid, server=family)] for busid, family in zip(busids, FAMILIES, strict=True)
        )
        for number, (family, speed) in enumerate(zip(FAMILIES, ("super-speed", "high-speed"), strict=True)):
            stick = Gadget(
                gadget.disk(Path(f"/run/stick{number}.img"), 8 * MIB),
                port=number,
                hardware_id=f"1d6b:010{number}",
                speed=speed,
            )
            disks.append(stack.enter_context(attached_gadget(stick, ["usb-storage"], family)))
        _check_clients()
        _check_busy()
        with ExitStack() as traffic:
            for number, disk in enumerate(disks):
                traffic.enter_context(Background(partial(check_file_system, disk, MOUNTS / str(number), MIB)))
            traffic.enter_context(Background(partial(check_tty_echoes, ports[0])))
        for there in (disks[0], ports[0]):
            client.detach(there)
    for busid in busids:
        wait_for_state(busid, "shared")


def _check_clients() -> None:
    """Two of the four devices are used from each family."""
    clients = [str(each["client"]) for each in _attached()]
    print(f"clients: {clients}")
    for begin in ("127.0.0.1:", "[::1]:"):
        found = sum(address.startswith(begin) for address in clients)
        check(found == 2, f"{found} of the devices are used from {begin[:-1]}, not 2: {clients}")


def _check_busy() -> None:  # rule("import-busy")
    """No other client gets an attached device, over either family."""
    for device in _attached():
        for family in FAMILIES:
            try:
                client.attach(device["busid"], server=family)
            except StepError as error:
                check(
                    "busy" in str(error), f"a second import of {device['busid']} got another answer: {error}"
                )
            else:
                raise StepError(f"{device['busid']} of {device['client']} was imported from {family}, too")


def _attached() -> list[Document]:
    return [each for each in ask("status")["status"]["devices"] if each["state"] == "attached"]


# ---- the end -----------------------------------------------------------------------------------------------


@step("end")
def daemon_stops_and_leaves_nothing() -> None:
    DAEMON.stop()


if __name__ == "__main__":
    sys.exit(SCENARIO.run())
