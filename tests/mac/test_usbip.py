"""Devices of a software Mac that a USB/IP server simulates."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.daemon import Daemon
from tests.mac.kernel import errors
from tests.mac.kernel.wire import Call, u32, u64
from tests.mac.mac import Device, OwnMac
from tests.mac.process import Process
from usbipd.usb.descriptors import parse_configuration

SIMULATE = "mass-storage,keyboard,serial,loopback,audio"
INQUIRY = bytes.fromhex("55534243 01000000 24000000 80 00 06 12 00 00 00 24 00") + bytes(10)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    running = Daemon(tmp_path_factory.mktemp("server"), SIMULATE)
    try:
        yield running
        running.stop()
    finally:
        running.kill()


@pytest.fixture
def process(kernel: OwnMac) -> Iterator[Process]:
    process = Process(kernel)
    yield process
    process.die()


def plug(kernel: OwnMac, server: Daemon, name: str) -> Device:
    return kernel.plug("usbip", host=server.host, port_number=server.port, busid=server.busid(name))


def test_a_disk_answers(kernel: OwnMac, server: Daemon, process: Process) -> None:
    disk = plug(kernel, server, "mass-storage")
    interface = process.open_interface(disk)
    pipes = _pipes(process, disk, interface)
    process.write(interface, pipes[False], 1, INQUIRY)
    assert process.completion().arg0 == len(INQUIRY)
    process.read(interface, pipes[True], 2, 36)
    assert len(process.completion().data) == 36
    process.read(interface, pipes[True], 3, 13)
    assert process.completion().data[:8] == b"USBS" + bytes.fromhex("01000000")


def _pipes(process: Process, device: Device, interface: int) -> dict[bool, int]:
    """A pipe number for each direction."""
    count = process.call(Call.INTERFACE_STATE, u64(interface)).u32()
    found = {}
    for pipe in range(1, count + 1):
        answer = process.call(Call.PIPE_PROPERTIES, u64(interface), u32(pipe))
        answer.u32()
        found[answer.u32() == 1] = pipe
    return found


def test_aborting_a_read_of_a_keyboard(kernel: OwnMac, server: Daemon, process: Process) -> None:
    keyboard = plug(kernel, server, "keyboard")
    interface = process.open_interface(keyboard)
    codes = set()
    for number in range(1, 9):
        process.read(interface, 1, number, 8)
    process.call(Call.ABORT_PIPE, u64(interface), u32(1))
    for _ in range(8):
        codes.add(process.completion().code)
    assert codes <= {errors.ABORTED, errors.SUCCESS}
    assert keyboard.waiting == {}


def test_sound_arrives_in_frames(kernel: OwnMac, server: Daemon, process: Process) -> None:
    audio = plug(kernel, server, "audio")
    [raw] = [parse_configuration(each) for each in kernel.call("configurations", audio.number)]
    endpoint = next(
        each for each in raw.endpoints if each.bmAttributes & 3 == 1 and each.bEndpointAddress & 0x80
    )
    interface = process.open_interface(audio, endpoint.bInterfaceNumber)
    process.call(Call.SET_ALTERNATE, u64(interface), u32(endpoint.bAlternateSetting))
    frame = process.call(Call.FRAME_NUMBER, u64(interface)).u64()
    lengths = [endpoint.wMaxPacketSize & 0x7FF] * 8
    process.call(
        Call.READ_ISOC, u64(interface), u32(1), u64(1), u64(frame + 10), u32(len(lengths)), u32(*lengths)
    )
    completion = process.completion()
    assert completion.code == errors.SUCCESS
    assert all(actual > 0 for _, actual in completion.frames)


def test_a_dying_server_ends_the_transfers(kernel: OwnMac, process: Process, tmp_path: Path) -> None:
    server = Daemon(tmp_path, "keyboard")
    keyboard = plug(kernel, server, "keyboard")
    interface = process.open_interface(keyboard)
    process.read(interface, 1, 1, 8)
    while (completion := process.completion()).code == errors.SUCCESS:
        process.read(interface, 1, completion.number + 1, 8)
        server.kill()
    assert completion.code == errors.NOT_RESPONDING
