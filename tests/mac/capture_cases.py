"""Claims on a Mac, with each switch.  test_claim.py runs it, in a process of a software Mac."""

import gc
import itertools
import os
from collections.abc import Callable
from contextlib import nullcontext

import pytest

from tests.mac.kernel import errors
from tests.mac.mac import Device
from tests.mac.pump_rig import (
    IN,
    ISO_IN,
    ISO_ON,
    OUT,
    PORT_RESET,
    SET_CONFIGURATION,
    SET_CONFIGURATION_2,
    PumpRig,
    fresh_switches,
    not_root,
    summary,
)
from tests.mac.rig import mac
from usbipd import _pump
from usbipd._claim import Claim
from usbipd.errors import ClaimError
from usbipd.protocol.constants import LINUX_EPIPE
from usbipd.usb.claim_errors import explain_claim_error


@pytest.fixture(autouse=True)
def switches() -> None:
    fresh_switches()
    mac().journal()


Plug = Callable[..., Device]
_PLACES = itertools.count(1)


@pytest.fixture
def plug() -> Plug:
    """Plugs in a device, each at its own port; it stays plugged in."""

    def plug(drivers: dict[int, str] | None = None) -> Device:
        return mac().plug(drivers=drivers, location=0x14000000 + (next(_PLACES) << 8))

    return plug


def claimed(device: Device) -> Claim:
    claim = Claim(*device.busid, as_on_macos=True)
    claim.take()
    return claim


def moves_data(rig: PumpRig) -> bool:
    rig.usb.give(IN, b"from the device")
    read, written = rig.replies_to(rig.submit(IN, 64), rig.submit(OUT, data=b"to the device"))
    by_seqnum = sorted((summary(read), summary(written)))
    return [each[1:] for each in by_seqnum] == [(0, b"from the device"), (0, b"")] and (
        rig.usb.taken(OUT) == b"to the device"
    )


# ---- the capture ---------------------------------------------------------------------------------


@pytest.mark.parametrize("drivers", [{}, {0: "hid"}, {1: "hid"}, {0: "hid", 1: "storage"}])
@pytest.mark.parametrize("capture_unconfigures", [True, False])
@pytest.mark.parametrize("halted_at_first_use", [True, False])
@pytest.mark.parametrize("reenumeration_changes_address", [True, False])
def test_root_captures_any_device(
    plug: Plug,
    drivers: dict[int, str],
    capture_unconfigures: bool,
    halted_at_first_use: bool,
    reenumeration_changes_address: bool,
) -> None:
    fresh_switches(
        capture_unconfigures=capture_unconfigures,
        halted_at_first_use=halted_at_first_use,
        reenumeration_changes_address=reenumeration_changes_address,
    )
    device = plug(drivers)
    assert device.drivers == sorted(drivers)
    rig = PumpRig(device)
    assert rig.claim.captured
    assert (rig.claim.held, rig.claim.configuration) == ([0, 1], 1)
    assert (device.captured, device.drivers, device.configuration) == (True, [], 1)
    assert moves_data(rig)
    rig.close()
    assert (device.captured, device.drivers) == (False, sorted(drivers))
    assert device.counters["captures"] == device.counters["reenumerations"] == 1


@pytest.mark.parametrize("driver", ["hid", "storage", "serial", "audio"])
def test_one_capture_and_one_release_over_several_configurations(plug: Plug, driver: str) -> None:
    device = plug({0: driver, 1: "hid"})
    claim = claimed(device)
    for value in (2, 1, 0, 1):
        assert claim.set_configuration(value) == 0
        assert (claim.configuration, device.configuration, device.drivers) == (value, value, [])
        assert claim.complete
    assert claim.give_back() == []
    assert not claim.captured
    assert (device.captured, device.drivers) == (False, [0, 1])
    assert device.counters["captures"] == device.counters["reenumerations"] == 1


@pytest.mark.parametrize("capture_unconfigures", [True, False])
def test_the_active_configuration_is_restored(plug: Plug, capture_unconfigures: bool) -> None:
    """libusb alone would set the first one."""
    fresh_switches(capture_unconfigures=capture_unconfigures)
    device = plug()
    with not_root():
        before = claimed(device)
        assert before.set_configuration(2) == 0
        assert before.give_back() == []
    assert (device.captured, device.configuration) == (False, 2)
    claim = claimed(device)
    assert claim.captured
    assert (claim.held, claim.configuration, device.configuration) == ([0], 2, 2)
    assert claim.give_back() == []


def test_an_unconfigured_device_is_captured(plug: Plug) -> None:
    device = plug()
    with not_root():
        before = claimed(device)
        assert before.set_configuration(0) == 0
    claim = claimed(device)
    assert claim.captured
    assert (claim.held, claim.configuration, device.configuration) == ([], 0, 0)
    assert claim.set_configuration(1) == 0
    assert claim.held == [0, 1]
    assert claim.give_back() == []


