"""Real devices of several classes, each with the class driver of the stock client.  Runs in the guest.

The devices are gadgets on dummy_hcd; the host's drivers hold each of them before and after.  The kernel's
usbtest tests gadgets made for it, and a simulated device.
"""

import fcntl
import os
import random
import struct
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import usb.core  # type: ignore[import-untyped]
import usb.util  # type: ignore[import-untyped]

from tests.e2e.guest import client, gadget, usbtest
from tests.e2e.guest.command import ask, check_doctor
from tests.e2e.guest.disk import check_file_system
from tests.e2e.guest.gadget import Gadget
from tests.e2e.guest.keys import grabbed, key_events, set_led
from tests.e2e.guest.scenario import Scenario, check
from tests.e2e.guest.server import Usbipd
from tests.e2e.guest.sharing import Lent, attached_gadget
from tests.e2e.guest.streams import Background, check_same, read_all, write_all
from tests.e2e.guest.system import wait_for
from tests.e2e.guest.usb import UsbDevice, wait_for_driver

MIB: Final = 1024 * 1024

SCENARIO: Final = Scenario()
step = SCENARIO.step

DAEMON: Final = Usbipd("--simulate", "loopback:speed=high,loopback:speed=super", "--real-devices")


@step()
def daemon_starts() -> None:
    DAEMON.start()


# ---- cdc-acm -----------------------------------------------------------------------------------------------

SIZES: Final = (
    1,
    63,
    64,
    65,
    511,
    512,
    513,
    1025,
    4095,
    4096,
    4097,
    20_001,
)  # around the sizes of packets and buffers
LINE: Final = struct.Struct("<IBBB")  # PSTN 1.2, table 17: dwDTERate, bCharFormat, bParityType, bDataBits
GET_LINE_CODING: Final = 0x21  # PSTN 1.2, table 13
CLASS_IN: Final = 0xA1  # USB 2.0, table 9-2: a class request to an interface, with data IN


PORT: Final = Lent(gadget.SERIAL_PORT, drivers=["cdc_acm", "cdc_acm"])  # its control and data interfaces


@step("serial")
def serial_port_goes_to_the_client() -> None:
    PORT.lend()


@step("serial")
def serial_port_carries_both_ways() -> None:
    _check_exchange(PORT.gadget, PORT.there)


@step("serial")
def serial_port_reports_carrier_and_break() -> None:
    """Through notifications on its interrupt endpoint."""
    with ExitStack() as open_ports:
        client_end = _open(_tty(PORT.there), open_ports, os.O_NONBLOCK)
        check(not _has_carrier(client_end), "carrier detected before the device's end is open")
        with ExitStack() as device_end_open:
            device_end = _open(PORT.gadget.serial_port, device_end_open)
            wait_for("a carrier", lambda: _has_carrier(client_end))
            termios.tcsendbreak(device_end, 0)
            wait_for("a break", lambda: _breaks(client_end) == 1)
        wait_for("no carrier", lambda: not _has_carrier(client_end))


@step("serial")
def line_coding_reaches_the_serial_port() -> None:
    """A program takes the device from the client's driver and reads the line coding."""
    with ExitStack() as open_ports:
        client_end = _open(_tty(PORT.there), open_ports)
        attributes = termios.tcgetattr(client_end)
        attributes[2] &= ~termios.CSIZE
        attributes[2] |= termios.CS7 | termios.PARENB | termios.CSTOPB
        attributes[4] = attributes[5] = termios.B57600
        termios.tcsetattr(client_end, termios.TCSANOW, attributes)
    device = usb.core.find(bus=int(PORT.there.bus), address=int(PORT.there.number))
    device.detach_kernel_driver(0)
    coding = LINE.unpack(bytes(device.ctrl_transfer(CLASS_IN, GET_LINE_CODING, 0, 0, LINE.size)))
    usb.util.dispose_resources(device)
    device.attach_kernel_driver(0)
    check(
        coding == (57600, 2, 2, 7),
        f"the device has {coding}, not 57600 baud, 2 stop bits, even parity, 7 bits",
    )


@step("serial")
def serial_port_returns_to_its_driver() -> None:
    PORT.take_back()


def _tty(there: UsbDevice) -> Path:
    return wait_for("a tty of the serial port", there.tty)


def _open(node: Path, stack: ExitStack, flags: int = 0) -> int:
    """Open a serial port in raw mode; `stack` closes it."""
    port = os.open(node, os.O_RDWR | os.O_NOCTTY | flags)
    stack.callback(os.close, port)
    tty.setraw(port, termios.TCSANOW)
    return port


