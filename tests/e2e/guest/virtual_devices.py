"""Devices written in Python (virtual_device.py), shared like any other: each has one quirk of real devices.
Runs in the guest.

The requests to a device are compared with those of the kernel's own server.
"""

import errno
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.e2e.guest import client
from tests.e2e.guest.command import ask, call, listed, wait_for_state
from tests.e2e.guest.daemon import wait_until_ended
from tests.e2e.guest.scenario import Scenario, StepError, check
from tests.e2e.guest.server import BareKernelServer, Server, Usbipd
from tests.e2e.guest.sharing import attached
from tests.e2e.guest.streams import check_same
from tests.e2e.guest.system import wait_for
from tests.e2e.guest.usb import DEVICES, UsbDevice
from tests.e2e.guest.usbfs import BULK, ISO_ASAP, ISOCHRONOUS, Urb, UsbFile
from tests.e2e.guest.virtual_device import GET_DESCRIPTOR, SET_INTERFACE, TO_INTERFACE, Request, VirtualDevice
from usbipd.protocol.constants import (
    USB_CLASS_HID,
    USB_DT_HID,
    USB_DT_HID_REPORT,
    USB_ENDPOINT_XFER_BULK,
    USB_ENDPOINT_XFER_INT,
    USB_ENDPOINT_XFER_ISOC,
)
from usbipd.simulated.audio import Audio
from usbipd.simulated.descriptors import (
    configuration_descriptor,
    device_descriptor,
    endpoint_descriptor,
    interface_descriptor,
)

HANGING_INTERFACES: Final = 3
CONFIGURATION: Final = Path("/run/offer.toml")
VENDOR_SPECIFIC: Final = 0xFF  # bInterfaceClass without a driver
BULK_OUT, BULK_IN = 0x01, 0x81
ISO_OUT, ISO_IN = 0x02, 0x82
BULK_SIZE: Final = 512
PACKET: Final = 192
KERNEL_PORT: Final = 3241
AVAILABLE: Final = "1"  # drivers/usb/usbip/usbip_common.h, SDEV_ST_AVAILABLE

SCENARIO: Final = Scenario()
step = SCENARIO.step

DAEMON: Final = Usbipd("--config", str(CONFIGURATION))


def plain_device(**habits: object) -> VirtualDevice:
    """A device with a pair of bulk endpoints that no driver claims."""
    configuration = configuration_descriptor(
        interface_descriptor(0, 2, VENDOR_SPECIFIC),
        endpoint_descriptor(BULK_OUT, USB_ENDPOINT_XFER_BULK, BULK_SIZE, 0),
        endpoint_descriptor(BULK_IN, USB_ENDPOINT_XFER_BULK, BULK_SIZE, 0),
    )
    return VirtualDevice(device_descriptor(0x0A0C, bcdUSB=0x0200), configuration, **habits)  # type: ignore[arg-type]


# ---- imported devices --------------------------------------------------------------------------------------


@step()
def udevd_is_stopped() -> None:
    """usbipd does not need it: the kernel itself reports devices."""
    pids = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/comm") if _is_udevd(path)]
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    wait_until_ended(pids)


def _is_udevd(comm: Path) -> bool:
    try:
        return comm.read_text() == "systemd-udevd\n"
    except OSError:  # it has just exited
        return False


@step()
def imported_device_is_refused_with_the_key_named() -> None:
    CONFIGURATION.write_text("")
    DAEMON.start()
    plugged = plain_device()
    device = plugged.plug()
    check(
        listed(device.busid) is None,
        "an imported device is offered although the configuration does not allow it",
    )
    refused = call("bind", "--busid", device.busid)
    check(refused.code == 1 and "offer_imported" in refused.stderr, f"bind prints: {refused.stderr}")
    plugged.unplug()
    DAEMON.stop()


@step()
def daemon_starts_with_imported_devices() -> None:
    CONFIGURATION.write_text("offer_imported = true\n")
    DAEMON.start()
    states = {each["name"]: each["state"] for each in call("doctor", "--json").document["checks"]}
    check((states["hotplug"], states["devices"]) == ("ok", "ok"), f"doctor finds {states}")


# ---- a driver that claims several interfaces ---------------------------------------------------------------


@step("sound")
def sound_card_returns_to_its_driver_without_an_error() -> None:
    microphone = VirtualDevice(Audio.device_descriptor, Audio.configurations[0], speed=Audio.speed)
    device = microphone.plug()
    with attached(device, ["snd-usb-audio"] * 2) as there:
        wait_for("a sound card", there.capture_device)
    wait_for("a sound card", device.capture_device)
    problems = [
        line for line in DAEMON.log().splitlines() if "reattached" in line or "give its device" in line
    ]
    check(not problems, f"the daemon logged: {problems}")
    microphone.unplug()


