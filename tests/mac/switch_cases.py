"""A session from claim to release, with any switches.  test_switches.py runs it, in a separate process for
each choice of switches.
"""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.mac.mac import Device
from tests.mac.rig import MacRig, mac
from usbipd.protocol.constants import LINUX_ECONNRESET, LINUX_EPIPE

BULK_OUT, BULK_IN, INTERRUPT_IN = 0x01, 0x81, 0x82
CLEAR_HALT = {address: f"02 01 0000 {address:02x}00 0000" for address in (BULK_OUT, BULK_IN, INTERRUPT_IN)}


@pytest.fixture
def device() -> Iterator[Device]:
    device = mac().plug("loopback", drivers={0: "hid"})
    device.until("drivers", [0])
    yield device
    device.unplug()


def test_a_whole_session(device: Device) -> None:
    rig = MacRig(device)
    assert device.captor == os.getpid()
    assert rig.control("80 06 0001 0000 1200").data[0] == 18
    for setup in CLEAR_HALT.values():
        assert rig.control(setup).status == 0
    data = bytes(range(256)) * 5
    assert rig.reply(rig.submit(BULK_OUT, data=data)).actual_length == len(data)
    assert rig.reply(rig.submit(BULK_IN, len(data))).data == data
    urb = rig.submit(INTERRUPT_IN, 8)
    rig.exchange(urb)
    device.until_waiting(INTERRUPT_IN, 1)
    [reply] = rig.wait(1, rig.unlink(urb))
    assert reply.status == -LINUX_ECONNRESET
    device.stall(BULK_IN)
    assert rig.reply(rig.submit(BULK_IN, 64)).status == -LINUX_EPIPE
    assert rig.reply(rig.submit(BULK_IN, 64)).status == -LINUX_EPIPE
    assert rig.control(CLEAR_HALT[BULK_IN]).status == 0
    rig.reply(rig.submit(BULK_OUT, data=b"again"))
    assert rig.reply(rig.submit(BULK_IN, 64)).data == b"again"
    rig.close()
    device.until("drivers", [0])
    assert not device.captured


def test_a_second_session_finds_the_device_unchanged(device: Device) -> None:
    """Each in a separate process: only the exit of a process closes libusb's handles."""
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", f"from tests.mac.switch_cases import session; session({device.number})"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        device.until("drivers", [0])
        device.until("opener", 0)


def session(number: int) -> None:
    rig = MacRig(Device(mac(), number))
    assert rig.control("80 08 0000 0000 0100").data == b"\x01"
    rig.close()
