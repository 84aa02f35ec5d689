"""The bulk-only transport: the thirteen cases, bad CBWs, Reset Recovery."""

import struct

import pytest

from tests.unit.simulated.bot_host import BotHost
from usbipd.simulated.device import Handshake
from usbipd.simulated.mass_storage import BULK_IN, BULK_OUT, MassStorage

INQUIRY_36 = bytes((0x12, 0, 0, 0, 36, 0))
TEST_UNIT_READY = bytes(6)
UNKNOWN = bytes((0xFF,) * 6)
PASSED, FAILED, PHASE_ERROR = 0, 1, 2
NOTHING = memoryview(b"")


def read_10(address: int, count: int) -> bytes:
    return struct.pack(">BBIBHB", 0x28, 0, address, 0, count, 0)


def write_10(address: int, count: int, flags: int = 0) -> bytes:
    return struct.pack(">BBIBHB", 0x2A, flags, address, 0, count, 0)


@pytest.fixture
def disk() -> MassStorage:
    return MassStorage({"size": "1M"})


@pytest.fixture
def host(disk: MassStorage) -> BotHost:
    return BotHost(disk)


def pattern(length: int, salt: int = 0) -> bytes:
    return bytes((i * 7 + salt) % 251 for i in range(length))


# ---- the thirteen cases, BOT 6.7 ---------------------------------------------------------------------------


def test_case_1_hn_dn(host: BotHost) -> None:
    result = host.command(TEST_UNIT_READY)
    assert (result.status, result.residue) == (PASSED, 0)
    result = host.command(UNKNOWN)
    assert (result.status, result.residue) == (FAILED, 0)


def test_case_2_hn_di(host: BotHost) -> None:
    assert host.command(INQUIRY_36).status == PHASE_ERROR


def test_case_3_hn_do(host: BotHost) -> None:
    assert host.command(write_10(0, 1)).status == PHASE_ERROR


def test_case_4_hi_dn(host: BotHost) -> None:
    result = host.command_in(TEST_UNIT_READY, 64)
    assert (result.status, result.residue, result.data, result.stalled) == (PASSED, 64, b"", BULK_IN)
    result = host.command_in(UNKNOWN, 64)
    assert (result.status, result.residue, result.data, result.stalled) == (FAILED, 64, b"", BULK_IN)


def test_case_5_hi_more_than_di(host: BotHost) -> None:
    result = host.command_in(INQUIRY_36, 255)
    assert (result.status, result.residue, len(result.data), result.stalled) == (PASSED, 219, 36, BULK_IN)


def test_case_5_with_data_that_fills_whole_urbs(host: BotHost) -> None:
    host.urb_size = 512
    result = host.command_in(read_10(0, 2), 2048)
    assert (result.status, result.residue, len(result.data), result.stalled) == (PASSED, 1024, 1024, BULK_IN)


def test_case_6_hi_di(host: BotHost) -> None:
    result = host.command_in(INQUIRY_36, 36)
    assert (result.status, result.residue, len(result.data), result.stalled) == (PASSED, 0, 36, 0)


def test_case_7_hi_less_than_di(host: BotHost) -> None:
    result = host.command_in(read_10(0, 2), 512)
    assert (result.status, result.residue, len(result.data), result.stalled) == (PHASE_ERROR, 0, 512, 0)


def test_case_8_hi_do(host: BotHost) -> None:
    result = host.command_in(write_10(0, 1), 512)
    assert (result.status, result.residue, result.data, result.stalled) == (PHASE_ERROR, 512, b"", BULK_IN)


def test_case_9_ho_dn(host: BotHost) -> None:
    result = host.command_out(UNKNOWN, bytes(512))
    assert (result.status, result.residue, result.stalled) == (FAILED, 512, BULK_OUT)
    result = host.command_out(TEST_UNIT_READY, bytes(512))
    assert (result.status, result.residue, result.stalled) == (PASSED, 512, BULK_OUT)


def test_case_10_ho_di(host: BotHost) -> None:
    result = host.command_out(read_10(0, 1), bytes(512))
    assert (result.status, result.residue, result.stalled) == (PHASE_ERROR, 512, BULK_OUT)


@pytest.mark.parametrize("urb_size", [512, 16384])
def test_case_11_ho_more_than_do(host: BotHost, urb_size: int) -> None:
    host.urb_size = urb_size
    data = pattern(1536)
    result = host.command_out(write_10(4, 2), data)
    assert (result.status, result.residue, result.stalled) == (PASSED, 512, BULK_OUT)
    assert host.command_in(read_10(4, 3), 1536).data == data[:1024] + bytes(512)


def test_case_12_ho_do(host: BotHost) -> None:
    data = pattern(1024)
    result = host.command_out(write_10(4, 2), data)
    assert (result.status, result.residue, result.stalled) == (PASSED, 0, 0)
    assert host.command_in(read_10(4, 2), 1024).data == data


def test_case_13_ho_less_than_do(host: BotHost) -> None:
    result = host.command_out(write_10(0, 2), pattern(512))
    assert (result.status, result.residue, result.stalled) == (PHASE_ERROR, 512, BULK_OUT)
    assert host.command_in(read_10(0, 1), 512).data == bytes(512)


def test_after_each_case_the_next_command_works(host: BotHost) -> None:
    for _ in range(2):
        host.command(INQUIRY_36)
        host.command_in(write_10(0, 1), 512)
        host.command_out(read_10(0, 1), bytes(512))
        assert host.command_in(INQUIRY_36, 36).status == PASSED


