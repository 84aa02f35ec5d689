"""The rules of the wire as seen over TCP, on the simulated devices of a whole daemon."""

import socket
from contextlib import closing

import pytest

from tests.client import Client, Session, TransferError
from tests.integration.conftest import Attach, StartDaemon
from tests.integration.daemon import Daemon
from tests.urb import RetUnlink
from usbipd.protocol.constants import (
    LINUX_ECONNRESET,
    LINUX_EPIPE,
    LINUX_EREMOTEIO,
    MAX_TRANSFER_LENGTH,
    OP_DEVICE_SIZE,
    URB_SHORT_NOT_OK,
    URB_ZERO_PACKET,
    USB_CONFIG_ATT_ONE,
    USB_DT_CONFIG,
    USB_DT_DEVICE,
    USB_DT_STRING,
    USB_RECIP_INTERFACE,
    USB_REQ_GET_DESCRIPTOR,
    USB_REQ_SET_INTERFACE,
    Speed,
)
from usbipd.protocol.op import encode_devlist_request, encode_import_request
from usbipd.simulated import catalog

SOURCE_IN, SINK_OUT, LOOPBACK_IN, LOOPBACK_OUT = 0x81, 0x01, 0x82, 0x02
AUDIO_IN, AUDIO_PACKET, AUDIO_INTERFACE = 0x81, 192, 1
KEYBOARD_IN = 0x81
BULK_PACKET = 512
STALE = 0x35363738


def get_descriptor(session: Session, kind: int, index: int = 0, length: int = 255) -> bytes:
    """A standard descriptor of the device."""
    return session.control_in(0x80, USB_REQ_GET_DESCRIPTOR, kind << 8 | index, length=length)


def start_audio(session: Session) -> None:
    """Selects the alternate setting that has the isochronous endpoint."""
    session.control_out(USB_RECIP_INTERFACE, USB_REQ_SET_INTERFACE, 1, AUDIO_INTERFACE)


# ---- listing and importing ----


@pytest.mark.rule("devlist-size")
@pytest.mark.rule("bug-devlist-padding")
def test_devlist_has_the_size_that_its_interfaces_make(client: Client, daemon: Daemon) -> None:
    devices = client.devlist()
    assert [len(device.interfaces) for device in devices] == [1, 1, 2, 4, 2, 2]
    with client.connect() as connection, connection.makefile("rb") as stream:
        connection.sendall(encode_devlist_request())
        assert len(stream.read()) == 12 + sum(312 + 4 * len(device.interfaces) for device in devices)


@pytest.mark.rule("import-body")
@pytest.mark.rule("import-no-interfaces")
@pytest.mark.rule("busid-echoed")
@pytest.mark.rule("bug-import-body")
def test_an_import_is_answered_with_the_device_and_nothing_more(client: Client) -> None:
    for listed in client.devlist():
        with client.connect() as connection:
            connection.sendall(encode_import_request(listed.busid))
            reply = connection.recv(4096)
            while len(reply) < 8 + OP_DEVICE_SIZE:
                reply += connection.recv(4096)
            assert len(reply) == 8 + OP_DEVICE_SIZE
            assert reply[264:296].rstrip(b"\0") == listed.busid.encode()
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""


@pytest.mark.rule("op-status")
@pytest.mark.rule("import-body")
def test_a_refused_import_has_no_body(client: Client) -> None:
    with client.connect() as connection, connection.makefile("rb") as stream:
        connection.sendall(encode_import_request("9-9"))
        assert stream.read() == bytes.fromhex("0111 0003 00000004")


@pytest.mark.rule("speed-numbers")
def test_speeds_have_the_numbers_of_the_wire(client: Client, daemon: Daemon) -> None:
    speeds = {device.busid: device.speed for device in client.devlist()}
    for name, model in catalog.NAMES.items():
        assert speeds[daemon.busid(name)] == model.speed
    assert set(speeds.values()) == {Speed.FULL, Speed.HIGH} == {2, 3}


@pytest.mark.rule("bug-devid-collision")
def test_every_device_has_a_unique_devid_and_busid(client: Client) -> None:
    devices = client.devlist()
    assert len({device.devid for device in devices}) == len(devices)
    assert len({device.busid for device in devices}) == len(devices)


