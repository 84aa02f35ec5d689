"""SCSI commands, sent through the bulk-only transport as a host does."""

import struct
from pathlib import Path

import pytest

from tests.unit.simulated.bot_host import BotHost
from usbipd.simulated.mass_storage import MassStorage
from usbipd.simulated.medium import MemoryMedium
from usbipd.simulated.scsi_disk import ScsiDisk

BLOCKS = 2048
PASSED, FAILED = 0, 1
INVALID_COMMAND = (5, 0x20, 0)
OUT_OF_RANGE = (5, 0x21, 0)
INVALID_FIELD = (5, 0x24, 0)


@pytest.fixture
def disk() -> MassStorage:
    return MassStorage({"size": "1M"})


@pytest.fixture
def host(disk: MassStorage) -> BotHost:
    return BotHost(disk)


def cdb(text: str) -> bytes:
    return bytes.fromhex(text)


def ask(host: BotHost, text: str, length: int) -> bytes:
    """A command that must pass; returns what the host read."""
    result = host.command_in(cdb(text), length)
    assert result.status == PASSED
    return result.data


def refuse(host: BotHost, text: str, length: int = 0) -> tuple[int, int, int]:
    """A command that must fail; returns its sense."""
    result = host.command_in(cdb(text), length)
    assert (result.status, result.residue) == (FAILED, length)
    return host.sense()


# ---- identity --------------------------------------------------------------------------------------------


def test_inquiry(host: BotHost) -> None:
    data = ask(host, "12 00 00 00 24 00", 36)
    assert data[:8] == cdb("00 80 05 02 1f 00 00 00")  # disk, removable, SPC-3, format 2, 31 more
    assert data[8:16] == b"usbipd  "
    assert data[16:32] == b"Simulated disk  "
    assert len(data) == 36


def test_inquiry_is_cut_at_the_allocation_length(host: BotHost) -> None:
    assert len(ask(host, "12 00 00 00 05 00", 5)) == 5


def test_vital_product_data(host: BotHost) -> None:
    serial = host.disk.strings[2].encode()
    assert ask(host, "12 01 00 00 ff 00", 255) == cdb("00 00 00 03 00 80 83")
    assert ask(host, "12 01 80 00 ff 00", 255) == cdb("00 80 00 0c") + serial
    page = ask(host, "12 01 83 00 ff 00", 255)
    identifier = b"usbipd  Simulated disk  " + serial
    assert page == struct.pack(">BBHBBBB", 0, 0x83, 4 + 36, 2, 1, 0, 36) + identifier


@pytest.mark.parametrize("command", ["12 01 b0 00 ff 00", "12 00 80 00 ff 00"])
def test_unknown_vital_product_data(host: BotHost, command: str) -> None:
    assert refuse(host, command, 255) == INVALID_FIELD


def test_report_luns(host: BotHost) -> None:
    assert ask(host, "a0 00 00 00 00 00 00 00 00 10 00 00", 16) == cdb("00 00 00 08") + bytes(12)
    assert ask(host, "a0 00 01 00 00 00 00 00 00 10 00 00", 16) == bytes(8)
    assert refuse(host, "a0 00 00 00 00 00 00 00 00 0f 00 00", 15) == INVALID_FIELD
    assert refuse(host, "a0 00 03 00 00 00 00 00 00 10 00 00", 16) == INVALID_FIELD


def test_capacity(host: BotHost) -> None:
    assert ask(host, "25 00 00000000 0000 00 00", 8) == struct.pack(">II", BLOCKS - 1, 512)
    long = ask(host, "9e 10 0000000000000000 00000020 00 00", 32)
    assert long == struct.pack(">QI", BLOCKS - 1, 512) + bytes(20)
    assert refuse(host, "9e 11 0000000000000000 00000020 00 00", 32) == INVALID_FIELD


def test_a_capacity_of_more_than_32_bits(tmp_path: Path) -> None:
    large = MassStorage({"size": "4T", "file": str(tmp_path / "sparse.img")})
    host = BotHost(large)
    try:
        assert ask(host, "25 00 00000000 0000 00 00", 8) == struct.pack(">II", 0xFFFFFFFF, 512)
        assert ask(host, "9e 10 0000000000000000 00000020 00 00", 32)[:8] == struct.pack(">Q", (4 << 31) - 1)
        last = struct.pack(">BBQIBB", 0x8A, 0, (4 << 31) - 1, 1, 0, 0)
        assert host.command_out(last, b"\xa5" * 512).status == PASSED
        assert host.command_in(b"\x88" + last[1:], 512).data == b"\xa5" * 512
    finally:
        large.close()