# ---- data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("urb_size", [512, 1000, 16384, 1 << 20])
def test_the_whole_disk_in_urbs_of_any_size(host: BotHost, urb_size: int) -> None:
    host.urb_size = urb_size
    data = pattern(1 << 20)
    assert host.command_out(write_10(0, 2048), data).status == PASSED
    result = host.command_in(read_10(0, 2048), 1 << 20)
    assert (result.status, result.residue) == (PASSED, 0)
    assert result.data == data


def test_a_transfer_of_no_blocks_is_not_an_error(host: BotHost) -> None:
    assert host.command(read_10(0, 0)).status == PASSED
    assert host.command(write_10(0, 0)).status == PASSED


def test_the_status_waits_until_the_data_is_sent(host: BotHost) -> None:
    host.write(host.cbw(read_10(0, 1), 512, is_in=True))
    assert host.write(bytes(31)) is Handshake.NAK
    data = host.read(512)
    assert not isinstance(data, Handshake)
    assert len(data) == 512
    assert host.write(bytes(31)) is Handshake.NAK
    assert host.csw() == (PASSED, 0)


def test_an_idle_disk_returns_nak(host: BotHost) -> None:
    assert host.read(13) is Handshake.NAK


def test_the_status_waits_while_data_is_due(host: BotHost) -> None:
    host.write(host.cbw(write_10(0, 1), 512, is_in=False))
    assert host.read(13) is Handshake.NAK
    host.write(bytes(512))
    assert host.csw() == (PASSED, 0)


# ---- bad CBWs and Reset Recovery, BOT 5.3.4, 6.2 and 6.6 ---------------------------------------------------

GOOD = struct.pack("<4sIIBBB16s", b"USBC", 1, 36, 0x80, 0, 6, INQUIRY_36)


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        GOOD[:30],
        GOOD + b"\0",
        b"USBX" + GOOD[4:],
        GOOD[:12] + b"\x81" + GOOD[13:],  # reserved flag
        GOOD[:13] + b"\x01" + GOOD[14:],  # bCBWLUN above GET_MAX_LUN
        GOOD[:13] + b"\x10" + GOOD[14:],  # reserved bits of bCBWLUN
        GOOD[:14] + b"\x00" + GOOD[15:],  # no CDB
        GOOD[:14] + b"\x11" + GOOD[15:],  # a CDB of 17 bytes
    ],
)
def test_a_bad_cbw_needs_reset_recovery(host: BotHost, bad: bytes) -> None:
    assert host.write(bad) is Handshake.STALL
    assert host.read(13) is Handshake.STALL
    host.clear_halt(BULK_IN)
    host.clear_halt(BULK_OUT)
    assert host.write(GOOD) is Handshake.STALL  # clearing halts is not enough
    assert host.read(13) is Handshake.STALL
    assert host.disk.control_out(bytes.fromhex("21 ff 0000 0000 0000"), NOTHING) is None
    host.clear_halt(BULK_IN)
    host.clear_halt(BULK_OUT)
    assert host.command_in(INQUIRY_36, 36).status == PASSED


def test_bulk_only_reset_aborts_a_command(host: BotHost) -> None:
    host.write(host.cbw(read_10(0, 2), 1024, is_in=True))
    host.read(512)
    assert host.disk.control_out(bytes.fromhex("21 ff 0000 0000 0000"), NOTHING) is None
    assert host.read(512) is Handshake.NAK
    assert host.command(TEST_UNIT_READY).status == PASSED


def test_reset_keeps_the_medium(host: BotHost) -> None:
    host.command_out(write_10(0, 1), pattern(512))
    host.write(b"no CBW")
    host.disk.reset()
    host.halted.clear()
    assert host.command_in(read_10(0, 1), 512).data == pattern(512)


def test_get_max_lun(disk: MassStorage) -> None:
    assert disk.control_in(bytes.fromhex("a1 fe 0000 0000 0100"), 1) == b"\0"


@pytest.mark.parametrize(
    "packet",
    [
        "a1 fe 0100 0000 0100",  # wValue
        "a1 fe 0000 0100 0100",  # another interface
        "a1 fe 0000 0000 0200",  # wLength
        "c0 fe 0000 0000 0100",  # vendor
    ],
)
def test_get_max_lun_is_exact(disk: MassStorage, packet: str) -> None:
    raw = bytes.fromhex(packet)
    assert disk.control_in(raw, int.from_bytes(raw[6:8], "little")) is Handshake.STALL


@pytest.mark.parametrize("packet", ["21 ff 0100 0000 0000", "21 ff 0000 0100 0000", "21 fd 0000 0000 0000"])
def test_bulk_only_reset_is_exact(disk: MassStorage, packet: str) -> None:
    assert disk.control_out(bytes.fromhex(packet), NOTHING) is Handshake.STALL


def test_only_the_stalled_pipe_must_be_cleared(host: BotHost) -> None:
    assert host.write(host.cbw(INQUIRY_36, 255, is_in=True)) == 31
    data = host.read(255)
    assert not isinstance(data, Handshake)
    assert len(data) == 36
    assert host.read(13) is Handshake.STALL
    host.clear_halt(BULK_OUT)
    assert host.disk.read(BULK_IN, 13) is Handshake.STALL
    assert host.csw() == (PASSED, 255 - 36)
