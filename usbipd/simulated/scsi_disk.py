"""The SCSI side of the simulated disk: commands in, data phases and sense data out.  Runs in workers.

Sources: SPC-3 (the commands of every device) and SBC-3 (those of disks), T10.  mass_storage.py moves command,
data and status over USB.
"""

import struct
from collections.abc import Callable
from typing import Final

import msgspec

from usbipd.simulated.medium import BLOCK_SIZE, Medium

TEST_UNIT_READY: Final = 0x00  # SPC-3, table D.1, as all operation codes here
REQUEST_SENSE: Final = 0x03
INQUIRY: Final = 0x12
MODE_SENSE_6: Final = 0x1A
START_STOP_UNIT: Final = 0x1B
PREVENT_ALLOW_MEDIUM_REMOVAL: Final = 0x1E
READ_CAPACITY_10: Final = 0x25
READ_10: Final = 0x28
WRITE_10: Final = 0x2A
VERIFY_10: Final = 0x2F
SYNCHRONIZE_CACHE_10: Final = 0x35
MODE_SENSE_10: Final = 0x5A
READ_16: Final = 0x88
WRITE_16: Final = 0x8A
SERVICE_ACTION_IN_16: Final = 0x9E
REPORT_LUNS: Final = 0xA0
READ_12: Final = 0xA8
WRITE_12: Final = 0xAA

_READ_CAPACITY_16: Final = 0x10  # SBC-3, table 13: service action of SERVICE_ACTION_IN_16

_VPD_SUPPORTED_PAGES: Final = 0x00  # SPC-3, table 312
_VPD_UNIT_SERIAL_NUMBER: Final = 0x80
_VPD_DEVICE_IDENTIFICATION: Final = 0x83

_PAGE_CACHING: Final = 0x08  # SBC-3, 6.5.5
_PAGE_ALL: Final = 0x3F  # SPC-3, table 100
_CHANGEABLE_VALUES: Final = 1  # SPC-3, table 99, PC
_SAVED_VALUES: Final = 3


class Sense(msgspec.Struct, frozen=True):
    """Why a command failed (SPC-3, 4.5.6 and annex D)."""

    key: int
    asc: int
    ascq: int

    def encode(self) -> bytes:
        """Fixed format (SPC-3, 4.5.3): response code 70h, 10 bytes after the eighth."""
        return bytes((0x70, 0, self.key, 0, 0, 0, 0, 10, 0, 0, 0, 0, self.asc, self.ascq, 0, 0, 0, 0))


NO_SENSE: Final = Sense(0x0, 0x00, 0x00)
MEDIUM_NOT_PRESENT: Final = Sense(0x2, 0x3A, 0x00)
WRITE_ERROR: Final = Sense(0x3, 0x0C, 0x00)
UNRECOVERED_READ_ERROR: Final = Sense(0x3, 0x11, 0x00)
INVALID_COMMAND_OPERATION_CODE: Final = Sense(0x5, 0x20, 0x00)
LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE: Final = Sense(0x5, 0x21, 0x00)
INVALID_FIELD_IN_CDB: Final = Sense(0x5, 0x24, 0x00)
SAVING_PARAMETERS_NOT_SUPPORTED: Final = Sense(0x5, 0x39, 0x00)
MEDIUM_REMOVAL_PREVENTED: Final = Sense(0x5, 0x53, 0x02)


class CheckConditionError(Exception):
    """A command ends with status CHECK CONDITION."""

    def __init__(self, sense: Sense) -> None:
        super().__init__(sense)
        self.sense = sense


class NoData(msgspec.Struct, frozen=True):
    """The command is done; it has no data phase."""


class Reply(msgspec.Struct, frozen=True):
    """The command is done; the host gets `data`."""

    data: bytes


class BlocksIn(msgspec.Struct, frozen=True):
    """The host gets `length` bytes of the medium, from byte `offset` on."""

    offset: int
    length: int


class BlocksOut(msgspec.Struct, frozen=True):
    """The host sends `length` bytes for the medium, from byte `offset` on; `sync`: flush after them."""

    offset: int
    length: int
    sync: bool


DataPhase = NoData | Reply | BlocksIn | BlocksOut