def test_only_root_can_take_a_device_from_its_driver(plug: Plug) -> None:
    device = plug({1: "hid"})
    with not_root(), pytest.raises(ClaimError, match="cannot be taken from its driver") as caught:
        claimed(device)
    assert caught.value.code == "LIBUSB_ERROR_ACCESS"
    assert "USB device capture requires either an entitlement" in caught.value.message
    assert (device.captured, device.drivers) == (False, [1])
    with pytest.raises(ClaimError) as caught:
        Claim(0x14, 99, as_on_macos=True)
    assert caught.value.message.endswith("(LIBUSB_ERROR_NO_DEVICE, -4)"), "no text of the previous error"


def test_an_interface_whose_opening_is_refused(plug: Plug) -> None:
    device = plug({0: "hid"})
    claim = Claim(*device.busid, as_on_macos=True)
    mac().call("fail", "INTERFACE_OPEN", errors.NOT_PERMITTED)
    with pytest.raises(ClaimError, match="interface 0 cannot be claimed") as caught:
        claim.take()
    assert "USBInterfaceOpen" in caught.value.message
    error = explain_claim_error("20-1", caught.value, [], platform="darwin")
    assert "(0xe00002e2)" in error.message
    assert "sudo usbipd-ext --run" in str(error.advice)
    device.until("drivers", [0])


def test_a_device_whose_opening_is_refused(plug: Plug) -> None:
    device = plug({0: "hid"})
    mac().call("fail", "DEVICE_OPEN", errors.NOT_PERMITTED, 1000)  # libusb opens each device when it starts
    try:
        with pytest.raises(ClaimError, match="cannot be opened") as caught:
            Claim(*device.busid, as_on_macos=True)
    finally:
        mac().call("fail", "DEVICE_OPEN", errors.NOT_PERMITTED, 0)
    assert "USBDeviceOpen" in caught.value.message
    error = explain_claim_error("20-1", caught.value, [], platform="darwin")
    assert "(0xe00002e2)" in error.message
    assert "sudo usbipd-ext --run" in str(error.advice)


def test_a_device_lost_in_its_capture_is_an_error(plug: Plug) -> None:
    """libusb returns NOT_FOUND (darwin_restore_state), as elsewhere for an interface without a driver."""
    device = plug({0: "hid"})
    claim = Claim(*device.busid, as_on_macos=True)
    mac().call("fail", "DEVICE_OPEN", errors.NO_RESOURCES)
    with pytest.raises(ClaimError, match="cannot be taken from its driver") as caught:
        claim.take()
    assert caught.value.code == "LIBUSB_ERROR_NOT_FOUND"
    assert (claim.held, claim.detached) == ([], [])


@pytest.mark.parametrize("call", ["RE_ENUMERATE", "INTERFACE_OPEN"])
def test_a_device_removed_while_it_is_claimed(plug: Plug, call: str) -> None:
    device = plug({0: "hid"})
    claim = Claim(*device.busid, as_on_macos=True)
    mac().call("fail", call, errors.NO_DEVICE)
    with pytest.raises(ClaimError) as caught:
        claim.take()
    assert caught.value.code == "LIBUSB_ERROR_NO_DEVICE"
    assert (claim.held, claim.detached) == ([], [])


def test_an_interface_held_by_another_program(plug: Plug) -> None:
    device = plug({0: "hid"})
    mac().call("fail", "INTERFACE_OPEN", errors.EXCLUSIVE_ACCESS)
    with pytest.raises(ClaimError, match="interface 0 cannot be claimed") as caught:
        claimed(device)
    assert caught.value.code == "LIBUSB_ERROR_ACCESS"
    assert (device.captured, device.drivers) == (False, [0])


def test_a_failed_release_is_reported(plug: Plug) -> None:
    device = plug({0: "hid"})
    claim = claimed(device)
    mac().call("fail", "RE_ENUMERATE", errors.NOT_PRIVILEGED)
    [problem] = claim.give_back()
    assert problem.startswith("the kernel driver could not be reattached to interface 0 (LIBUSB_ERROR")


def test_libusb_stays_open_until_the_process_exits(plug: Plug) -> None:
    device = plug()
    claim = claimed(device)
    assert claim.give_back() == []
    del claim
    gc.collect()
    assert device.opener == os.getpid()


# ---- resets --------------------------------------------------------------------------------------


def test_a_captured_device_stays_captured_over_the_reset_between_clients(plug: Plug) -> None:
    device = plug({0: "hid"})
    rig = PumpRig(device)
    session, address = device.session, device.address
    for setup in (ISO_ON, SET_CONFIGURATION_2):
        assert rig.control(setup).status == 0
        assert rig.finish()
        assert rig.pump.restore() == 0
        assert (device.configuration, device.alternates.get(0, 0)) == (1, 0)
        rig.attach()
        assert moves_data(rig)
    assert device.counters["resets"] == 2
    assert (device.captured, device.session, device.address) == (True, session, address)
    assert not rig.pump.gone
    rig.close()


