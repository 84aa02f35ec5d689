"""The simulated devices as a client sees them: through the pump, URB by URB, with halts and NAKs."""

import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.simulated.bot_host import BotHost
from tests.unit.worker.rig import Rig
from tests.urb import RetSubmit, RetUnlink, Submit, encode
from usbipd.protocol.constants import LINUX_ECONNRESET, LINUX_EOVERFLOW, LINUX_EPIPE, Speed
from usbipd.simulated import audio, camera, keyboard, loopback, serial
from usbipd.simulated.catalog import NAMES, create
from usbipd.simulated.device import Handshake, SimulatedDevice
from usbipd.simulated.mass_storage import BULK_IN, BULK_OUT, MassStorage

LOOP_SIZE = 1 << 20  # cython/pump.pxd

Attach = Callable[[SimulatedDevice], Rig]


@pytest.fixture
def attach() -> Iterator[Attach]:
    rigs: list[Rig] = []

    def attach(device: SimulatedDevice) -> Rig:
        anything: Any = device
        rigs.append(Rig(anything))
        return rigs[-1]

    yield attach
    for rig in rigs:
        rig.close()


def finished(replies: list[RetSubmit | RetUnlink]) -> list[RetSubmit]:
    """The same replies, checked to be of URBs that were not unlinked."""
    assert all(isinstance(reply, RetSubmit) for reply in replies)
    return [reply for reply in replies if isinstance(reply, RetSubmit)]


def exchange(rig: Rig, *submits: Submit) -> list[RetSubmit]:
    return finished(rig.exchange(*submits))


def control(rig: Rig, setup: str, data: bytes = b"") -> RetSubmit:
    (reply,) = finished([rig.control(setup, data)])
    return reply


class UrbHost(BotHost):
    """A bulk-only host that sends URBs like a client and unlinks those that stay unanswered."""

    def __init__(self, disk: MassStorage, rig: Rig, urb_size: int = 16384) -> None:
        super().__init__(disk, urb_size)
        self.rig = rig

    def read(self, length: int) -> bytes | Handshake:
        reply = self._transfer(BULK_IN, length, b"")
        return reply if isinstance(reply, Handshake) else reply.data

    def write(self, data: bytes) -> int | Handshake:
        reply = self._transfer(BULK_OUT, 0, data)
        return reply if isinstance(reply, Handshake) else reply.actual_length

    def clear_halt(self, endpoint: int) -> None:
        self.halted.discard(endpoint)
        assert control(self.rig, f"02 01 0000 {endpoint:02x}00 0000").status == 0

    def _transfer(self, endpoint: int, length: int, data: bytes) -> RetSubmit | Handshake:
        submit = self.rig.submit(endpoint, length, data)
        replies = self.rig.exchange(submit)
        if not replies:
            (answer,) = self.rig.exchange(self.rig.unlink(submit))
            assert isinstance(answer, RetUnlink)
            assert answer.status == -LINUX_ECONNRESET
            return Handshake.NAK
        (reply,) = replies
        assert isinstance(reply, RetSubmit)
        if reply.status == -LINUX_EPIPE:
            self.halted.add(endpoint)
            return Handshake.STALL
        assert reply.status == 0
        return reply


@pytest.mark.parametrize("name", NAMES)
def test_every_device_can_be_enumerated(name: str, attach: Attach) -> None:
    device = create(name, {})
    rig = attach(device)
    assert control(rig, "80 06 0001 0000 1200").data == device.device_descriptor
    shown = control(rig, "80 06 0002 0000 ff00").data
    assert shown == device.configurations[0][:7] + b"\x80" + device.configurations[0][8:]
    assert control(rig, "80 06 0003 0000 ff00").data == bytes.fromhex("04 03 09 04")
    for index, text in enumerate(device.strings, 1):
        assert control(rig, f"80 06 {index:02x}03 0904 ff00").data[2:].decode("utf-16-le") == text
    assert control(rig, "00 09 0100 0000 0000").status == 0
    assert control(rig, "80 08 0000 0000 0100").data == b"\x01"


# ---- mass storage ------------------------------------------------------------------------------------------


@pytest.fixture
def host(attach: Attach) -> UrbHost:
    disk = MassStorage({"size": "1M"})
    return UrbHost(disk, attach(disk))


def read_10(address: int, count: int) -> bytes:
    return struct.pack(">BBIBHB", 0x28, 0, address, 0, count, 0)


def write_10(address: int, count: int) -> bytes:
    return b"\x2a" + read_10(address, count)[1:]


@pytest.mark.parametrize("urb_size", [1000, 122880])
def test_the_disk_returns_what_was_written(host: UrbHost, urb_size: int) -> None:
    host.urb_size = urb_size
    data = bytes(i * 13 % 256 for i in range(240 * 1024))
    assert host.command_out(write_10(16, 480), data).status == 0
    result = host.command_in(read_10(16, 480), len(data))
    assert (result.status, result.residue, result.stalled) == (0, 0, 0)
    assert result.data == data