# ---- isochronous transfers ---------------------------------------------------------------------------------


@step("isochronous")
def isochronous_packets_of_a_real_device_arrive_complete_and_in_order() -> None:
    configuration = configuration_descriptor(
        interface_descriptor(0, 0, VENDOR_SPECIFIC),
        interface_descriptor(0, 2, VENDOR_SPECIFIC, bAlternateSetting=1),
        endpoint_descriptor(ISO_OUT, USB_ENDPOINT_XFER_ISOC, PACKET, 1),
        endpoint_descriptor(ISO_IN, USB_ENDPOINT_XFER_ISOC, PACKET, 1),
    )
    stream = VirtualDevice(device_descriptor(0x0A0D, bcdUSB=0x0200), configuration)
    device = stream.plug()
    wait_for(f"{device.busid} in the list", lambda: listed(device.busid))
    ask("bind", "--busid", device.busid)
    wait_for_state(device.busid, "shared")
    there = client.attach(device.busid, device.hardware_id)
    lengths = [PACKET, 1, PACKET - 1, 64, PACKET, 3, 0, PACKET]
    rounds, heard, played = 20, bytearray(), bytearray()
    with UsbFile(there, [0]) as file:
        file.set_interface(0, 1)
        for number in range(rounds):
            sound = bytes((number + at) & 0xFF for at in range(sum(lengths)))
            played += sound
            file.submit(
                Urb(ISOCHRONOUS, ISO_OUT, sound, flags=ISO_ASAP, packets=lengths),
                Urb(ISOCHRONOUS, ISO_IN, flags=ISO_ASAP, packets=lengths),
            )
            for urb in (file.reap(), file.reap()):
                urb.check(0)
                check(urb.error_count == 0, f"{urb.error_count} packets failed")
                check(
                    [packet.length for packet in urb.packets] == lengths,
                    f"packets of {urb.endpoint:#04x}: {[packet.length for packet in urb.packets]}",
                )
                if urb.endpoint == ISO_IN:
                    heard += b"".join(packet.data for packet in urb.packets)
    check_same(bytes(heard), bytes(at & 0xFF for at in range(rounds * sum(lengths))))
    check_same(bytes(stream.played), bytes(played))
    client.detach(there)
    wait_for_state(device.busid, "shared")
    ask("unbind", "--busid", device.busid)
    stream.unplug()


# ---- a device that is unplugged ----------------------------------------------------------------------------


@step("unplug")
def device_unplugged_in_use_is_shared_again() -> None:
    plugged = plain_device()
    device = plugged.plug()
    wait_for(f"{device.busid} in the list", lambda: listed(device.busid))
    ask("bind", "--busid", device.busid)
    for _ in range(2):
        wait_for_state(device.busid, "shared")
        there = client.attach(device.busid, device.hardware_id)
        _check_loop(there, b"pulled out")
        with UsbFile(there, [0]) as file:
            reading = Urb(BULK, BULK_IN, length=BULK_SIZE)
            file.submit(reading)
            plugged.unplug()
            client.wait_until_gone(there)
            check(reading.status != 0 or file.reap().status != 0, "the pending read has not failed")
        wait_for(f"no {device.busid} in the list", lambda: listed(device.busid) is None)
        check(plugged.plug().busid == device.busid, "the device is at another port")
    wait_for_state(device.busid, "shared")
    ask("unbind", "--busid", device.busid)
    plugged.unplug()


def _check_loop(device: UsbDevice, data: bytes) -> None:
    """Bulk data must be echoed."""
    with UsbFile(device, [0]) as file:
        urb = file.run(Urb(BULK, BULK_OUT, data))
        urb.check(0)
        urb = file.run(Urb(BULK, BULK_IN, length=len(data)))
        urb.check(0)
        check_same(urb.data, data)


# ---- a device that blocks its driver -----------------------------------------------------------------------