# ---- mode pages --------------------------------------------------------------------------------------------


def test_mode_sense(host: BotHost) -> None:
    caching = cdb("08 12 04") + bytes(17)
    assert ask(host, "1a 00 3f 00 c0 00", 192) == cdb("17 00 10 00") + caching
    assert ask(host, "1a 08 08 00 ff 00", 255) == cdb("17 00 10 00") + caching
    assert ask(host, "5a 00 08 00 00 00 00 00 ff 00", 255) == cdb("001a 00 10 00 00 0000") + caching
    assert ask(host, "1a 00 3f 00 04 00", 4) == cdb("17 00 10 00")


def test_mode_sense_of_changeable_values_is_empty(host: BotHost) -> None:
    assert ask(host, "1a 00 48 00 ff 00", 255)[4:] == cdb("08 12 00") + bytes(17)


def test_mode_sense_of_an_unknown_page(host: BotHost) -> None:
    assert refuse(host, "1a 00 1c 00 ff 00", 255) == INVALID_FIELD
    assert refuse(host, "1a 00 c8 00 ff 00", 255) == (5, 0x39, 0)


# ---- sense data --------------------------------------------------------------------------------------------


def test_sense_is_reported_once(host: BotHost) -> None:
    host.command(cdb("ff 00 00 00 00 00"))
    assert host.sense() == INVALID_COMMAND
    assert host.sense() == (0, 0, 0)


def test_sense_ends_with_the_next_command(host: BotHost) -> None:
    host.command(cdb("ff 00 00 00 00 00"))
    host.command(cdb("00 00 00 00 00 00"))
    assert host.sense() == (0, 0, 0)


def test_sense_in_descriptor_format_is_refused(host: BotHost) -> None:
    assert refuse(host, "03 01 00 00 12 00", 18) == INVALID_FIELD


@pytest.mark.parametrize("opcode", sorted(set(range(256)) - {0x00, 0x03, 0x12, 0x1A, 0x1B, 0x1E, 0x25, 0x28,
                                                             0x2A, 0x2F, 0x35, 0x5A, 0x88, 0x8A, 0x9E, 0xA0,
                                                             0xA8, 0xAA}))  # fmt: skip
def test_every_other_command_is_an_illegal_request(host: BotHost, opcode: int) -> None:
    assert host.command(bytes((opcode,)) + bytes(9)).status == FAILED
    assert host.sense() == INVALID_COMMAND


# ---- reading and writing -----------------------------------------------------------------------------------

FORMS = {
    10: lambda opcode, address, count: struct.pack(">BBIBHB", opcode, 0, address, 0, count, 0),
    12: lambda opcode, address, count: struct.pack(">BBIIBB", opcode, 0, address, count, 0, 0),
    16: lambda opcode, address, count: struct.pack(">BBQIBB", opcode, 0, address, count, 0, 0),
}
READ = {10: 0x28, 12: 0xA8, 16: 0x88}
WRITE = {10: 0x2A, 12: 0xAA, 16: 0x8A}


@pytest.mark.parametrize("form", FORMS)
def test_read_and_write(host: BotHost, form: int) -> None:
    data = bytes((i + form) % 256 for i in range(3 * 512))
    assert host.command_out(FORMS[form](WRITE[form], 7, 3), data).status == PASSED
    assert host.command_in(FORMS[form](READ[form], 7, 3), len(data)).data == data
    around = host.command_in(FORMS[form](READ[form], 6, 5), 5 * 512).data
    assert around == bytes(512) + data + bytes(512)


@pytest.mark.parametrize("form", FORMS)
def test_the_last_block_and_the_one_after_it(host: BotHost, form: int) -> None:
    assert host.command_out(FORMS[form](WRITE[form], BLOCKS - 1, 1), bytes(512)).status == PASSED
    for address, count in ((BLOCKS - 1, 2), (BLOCKS, 1), (0xFFFFFFFF, 1), (0, BLOCKS + 1)):
        assert host.command_in(FORMS[form](READ[form], address, count), 512 * count).status == FAILED
        assert host.sense() == OUT_OF_RANGE
        result = host.command_out(FORMS[form](WRITE[form], address, count), bytes(512))
        assert result.status == FAILED
        assert host.sense() == OUT_OF_RANGE


def test_verify(host: BotHost) -> None:
    assert host.command(cdb("2f 00 00000000 00 0800 00")).status == PASSED
    assert refuse(host, "2f 00 00000000 00 0801 00") == OUT_OF_RANGE
    assert refuse(host, "2f 02 00000000 00 0001 00") == INVALID_FIELD


