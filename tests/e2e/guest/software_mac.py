"""Devices claimed through libusb's macOS backend, used by the stock client.  Runs in the guest.

Our daemon runs as on a Mac, on the software Mac (tests/mac).  A second daemon simulates the devices of that
Mac, whose kernel is a USB/IP client.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.e2e.guest import client
from tests.e2e.guest.command import ask, wait_for_state
from tests.e2e.guest.disk import check_file_system
from tests.e2e.guest.scenario import Scenario, check
from tests.e2e.guest.server import Usbipd
from tests.e2e.guest.system import JOB, wait_for
from tests.e2e.guest.usb import UsbDevice, wait_for_driver
from tests.e2e.guest.uses import Loopback, check_tone, check_typing
from tests.mac.build import HERE as BUILT
from tests.mac.mac import Device, OwnMac
from tests.mac.machine import BUS, Machine

MIB: Final = 1024 * 1024
SIMULATOR_PORT: Final = 3241


@dataclass
class Lent:
    """A device of the Mac that the client attaches."""

    product: str
    """Its product string."""
    drivers: dict[int, str]
    """Its drivers on the Mac, by bInterfaceNumber (tests/mac/kernel/drivers.py)."""
    driver: str | None
    """Its driver on the client."""
    busid: str = ""
    on_mac: Device | None = None
    there: UsbDevice | None = None

    def attach(self) -> UsbDevice:
        """Attach it; the client's driver must claim it."""
        ask("bind", "--busid", self.busid)
        wait_for_state(self.busid, "shared")
        check(self.on_mac is not None and self.on_mac.drivers == [], "a driver of the Mac still holds it")
        self.there = client.attach(self.busid)
        if self.driver is not None:
            wait_for_driver(self.there, self.driver)
        return self.there

    def detach(self) -> None:
        """Detach it and release it to the Mac's drivers."""
        if self.there is not None:
            client.detach(self.there)
        wait_for_state(self.busid, "shared")
        ask("unbind", "--busid", self.busid)
        wait_for(f"the drivers of {self.product} on the Mac", self._is_back)

    def _is_back(self) -> bool:
        return self.on_mac is not None and sorted(self.on_mac.drivers) == sorted(self.drivers)


DISK: Final = Lent("Simulated disk", {0: "storage"}, "usb-storage")
KEYBOARD: Final = Lent("Simulated keyboard", {0: "hid"}, "usbhid")
MICROPHONE: Final = Lent("Simulated microphone", {0: "audio", 1: "audio"}, "snd-usb-audio")
LOOPBACK: Final = Lent("Simulated loopback", {}, None)
ALL: Final = (DISK, KEYBOARD, MICROPHONE, LOOPBACK)

SIMULATOR: Final = Usbipd(
    *("--simulate", "mass-storage,keyboard,audio,loopback"),
    *("--socket", "/run/simulator/control.sock", "--state", "/tmp/simulator"),
    log_level="info",
    tcp_port=SIMULATOR_PORT,
)

SCENARIO: Final = Scenario()
step = SCENARIO.step


class Mac:
    """The Mac of this scenario, set by the step that starts it."""

    kernel: OwnMac
    daemon: Usbipd


@step()
def mac_has_the_simulated_devices() -> None:
    SIMULATOR.start()
    libusb = max(BUILT.glob("*/libusb-1.0.so.0"), key=lambda found: found.parent.name == "ours")
    Mac.kernel = OwnMac()
    machine = Machine(Mac.kernel, libusb.parent)
    print(f"libusb: {libusb.parent.name}")
    simulated = {device["product"]: device["busid"] for device in _of_simulator()}
    for port, lent in enumerate(ALL, start=1):
        lent.busid = f"{BUS}-{port}"
        lent.on_mac = Mac.kernel.plug(
            "usbip",
            location=BUS << 24 | port << 20,
            port=port,
            drivers=lent.drivers,
            host="127.0.0.1",
            port_number=SIMULATOR_PORT,
            busid=simulated[lent.product],
        )
    Mac.daemon = Usbipd("--state", "/tmp/mac-state", programs=machine.programs)


def _of_simulator() -> list[dict[str, str]]:
    devices: list[dict[str, str]] = ask("list", "--socket", "/run/simulator/control.sock")["devices"]
    return devices


@step()
def daemon_lists_the_devices_of_the_mac() -> None:
    Mac.daemon.start()
    listed = {device["busid"]: device["product"] for device in ask("list")["devices"]}
    check(listed == {lent.busid: lent.product for lent in ALL}, f"usbipd lists {listed}")


@step("disk")
def disk_returns_a_file_unchanged() -> None:
    check_file_system(DISK.attach(), Path("/run/mnt"), 4 * MIB)
    DISK.detach()


@step("keyboard")
def keyboard_types_its_text() -> None:
    check_typing(KEYBOARD.attach())
    KEYBOARD.detach()


@step("audio")
def audio_source_is_an_unbroken_tone() -> None:
    # a transfer for each millisecond, through the slow software Mac
    check_tone(MICROPHONE.attach(), JOB / "tone.wav", seconds=0.25)
    MICROPHONE.detach()


@step("loopback")
def loopback_returns_its_input() -> None:
    loopback = Loopback(LOOPBACK.attach())
    loopback.check_echo(MIB)
    loopback.check_source(MIB // 4)
    loopback.check_sink(MIB // 4)
    del loopback
    LOOPBACK.detach()


@step("end")
def all_are_used_concurrently() -> None:
    for lent in ALL:
        lent.attach()
    for lent in ALL:
        lent.detach()


@step("end")
def daemons_stop_and_leave_nothing() -> None:
    Mac.daemon.stop()
    Mac.kernel.close()
    SIMULATOR.stop()


if __name__ == "__main__":
    sys.exit(SCENARIO.run())
