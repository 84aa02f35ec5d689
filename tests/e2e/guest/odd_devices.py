"""Devices whose descriptors break the rules of USB 2.0 (virtual_device.py), each shared by our daemon and by
the kernel's own server.  Runs in the guest.

Our reader must find what this kernel finds; the client must get the same device from both servers, byte for
byte, and have its data moved.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from tests.e2e.guest import client
from tests.e2e.guest.command import ask, call, listed, wait_for_state
from tests.e2e.guest.scenario import Scenario, check
from tests.e2e.guest.server import BareKernelServer, Usbipd
from tests.e2e.guest.sharing import attached
from tests.e2e.guest.streams import check_same
from tests.e2e.guest.system import run, wait_for
from tests.e2e.guest.usb import DEVICES, UsbDevice
from tests.e2e.guest.usbfs import BULK, Urb, UsbFile
from tests.e2e.guest.usbtest import GADGET_ZERO
from tests.e2e.guest.virtual_device import GET_DESCRIPTOR, VirtualDevice
from usbipd.protocol.constants import (
    USB_DIR_IN,
    USB_DT_CONFIG,
    USB_DT_ENDPOINT,
    USB_DT_INTERFACE,
    USB_ENDPOINT_XFER_BULK,
    USB_ENDPOINT_XFER_CONTROL,
)
from usbipd.simulated.descriptors import (
    configuration_descriptor,
    device_descriptor,
    endpoint_descriptor,
    interface_descriptor,
)
from usbipd.usb.descriptors import Configuration
from usbipd.usb.sysfs_descriptors import descriptors_in_sysfs

CONFIGURATION: Final = Path("/run/offer.toml")
KERNEL_PORT: Final = 3241
AVAILABLE: Final = "1"  # drivers/usb/usbip/usbip_common.h, SDEV_ST_AVAILABLE
VENDOR_SPECIFIC: Final = 0xFF  # bInterfaceClass without a driver
BULK_OUT, BULK_IN = 0x01, 0x81
SIZE: Final = 512
ALL: Final = 4096
"""Bytes that GET_DESCRIPTOR asks for: more than any device here has."""

SCENARIO: Final = Scenario()
step = SCENARIO.step

DAEMON: Final = Usbipd("--config", str(CONFIGURATION))
KERNEL: Final = BareKernelServer(KERNEL_PORT)


def interface(number: int, endpoints: int = 0, alternate: int = 0) -> bytes:
    return interface_descriptor(number, endpoints, VENDOR_SPECIFIC, bAlternateSetting=alternate)


def endpoint(address: int) -> bytes:
    return endpoint_descriptor(address, USB_ENDPOINT_XFER_BULK, SIZE, 0)


def control(address: int) -> bytes:
    return endpoint_descriptor(address, USB_ENDPOINT_XFER_CONTROL, 64, 0)


def promising(raw: bytes, *, total: int | None = None, interfaces: int | None = None) -> bytes:
    """The configuration with another wTotalLength or bNumInterfaces than the right one."""
    found = int.from_bytes(raw[2:4], "little") if total is None else total
    return (
        raw[:2]
        + found.to_bytes(2, "little")
        + bytes((raw[4] if interfaces is None else interfaces,))
        + raw[5:]
    )


class Setting(NamedTuple):
    """One that the client selects."""

    interface: int
    alternate: int


@dataclass(frozen=True)
class Shape:
    """A device; its data goes through the endpoints `BULK_OUT` and `BULK_IN`."""

    name: str
    configuration: bytes
    select: tuple[Setting, ...] = ()
    others: tuple[bytes, ...] = ()
    """Further configurations."""


PAIR: Final = (endpoint(BULK_OUT), endpoint(BULK_IN))
SHARED: Final = (
    Shape("endpoint cut in half", configuration_descriptor(interface(0, 3), *PAIR, endpoint(0x83))[:-3]),
    Shape(
        "8 and 40 endpoints promised, and one of 6 bytes",
        configuration_descriptor(
            interface(0, 8),
            *PAIR,
            interface(1, 40),
            endpoint(0x83),
            interface(2, 2),
            bytes((6, USB_DT_ENDPOINT, 0x84, 2, 0, 2)),
            endpoint(0x85),
        ),
    ),
    Shape(
        "one interface of two promised",
        promising(configuration_descriptor(interface(0), interface(1, 2), *PAIR), interfaces=1),
    ),
    Shape("no setting 0", configuration_descriptor(interface(0, 2, 2), *PAIR)),
    Shape(
        "mixed settings",
        configuration_descriptor(
            interface(0), interface(1), interface(0, 1, 1), PAIR[0], interface(1, 1, 1), PAIR[1]
        ),
        (Setting(0, 1), Setting(1, 1)),
    ),
    Shape(
        "interface number 40",
        configuration_descriptor(interface(40), interface(40, 2, 1), *PAIR),
        (Setting(40, 1),),
    ),
    Shape(
        "two configurations, of which libusb lists none",  # it takes the header to be 9 bytes long
        b"\x0c" + configuration_descriptor(b"\xff\x04\0", interface(0, 2), *PAIR)[1:],
        others=(configuration_descriptor(interface(0), bConfigurationValue=2),),
    ),
)
READ: Final = (
    Shape(
        "endpoints twice",
        configuration_descriptor(interface(0, 3), *PAIR, endpoint(BULK_IN), interface(1, 2), *PAIR),
    ),
    Shape("longer than it is", promising(configuration_descriptor(interface(0, 2), *PAIR), total=0x400)),
    Shape("end in the middle", configuration_descriptor(interface(0, 3), *PAIR, b"\0\0", endpoint(0x83))),
    Shape(
        "interface of 8 bytes",
        configuration_descriptor(
            interface(0, 2), *PAIR, bytes((8, USB_DT_INTERFACE, 1, 0, 1, 0xFF, 0, 0)), endpoint(0x83)
        ),
    ),
    Shape("more endpoints than promised", configuration_descriptor(interface(0, 1), *PAIR)),
    Shape("reserved bits", configuration_descriptor(interface(0, 4), *PAIR, endpoint(0x13), endpoint(0x10))),
    Shape(
        "control endpoint", configuration_descriptor(interface(0, 3), control(0x03), endpoint(0x83), *PAIR)
    ),
    Shape(
        "setting twice",
        configuration_descriptor(
            interface(0, 1), PAIR[0], interface(0, 1), PAIR[1], interface(1, 1), PAIR[1]
        ),
    ),
    Shape("33 interfaces", configuration_descriptor(*(interface(number) for number in range(33)))),
)


def odd(configuration: bytes, *others: bytes) -> VirtualDevice:
    device = device_descriptor(0x0A10, bcdUSB=0x0200, bNumConfigurations=1 + len(others))
    return VirtualDevice(device, configuration, others=others)


def plug(device: VirtualDevice) -> UsbDevice:
    """With all its interfaces: until they exist, the kernel keeps the device locked."""
    plugged = device.plug()
    (plugged.path / "bConfigurationValue").read_text()
    return plugged


@step()
def servers_start() -> None:
    CONFIGURATION.write_text("offer_imported = true\n")
    DAEMON.start()
    KERNEL.start()


# ---- what there is ---------------------------------------------------------------------------------------

View = dict[int, tuple[int, tuple[tuple[int, int], ...]]]
"""By bInterfaceNumber: the current setting, and the address and bmAttributes of each of its endpoints."""


def kernels_view(device: UsbDevice) -> View:
    """What sysfs shows."""
    found: View = {}
    for path in device.path.glob(f"{device.busid}:*"):
        endpoints = sorted(
            (int((each / "bEndpointAddress").read_text(), 16), int((each / "bmAttributes").read_text(), 16))
            for each in path.glob("ep_*")
        )
        number = int((path / "bInterfaceNumber").read_text(), 16)
        found[number] = int((path / "bAlternateSetting").read_text()), tuple(endpoints)
    return found


def our_view(configuration: Configuration) -> View:
    """What our reader makes of the descriptors before a setting is selected."""
    return {
        setting.bInterfaceNumber: (
            setting.bAlternateSetting,
            tuple(
                sorted(
                    (each.bEndpointAddress, each.bmAttributes)
                    for each in configuration.endpoints
                    if (each.bInterfaceNumber, each.bAlternateSetting)
                    == (setting.bInterfaceNumber, setting.bAlternateSetting)
                )
            ),
        )
        for setting in configuration.initial
    }


class Session(NamedTuple):
    """What a client has of a device."""

    descriptors: bytes
    """As its kernel shows them."""
    answer: bytes
    """To GET_DESCRIPTOR of the configuration."""
    first: View
    last: View
    """After the settings were selected."""
    data: bytes
    """That went through the device and came back."""


def use(shape: Shape, there: UsbDevice) -> Session:
    first = kernels_view(there)
    with UsbFile(there, sorted(first)) as file:
        answer = file.control(USB_DIR_IN, GET_DESCRIPTOR, USB_DT_CONFIG << 8, length=ALL)
        answer.check(0)
        for setting in shape.select:
            file.set_interface(*setting)
        sent = bytes(at & 0xFF for at in range(3 * SIZE))
        file.run(Urb(BULK, BULK_OUT, sent)).check(0)
        back = file.run(Urb(BULK, BULK_IN, length=len(sent)))
        back.check(0)
        check_same(back.data, sent)
        return Session(there.descriptors, answer.data, first, kernels_view(there), back.data)


def with_ours(shape: Shape, device: UsbDevice) -> Session:
    before = kernels_view(device)
    wait_for(f"{device.busid} in the list", lambda: listed(device.busid))
    ask("bind", "--busid", device.busid)
    wait_for_state(device.busid, "shared")
    drivers = {path.name: _driver(path) for path in device.path.glob(f"{device.busid}:*")}
    check(set(drivers.values()) == {"usbfs"}, f"this host's drivers have {drivers}")
    sessions = []
    for _ in range(2):  # the second one begins after a reset
        there = client.attach(device.busid, device.hardware_id)
        sessions.append(use(shape, there))
        client.detach(there)
        wait_for_state(device.busid, "shared")
    check(sessions[0] == sessions[1], f"the second client has {sessions[1]}, the first {sessions[0]}")
    ask("unbind", "--busid", device.busid)
    check(kernels_view(device).keys() == before.keys(), "the device has not come back whole")
    return sessions[0]


def with_kernel(shape: Shape, device: UsbDevice) -> Session:
    KERNEL.bind(device.busid)
    status = DEVICES / device.busid / "usbip_status"
    wait_for(f"{device.busid} to be free", lambda: status.read_text().strip() == AVAILABLE)
    there = client.attach(device.busid, device.hardware_id, tcp_port=KERNEL_PORT)
    session = use(shape, there)
    client.detach(there)
    KERNEL.unbind(device.busid)
    return session


def _driver(interface: Path) -> str | None:
    link = interface / "driver"
    return link.resolve().name if link.is_symlink() else None


def same_from_both(shape: Shape) -> None:
    """The client gets the same device from both servers."""
    plugged = odd(shape.configuration, *shape.others)
    device = plug(plugged)
    ours, theirs = with_ours(shape, device), with_kernel(shape, device)
    plugged.unplug()
    for name, mine, other in zip(Session._fields, ours, theirs, strict=True):
        check(mine == other, f"{name}: {_text(mine)} from ours, {_text(other)} from the kernel's server")


def _text(value: object) -> str:
    return value.hex(" ") if isinstance(value, bytes) else str(value)


@step("reader")
def our_reader_finds_what_this_kernel_finds() -> None:
    for shape in (*SHARED, *READ):
        plugged = odd(shape.configuration, *shape.others)
        device = plug(plugged)
        ours = our_view(descriptors_in_sysfs(str(device.path)).configurations[0])
        theirs = kernels_view(device)
        check(ours == theirs, f"{shape.name}: our reader finds {ours}, the kernel {theirs}")
        plugged.unplug()


for shape in SHARED:
    SCENARIO.add(f"same from both servers: {shape.name}", shape.name, partial(same_from_both, shape))


@step("driver")
def driver_of_an_interface_without_setting_0_comes_back() -> None:
    run("modprobe", "usbtest")
    zero = device_descriptor(0, bcdUSB=0x0200)
    vendor, product = (int(each, 16).to_bytes(2, "little") for each in GADGET_ZERO.split(":"))
    plugged = VirtualDevice(
        zero[:8] + vendor + product + zero[12:], configuration_descriptor(interface(0, 2, 2), *PAIR)
    )
    device = plug(plugged)
    with attached(device, ["usbtest"]):
        pass
    plugged.unplug()
    run("rmmod", "usbtest")


# ---- what cannot be shared -------------------------------------------------------------------------------


@step("left out")
def device_that_cannot_be_shared_is_named() -> None:
    reason = "cannot claim interface 70"
    plugged = odd(configuration_descriptor(interface(70, 2), *PAIR))
    busid = plug(plugged).busid

    def named() -> str | None:
        left_out = ask("list")["left_out"]
        return next((each["reason"] for each in left_out if each["busid"] == busid), None)

    found = wait_for(f"{busid} among the devices that are left out", named)
    check(reason in found, f"list says: {found}")
    refused = call("bind", "--busid", busid)
    check(refused.code == 1 and reason in refused.stderr, f"bind says: {refused.stderr}")
    findings = [each["message"] for each in call("doctor", "--json").document["checks"]]
    check(any(busid in each and reason in each for each in findings), f"doctor finds {findings}")
    plugged.unplug()


@step("end")
def servers_stop_and_leave_nothing() -> None:
    KERNEL.stop()
    DAEMON.stop()


if __name__ == "__main__":
    sys.exit(SCENARIO.run())
