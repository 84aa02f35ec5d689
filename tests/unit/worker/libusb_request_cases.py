"""What the device is sent for the requests that the host's stack has to know of, and what the client is told,
on fake_libusb.c.  test_libusb.py runs it, in a separate process.

A device receives what a native host would send, and no more: some phones never answer
SET_INTERFACE, or nothing after it.
"""

import errno
from collections.abc import Iterator

import pytest

from tests.unit.worker.libusb_rig import BULK_IN, ISO_IN, VENDOR_IN, LibusbRig, bus, fake, journal
from usbipd.protocol.constants import (
    LINUX_EILSEQ,
    LINUX_EINVAL,
    LINUX_EMSGSIZE,
    LINUX_ENOMEM,
    LINUX_EOVERFLOW,
    LINUX_EPIPE,
    LINUX_EPROTO,
    LINUX_ETIMEDOUT,
)

ERROR_IO, ERROR_INVALID_PARAM, ERROR_PIPE, ERROR_OTHER = -1, -2, -9, -99  # enum libusb_error
LINUX_ENOSPC = 28  # include/uapi/asm-generic/errno-base.h

SET_CONFIGURATION, SET_CONFIGURATION_2 = "00 09 0100 0000 0000", "00 09 0200 0000 0000"
STREAMS_ON, STREAMS_OFF = "01 0b 0100 0100 0000", "01 0b 0000 0100 0000"
PLAIN_AGAIN = "01 0b 0000 0000 0000"
PORT_RESET = "23 03 0400 0100 0000"
CLEAR_HALT = "02 01 0000 8100 0000"
RESET = ["RESET", "SET_CONFIGURATION 1"]
"""As Linux does it: usb_reset_and_verify_device in drivers/usb/core/hub.c."""


@pytest.fixture(autouse=True)
def begin() -> Iterator[None]:
    fake.fake_begin()
    yield
    assert fake.fake_pending() == 0


@pytest.fixture
def rig() -> Iterator[LibusbRig]:
    rig = LibusbRig()
    yield rig
    rig.close()


def works(rig: LibusbRig, endpoint: int = BULK_IN) -> bool:
    packets = [(0, 4)] if endpoint == ISO_IN else []
    submit = rig.submit(endpoint, 4, packets=packets)
    if rig.exchange(submit):
        return False
    [reply] = rig.ended(endpoint, data=b"data")
    return (reply.seqnum, reply.status, reply.data) == (submit.seqnum, 0, b"data")


# ---- requests to the device ----------------------------------------------------------------------


def test_an_attach_sends_what_a_native_host_sends(rig: LibusbRig) -> None:
    assert bus() == [], "to be claimed costs the device nothing"
    assert rig.control(SET_CONFIGURATION).status == 0
    assert bus() == ["SET_CONFIGURATION 1"]
    assert works(rig)


def test_the_drivers_are_reattached_after_the_active_configuration_is_set_again(rig: LibusbRig) -> None:
    rig.control(SET_CONFIGURATION)
    journal()
    assert rig.claim.give_back() == []
    assert journal() == ["release 1", "release 0", "attach 0", "attach 1"]


def test_between_two_clients_the_device_is_only_reset(rig: LibusbRig) -> None:
    for _ in range(2):
        assert rig.control(SET_CONFIGURATION).status == 0
        assert rig.finish()
        bus()
        assert rig.pump.restore() == 0
        assert bus() == RESET
        rig.attach()


def test_between_two_clients_one_request_restores_a_setting(rig: LibusbRig) -> None:
    assert rig.control(STREAMS_ON).status == 0
    assert rig.finish()
    bus()
    assert rig.pump.restore() == 0
    assert bus() == ["SET_INTERFACE 1 0", *RESET]
    rig.attach()
    assert works(rig)
    assert rig.exchange(rig.submit(ISO_IN, 4, number_of_packets=0))[0].status == -LINUX_EPIPE
    assert rig.control(STREAMS_ON).status == 0
    assert works(rig, ISO_IN)


