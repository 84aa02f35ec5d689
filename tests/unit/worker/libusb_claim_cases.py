"""The claim while it is in use, on fake_libusb.c: other programs and drivers take interfaces that are
released for a moment, devices refuse configurations.  test_libusb.py runs it, in a separate process.
"""

import errno
import socket
from collections.abc import Iterator
from typing import Self

import pytest

from tests.unit.worker.libusb_rig import BULK_IN, ISO_IN, VENDOR_IN, LibusbRig, bus, fake, journal
from tests.urb import encode
from usbipd import _pump
from usbipd._claim import Claim
from usbipd.errors import ClaimError, UsbipdError
from usbipd.ipc.blocking_channel import BlockingChannel
from usbipd.ipc.children import CHILDREN
from usbipd.ipc.conversation import Event
from usbipd.ipc.messages import EventName
from usbipd.protocol.constants import LINUX_ENODEV, LINUX_ENOMEM, LINUX_EPIPE, LINUX_ETIMEDOUT
from usbipd.simulated.descriptors import configuration_descriptor, device_descriptor, interface_descriptor
from usbipd.usb.descriptors import Interface, parse_descriptors
from usbipd.worker.held_device import HeldUsbDevice
from usbipd.worker.process import Worker

ERROR_NO_DEVICE, ERROR_OTHER = -4, -99  # enum libusb_error
LINUX_EBUSY = 16  # include/uapi/asm-generic/errno-base.h
INTERFACE_0, INTERFACE_1, BOTH = 1, 2, 3
SET_CONFIGURATION, SET_CONFIGURATION_2 = "00 09 0100 0000 0000", "00 09 0200 0000 0000"
STREAMS_ON, PLAIN_AGAIN = "01 0b 0100 0100 0000", "01 0b 0000 0000 0000"


@pytest.fixture(autouse=True)
def begin() -> Iterator[None]:
    fake.fake_begin()
    yield
    assert fake.fake_pending() == 0


@pytest.fixture
def rig() -> Iterator[LibusbRig]:
    rig = LibusbRig()
    bus(), journal()
    yield rig
    rig.close()


class Starved(Claim):
    """A claim that runs out of memory when it lists the interfaces again."""

    starved = False

    def interfaces(self) -> list[Interface]:
        if self.starved:
            raise MemoryError
        return super().interfaces()


def request(rig: LibusbRig, setup: str) -> tuple[int, int]:
    """A request and an URB in one write; returns why the pump returned, and the request's status."""
    first = rig.submit(0, setup=bytes.fromhex(setup))
    behind = rig.submit(BULK_IN, 64)
    wake = rig.send(b"".join(map(encode, (first, behind))))
    [reply] = rig.received()
    assert reply.seqnum == first.seqnum
    return wake, reply.status


def attached() -> list[str]:
    return [line for line in journal() if line.split()[0] in ("attach", "detach", "submit")]


# ---- a claim that cannot be renewed --------------------------------------------------------------


@pytest.mark.parametrize("setup", [SET_CONFIGURATION, SET_CONFIGURATION_2])
def test_another_program_takes_an_interface_after_set_configuration(setup: str) -> None:
    rig = LibusbRig()
    journal()
    fake.fake_occupy(INTERFACE_0)
    assert request(rig, setup) == (_pump.CLAIM_LOST, -LINUX_EBUSY)
    assert rig.pump.unclaimed
    assert (rig.claim.held, rig.claim.detached) == ([], [])
    assert "submit" not in " ".join(attached()), "usbfs would claim the interface for it"
    rig.close()


def test_no_request_that_waited_follows_a_lost_claim(rig: LibusbRig) -> None:
    first = rig.submit(0x80, 0x40, setup=VENDOR_IN)
    setups = [bytes.fromhex(setup) for setup in (SET_CONFIGURATION, PLAIN_AGAIN)]
    rig.waiting(first, *(rig.submit(0, setup=setup) for setup in setups))
    fake.fake_occupy(INTERFACE_1)
    assert fake.fake_complete(0, 0, b"", 0)
    assert rig.turn() == _pump.CLAIM_LOST
    assert [reply.status for reply in rig.received()] == [0, -LINUX_EBUSY]
    assert bus() == ["SET_CONFIGURATION 1"]