@pytest.mark.rule("bug-identical-devices")
def test_two_identical_devices_are_distinct(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("loopback,loopback")
    client = Client(daemon.host, daemon.port)
    with (
        client.import_device(daemon.busid("loopback", 1)) as second,
        client.import_device(daemon.busid("loopback", 0)) as first,
    ):
        assert get_descriptor(first, USB_DT_DEVICE) == get_descriptor(second, USB_DT_DEVICE)
        assert get_descriptor(first, USB_DT_STRING, 3) != get_descriptor(second, USB_DT_STRING, 3)
        second.bulk_out(LOOPBACK_OUT, b"second")
        first.bulk_out(LOOPBACK_OUT, b"first")
        assert first.bulk_in(LOOPBACK_IN, BULK_PACKET) == b"first"
        assert second.bulk_in(LOOPBACK_IN, BULK_PACKET) == b"second"


# ---- control transfers ----


@pytest.mark.rule("setup-little-endian")
@pytest.mark.rule("remote-wakeup")
def test_descriptors_are_those_of_the_device(attach: Attach) -> None:
    for name in catalog.NAMES:
        with attach(name) as session, closing(catalog.create(name, {})) as model:
            assert get_descriptor(session, USB_DT_DEVICE) == model.device_descriptor
            raw = get_descriptor(session, USB_DT_CONFIG, length=len(model.configurations[0]))
            assert raw[:7] == model.configurations[0][:7]
            assert raw[7] == USB_CONFIG_ATT_ONE
            assert raw[8:] == model.configurations[0][8:]
            assert get_descriptor(session, USB_DT_CONFIG, length=9) == raw[:9]


@pytest.mark.rule("bug-setup-freed")
def test_every_control_transfer_has_its_own_setup_packet(attach: Attach) -> None:
    session = attach("loopback")
    kinds = [(USB_DT_DEVICE, 0), (USB_DT_CONFIG, 0), *((USB_DT_STRING, index) for index in (1, 2, 3))]
    expected = [get_descriptor(session, kind, index) for kind, index in kinds]
    setups = [bytes((0x80, USB_REQ_GET_DESCRIPTOR, index, kind, 0, 0, 255, 0)) for kind, index in kinds]
    pending = [session.submit(0x80, length=255, setup=setup) for setup in setups * 40]
    assert [session.wait_submit(seqnum).data for seqnum in pending] == expected * 40


@pytest.mark.rule("linux-errno")
def test_a_control_stall_is_epipe_and_the_next_request_works(attach: Attach) -> None:
    session = attach("loopback")
    for _ in range(3):
        with pytest.raises(TransferError) as failed:
            get_descriptor(session, 0x09)
        assert failed.value.status == -LINUX_EPIPE == -32
        assert len(get_descriptor(session, USB_DT_DEVICE)) == 18


@pytest.mark.rule("ep0-direction")
def test_a_control_transfer_without_data_goes_where_its_setup_says(attach: Attach) -> None:
    """SET_INTERFACE with the header's direction IN: bmRequestType decides."""
    session = attach("audio")
    setup = bytes((USB_RECIP_INTERFACE, USB_REQ_SET_INTERFACE, 1, 0, AUDIO_INTERFACE, 0, 0, 0))
    assert session.wait_submit(session.submit(0x80, length=0, setup=setup)).status == 0
    assert session.iso_in(AUDIO_IN, [AUDIO_PACKET]).actual_length == AUDIO_PACKET


# ---- bulk and interrupt transfers ----


@pytest.mark.rule("ret-data-in-only")
@pytest.mark.rule("ret-out-taken")
def test_out_is_answered_with_a_length_and_no_data(attach: Attach) -> None:
    """`ReplyReader` would take data after the header for the next reply and refuse it."""
    session = attach("loopback")
    sizes = [1, 511, 512, 513, 100_000, 1 << 20]
    pending = [session.submit(SINK_OUT, data=bytes(size)) for size in sizes]
    for size, seqnum in zip(sizes, pending, strict=True):
        reply = session.wait_submit(seqnum)
        assert (reply.status, reply.actual_length, reply.data) == (0, size, b"")


@pytest.mark.rule("actual-length-bounded")
@pytest.mark.rule("bug-timeout-length")
def test_a_short_read_reports_its_length(attach: Attach) -> None:
    session = attach("loopback")
    session.bulk_out(LOOPBACK_OUT, b"abc")
    reply = session.wait_submit(session.submit(LOOPBACK_IN, length=4096))
    assert (reply.status, reply.actual_length, reply.data) == (0, 3, b"abc")
    session.bulk_out(LOOPBACK_OUT, b"abcdef")
    assert session.bulk_in(LOOPBACK_IN, 4) == b"abcd"
    assert session.bulk_in(LOOPBACK_IN, 4) == b"ef"


@pytest.mark.rule("short-not-ok")
@pytest.mark.rule("linux-errno")
def test_a_short_read_under_short_not_ok_is_eremoteio_and_has_its_data(attach: Attach) -> None:
    session = attach("loopback")
    for data, length, status in [(b"abc", 512, -LINUX_EREMOTEIO), (bytes(512), 512, 0)]:
        session.bulk_out(LOOPBACK_OUT, data)
        seqnum = session.submit(LOOPBACK_IN, length=length, transfer_flags=URB_SHORT_NOT_OK)
        reply = session.wait_submit(seqnum)
        assert (reply.status, reply.data) == (status, data)
    assert LINUX_EREMOTEIO == 121


@pytest.mark.rule("bug-zero-length")
def test_a_transfer_of_no_bytes_is_a_transfer(attach: Attach) -> None:
    session = attach("loopback")
    assert session.bulk_out(LOOPBACK_OUT, b"") == 0
    assert session.bulk_in(LOOPBACK_IN, BULK_PACKET) == b""
    assert session.bulk_out(SINK_OUT, b"") == 0
    assert session.bulk_in(SOURCE_IN, 0) == b""


@pytest.mark.rule("bug-dropped-silently")
def test_the_longest_transfers_work(attach: Attach) -> None:
    session = attach("loopback")
    assert len(session.bulk_in(SOURCE_IN, MAX_TRANSFER_LENGTH)) == MAX_TRANSFER_LENGTH
    assert session.bulk_out(SINK_OUT, bytes(MAX_TRANSFER_LENGTH)) == MAX_TRANSFER_LENGTH


@pytest.mark.rule("packets-echoed")
@pytest.mark.rule("packets-by-endpoint")
@pytest.mark.rule("bug-type-from-interval")
@pytest.mark.parametrize("number_of_packets", [0, 0xFFFFFFFF, STALE])
@pytest.mark.parametrize("interval", [0, 1, 16])
def test_only_the_endpoint_decides_the_type_of_a_transfer(
    attach: Attach, number_of_packets: int, interval: int
) -> None:
    session = attach("loopback")
    setup = bytes.fromhex("8006000100001200")
    for seqnum in [
        session.submit(SOURCE_IN, length=64, number_of_packets=number_of_packets, interval=interval),
        session.submit(SINK_OUT, data=bytes(64), number_of_packets=number_of_packets, interval=interval),
        session.submit(0x80, length=18, setup=setup, number_of_packets=number_of_packets, interval=interval),
    ]:
        reply = session.wait_submit(seqnum)
        assert (reply.status, reply.number_of_packets) == (0, number_of_packets)


def test_the_keyboard_types_by_interrupt_transfers(attach: Attach) -> None:
    session = attach("keyboard")
    reports = [session.interrupt_in(KEYBOARD_IN, 8) for _ in range(4)]
    assert [report[2] != 0 for report in reports] == [True, False, True, False]
    assert all(len(report) == 8 for report in reports)


@pytest.mark.rule("flags-masked")
def test_senseless_flags_are_ignored(attach: Attach) -> None:
    session = attach("loopback")
    nonsense = 0xFFFFFFFF & ~URB_SHORT_NOT_OK
    assert session.wait_submit(session.submit(SOURCE_IN, length=64, transfer_flags=nonsense)).status == 0
    out = session.wait_submit(session.submit(SINK_OUT, data=bytes(64), transfer_flags=0xFFFFFFFF))
    assert (out.status, out.actual_length) == (0, 64)
    setup = bytes.fromhex("8006000100001200")
    control = session.submit(0x80, length=18, setup=setup, transfer_flags=nonsense | URB_ZERO_PACKET)
    assert session.wait_submit(control).actual_length == 18


# ---- order and independence ----


@pytest.mark.rule("order-per-endpoint")
def test_transfers_of_an_endpoint_end_in_order(attach: Attach) -> None:
    session = attach("loopback")
    reads = [session.submit(LOOPBACK_IN, length=BULK_PACKET) for _ in range(64)]
    messages = [bytes([index]) * (index + 1) for index in range(64)]
    for message in messages:
        session.submit(LOOPBACK_OUT, data=message)
    session.wait(reads[-1])
    arrived = [seqnum for seqnum in session.replies if seqnum in reads]
    assert arrived == reads[:-1]
    assert [session.wait_submit(seqnum).data for seqnum in arrived] == messages[:-1]


@pytest.mark.rule("endpoints-independent")
@pytest.mark.rule("idle-in")
def test_a_waiting_in_blocks_nothing_else(attach: Attach, client: Client) -> None:
    session = attach("loopback")
    with client.connect() as silent:  # it is closed at the handshake timeout; attached clients are not
        waiting = [session.submit(LOOPBACK_IN, length=BULK_PACKET) for _ in range(3)]
        for _ in range(100):
            assert len(get_descriptor(session, USB_DT_DEVICE)) == 18
            assert len(session.bulk_in(SOURCE_IN, BULK_PACKET)) == BULK_PACKET
            assert session.bulk_out(SINK_OUT, bytes(BULK_PACKET)) == BULK_PACKET
        assert session.unlink(waiting[1]) == -LINUX_ECONNRESET
        assert silent.recv(1) == b""
    assert session.replies == {}
    session.bulk_out(LOOPBACK_OUT, b"for the first")
    assert session.wait_submit(waiting[0]).data == b"for the first"
    session.bulk_out(LOOPBACK_OUT, b"for the third")
    assert session.wait_submit(waiting[2]).data == b"for the third"


@pytest.mark.rule("seqnum-per-connection")
def test_two_clients_may_use_the_same_seqnums(attach: Attach) -> None:
    one, other = attach("loopback"), attach("serial")
    waiting = [one.submit(LOOPBACK_IN, length=64), other.submit(0x81, length=64)]
    assert waiting[0] == waiting[1]
    assert one.unlink(waiting[0]) == -LINUX_ECONNRESET
    other.bulk_out(0x01, b"still here")
    assert other.wait_submit(waiting[1]).data == b"still here"


# ---- UNLINK ----


@pytest.mark.rule("unlink-pending")
@pytest.mark.rule("unlink-by-seqnum")
@pytest.mark.rule("bug-unlink-ep0")
def test_unlink_of_one_of_many(attach: Attach) -> None:
    """RET_UNLINK with -104 is the only reply for the URB; its neighbours and endpoint 0 continue."""
    session = attach("loopback")
    waiting = [session.submit(LOOPBACK_IN, length=BULK_PACKET) for _ in range(5)]
    unlink = session.send_unlink(waiting[2])
    setup = bytes.fromhex("8006000100001200")
    control = session.submit(0x80, length=18, setup=setup)
    assert session.wait(unlink) == RetUnlink(unlink, -LINUX_ECONNRESET)
    assert session.wait_submit(control).status == 0
    for index in (0, 1, 3, 4):
        session.bulk_out(LOOPBACK_OUT, b"%d" % index)
        assert session.wait_submit(waiting[index]).data == b"%d" % index
    assert session.replies == {}
    assert session.unlink(waiting[2]) == 0


@pytest.mark.rule("unlink-answered")
def test_unlink_of_an_answered_urb(attach: Attach) -> None:
    session = attach("loopback")
    done = session.submit(SOURCE_IN, length=64)
    unlink = session.send_unlink(done)
    assert session.wait(unlink) == RetUnlink(unlink, 0)
    assert list(session.replies) == [done]
    assert session.unlink(done) == 0


@pytest.mark.rule("unlink-answered")
@pytest.mark.rule("unlink-pending")
def test_unlinks_that_race_with_the_data(attach: Attach) -> None:
    """Each read ends in exactly one way (`ReplyReader` checks it), and unread data is kept."""
    session = attach("loopback")
    for turn in range(50):
        reads = [session.submit(LOOPBACK_IN, length=BULK_PACKET) for _ in range(4)]
        writes = [session.submit(LOOPBACK_OUT, data=b"%d.%d" % (turn, index)) for index in range(2)]
        unlinks = [session.send_unlink(seqnum) for seqnum in reads]
        for seqnum in writes:
            assert session.wait_submit(seqnum).status == 0
        cancelled = [session.wait(seqnum) == RetUnlink(seqnum, -LINUX_ECONNRESET) for seqnum in unlinks]
        answered = [session.wait_submit(seqnum).data for seqnum in reads if seqnum in session.replies]
        assert len(answered) == cancelled.count(False)
        assert answered == [b"%d.%d" % (turn, index) for index in range(len(answered))]
        for index in range(len(answered), 2):
            assert session.bulk_in(LOOPBACK_IN, BULK_PACKET) == b"%d.%d" % (turn, index)
