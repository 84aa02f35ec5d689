"""Simulated disk: the bulk-only transport over a memory or file medium.  Runs in workers.

Source: USB Mass Storage Class, Bulk-Only Transport 1.0 ("BOT"); scsi_disk.py has the SCSI commands.

# The thirteen cases
BOT 6.7 compares what the host expects (Hn nothing, Hi data in, Ho data out) with what the device intends (Dn,
Di, Do).  Three rules, applied when a command begins, cover all cases:
- Hn with Di or Do (2, 3), Hi < Di (7), Hi with Do (8), Ho with Di (10) and Ho < Do (13) are phase errors: the
  status is 02h.  Data moves only in case 7, up to the length that the host expects.
- If both want the same direction, the smaller of the two lengths moves (5, 6, 11, 12).
- If the host expects more than moves (4, 5, 8 to 11, 13), the pipe of its data phase stalls after that, and
  the residue is the difference.
"""

import struct
from collections.abc import Mapping
from enum import Enum, auto
from pathlib import Path
from typing import Final

from usbipd.protocol.constants import (
    USB_CLASS_MASS_STORAGE,
    USB_DIR_IN,
    USB_ENDPOINT_XFER_BULK,
    Speed,
)
from usbipd.simulated.descriptors import (
    configuration_descriptor,
    device_descriptor,
    endpoint_descriptor,
    interface_descriptor,
)
from usbipd.simulated.device import MANUFACTURER, Handshake, SimulatedDevice
from usbipd.simulated.medium import DEFAULT_SIZE, FileMedium, Medium, MemoryMedium, parse_size
from usbipd.simulated.scsi_disk import (
    BlocksIn,
    BlocksOut,
    CheckConditionError,
    DataPhase,
    NoData,
    Reply,
    ScsiDisk,
)

_SUBCLASS_SCSI: Final = 0x06  # Mass Storage Class overview 1.4, table 2
_PROTOCOL_BULK_ONLY: Final = 0x50  # Mass Storage Class overview 1.4, table 3

BULK_IN: Final = 0x81
BULK_OUT: Final = 0x01

GET_MAX_LUN: Final = 0xFE  # BOT 3.2
BULK_ONLY_RESET: Final = 0xFF  # BOT 3.1
_FROM_INTERFACE: Final = 0xA1  # bmRequestType of GET_MAX_LUN
_TO_INTERFACE: Final = 0x21  # bmRequestType of BULK_ONLY_RESET

_CBW: Final = struct.Struct("<IIIBBB16s")  # BOT table 5.1
_CBW_SIGNATURE: Final = 0x43425355
_CSW: Final = struct.Struct("<IIIB")  # BOT table 5.2
_CSW_SIGNATURE: Final = 0x53425355

PASSED: Final = 0x00  # bCSWStatus, BOT table 5.3
FAILED: Final = 0x01
PHASE_ERROR: Final = 0x02


class _State(Enum):
    COMMAND = auto()  # a CBW is next
    DATA_IN = auto()  # `_remaining` bytes go to the host
    DATA_OUT = auto()  # `_remaining` bytes come from the host
    STALL_IN = auto()  # the host expects more data: bulk-in stalls, then the CSW follows
    STATUS = auto()  # the CSW is next
    BROKEN = auto()  # invalid CBW: both pipes stall until Reset Recovery (BOT 5.3.4, 6.6.1)


