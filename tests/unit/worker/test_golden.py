"""The Cython codec against the golden vectors: the input reaches the device, and the reply is right."""

import pytest

from tests import golden
from tests.golden.messages import REPLIES
from tests.unit.worker.rig import BULK, INTERRUPT, ISOCHRONOUS, Rig, ScriptedDevice
from usbipd.protocol.constants import URB_HEADER_SIZE
from usbipd.simulated.descriptors import configuration_descriptor, endpoint_descriptor, interface_descriptor
from usbipd.simulated.device import Handshake

GOLDEN_DEVID = 0x21222324
START_FRAME = slice(28, 32)


class GoldenDevice(ScriptedDevice):
    """A device with the endpoints of the vectors."""

    configurations = (
        configuration_descriptor(
            interface_descriptor(0, 5, 0xFF),
            endpoint_descriptor(10, ISOCHRONOUS, 512, 1),
            endpoint_descriptor(0x80 | 11, ISOCHRONOUS, 512, 1),
            endpoint_descriptor(0x80 | 12, INTERRUPT, 8, 1),
            endpoint_descriptor(13, BULK, 512, 0),
            endpoint_descriptor(0x80 | 14, BULK, 512, 0),
        ),
    )
    behaviours = {}  # noqa: RUF012


def prepare(device: GoldenDevice, reply: str) -> None:
    """Makes the device act as the reply requires."""
    match reply:
        case "ret_submit_control_in":
            device.control_data = b"abcde"
        case "ret_submit_bulk_in_short":
            device.to_read[0x80 | 14] = [b"abcdef"]
        case "ret_submit_interrupt_in_stale":
            device.to_read[0x80 | 12] = [b"ab"]
        case "ret_submit_iso_in":
            device.iso_packets = [b"abcdefg", RuntimeError("no packet"), b"\x81\x82\x83\x84"]
        case "ret_submit_stall":
            device.control_data = Handshake.STALL


SUBMITS = sorted(name for name in REPLIES if name.startswith("ret_submit"))


@pytest.fixture(params=["whole", "byte by byte"])
def pieces(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.rule("any-chunking")
@pytest.mark.parametrize("name", SUBMITS)
def test_reply_is_golden(name: str, pieces: str) -> None:
    command = golden.load(REPLIES[name][0])
    if name == "ret_submit_control_in":
        # No table has this descriptor; a class request of the same form goes to the model.
        command = command[:40] + b"\xa1" + command[41:]
    device = GoldenDevice()
    prepare(device, name)
    rig = Rig(device, devid=GOLDEN_DEVID)
    if pieces == "whole":
        rig.send(command)
    else:
        for byte in command:
            rig.send(bytes([byte]))
    received = b""
    expected = golden.load(name)
    while len(received) < len(expected):
        rig.turn()
        try:
            received += rig.client.recv(4096)
        except BlockingIOError:
            continue
    assert len(received) >= URB_HEADER_SIZE
    if "iso" in name:  # the device chooses the time
        received = received[: START_FRAME.start] + expected[START_FRAME] + received[START_FRAME.stop :]
    assert received == expected
    rig.close()


def test_out_data_reaches_the_device_unchanged() -> None:
    rig = Rig(GoldenDevice(), devid=GOLDEN_DEVID)
    rig.send(golden.load("cmd_submit_bulk_out"))
    assert rig.device.written == [(13, b"abcdef")]
    rig.send(golden.load("cmd_submit_control_out"))
    assert rig.device.requests == [(bytes.fromhex("2120525154530700"), b"abcdefg")]
    rig.close()


def test_isochronous_out_data_reaches_the_device_unchanged() -> None:
    rig = Rig(GoldenDevice(), devid=GOLDEN_DEVID)
    rig.send(golden.load("cmd_submit_iso_out"))
    while not rig.device.iso_written:
        rig.turn()
    assert rig.device.iso_written == [b"abc", b"defg"]
    rig.close()


@pytest.mark.rule("unlink-pending")
def test_unlink_of_a_pending_urb_is_golden() -> None:
    rig = Rig(GoldenDevice(), devid=GOLDEN_DEVID)
    rig.send(golden.load("cmd_submit_bulk_in") + golden.load("cmd_unlink"))
    assert rig.client.recv(4096) == golden.load("ret_unlink_cancelled")
    rig.close()


@pytest.mark.rule("unlink-unknown")
def test_unlink_of_nothing_is_golden() -> None:
    rig = Rig(GoldenDevice(), devid=GOLDEN_DEVID)
    rig.send(golden.load("cmd_unlink"))
    assert rig.client.recv(4096) == golden.load("ret_unlink_too_late")
    rig.close()