class ScsiDisk:
    """A removable direct-access device with one logical unit.

    A command that fails raises `CheckConditionError`; REQUEST SENSE reads its sense data until the next
    command.
    """

    def __init__(self, medium: Medium, vendor: str, product: str, serial: str) -> None:
        self.medium = medium
        self._vendor = vendor.encode("ascii").ljust(8)
        self._product = product.encode("ascii").ljust(16)
        self._serial = serial.encode("ascii")
        self._commands: Final[dict[int, Callable[[bytes], DataPhase]]] = {
            TEST_UNIT_READY: self._test_unit_ready,
            REQUEST_SENSE: self._request_sense,
            INQUIRY: self._inquiry,
            MODE_SENSE_6: self._mode_sense_6,
            START_STOP_UNIT: self._start_stop_unit,
            PREVENT_ALLOW_MEDIUM_REMOVAL: self._prevent_allow_medium_removal,
            READ_CAPACITY_10: self._read_capacity_10,
            READ_10: self._read,
            WRITE_10: self._write,
            VERIFY_10: self._verify_10,
            SYNCHRONIZE_CACHE_10: self._synchronize_cache_10,
            MODE_SENSE_10: self._mode_sense_10,
            READ_16: self._read,
            WRITE_16: self._write,
            SERVICE_ACTION_IN_16: self._service_action_in_16,
            REPORT_LUNS: self._report_luns,
            READ_12: self._read,
            WRITE_12: self._write,
        }
        self.reset()

    def reset(self) -> None:
        """The state after power-on: the medium is loaded, its removal is not prevented."""
        self._sense = NO_SENSE
        self._loaded = True
        self._removal_prevented = False

    def begin(self, cdb: bytes) -> DataPhase:
        """Runs the command up to its data phase; `cdb` is padded with zeros to 16 bytes."""
        command = self._commands.get(cdb[0])
        if cdb[0] != REQUEST_SENSE:
            self._sense = NO_SENSE
        if command is None:
            raise self.failed(INVALID_COMMAND_OPERATION_CODE)
        return command(cdb)

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Part of the data of a `BlocksIn`."""
        try:
            return self.medium.read(offset, length)
        except OSError as error:
            raise self.failed(UNRECOVERED_READ_ERROR) from error

    def write(self, offset: int, data: memoryview) -> None:
        """Part of the data of a `BlocksOut`."""
        try:
            self.medium.write(offset, data)
        except OSError as error:
            raise self.failed(WRITE_ERROR) from error

    def flush(self) -> None:
        """Makes all written data survive a crash of this host."""
        try:
            self.medium.flush()
        except OSError as error:
            raise self.failed(WRITE_ERROR) from error

    def failed(self, sense: Sense) -> CheckConditionError:
        """The error to raise; REQUEST SENSE reports the reason."""
        self._sense = sense
        return CheckConditionError(sense)

    # ---- the unit ----------------------------------------------------------------------------------------

    def _test_unit_ready(self, cdb: bytes) -> DataPhase:
        self._require_medium()
        return NoData()

    def _request_sense(self, cdb: bytes) -> DataPhase:
        if cdb[1] & 0x01:  # DESC: descriptor format, which is optional
            raise self.failed(INVALID_FIELD_IN_CDB)
        sense, self._sense = self._sense, NO_SENSE
        return Reply(sense.encode()[: cdb[4]])

    def _inquiry(self, cdb: bytes) -> DataPhase:
        page, allocation = cdb[2], int.from_bytes(cdb[3:5], "big")
        if not cdb[1] & 0x01:  # EVPD
            if page:
                raise self.failed(INVALID_FIELD_IN_CDB)
            # SPC-3, table 81: removable, SPC-3, response data format 2, 31 bytes after the fifth.
            standard = bytes((0x00, 0x80, 0x05, 0x02, 31, 0, 0, 0)) + self._vendor + self._product + b"1.00"
            return Reply(standard[:allocation])
        if page == _VPD_SUPPORTED_PAGES:
            body = bytes((_VPD_SUPPORTED_PAGES, _VPD_UNIT_SERIAL_NUMBER, _VPD_DEVICE_IDENTIFICATION))
        elif page == _VPD_UNIT_SERIAL_NUMBER:
            body = self._serial
        elif page == _VPD_DEVICE_IDENTIFICATION:
            identifier = self._vendor + self._product + self._serial
            # SPC-3, 7.6.3: one designator in ASCII (2), of the logical unit, T10 vendor ID based (1).
            body = bytes((0x02, 0x01, 0x00, len(identifier))) + identifier
        else:
            raise self.failed(INVALID_FIELD_IN_CDB)
        return Reply((struct.pack(">BBH", 0x00, page, len(body)) + body)[:allocation])

    def _report_luns(self, cdb: bytes) -> DataPhase:
        allocation = int.from_bytes(cdb[6:10], "big")
        if allocation < 16 or cdb[2] > 2:  # SPC-3, 6.21: SELECT REPORT 0, 1 and 2 exist
            raise self.failed(INVALID_FIELD_IN_CDB)
        luns = b"" if cdb[2] == 1 else bytes(8)  # 1: only well-known logical units, of which it has none
        return Reply((struct.pack(">I4x", len(luns)) + luns)[:allocation])

    def _mode_sense_6(self, cdb: bytes) -> DataPhase:
        pages = self._mode_pages(cdb[2])
        return Reply((struct.pack(">BBBB", 3 + len(pages), 0, self._mode_parameter(), 0) + pages)[: cdb[4]])

    def _mode_sense_10(self, cdb: bytes) -> DataPhase:
        pages, allocation = self._mode_pages(cdb[2]), int.from_bytes(cdb[7:9], "big")
        header = struct.pack(">HBBBBH", 6 + len(pages), 0, self._mode_parameter(), 0, 0, 0)
        return Reply((header + pages)[:allocation])

    def _mode_parameter(self) -> int:
        return 0x10  # SBC-3, 6.5.1: not write-protected; DPOFUA: writes accept the FUA bit

    def _mode_pages(self, selector: int) -> bytes:
        control, page = selector >> 6, selector & 0x3F
        if control == _SAVED_VALUES:
            raise self.failed(SAVING_PARAMETERS_NOT_SUPPORTED)
        if page not in (_PAGE_CACHING, _PAGE_ALL):
            raise self.failed(INVALID_FIELD_IN_CDB)
        caching = 0x00 if control == _CHANGEABLE_VALUES else 0x04  # WCE: it has a cache to synchronize
        return bytes((_PAGE_CACHING, 18, caching)) + bytes(17)

    # ---- the medium --------------------------------------------------------------------------------------

    def _require_medium(self) -> None:
        if not self._loaded:
            raise self.failed(MEDIUM_NOT_PRESENT)

    def _start_stop_unit(self, cdb: bytes) -> DataPhase:
        start, load_or_eject, power_condition = cdb[4] & 0x01, cdb[4] & 0x02, cdb[4] >> 4
        if power_condition == 0 and load_or_eject and not start and self._removal_prevented:
            raise self.failed(MEDIUM_REMOVAL_PREVENTED)
        if not start:
            self.flush()
        if power_condition == 0 and load_or_eject:  # SBC-3, 5.20: otherwise LOEJ and START are ignored
            self._loaded = bool(start)
        return NoData()

    def _prevent_allow_medium_removal(self, cdb: bytes) -> DataPhase:
        self._removal_prevented = bool(cdb[4] & 0x01)
        return NoData()

    def _synchronize_cache_10(self, cdb: bytes) -> DataPhase:
        self._extent(int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[7:9], "big"))
        self.flush()
        return NoData()

    def _verify_10(self, cdb: bytes) -> DataPhase:
        if cdb[1] & 0x02:  # BYTCHK: comparing with data of the host
            raise self.failed(INVALID_FIELD_IN_CDB)
        self._extent(int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[7:9], "big"))
        return NoData()

    def _read_capacity_10(self, cdb: bytes) -> DataPhase:
        self._require_medium()
        last = self.medium.size // BLOCK_SIZE - 1
        return Reply(
            struct.pack(">II", min(last, 0xFFFFFFFF), BLOCK_SIZE)
        )  # FFFFFFFFh: use READ CAPACITY (16)

    def _service_action_in_16(self, cdb: bytes) -> DataPhase:
        if cdb[1] & 0x1F != _READ_CAPACITY_16:
            raise self.failed(INVALID_FIELD_IN_CDB)
        self._require_medium()
        last, allocation = self.medium.size // BLOCK_SIZE - 1, int.from_bytes(cdb[10:14], "big")
        return Reply(struct.pack(">QI20x", last, BLOCK_SIZE)[:allocation])

    def _read(self, cdb: bytes) -> DataPhase:
        return BlocksIn(*self._extent(*_address_and_count(cdb)))

    def _write(self, cdb: bytes) -> DataPhase:
        return BlocksOut(*self._extent(*_address_and_count(cdb)), sync=bool(cdb[1] & 0x08))  # FUA

    def _extent(self, address: int, count: int) -> tuple[int, int]:
        """Offset and length in bytes."""
        self._require_medium()
        if address + count > self.medium.size // BLOCK_SIZE:
            raise self.failed(LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)
        return address * BLOCK_SIZE, count * BLOCK_SIZE


def _address_and_count(cdb: bytes) -> tuple[int, int]:
    """Logical block address and transfer length of READ and WRITE in their 10, 12 and 16 byte forms."""
    address: int
    count: int
    group = cdb[0] >> 5  # SPC-3, 4.3.4.1: the length of a CDB
    if group == 1:
        address, count = struct.unpack_from(">IxH", cdb, 2)
    elif group == 5:
        address, count = struct.unpack_from(">II", cdb, 2)
    else:
        address, count = struct.unpack_from(">QI", cdb, 2)
    return address, count