def test_stalled_pipes_work_once_cleared(host: UrbHost) -> None:
    for _ in range(2):
        short = host.command_in(bytes((0x12, 0, 0, 0, 36, 0)), 255)
        assert (short.status, short.residue, len(short.data), short.stalled) == (0, 219, 36, BULK_IN)
        refused = host.command_out(bytes((0xFF,)) + bytes(9), bytes(2048))
        assert (refused.status, refused.residue, refused.stalled) == (1, 2048, BULK_OUT)
        assert host.sense() == (5, 0x20, 0)


def test_reset_recovery(host: UrbHost) -> None:
    assert host.write(b"no CBW") is Handshake.STALL
    assert host.read(13) is Handshake.STALL
    assert control(host.rig, "21 ff 0000 0000 0000").status == 0
    host.clear_halt(BULK_IN)
    host.clear_halt(BULK_OUT)
    assert host.command(bytes(6)).status == 0


def test_a_command_with_all_its_urbs_queued_at_once(host: UrbHost) -> None:
    rig = host.rig
    command = rig.submit(BULK_OUT, data=host.cbw(read_10(0, 2), 1024, is_in=True))
    first, second, status = rig.submit(BULK_IN, 512), rig.submit(BULK_IN, 512), rig.submit(BULK_IN, 13)
    replies = exchange(rig, first, second, status, command)
    assert [r.seqnum for r in replies] == [command.seqnum, first.seqnum, second.seqnum, status.seqnum]
    assert replies[-1].status == 0


def test_a_status_that_does_not_fit_is_babble(host: UrbHost) -> None:
    host.write(host.cbw(bytes(6), 0, is_in=False))
    (reply,) = exchange(host.rig, host.rig.submit(BULK_IN, 12))
    assert reply.status == -LINUX_EOVERFLOW


def test_set_configuration_aborts_a_command(host: UrbHost) -> None:
    host.write(host.cbw(read_10(0, 2), 1024, is_in=True))
    host.read(512)
    assert control(host.rig, "00 09 0100 0000 0000").status == 0
    assert host.command(bytes(6)).status == 0


def test_the_next_client_finds_the_data_but_no_old_command(host: UrbHost) -> None:
    host.command_out(write_10(0, 1), b"\x5a" * 512)
    host.write(host.cbw(read_10(0, 2), 1024, is_in=True))
    assert host.rig.finish()
    assert host.rig.pump.restore() == 0
    host.rig.attach()
    assert host.command_in(read_10(0, 1), 512).data == b"\x5a" * 512


# ---- the others --------------------------------------------------------------------------------------------


def test_the_keyboard_completes_waiting_urbs(attach: Attach) -> None:
    rig = attach(create("keyboard", {}))
    urbs = [rig.submit(keyboard.INTERRUPT_IN, 8) for _ in range(2)]
    rig.send(b"".join(map(encode, urbs)))
    reports: list[bytes] = []
    while len(reports) < 2:
        reports += [reply.data for reply in finished(rig.awaited())]
    assert reports == [bytes((0, 0, 0x18, 0, 0, 0, 0, 0)), bytes(8)]  # u: HID Usage Tables, page 07h


def test_the_keyboard_returns_its_report_descriptor(attach: Attach) -> None:
    rig = attach(create("keyboard", {}))
    assert control(rig, "81 06 0022 0000 ff00").data == keyboard.REPORT_DESCRIPTOR
    assert control(rig, "21 0a 0000 0000 0000").status == 0
    assert control(rig, "21 09 0002 0000 0100", b"\x01").status == 0


def test_without_a_data_stage_the_direction_of_the_header_is_ignored(attach: Attach) -> None:
    rig = attach(create("keyboard", {}))
    set_idle = bytes.fromhex("21 0a 0005 0000 0000")
    assert [reply.status for reply in exchange(rig, rig.submit(0x80, setup=set_idle))] == [0]
    assert control(rig, "a1 02 0000 0000 0100").data == b"\x05"


def test_the_serial_port_answers_a_waiting_read(attach: Attach) -> None:
    rig = attach(create("serial", {}))
    read, notification = rig.submit(serial.BULK_IN, 512), rig.submit(serial.NOTIFICATION_IN, 16)
    assert exchange(rig, read, notification) == []
    write = rig.submit(serial.BULK_OUT, data=b"echo\r\n")
    replies = {reply.seqnum: reply for reply in exchange(rig, write)}
    assert set(replies) == {read.seqnum, write.seqnum}
    assert replies[read.seqnum].data == b"echo\r\n"
    dtr = rig.submit(0x00, setup=bytes.fromhex("21 22 0100 0000 0000"))
    assert {reply.seqnum for reply in exchange(rig, dtr)} == {dtr.seqnum, notification.seqnum}


def test_the_serial_port_takes_a_large_write_as_it_is_read_back(attach: Attach) -> None:
    rig = attach(create("serial", {}))
    data = bytes(i % 256 for i in range(3 * serial.ECHO_SIZE))
    write = rig.submit(serial.BULK_OUT, data=data)
    assert exchange(rig, write) == []
    got = b""
    while len(got) < len(data):
        for reply in exchange(rig, rig.submit(serial.BULK_IN, 16384)):
            assert reply.status == 0
            got += reply.data
    assert got == data