def test_between_two_clients_one_request_restores_the_configuration(rig: LibusbRig) -> None:
    assert rig.control(SET_CONFIGURATION_2).status == 0
    assert rig.finish()
    bus()
    assert rig.pump.restore() == 0
    assert bus() == ["RESET", "SET_CONFIGURATION 2", "SET_CONFIGURATION 1"]
    rig.attach()
    assert works(rig)


def test_a_reset_that_fails_leaves_no_setting(rig: LibusbRig) -> None:
    assert rig.control(STREAMS_ON).status == 0
    assert rig.finish()
    fake.fake_fail_errno(b"reset", ERROR_OTHER, errno.EPROTO)
    assert rig.pump.restore() == -LINUX_EPROTO
    bus()
    assert rig.pump.restore() == 0
    assert bus() == RESET
    rig.attach()


@pytest.mark.rule("port-reset")
def test_a_reset_for_the_client_keeps_its_settings(rig: LibusbRig) -> None:
    assert rig.control(PORT_RESET).status == 0
    assert bus() == RESET
    assert rig.control(STREAMS_ON).status == 0
    bus()
    assert rig.control(PORT_RESET).status == 0
    assert bus() == ["SET_INTERFACE 1 0", *RESET, "SET_INTERFACE 1 1"]
    assert works(rig)
    assert works(rig, ISO_IN)


@pytest.mark.rule("set-configuration")
def test_a_configuration_that_cannot_be_set_leaves_no_setting(rig: LibusbRig) -> None:
    assert rig.control(STREAMS_ON).status == 0
    fake.fake_fail_errno(b"set_configuration", ERROR_OTHER, errno.ETIMEDOUT)
    assert rig.control(SET_CONFIGURATION).status == -LINUX_ETIMEDOUT
    assert rig.exchange(rig.submit(ISO_IN, 4, number_of_packets=0))[0].status == -LINUX_EPIPE


# ---- replies to the client -----------------------------------------------------------------------


@pytest.mark.rule("set-interface")
@pytest.mark.parametrize(
    ("host", "status"),
    [
        (errno.EPIPE, LINUX_EPIPE),
        (errno.ETIMEDOUT, LINUX_ETIMEDOUT),
        (errno.EPROTO, LINUX_EPROTO),
        (errno.EILSEQ, LINUX_EILSEQ),
        (errno.EOVERFLOW, LINUX_EOVERFLOW),
        (errno.ENOSPC, LINUX_ENOSPC),
        (errno.ENOMEM, LINUX_ENOMEM),
        (errno.EINVAL, LINUX_EPIPE),
    ],
)
@pytest.mark.parametrize(
    ("function", "setup"),
    [
        (b"set_interface", STREAMS_ON),
        (b"set_interface", PLAIN_AGAIN),
        (b"set_configuration", SET_CONFIGURATION),
        (b"clear_halt", CLEAR_HALT),
        (b"reset", PORT_RESET),
    ],
)
def test_an_error_keeps_its_errno(
    rig: LibusbRig, function: bytes, setup: str, host: int, status: int
) -> None:
    fake.fake_fail_errno(function, ERROR_OTHER, host)
    assert rig.control(setup).status == -status
    assert works(rig)


def test_a_device_that_does_not_answer_set_interface_keeps_its_endpoints(rig: LibusbRig) -> None:
    """Linux switches them off before it sends the request (usb_set_interface in message.c)."""
    for setup in (PLAIN_AGAIN, STREAMS_ON):
        fake.fake_fail_errno(b"set_interface", ERROR_OTHER, errno.ETIMEDOUT)
        bus()
        assert rig.control(setup).status == -LINUX_ETIMEDOUT
        assert len(bus()) == 1, "the endpoints come back without a request"
        assert works(rig)
    assert rig.control(STREAMS_ON).status == 0
    fake.fake_fail_errno(b"set_interface", ERROR_OTHER, errno.ETIMEDOUT)
    bus()
    assert rig.control(STREAMS_OFF).status == -LINUX_ETIMEDOUT
    assert bus() == ["SET_INTERFACE 1 0"]
    assert rig.control(STREAMS_ON).status == 0
    assert works(rig, ISO_IN)