def test_synchronize_cache(host: BotHost) -> None:
    assert host.command(cdb("35 00 00000000 00 0000 00")).status == PASSED
    assert refuse(host, "35 00 00000800 00 0001 00") == OUT_OF_RANGE


# ---- ejecting and loading --------------------------------------------------------------------------------

EJECT, LOAD, STOP, START = (
    cdb("1b 00 00 00 02 00"),
    cdb("1b 00 00 00 03 00"),
    cdb("1b 000000 00 00"),
    cdb("1b 000000 01 00"),
)
PREVENT, ALLOW = cdb("1e 00 00 00 01 00"), cdb("1e 00 00 00 00 00")


def test_an_ejected_medium_is_not_present_until_it_is_loaded(host: BotHost) -> None:
    assert host.command(EJECT).status == PASSED
    needs_a_medium = {
        "00 00 00 00 00 00": 0,
        "25 00 00000000 0000 00 00": 8,
        "28 00 00000000 00 0001 00": 512,
        "35 00 00000000 00 0000 00": 0,
        "9e 10 0000000000000000 00000020 00 00": 32,
    }
    for text, length in needs_a_medium.items():
        assert refuse(host, text, length) == (2, 0x3A, 0)
    assert host.command_in(cdb("12 00 00 00 24 00"), 36).status == PASSED
    assert host.command(LOAD).status == PASSED
    assert host.command(cdb("00 00 00 00 00 00")).status == PASSED


def test_reset_puts_the_medium_back(host: BotHost) -> None:
    host.command(PREVENT)
    host.command(ALLOW)
    host.command(EJECT)
    host.disk.reset()
    assert host.command(cdb("00 00 00 00 00 00")).status == PASSED


def test_removal_can_be_prevented(host: BotHost) -> None:
    assert host.command(PREVENT).status == PASSED
    assert host.command(EJECT).status == FAILED
    assert host.sense() == (5, 0x53, 2)
    assert host.command(ALLOW).status == PASSED
    assert host.command(EJECT).status == PASSED


def test_spinning_down_keeps_the_medium(host: BotHost) -> None:
    assert host.command(STOP).status == PASSED
    assert host.command(cdb("00 00 00 00 00 00")).status == PASSED
    assert host.command(START).status == PASSED


# ---- a medium that fails -----------------------------------------------------------------------------------


class Broken(MemoryMedium):
    """A medium with a bad second block, that cannot be flushed."""

    def read(self, offset: int, length: int) -> memoryview:
        if offset + length > 512:
            raise OSError("bad block")
        return super().read(offset, length)

    def write(self, offset: int, data: memoryview) -> None:
        if offset + len(data) > 512:
            raise OSError("bad block")
        super().write(offset, data)

    def flush(self) -> None:
        raise OSError("no space left on device")


@pytest.fixture
def broken() -> BotHost:
    disk = MassStorage({"size": "4K"})
    disk._disk = ScsiDisk(Broken(4096), "usbipd", "Broken disk", "000000000000")
    return BotHost(disk, urb_size=512)


def test_a_read_error_is_a_medium_error(broken: BotHost) -> None:
    result = broken.command_in(FORMS[10](0x28, 0, 2), 1024)
    assert (result.status, result.residue, len(result.data)) == (FAILED, 512, 512)
    assert broken.sense() == (3, 0x11, 0)


def test_a_write_error_is_a_medium_error(broken: BotHost) -> None:
    result = broken.command_out(FORMS[10](0x2A, 0, 2), bytes(1024))
    assert (result.status, result.residue) == (FAILED, 512)
    assert broken.sense() == (3, 0x0C, 0)


def test_a_flush_that_fails_is_a_write_error(broken: BotHost) -> None:
    assert broken.command(cdb("35 00 00000000 00 0000 00")).status == FAILED
    assert broken.sense() == (3, 0x0C, 0)
    assert broken.command(EJECT).status == FAILED
    assert broken.sense() == (3, 0x0C, 0)


def test_a_forced_write_completes_only_after_the_flush(broken: BotHost) -> None:
    assert broken.command_out(FORMS[10](0x2A, 0, 1), bytes(512)).status == PASSED
    forced = cdb("2a 08 00000000 00 0001 00")
    result = broken.command_out(forced, bytes(512))
    assert (result.status, result.residue) == (FAILED, 0)
    assert broken.sense() == (3, 0x0C, 0)
