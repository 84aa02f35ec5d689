"""Claims through libusb's darwin backend.  test_worker.py runs it, in a separate process."""

import gc
import os
from collections.abc import Iterator

import pytest

from tests.mac.mac import Device
from tests.mac.rig import give_back, mac
from usbipd._claim import Claim
from usbipd.errors import ClaimError
from usbipd.protocol.constants import Speed


@pytest.fixture
def keyboard() -> Iterator[Device]:
    device = mac().plug(drivers={0: "hid"})
    yield device
    gc.collect()  # a traceback may still refer to a claim and so keep its context
    device.unplug()


def test_a_claim_captures_the_device_and_a_release_reattaches_its_driver(keyboard: Device) -> None:
    session, address = keyboard.session, keyboard.address
    claim = Claim(*keyboard.busid, as_on_macos=True)
    claim.take()
    assert claim.complete
    assert (claim.detached, claim.held, claim.captured) == ([0], [0, 1], True)
    assert keyboard.captured
    assert keyboard.captor == os.getpid()
    assert keyboard.interface_openers == {0: os.getpid(), 1: os.getpid()}
    assert keyboard.session == session
    give_back(claim)
    keyboard.until("drivers", [0])
    assert not keyboard.captured
    assert keyboard.session != session
    assert keyboard.address != address


def test_a_process_without_root_captures_nothing(keyboard: Device) -> None:
    claim = Claim(*keyboard.busid, as_on_macos=True)
    os.seteuid(65534)
    try:
        with pytest.raises(ClaimError, match="root") as raised:
            claim.take()
    finally:
        os.seteuid(0)
    assert raised.value.code == "LIBUSB_ERROR_ACCESS"
    assert not keyboard.captured


def test_a_driver_that_stays_attached_keeps_its_interface() -> None:
    mac().switch(storage_driver_stays=True)
    disk = mac().plug(location=0x14300000, port=3, drivers={0: "storage"})
    claim = Claim(*disk.busid, as_on_macos=True)
    with pytest.raises(ClaimError, match="interface 0") as raised:
        claim.take()
    assert raised.value.code == "LIBUSB_ERROR_ACCESS"
    disk.until("captured", False)
    disk.until("drivers", [0])
    del claim, raised
    gc.collect()
    mac().switch(storage_driver_stays=False)
    disk.unplug()


@pytest.mark.parametrize(
    ("speed", "number"), [(Speed.LOW, 1), (Speed.FULL, 2), (Speed.HIGH, 3), (Speed.SUPER, 4)]
)
def test_a_device_of_each_speed(speed: Speed, number: int) -> None:
    device = mac().plug(location=0x14300000, port=3, speed=speed)
    claim = Claim(*device.busid, as_on_macos=True)
    assert claim.speed() == number
    del claim
    device.unplug()


def test_descriptors_match_the_device(keyboard: Device) -> None:
    claim = Claim(*keyboard.busid, as_on_macos=True)
    assert claim.descriptors.fields["idVendor"] == 0x1D6B
    assert claim.speed() == 3
    assert claim.configuration == 1
    assert sum(len(each.endpoints) for each in claim.descriptors.configurations) == 4 + 6 + 2 + 2
