"""What each golden vector says."""

from tests.urb import Command, IsoPacket, Reply, RetSubmit, RetUnlink, Submit, Unlink
from usbipd.protocol.op import (
    DevlistReply,
    DevlistRequest,
    ImportReply,
    ImportRequest,
    UsbDevice,
    UsbInterface,
)

DEVICE = UsbDevice(
    path="/dev/bus/usb/001/004",
    busid="1-4.2",
    busnum=0x11121314,
    devnum=0x15161718,
    speed=3,
    idVendor=0x2122,
    idProduct=0x2324,
    bcdDevice=0x2526,
    bDeviceClass=0x31,
    bDeviceSubClass=0x32,
    bDeviceProtocol=0x33,
    bConfigurationValue=0x34,
    bNumConfigurations=0x35,
    interfaces=(UsbInterface(0x41, 0x42, 0x43), UsbInterface(0x44, 0x45, 0x46)),
)

UNCONFIGURED = UsbDevice(
    path="/x",
    busid="2-1",
    busnum=0x51525354,
    devnum=0x55565758,
    speed=5,
    idVendor=0x6162,
    idProduct=0x6364,
    bcdDevice=0x6566,
    bDeviceClass=0x71,
    bDeviceSubClass=0x72,
    bDeviceProtocol=0x73,
    bConfigurationValue=0,
    bNumConfigurations=0x75,
    interfaces=(),
)

IMPORTED = UsbDevice(
    path="/dev/bus/usb/001/004",
    busid="1-4.2",
    busnum=0x11121314,
    devnum=0x15161718,
    speed=2,
    idVendor=0x2122,
    idProduct=0x2324,
    bcdDevice=0x2526,
    bDeviceClass=0x31,
    bDeviceSubClass=0x32,
    bDeviceProtocol=0x33,
    bConfigurationValue=0x34,
    bNumConfigurations=0x35,
    interfaces=(),
)

OP_REQUESTS: dict[str, DevlistRequest | ImportRequest] = {
    "op_req_devlist": DevlistRequest(),
    "op_req_import": ImportRequest("1-4.2"),
    "op_req_import_longest_busid": ImportRequest("1-2.3.4.5.6.7.8.9.1.2.3.4.5.6.7"),
}

DEVLIST_REPLIES: dict[str, DevlistReply] = {
    "op_rep_devlist": DevlistReply(0, (DEVICE, UNCONFIGURED)),
    "op_rep_devlist_empty": DevlistReply(0, ()),
    "op_rep_devlist_refused": DevlistReply(1, ()),
}

IMPORT_REPLIES: dict[str, ImportReply] = {
    "op_rep_import": ImportReply(0, IMPORTED),
    "op_rep_import_busy": ImportReply(2, None),
}

_SEQNUM = 0x11121314
_DEVID = 0x21222324
_START_FRAME = 0x31323334
_STALE = 0x35363738
_INTERVAL = 0x41424344
_UNUSED_SETUP = bytes.fromhex("5152535455565758")
_NOT_ISOCHRONOUS = 0xFFFFFFFF