@pytest.mark.parametrize("setup", [PLAIN_AGAIN, STREAMS_ON])
def test_another_program_takes_an_interface_after_a_failed_set_interface(rig: LibusbRig, setup: str) -> None:
    fake.fake_occupy(BOTH)
    fake.fake_fail_errno(b"set_interface", ERROR_OTHER, errno.ETIMEDOUT)
    assert request(rig, setup) == (_pump.CLAIM_LOST, -LINUX_ETIMEDOUT)
    assert rig.pump.unclaimed


def test_out_of_memory_during_a_repeated_claim() -> None:
    rig = LibusbRig(claim=Starved)
    assert isinstance(rig.claim, Starved)
    rig.claim.starved = True
    assert request(rig, SET_CONFIGURATION_2) == (_pump.CLAIM_LOST, -LINUX_ENOMEM)
    assert rig.pump.unclaimed
    rig.close()


@pytest.mark.parametrize("setup", [SET_CONFIGURATION, SET_CONFIGURATION_2])
def test_a_device_that_is_removed_meanwhile_is_gone(rig: LibusbRig, setup: str) -> None:
    fake.fake_fail(b"claim", ERROR_NO_DEVICE)
    first = rig.submit(0, setup=bytes.fromhex(setup))
    assert rig.send(encode(first)) == _pump.DEVICE_GONE
    assert [reply.status for reply in rig.received()] == [-LINUX_ENODEV]
    assert rig.pump.gone
    assert not rig.pump.unclaimed


def test_a_driver_that_attaches_right_before_the_claim_is_detached_again(rig: LibusbRig) -> None:
    fake.fake_late_drivers(INTERFACE_1)
    assert rig.control(SET_CONFIGURATION).status == 0
    assert rig.claim.complete
    assert journal()[-4:] == ["claim 0", "claim 1", "detach 1", "claim 1"]
    assert rig.claim.give_back() == []
    assert fake.fake_drivers() == BOTH


def test_an_interface_without_setting_0_is_made_anew_for_its_driver() -> None:
    raw = configuration_descriptor(interface_descriptor(0, 0, 0xFF, bAlternateSetting=2))
    descriptors = parse_descriptors(device_descriptor(0x01F0, bcdUSB=0x0200), [raw])
    claim = Claim(1, 2, descriptors=descriptors, configuration=1)
    claim.take()
    assert (claim.held, claim.detached) == ([0], [0])
    bus(), journal()
    assert claim.give_back() == []
    assert bus() == ["SET_CONFIGURATION 0", "SET_CONFIGURATION 1"]
    assert fake.fake_drivers() == BOTH


def test_a_first_claim_that_fails_is_undone_once() -> None:
    fake.fake_occupy(INTERFACE_1)
    claim = Claim(1, 2)
    with pytest.raises(ClaimError, match="interface 1 cannot be claimed"):
        claim.take()
    assert not claim.complete
    assert attached() == ["detach 0", "detach 1", "attach 0", "attach 1"]


# ---- the worker ----------------------------------------------------------------------------------


class Bench:
    """A worker of the fake device, with a client, and its messages to the extension."""

    def __init__(self, rig: LibusbRig) -> None:
        self.rig = rig
        ours, theirs = socket.socketpair()
        self.extension = BlockingChannel(ours, "extension", CHILDREN)
        self._channel = BlockingChannel(theirs, "worker", CHILDREN)
        self.worker = Worker(self._channel, Holder(rig), rig.pump)
        self.worker._client = rig._pumps_client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.extension.close()
        self._channel.close()

    def events(self) -> list[EventName]:
        """All messages, once the worker has ended."""
        self._channel.close()
        found = []
        while isinstance(item := self.extension.receive(timeout=5.0), Event):
            found.append(item.event)
        return found


class Holder(HeldUsbDevice):
    """The device that the rig has already claimed."""

    def __init__(self, rig: LibusbRig) -> None:
        self._claim = rig.claim
        self.transfers = rig.transfers