def _check_exchange(port: Gadget, there: UsbDevice) -> None:
    """Both ends write at the same time, in pieces of all SIZES."""
    with ExitStack() as open_ports:
        client_end = _open(_tty(there), open_ports)
        device_end = _open(port.serial_port, open_ports)
        to_device, to_client = ([random.randbytes(size) for size in SIZES] for _ in range(2))

        def writer(end: int, pieces: list[bytes]) -> Callable[[], None]:
            def write() -> None:
                for piece in pieces:
                    write_all(end, piece)

            return write

        def device() -> None:
            check_same(read_all(device_end, sum(SIZES)), b"".join(to_device))

        with (
            Background(writer(client_end, to_device)),
            Background(writer(device_end, to_client)),
            Background(device),
        ):
            check_same(read_all(client_end, sum(SIZES)), b"".join(to_client))


def _has_carrier(port: int) -> bool:
    (bits,) = struct.unpack("i", fcntl.ioctl(port, termios.TIOCMGET, bytes(4)))
    return bool(bits & termios.TIOCM_CAR)


def _breaks(port: int) -> int:
    # include/uapi/linux/serial.h, struct serial_icounter_struct: nine others, brk, ten others
    return int(struct.unpack("20i", fcntl.ioctl(port, termios.TIOCGICOUNT, bytes(80)))[9])


# ---- HID ---------------------------------------------------------------------------------------------------

FIRST_KEY: Final = 0x04  # HID Usage Tables 1.4, chapter 10: a, b ... z
KEY_CODES: Final = (
    30,
    48,
    46,
    32,
    18,
    33,
    34,
    35,
    23,
    36,
    37,
    38,
    50,
)  # input-event-codes.h: KEY_A ... KEY_M
PRESSES: Final = 100
AHEAD: Final = 8
"""Maximum of reports in flight: the kernel buffers few events for a slow reader (evdev.c)."""
LEDS: Final = (0, 1, 2, 0, 1, 2)  # LED_NUML, LED_CAPSL, LED_SCROLLL; the bits of HID 1.11, appendix B.1, too


BOARD: Final = Lent(gadget.KEYBOARD, drivers=["usbhid"])


@step("keyboard")
def keyboard_goes_to_the_client() -> None:
    BOARD.lend()


@step("keyboard")
def keyboard_types() -> None:
    _check_typing(BOARD.gadget, BOARD.there)


@step("keyboard")
def keyboard_sets_its_leds() -> None:
    """Through reports on its interrupt OUT endpoint."""
    with (
        grabbed(_event_device(BOARD.there)) as events,
        BOARD.gadget.keyboard.open("rb", buffering=0) as reports,
    ):
        shown = 0
        for led in LEDS:
            before, shown = shown, shown ^ 1 << led
            set_led(events, led, bool(shown >> led & 1))
            # The drivers of host and client have reported the earlier state, once or more often.
            while (report := read_all(reports.fileno(), 1)[0]) != shown:
                check(report == before, f"the LEDs were {before:03b}, the device received {report:03b}")


@step("keyboard")
def keyboard_returns_to_its_driver() -> None:
    BOARD.take_back()


def _event_device(there: UsbDevice) -> Path:
    return wait_for("an event device of the keyboard", there.event_device)


def _check_typing(keyboard: Gadget, there: UsbDevice) -> None:
    """Press and release random keys, one at a time; all events must arrive in order."""
    keys = [random.randrange(len(KEY_CODES)) for _ in range(PRESSES)]
    ahead = threading.Semaphore(AHEAD)

    def press() -> None:
        with keyboard.keyboard.open("wb", buffering=0) as device_end:
            for key in keys:
                for report in (bytes((0, 0, FIRST_KEY + key, 0, 0, 0, 0, 0)), bytes(8)):
                    ahead.acquire()
                    device_end.write(report)

    with grabbed(_event_device(there)) as events, Background(press):
        for number, (expected, event) in enumerate(zip(_events(keys), key_events(events), strict=False)):
            check(event == expected, f"key event {number} is {event}, not {expected}")
            ahead.release()


def _events(keys: list[int]) -> Iterator[tuple[int, int]]:
    for key in keys:
        yield KEY_CODES[key], 1
        yield KEY_CODES[key], 0


# ---- disks -------------------------------------------------------------------------------------------------

DISK_SIZE: Final = 12 * MIB
STICK: Final = Path("/run/stick.img")
MOUNT_POINT: Final = Path("/run/mnt")