class MassStorage(SimulatedDevice):
    """A USB stick of `size` bytes, in memory or in `file`."""

    name = "mass-storage"
    option_names = frozenset({"serial", "size", "file"})
    product = "Simulated disk"
    speed = Speed.HIGH
    device_descriptor = device_descriptor(0x01F1, bcdUSB=0x0200)
    configurations = (
        configuration_descriptor(
            interface_descriptor(0, 2, USB_CLASS_MASS_STORAGE, _SUBCLASS_SCSI, _PROTOCOL_BULK_ONLY),
            endpoint_descriptor(BULK_IN, USB_ENDPOINT_XFER_BULK, 512, 0),
            endpoint_descriptor(BULK_OUT, USB_ENDPOINT_XFER_BULK, 512, 0),
        ),
    )

    def __init__(self, options: Mapping[str, str]) -> None:
        """Raises `UsageError` if the medium cannot be opened; see `FileMedium` and `MemoryMedium`."""
        super().__init__(options)
        size = parse_size(options["size"]) if "size" in options else None
        medium: Medium
        if "file" in options:
            medium = FileMedium(Path(options["file"]), size)
        else:
            medium = MemoryMedium(size or DEFAULT_SIZE)
        self._disk = ScsiDisk(medium, MANUFACTURER, self.product, self.strings[-1])
        self._begin_transport()

    @classmethod
    def check_options(cls, options: Mapping[str, str]) -> dict[str, str]:
        checked = super().check_options(options)
        if "size" in checked:
            parse_size(checked["size"])
        if "file" in checked:
            checked["file"] = str(Path(checked["file"]).expanduser().absolute())
        return checked

    def reset(self) -> None:
        self._disk.reset()
        self._begin_transport()

    def close(self) -> None:
        self._disk.medium.close()

    def _begin_transport(self) -> None:
        self._state = _State.COMMAND
        self._tag = 0
        self._status = PASSED
        self._residue = 0  # of the whole command, counted down as data moves
        self._phase: DataPhase = NoData()
        self._position = 0  # in the data phase
        self._remaining = 0  # bytes to the end of the data phase

    # ---- control requests --------------------------------------------------------------------------------

    def control_in(self, setup: bytes, length: int) -> bytes | Handshake:
        request_type, request, value, interface, _ = struct.unpack("<BBHHH", setup)
        if (request_type, request, value, interface, length) == (_FROM_INTERFACE, GET_MAX_LUN, 0, 0, 1):
            return b"\0"
        return Handshake.STALL

    def control_out(self, setup: bytes, data: memoryview) -> Handshake | None:
        request_type, request, value, interface, length = struct.unpack("<BBHHH", setup)
        if (request_type, request, value, interface, length) == (_TO_INTERFACE, BULK_ONLY_RESET, 0, 0, 0):
            self._begin_transport()  # halts stay until cleared: BOT 3.1
            return None
        return Handshake.STALL

    def halt_cleared(self, endpoint: int) -> None:
        if endpoint == BULK_IN and self._state is _State.STALL_IN:
            self._state = _State.STATUS

    # ---- bulk-out: CBW and data --------------------------------------------------------------------------

    def write(self, endpoint: int, data: memoryview) -> int | Handshake:
        if self._state is _State.COMMAND:
            return self._take_cbw(data)
        if self._state is _State.DATA_OUT:
            return self._take_data(data)
        if self._state is _State.BROKEN:
            return Handshake.STALL
        return Handshake.NAK  # the host must read data or a CSW first

    def _take_cbw(self, data: memoryview) -> int | Handshake:
        if len(data) != _CBW.size:
            return self._break()
        signature, tag, expected, flags, lun, cdb_length, cdb = _CBW.unpack(data)
        # BOT 6.2.1 and 6.2.2: valid and meaningful
        if signature != _CBW_SIGNATURE or flags & ~USB_DIR_IN or lun != 0 or not 1 <= cdb_length <= 16:
            return self._break()
        self._tag = tag
        self._status = PASSED
        self._residue = expected
        self._position = 0
        self._phase = NoData()
        try:
            self._phase = self._disk.begin(cdb[:cdb_length].ljust(16, b"\0"))
        except CheckConditionError:
            self._status = FAILED
        self._agree(expected, bool(flags & USB_DIR_IN))
        return _CBW.size

    def _break(self) -> Handshake:
        self._state = _State.BROKEN
        return Handshake.STALL

    def _agree(self, expected: int, host_in: bool) -> None:
        """Compares the expectations of host and device: see the thirteen cases."""
        intended = 0
        device_in = host_in
        match self._phase:
            case Reply(data):
                intended, device_in = len(data), True
            case BlocksIn(_, length):
                intended, device_in = length, True
            case BlocksOut(_, length):
                intended, device_in = length, False
        wrong_direction = intended > 0 and device_in != host_in
        if intended > expected or wrong_direction:
            self._status = PHASE_ERROR
        if wrong_direction or (not host_in and intended > expected):
            intended = 0
        self._remaining = min(intended, expected)
        if not expected:
            self._state = _State.STATUS
        elif host_in:
            self._state = _State.DATA_IN if self._remaining else _State.STALL_IN
        else:
            self._state = _State.DATA_OUT

    def _take_data(self, data: memoryview) -> int | Handshake:
        wanted = data[: self._remaining]
        if wanted:
            phase = self._phase
            assert isinstance(phase, BlocksOut)
            try:
                self._disk.write(phase.offset + self._position, wanted)
                self._advance(len(wanted))
                if not self._remaining and phase.sync:
                    self._disk.flush()
            except CheckConditionError:
                self._status = FAILED
                self._remaining = 0
        if len(wanted) < len(data) or (self._status == FAILED and self._residue):
            self._state = _State.STATUS
            return Handshake.STALL
        if not self._residue:
            self._state = _State.STATUS
        return len(data)

    def _advance(self, count: int) -> None:
        self._position += count
        self._remaining -= count
        self._residue -= count

    # ---- bulk-in: data and CSW ---------------------------------------------------------------------------

    def read(self, endpoint: int, length: int) -> bytes | memoryview | Handshake:
        if self._state is _State.DATA_IN:
            return self._give_data(length)
        if self._state is _State.STATUS:
            self._state = _State.COMMAND
            return _CSW.pack(_CSW_SIGNATURE, self._tag, self._residue, self._status)
        if self._state in (_State.STALL_IN, _State.BROKEN):
            return Handshake.STALL
        return Handshake.NAK

    def _give_data(self, length: int) -> bytes | memoryview | Handshake:
        count = min(length, self._remaining)
        data: bytes | memoryview
        match self._phase:
            case BlocksIn(offset):
                try:
                    data = self._disk.read(offset + self._position, count)
                except CheckConditionError:
                    self._status = FAILED
                    self._state = _State.STALL_IN
                    return Handshake.STALL
            case Reply(reply):
                data = reply[self._position : self._position + count]
            case NoData() | BlocksOut():
                raise AssertionError("DATA_IN without a phase that has data for the host")
        self._advance(count)
        if not self._remaining:
            self._state = _State.STALL_IN if self._residue else _State.STATUS
        return data