def test_a_worker_ends_with_its_claim_and_does_not_report_the_device_ready(rig: LibusbRig) -> None:
    with Bench(rig) as bench:
        fake.fake_occupy(INTERFACE_0)
        rig.client.send(encode(rig.submit(0, setup=bytes.fromhex(SET_CONFIGURATION))))
        with pytest.raises(UsbipdError, match="could not be claimed again"):
            bench.worker.run()
        assert bus() == ["SET_CONFIGURATION 1"], "the device is another program's: no reset"
        assert bench.events() == [EventName.DETACHED]
    assert fake.fake_drivers() == BOTH


def test_a_worker_ends_if_the_device_cannot_be_restored(rig: LibusbRig) -> None:
    """The next client must not get an unclaimed device."""
    assert rig.control(SET_CONFIGURATION_2).status == 0
    with Bench(rig) as bench:
        fake.fake_occupy(INTERFACE_1)
        rig.client.close()
        with pytest.raises(UsbipdError, match="could not be claimed again"):
            bench.worker.run()
        assert bench.events() == [EventName.DETACHED]


def test_a_worker_without_memory_reattaches_the_drivers() -> None:
    rig = LibusbRig(claim=Starved)
    assert isinstance(rig.claim, Starved)
    with Bench(rig) as bench:
        rig.claim.starved = True
        rig.client.send(encode(rig.submit(0, setup=bytes.fromhex(SET_CONFIGURATION))))
        with pytest.raises(UsbipdError, match="could not be claimed again"):
            bench.worker.run()
        assert bench.events() == [EventName.DETACHED]
    assert fake.fake_drivers() == BOTH
    rig.close()


# ---- a configuration that the device refuses -----------------------------------------------------


@pytest.mark.rule("set-configuration")
def test_a_refused_configuration_leaves_none_until_the_client_leaves(rig: LibusbRig) -> None:
    fake.fake_fail_errno(b"set_configuration", ERROR_OTHER, errno.EPIPE)
    assert rig.control(SET_CONFIGURATION_2).status == -LINUX_EPIPE
    assert (rig.claim.configuration, rig.claim.held, rig.claim.complete) == (0, [], True)
    assert rig.exchange(rig.submit(BULK_IN, 64))[0].status == -LINUX_EPIPE
    assert rig.finish()
    bus()
    assert rig.pump.restore() == 0
    assert bus() == ["RESET", "SET_CONFIGURATION 1"]
    assert (rig.claim.configuration, rig.claim.held) == (1, [0, 1])
    rig.attach()
    rig.waiting(rig.submit(BULK_IN, 64))
    assert rig.claim.give_back() == []
    assert fake.fake_drivers() == BOTH
    assert rig.finish()


def test_a_refused_configuration_is_set_again_between_clients(rig: LibusbRig) -> None:
    for setup in (SET_CONFIGURATION_2, None):
        fake.fake_fail_errno(b"set_configuration", ERROR_OTHER, errno.EPIPE)
        result = rig.pump.restore() if setup is None else rig.control(setup).status
        assert result == -LINUX_EPIPE
    assert rig.pump.restore() == 0
    assert (rig.claim.configuration, rig.claim.held) == (1, [0, 1])


def test_a_device_without_configuration_gets_its_drivers_with_the_next_one(rig: LibusbRig) -> None:
    fake.fake_fail_errno(b"set_configuration", ERROR_OTHER, errno.EPIPE)
    rig.control(SET_CONFIGURATION_2)
    assert rig.claim.give_back() == []


def test_linux_keeps_the_configuration_if_it_lacks_memory_for_another(rig: LibusbRig) -> None:
    """usb_set_configuration allocates the new interfaces before it drops the old ones."""
    assert rig.control(STREAMS_ON).status == 0
    fake.fake_fail_errno(b"set_configuration", ERROR_OTHER, errno.ENOMEM)
    assert rig.control(SET_CONFIGURATION_2).status == -LINUX_ENOMEM
    assert (rig.claim.configuration, rig.claim.held) == (1, [0, 1])
    assert rig.exchange(rig.submit(ISO_IN, 4, number_of_packets=0))[0].status == -LINUX_EPIPE
    rig.waiting(rig.submit(BULK_IN, 64))
    assert rig.finish()