@step("disk")
def full_speed_disk_keeps_a_file_system() -> None:
    _check_disk_at("full-speed", "12", 1 * MIB)


@step("disk")
def super_speed_disk_keeps_a_file_system() -> None:
    _check_disk_at("super-speed", "5000", 4 * MIB)


def _check_disk_at(speed: str, mbits: str, size: int) -> None:
    stick = Gadget(gadget.disk(STICK, DISK_SIZE), speed=speed)
    with attached_gadget(stick, ["usb-storage"]) as there:
        check(there.speed == mbits, f"the client's device has {there.speed} Mbit/s, not {mbits}")
        check_file_system(there, MOUNT_POINT, size)


# ---- usbtest -----------------------------------------------------------------------------------------------

BULK: Final = {*range(1, 9), *range(11, 14), *range(17, 21), 24, 29}
CONTROL: Final = {0, 9, 10}
VENDOR_REQUESTS: Final = {14, 21}  # those of gadget zero
LOOPBACK: Final = CONTROL | {11, 17, 19}


@step("usbtest")
def source_and_sink_pass_usbtest_at_high_speed() -> None:
    usbtest.load()
    _check_gadget_zero("high-speed")


@step("usbtest")
def source_and_sink_pass_usbtest_at_super_speed() -> None:
    _check_gadget_zero("super-speed")


@step("usbtest")
def loopback_passes_usbtest() -> None:
    """The tests that write no more than it can hold and read only what was written."""
    loopback = Gadget(gadget.LOOPBACK, hardware_id=usbtest.GADGET_ZERO, product="Loopback")
    with attached_gadget(loopback, ["usbtest"]) as there:
        results = usbtest.run(
            there, {number: test for number, test in usbtest.TESTS.items() if number in LOOPBACK}
        )
    check(set(results.values()) == {usbtest.PASSED}, f"usbtest's results: {results}")


@step("usbtest")
def simulated_source_and_sink_pass_usbtest_at_high_speed() -> None:
    _check_simulated("high")


@step("usbtest")
def simulated_source_and_sink_pass_usbtest_at_super_speed() -> None:
    _check_simulated("super")


def _check_simulated(speed: str) -> None:
    device = next(each for each in ask("list")["devices"] if each["simulated"] and each["speed"] == speed)
    usbtest.load(f"{device['vendor_id']:04x}:{device['product_id']:04x}")
    there = client.attach(device["busid"])
    wait_for_driver(there, "usbtest")
    _check_results(there, CONTROL | BULK)
    client.detach(there)


def _check_gadget_zero(speed: str) -> None:
    device = Gadget(
        gadget.SOURCE_SINK, hardware_id=usbtest.GADGET_ZERO, product="Source and sink", speed=speed
    )
    with attached_gadget(device, ["usbtest"]) as there:
        _check_results(there, CONTROL | BULK | VENDOR_REQUESTS)


def _check_results(there: UsbDevice, expected: set[int]) -> None:
    """The tests `expected` must pass; the others do not apply to this device."""
    results = usbtest.run(there, usbtest.TESTS)
    wrong = {
        number: result
        for number, result in results.items()
        if result != (usbtest.PASSED if number in expected else usbtest.UNSUPPORTED)
    }
    check(not wrong, f"usbtest's results: {wrong}")


# ---- several functions in one device -----------------------------------------------------------------------

COMPOSITE: Final = Lent(
    *(gadget.disk(STICK, DISK_SIZE), gadget.SERIAL_PORT, gadget.KEYBOARD),
    drivers=["usb-storage", "cdc_acm", "cdc_acm", "usbhid"],
)


@step("composite")
def composite_device_goes_to_the_client() -> None:
    COMPOSITE.lend()


@step("composite")
def its_three_drivers_work_concurrently() -> None:
    there = COMPOSITE.there
    with (
        Background(lambda: check_file_system(there, MOUNT_POINT, 2 * MIB)),
        Background(lambda: _check_exchange(COMPOSITE.gadget, there)),
    ):
        _check_typing(COMPOSITE.gadget, there)


@step("composite")
def each_interface_returns_to_its_driver() -> None:
    COMPOSITE.take_back()


# ---- the end -----------------------------------------------------------------------------------------------


@step("end")
def doctor_finds_no_fault() -> None:
    check_doctor()


@step("end")
def daemon_stops_and_leaves_nothing() -> None:
    DAEMON.stop()


if __name__ == "__main__":
    sys.exit(SCENARIO.run())