SUBMITS: dict[str, Submit] = {
    "cmd_submit_control_in": Submit(
        seqnum=_SEQNUM,
        devid=_DEVID,
        direction=1,
        ep=0,
        transfer_flags=0x200,
        transfer_buffer_length=18,
        start_frame=_START_FRAME,
        number_of_packets=_NOT_ISOCHRONOUS,
        interval=_INTERVAL,
        setup=bytes.fromhex("8006510153521200"),
    ),
    "cmd_submit_control_out": Submit(
        seqnum=_SEQNUM,
        devid=_DEVID,
        direction=0,
        ep=0,
        transfer_flags=0,
        transfer_buffer_length=7,
        start_frame=_START_FRAME,
        number_of_packets=0,
        interval=_INTERVAL,
        setup=bytes.fromhex("2120525154530700"),
        data=b"abcdefg",
    ),
    "cmd_submit_bulk_in": Submit(
        seqnum=_SEQNUM,
        devid=_DEVID,
        direction=1,
        ep=14,
        transfer_flags=0x201,
        transfer_buffer_length=0x205,
        start_frame=_START_FRAME,
        number_of_packets=_NOT_ISOCHRONOUS,
        interval=_INTERVAL,
        setup=_UNUSED_SETUP,
    ),
    "cmd_submit_bulk_out": Submit(
        seqnum=_SEQNUM,
        devid=_DEVID,
        direction=0,
        ep=13,
        transfer_flags=0x40,
        transfer_buffer_length=6,
        start_frame=_START_FRAME,
        number_of_packets=0,
        interval=_INTERVAL,
        setup=_UNUSED_SETUP,
        data=b"abcdef",
    ),
    "cmd_submit_bulk_out_empty": Submit(
        seqnum=_SEQNUM,
        devid=_DEVID,
        direction=0,
        ep=13,
        transfer_flags=0,
        transfer_buffer_length=0,
        start_frame=_START_FRAME,
        number_of_packets=_NOT_ISOCHRONOUS,
        interval=_INTERVAL,
        setup=_UNUSED_SETUP,
    ),
    "cmd_submit_interrupt_in_stale": Submit(
        seqnum=_SEQNUM,
        devid=_DEVID,
        direction=1,
        ep=12,
        transfer_flags=0x200,
        transfer_buffer_length=8,
        start_frame=_START_FRAME,
        number_of_packets=_STALE,
        interval=_INTERVAL,
        setup=_UNUSED_SETUP,
    ),
    "cmd_submit_iso_in": Submit(
        seqnum=_SEQNUM,
        devid=_DEVID,
        direction=1,
        ep=11,
        transfer_flags=0x202,
        transfer_buffer_length=28,
        start_frame=_START_FRAME,
        number_of_packets=3,
        interval=_INTERVAL,
        setup=_UNUSED_SETUP,
        iso=(IsoPacket(0, 10, 0x71727374, 0x75767778), IsoPacket(10, 9), IsoPacket(19, 8)),
    ),
    "cmd_submit_iso_out": Submit(
        seqnum=_SEQNUM,
        devid=_DEVID,
        direction=0,
        ep=10,
        transfer_flags=0x2,
        transfer_buffer_length=7,
        start_frame=_START_FRAME,
        number_of_packets=2,
        interval=_INTERVAL,
        setup=_UNUSED_SETUP,
        data=b"abcdefg",
        iso=(IsoPacket(0, 3), IsoPacket(3, 4)),
    ),
}

UNLINK = Unlink(seqnum=0x15161718, devid=_DEVID, direction=0, ep=0, unlink_seqnum=_SEQNUM)

COMMANDS: dict[str, Command] = {**SUBMITS, "cmd_unlink": UNLINK}


def is_isochronous(ep: int, direction: int) -> bool | None:
    """The endpoints of the vectors' device: 10 OUT and 11 IN are isochronous, 12 to 14 are not."""
    endpoints = {(10, 0): True, (11, 1): True, (12, 1): False, (13, 0): False, (14, 1): False}
    return endpoints.get((ep, direction))


REPLIES: dict[str, tuple[str, Reply]] = {
    "ret_submit_control_in": (
        "cmd_submit_control_in",
        RetSubmit(_SEQNUM, 0, 5, number_of_packets=_NOT_ISOCHRONOUS, data=b"abcde"),
    ),
    "ret_submit_control_out": (
        "cmd_submit_control_out",
        RetSubmit(_SEQNUM, 0, 7, number_of_packets=0),
    ),
    "ret_submit_bulk_in_short": (
        "cmd_submit_bulk_in",
        RetSubmit(_SEQNUM, -121, 6, number_of_packets=_NOT_ISOCHRONOUS, data=b"abcdef"),
    ),
    "ret_submit_bulk_out": (
        "cmd_submit_bulk_out",
        RetSubmit(_SEQNUM, 0, 6, number_of_packets=0),
    ),
    "ret_submit_stall": (
        "cmd_submit_control_in",
        RetSubmit(_SEQNUM, -32, 0, number_of_packets=_NOT_ISOCHRONOUS),
    ),
    "ret_submit_interrupt_in_stale": (
        "cmd_submit_interrupt_in_stale",
        RetSubmit(_SEQNUM, 0, 2, number_of_packets=_STALE, data=b"ab"),
    ),
    "ret_submit_iso_in": (
        "cmd_submit_iso_in",
        RetSubmit(
            _SEQNUM,
            0,
            11,
            start_frame=_START_FRAME,
            number_of_packets=3,
            error_count=1,
            data=b"abcdefg\x81\x82\x83\x84",
            iso=(IsoPacket(0, 10, 7, 0), IsoPacket(10, 9, 0, -18), IsoPacket(19, 8, 4, 0)),
        ),
    ),
    "ret_submit_iso_out": (
        "cmd_submit_iso_out",
        RetSubmit(
            _SEQNUM,
            0,
            7,
            start_frame=_START_FRAME,
            number_of_packets=2,
            iso=(IsoPacket(0, 3, 3, 0), IsoPacket(3, 4, 4, 0)),
        ),
    ),
    "ret_unlink_cancelled": ("cmd_unlink", RetUnlink(0x15161718, -104)),
    "ret_unlink_too_late": ("cmd_unlink", RetUnlink(0x15161718, 0)),
}
"""Each reply with the name of the command that it answers."""