@step("stuck")
def stuck_device_hides_no_other_and_does_not_block_the_start() -> None:
    """The kernel locks the device for 20 s per interface (hid_get_class_descriptor in
    drivers/hid/usbhid/hid-core.c), while its driver waits for an answer."""
    keyboard = bytes((9, USB_DT_HID, 0x11, 0x01, 0, 1, USB_DT_HID_REPORT, 63, 0))  # HID 1.11, 6.2.1
    parts = [
        part
        for number in range(HANGING_INTERFACES)
        for part in (
            interface_descriptor(number, 1, USB_CLASS_HID),
            keyboard,
            endpoint_descriptor(0x81 + number, USB_ENDPOINT_XFER_INT, 8, 10),
        )
    ]
    bystander = plain_device(serial="bystander")
    other = bystander.plug()
    stuck = VirtualDevice(
        device_descriptor(0x0A0E, bcdUSB=0x0200),
        configuration_descriptor(*parts),
        serial="stuck",
        unanswered={(0x80 | TO_INTERFACE, GET_DESCRIPTOR)},
    )
    device = stuck.plug()
    DAEMON.stop()
    DAEMON.start()
    wait_for(f"{other.busid} in the list", lambda: listed(other.busid))
    check(listed(device.busid) is None, "the device is listed: it was not stuck")
    findings = call("doctor", "--json").document["checks"]
    [finding] = [each for each in findings if each["name"] == "devices"]
    check(device.busid in finding["message"], f"doctor finds {finding}")
    refused = call("bind", "--busid", device.busid)
    check("has not answered" in refused.stderr, f"bind prints: {refused.stderr}")
    wait_for(f"{device.busid} in the list", lambda: listed(device.busid))
    stuck.unplug()
    bystander.unplug()


# ---- a device that does not answer a request ---------------------------------------------------------------


@step("phone")
def phone_that_ignores_set_interface_works() -> None:
    """It also gets no request that the kernel's own server does not send."""
    ours = _sessions(DAEMON, client.TCP_PORT)
    check(
        not any(request[:2] == (TO_INTERFACE, SET_INTERFACE) for request in ours),
        "the device got SET_INTERFACE, which it never answers",
    )
    kernel = BareKernelServer(KERNEL_PORT)
    kernel.start()
    theirs = _sessions(kernel, KERNEL_PORT)
    kernel.stop()
    more = sorted(set(ours) - set(theirs))
    check(not more, f"the device got requests that usbip-host does not send: {', '.join(map(str, more))}")


@step("endpoints")
def phone_keeps_its_endpoints_after_an_unanswered_set_interface() -> None:
    """Linux disables them before it sends the request (usb_set_interface in drivers/usb/core/message.c)."""
    phone = plain_device(unanswered={(TO_INTERFACE, SET_INTERFACE)})
    device = phone.plug()
    wait_for(f"{device.busid} in the list", lambda: listed(device.busid))
    ask("bind", "--busid", device.busid)
    wait_for_state(device.busid, "shared")
    there = client.attach(device.busid, device.hardware_id)
    with UsbFile(there, [0]) as file:
        try:
            file.set_interface(0, 0)
        except OSError as error:
            check(error.errno == errno.ETIMEDOUT, f"SET_INTERFACE ended with {error}")
        else:
            raise StepError("SET_INTERFACE went through")
    _check_loop(there, b"after it")
    asked = [request for request in phone.requests if request[:2] == (TO_INTERFACE, SET_INTERFACE)]
    check(len(asked) == 1, f"the device got SET_INTERFACE {len(asked)} times")
    client.detach(there)
    wait_for_state(device.busid, "shared")
    ask("unbind", "--busid", device.busid)
    phone.unplug()


def _sessions(server: Server, tcp_port: int) -> Sequence[Request]:
    """The requests to the phone while it is bound, attached twice, and unbound."""
    phone = plain_device(unanswered={(TO_INTERFACE, SET_INTERFACE)})
    device = phone.plug()
    if isinstance(server, Usbipd):
        wait_for(f"{device.busid} in the list", lambda: listed(device.busid))
    plugged = len(phone.requests)
    server.bind(device.busid)
    status = DEVICES / device.busid / "usbip_status"
    for round_ in range(2):
        if isinstance(server, Usbipd):
            wait_for_state(device.busid, "shared")
        else:
            wait_for(f"{device.busid} to be free", lambda: status.read_text().strip() == AVAILABLE)
        there = client.attach(device.busid, device.hardware_id, tcp_port=tcp_port)
        _check_loop(there, bytes([round_]) * 3 * BULK_SIZE)
        client.detach(there)
    server.unbind(device.busid)
    requests = phone.requests[plugged:]
    print(f"{type(server).__name__}: {'; '.join(map(str, requests))}")
    phone.unplug()
    return requests


# ---- the end -----------------------------------------------------------------------------------------------


@step("end")
def daemon_stops_and_leaves_nothing() -> None:
    DAEMON.stop()


if __name__ == "__main__":
    sys.exit(SCENARIO.run())