@pytest.mark.parametrize(
    "setup",
    [
        "01 0b 0000 0900 0000",  # interface 9
        "01 0b 0000 2800 0000",  # interface 40
        "01 0b 0000 0001 0000",  # interface 256
        "01 0b 0700 0100 0000",  # alternate setting 7
        "02 01 0000 8f00 0000",  # the halt of endpoint 0x8f
        "02 01 0000 8500 0000",  # of one that the current setting does not have
        "00 09 0700 0000 0000",  # configuration 7
    ],
)
def test_missing_targets_are_refused_as_by_a_device(rig: LibusbRig, setup: str) -> None:
    assert rig.control(setup).status == -LINUX_EPIPE
    assert bus() == []
    assert works(rig)


@pytest.mark.parametrize(
    "setup", ["00 09 0700 0000 0000", "01 0b 0700 0100 0000"], ids=["configuration", "setting"]
)
def test_missing_targets_end_no_urb_and_change_no_setting(rig: LibusbRig, setup: str) -> None:
    assert rig.control(STREAMS_ON).status == 0
    stream, bulk = rig.submit(ISO_IN, 4, packets=[(0, 4)]), rig.submit(BULK_IN, 4)
    rig.waiting(stream, bulk)
    bus(), journal()
    assert rig.control(setup).status == -LINUX_EPIPE
    assert (bus(), journal()) == ([], [])
    for submit, endpoint in ((stream, ISO_IN), (bulk, BULK_IN)):
        [reply] = rig.ended(endpoint, data=b"data")
        assert (reply.seqnum, reply.status, reply.data) == (submit.seqnum, 0, b"data")


def test_an_isochronous_packet_that_usbfs_finds_too_long(rig: LibusbRig) -> None:
    assert rig.control(STREAMS_ON).status == 0
    for host, status in ((errno.EMSGSIZE, LINUX_EMSGSIZE), (errno.EINVAL, LINUX_EINVAL)):
        fake.fake_fail_errno(b"submit", ERROR_INVALID_PARAM, host)
        assert rig.exchange(rig.submit(ISO_IN, 4, packets=[(0, 4)]))[0].status == -status


def test_an_urb_that_the_host_refuses(rig: LibusbRig) -> None:
    for host, status in ((errno.ENOENT, LINUX_EPIPE), (errno.ENOMEM, LINUX_ENOMEM), (0, LINUX_EPROTO)):
        fake.fake_fail_errno(b"submit", ERROR_IO, host)
        assert rig.control(VENDOR_IN.hex()).status == -status
    fake.fake_fail(b"submit", ERROR_PIPE)
    assert rig.exchange(rig.submit(BULK_IN, 4))[0].status == -LINUX_EPIPE


@pytest.mark.parametrize(
    "setup", ["01 0b 0000 0001 0000", "01 0b 0001 0000 0000"], ids=["interface", "setting"]
)
def test_numbers_above_a_byte_name_no_interface(rig: LibusbRig, setup: str) -> None:
    """A device would stall: the upper byte of 0x0100 is not dropped, and the host's stack is not asked."""
    bus(), journal()
    assert rig.control(setup).status == -LINUX_EPIPE
    assert (bus(), journal()) == ([], [])


@pytest.mark.rule("remote-wakeup")
@pytest.mark.parametrize("kind", [2, 7], ids=["configuration", "other speed configuration"])
def test_remote_wakeup_is_shown_in_no_configuration(rig: LibusbRig, kind: int) -> None:
    submit = rig.submit(0x80, 9, setup=bytes((0x80, 6, 0, kind, 0, 0, 9, 0)))
    rig.waiting(submit)
    [reply] = rig.ended(0, data=bytes((9, kind, 9, 0, 0, 1, 0, 0xE0, 50)))
    assert reply.data == bytes((9, kind, 9, 0, 0, 1, 0, 0xC0, 50))