def test_a_device_without_capture_is_not_reset_between_clients(plug: Plug) -> None:
    """It would leave the bus, and return as a new device of the host."""
    device = plug()
    with not_root():
        rig = PumpRig(device)
        assert not rig.claim.captured
        session, address = device.session, device.address
        for setup in (ISO_ON, SET_CONFIGURATION_2):
            assert rig.control(setup).status == 0
            assert rig.finish()
            assert rig.pump.restore() == 0
            assert (device.configuration, device.alternates.get(0, 0)) == (1, 0)
            rig.attach()
            assert moves_data(rig)
        assert (device.session, device.address) == (session, address)
        rig.close()
    assert device.counters.get("reenumerations", 0) == device.counters.get("resets", 0) == 0


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("reenumeration_changes_address", [True, False])
@pytest.mark.parametrize("reenumeration_seconds", [0.0, 0.3])
def test_a_client_gets_the_reset_it_requests(
    plug: Plug,
    captured: bool,
    reenumeration_changes_address: bool,
    reenumeration_seconds: float,
) -> None:
    """Settings and session are kept, whether or not the device leaves the bus."""
    fresh_switches(
        reenumeration_changes_address=reenumeration_changes_address,
        reenumeration_seconds=reenumeration_seconds,
    )
    device = plug()
    with nullcontext() if captured else not_root():
        rig = PumpRig(device)
        session = device.session
        assert rig.control(ISO_ON).status == 0
        assert rig.control(PORT_RESET).status == 0
        assert (device.captured, device.session == session) == (captured, captured)
        assert device.counters["resets" if captured else "reenumerations"] == 1
        assert device.alternates[0] == 1
        assert not rig.pump.gone
        assert moves_data(rig)
        [reply] = rig.replies_to(rig.submit(ISO_IN, 192, packets=[(0, 192)]))
        assert reply.status == 0
        rig.close()


@pytest.mark.parametrize(
    ("code", "gone"), [(errors.NO_RESOURCES, False), (errors.NOT_OPEN, True), (errors.NO_DEVICE, True)]
)
def test_a_failed_reset(plug: Plug, code: int, gone: bool) -> None:
    rig = PumpRig(plug())
    mac().call("fail", "RESET_DEVICE", code)
    assert rig.pump.restore() < 0
    assert rig.pump.gone == gone
    rig.close()


def test_a_reset_that_fails_before_the_device_leaves_keeps_the_settings(plug: Plug) -> None:
    device = plug()
    with not_root():
        rig = PumpRig(device)
        assert rig.control(ISO_ON).status == 0
        mac().call("fail", "RE_ENUMERATE", errors.NO_RESOURCES)
        assert rig.control(PORT_RESET).status < 0
        assert not rig.pump.gone
        assert device.alternates[0] == 1
        [reply] = rig.replies_to(rig.submit(ISO_IN, 192, packets=[(0, 192)]))
        assert reply.status == 0
        rig.close()


# ---- what does not exist -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setup",
    [
        "01 0b 0000 0900 0000",  # interface 9
        "01 0b 0000 2800 0000",  # interface 40
        "01 0b 0000 0001 0000",  # interface 256
        "01 0b 0700 0000 0000",  # alternate setting 7
        "02 01 0000 8f00 0000",  # the halt of endpoint 0x8f
        "02 01 0000 8300 0000",  # of an endpoint missing in the current setting
        "00 09 0700 0000 0000",  # configuration 7
    ],
)
def test_requests_for_missing_objects_are_refused_as_by_a_device(plug: Plug, setup: str) -> None:
    rig = PumpRig(plug())
    rig.usb.requests()
    waiting = rig.submit(IN, 64)
    rig.submitted(waiting)
    assert rig.control(setup).status == -LINUX_EPIPE
    assert rig.usb.requests() == []
    rig.usb.give(IN, b"data")
    assert [summary(reply) for reply in rig.more()] == [(waiting.seqnum, 0, b"data")]
    rig.close()


def test_an_attach_sends_what_a_native_host_sends(plug: Plug) -> None:
    rig = PumpRig(plug())
    rig.usb.requests()
    assert rig.control(SET_CONFIGURATION).status == 0
    assert [setup.hex(" ", -2) for setup, _data in rig.usb.requests()] == ["0009 0100 0000 0000"]
    assert moves_data(rig)
    rig.close()


@pytest.mark.parametrize("setup", [SET_CONFIGURATION, SET_CONFIGURATION_2])
def test_a_program_that_claims_first_after_set_configuration(plug: Plug, setup: str) -> None:
    rig = PumpRig(plug())
    mac().call("fail", "INTERFACE_OPEN", errors.EXCLUSIVE_ACCESS)
    urb = rig.submit(0, setup=bytes.fromhex(setup))
    assert rig.exchange_until_it_ends(urb) == _pump.CLAIM_LOST
    assert rig.pump.unclaimed
    rig.close()