def test_the_loopback_keeps_messages_apart(attach: Attach) -> None:
    rig = attach(create("loopback", {}))
    messages = [b"a" * 512, b"b", b"c" * 1025]
    exchange(rig, *(rig.submit(loopback.LOOPBACK_OUT, data=message) for message in messages))
    replies = exchange(rig, *(rig.submit(loopback.LOOPBACK_IN, 4096) for _ in messages))
    assert [reply.data for reply in replies] == messages
    (pattern,) = exchange(rig, rig.submit(loopback.SOURCE_IN, 600))
    assert pattern.data == bytes(i % 63 for i in range(512)) + bytes(range(63)) + bytes(range(25))
    (sunk,) = exchange(rig, rig.submit(loopback.SINK_OUT, data=bytes(100_000)))
    assert (sunk.status, sunk.actual_length) == (0, 100_000)


def test_an_unlinked_urb_ends_its_message(attach: Attach) -> None:
    rig = attach(create("loopback", {}))
    too_large = rig.submit(loopback.LOOPBACK_OUT, data=b"A" * LOOP_SIZE + b"B" * 100)
    assert exchange(rig, too_large) == []
    waiting = rig.submit(loopback.LOOPBACK_OUT, data=b"never begun")
    assert exchange(rig, waiting) == []
    behind = rig.submit(loopback.LOOPBACK_OUT, data=b"the next message")
    assert exchange(rig, behind) == []
    (taken, _over) = rig.exchange(rig.unlink(too_large))
    assert isinstance(taken, RetSubmit)
    assert (taken.status, taken.actual_length) == (-LINUX_ECONNRESET, LOOP_SIZE)
    (over,) = rig.exchange(rig.unlink(waiting))
    assert (type(over), over.status) == (RetUnlink, -LINUX_ECONNRESET)
    rig.send(b"".join(encode(rig.submit(loopback.LOOPBACK_IN, 2 * LOOP_SIZE)) for _ in range(2)))
    replies: list[RetSubmit] = []
    while len(replies) < 3:
        replies += finished(rig.awaited())
    received = [reply.data for reply in replies if reply.seqnum != behind.seqnum]
    assert received == [b"A" * LOOP_SIZE, b"the next message"]


def test_set_interface_empties_the_loopback(attach: Attach) -> None:
    rig = attach(create("loopback", {}))
    exchange(rig, rig.submit(loopback.LOOPBACK_OUT, data=b"of the last program"))
    assert control(rig, "01 0b 0000 0100 0000").status == 0
    read = rig.submit(loopback.LOOPBACK_IN, 512)
    assert exchange(rig, read) == []
    replies = {reply.seqnum: reply for reply in exchange(rig, rig.submit(loopback.LOOPBACK_OUT, data=b"new"))}
    assert replies[read.seqnum].data == b"new"


def test_the_microphone_streams_in_its_second_setting(attach: Attach) -> None:
    rig = attach(create("audio", {}))
    assert control(rig, "01 0b 0100 0100 0000").status == 0
    packets = [(i * audio.PACKET_SIZE, audio.PACKET_SIZE) for i in range(4)]
    rig.send(encode(rig.submit(audio.ISOCHRONOUS_IN, 4 * audio.PACKET_SIZE, packets=packets)))
    (reply,) = finished(rig.awaited())
    assert (reply.status, reply.error_count) == (0, 0)
    assert [packet.actual_length for packet in reply.iso] == [audio.PACKET_SIZE] * 4
    tone = audio.Audio({})
    assert reply.data == b"".join(tone.iso_read(audio.ISOCHRONOUS_IN, audio.PACKET_SIZE) for _ in packets)


def test_the_camera_streams_short_and_empty_packets(attach: Attach) -> None:
    rig = attach(create("camera", {}))
    assert control(rig, "01 0b 0100 0100 0000").status == 0
    size = camera.PACKET_SIZE
    packets = [(i * size, size) for i in range(camera.FRAME_PACKETS)]
    rig.send(encode(rig.submit(camera.ISOCHRONOUS_IN, len(packets) * size, packets=packets)))
    (reply,) = finished(rig.awaited())
    assert (reply.status, reply.error_count) == (0, 0)
    lengths = [packet.actual_length for packet in reply.iso]
    assert (lengths[0], lengths[-1]) == (size, 0)
    parts, at = [], 0
    for length in lengths:  # packets are contiguous: gaps are left out
        parts.append(reply.data[at : at + length][2:])
        at += length
    assert at == len(reply.data)
    assert b"".join(parts) == camera.frame(0)


@pytest.mark.parametrize("name", NAMES)
def test_a_high_speed_device_has_a_qualifier(attach: Attach, name: str) -> None:
    device = create(name, {})
    reply = control(attach(device), "80 06 0006 0000 0a00")
    if device.speed is Speed.HIGH:  # USB 2.0, 9.6.2; no configuration at the other speed
        assert (reply.status, reply.data) == (0, b"\x0a\x06" + device.device_descriptor[2:8] + b"\0\0")
    else:
        assert reply.status == -LINUX_EPIPE
