"""Bad input from the network: each gets its answer, or closes the connection with a reason in the log.

Every test has a bystander: another client with another device, which must notice nothing.
"""

import random
import resource
import selectors
import socket
import struct
from collections.abc import Iterator

import psutil
import pytest

from tests import golden
from tests.client import Client, ClosedError, RefusedError, Session, TransferError, receive
from tests.integration.conftest import HANDSHAKE_TIMEOUT, Attach, Bystander
from tests.integration.daemon import PATIENCE, Daemon
from tests.urb import IsoPacket, RetSubmit, Submit, encode
from usbipd.protocol.constants import (
    LINUX_EINVAL,
    LINUX_EPIPE,
    MAX_ISO_PACKETS,
    MAX_TRANSFER_LENGTH,
    ST_DEV_BUSY,
    ST_NODEV,
    USB_DT_DEVICE,
    USB_RECIP_INTERFACE,
    USB_REQ_GET_DESCRIPTOR,
    USB_REQ_SET_INTERFACE,
)
from usbipd.protocol.op import (
    DevlistReplyReader,
    ImportReply,
    ImportReplyReader,
    encode_devlist_request,
    encode_import_request,
)

SOURCE_IN, SINK_OUT, LOOPBACK_IN, LOOPBACK_OUT = 0x81, 0x01, 0x82, 0x02
AUDIO_IN = 0x81
NO_SUCH_IN, NO_SUCH_OUT = 0x87, 0x07
IMPORT_HEADER = bytes.fromhex("0111 8003 00000000")
CROWD = 1000
"""Idle connections at a time."""


@pytest.fixture(autouse=True)
def nobody_else_notices(bystander: Bystander) -> None:
    """The bystander checks its session before and after each test."""


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Lets this process open as many sockets as the crowd needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, CROWD + 256)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def device_descriptor(session: Session) -> bytes:
    """Any transfer that works on any device."""
    return session.control_in(0x80, USB_REQ_GET_DESCRIPTOR, USB_DT_DEVICE << 8, length=18)


def expect_closed(connection: socket.socket) -> None:
    """Nothing but the end of the stream follows."""
    try:
        assert connection.recv(1) == b""
    except ConnectionError:  # closed with unread bytes from us
        return


def expect_ended(daemon: Daemon, session: Session, since: int, reason: str) -> None:
    """The session is closed, the log says why, and the device is free for the next client."""
    session.wait_closed()
    assert session.replies == {}
    assert session.device.busid in daemon.log.wait_for(reason, since)
    with Client(daemon.host, daemon.port).import_device(session.device.busid) as successor:
        assert len(device_descriptor(successor)) == 18


# ---- before a device is imported ----


@pytest.mark.rule("op-version")
@pytest.mark.parametrize("version", ["0000", "0106", "0112", "1101", "ffff"])
def test_unknown_version(daemon: Daemon, client: Client, version: str) -> None:
    since = daemon.log.position()
    with client.connect() as connection:
        connection.sendall(bytes.fromhex(f"{version} 8005 00000000"))
        expect_closed(connection)
    daemon.log.wait_for(f"unknown USB/IP version 0x{version}", since)


@pytest.mark.parametrize("code", ["0000", "8004", "0005", "8007", "ffff"])
def test_unknown_op_code(daemon: Daemon, client: Client, code: str) -> None:
    since = daemon.log.position()
    with client.connect() as connection:
        connection.sendall(bytes.fromhex(f"0111 {code} 00000000"))
        expect_closed(connection)
    daemon.log.wait_for(f"unknown OP code 0x{code}", since)


@pytest.mark.parametrize(
    ("busid", "reason"),
    [
        (b"2" * 32, "without NUL"),
        (bytes(32), "printable ASCII"),
        (b"240-1\n".ljust(32, b"\0"), "printable ASCII"),
        (b"\xff" * 31 + b"\0", "printable ASCII"),
    ],
    ids=["endless", "empty", "control-character", "not-ascii"],
)
def test_an_impossible_busid(daemon: Daemon, client: Client, busid: bytes, reason: str) -> None:
    since = daemon.log.position()
    with client.connect() as connection:
        connection.sendall(IMPORT_HEADER + busid)
        assert receive(connection, ImportReplyReader()) == ImportReply(ST_NODEV, None)
        expect_closed(connection)
    daemon.log.wait_for(reason, since)


@pytest.mark.rule("op-status")
@pytest.mark.parametrize("busid", ["1-99", "240-99", "../240-1", "x" * 31])
def test_a_busid_that_is_not_shared(daemon: Daemon, client: Client, busid: str) -> None:
    since = daemon.log.position()
    with pytest.raises(RefusedError) as refused:
        client.import_device(busid)
    assert refused.value.status == ST_NODEV
    daemon.log.wait_for(f"'{busid}'", since)


@pytest.mark.parametrize(
    "request_", [encode_devlist_request(), encode_import_request("240-1")], ids=["devlist", "import"]
)
def test_half_a_request_and_then_a_close(daemon: Daemon, client: Client, request_: bytes) -> None:
    since = daemon.log.position()
    with client.connect() as connection:
        connection.sendall(request_[: len(request_) // 2])
        connection.shutdown(socket.SHUT_WR)
        expect_closed(connection)
    daemon.log.wait_for("before it had sent a complete request", since)


@pytest.mark.parametrize("request_", [b"", encode_import_request("240-1")[:-1]], ids=["nothing", "import"])
def test_half_a_request_and_then_silence(daemon: Daemon, client: Client, request_: bytes) -> None:
    since = daemon.log.position()
    with client.connect() as connection:
        connection.sendall(request_)
        expect_closed(connection)
    daemon.log.wait_for(f"no complete request within {HANDSHAKE_TIMEOUT:g} s", since)


@pytest.mark.rule("any-chunking")
def test_requests_byte_by_byte(daemon: Daemon, client: Client) -> None:
    with client.connect() as connection:
        for byte in encode_devlist_request():
            connection.sendall(bytes([byte]))
        assert len(receive(connection, DevlistReplyReader()).devices) == daemon.devices
    with client.connect() as connection:
        for byte in encode_import_request(daemon.busid("loopback")):
            connection.sendall(bytes([byte]))
        device = receive(connection, ImportReplyReader()).device
        assert device is not None
        session = Session(connection, device)
        message = encode(Submit(1, device.devid, 1, 0, 0x200, 18, setup=bytes.fromhex("8006000100001200")))
        session.expect(Submit(1, device.devid, 1, 0, 0x200, 18))
        for byte in message:
            connection.sendall(bytes([byte]))
        assert len(session.wait_submit(1).data) == 18


@pytest.mark.rule("any-chunking")
def test_a_request_followed_by_the_first_urb(daemon: Daemon, client: Client) -> None:
    """Bytes after OP_REQ_IMPORT are for the worker; the server must not read them."""
    busid = daemon.busid("loopback")
    [devid] = [device.devid for device in client.devlist() if device.busid == busid]
    submit = Submit(1, devid, 1, 0, 0x200, 18, setup=bytes.fromhex("8006000100001200"))
    with client.connect() as connection:
        connection.sendall(encode_import_request(busid) + encode(submit))
        device = receive(connection, ImportReplyReader()).device
        assert device is not None
        session = Session(connection, device)
        session.expect(submit)
        assert len(session.wait_submit(1).data) == 18


@pytest.mark.slow
@pytest.mark.usefixtures("many_descriptors")
def test_a_thousand_idle_connections(client: Client, attach: Attach, bystander: Bystander) -> None:
    with selectors.DefaultSelector() as selector:
        try:
            for _ in range(CROWD):
                selector.register(client.connect(), selectors.EVENT_READ)
            bystander.check()
            assert client.devlist()
            assert len(device_descriptor(attach("loopback"))) == 18
            # Each is closed in the end: displaced by others, or timed out.
            while selector.get_map():
                ready = selector.select(PATIENCE)
                assert ready, f"{len(selector.get_map())} idle connections are still open"
                for key, _ in ready:
                    connection = key.fileobj
                    assert isinstance(connection, socket.socket)
                    expect_closed(connection)
                    selector.unregister(connection)
                    connection.close()
        finally:
            for key in list(selector.get_map().values()):
                assert isinstance(key.fileobj, socket.socket)
                key.fileobj.close()


@pytest.mark.rule("import-busy")
def test_a_device_that_is_attached(client: Client, attach: Attach) -> None:
    session = attach("loopback")
    with pytest.raises(RefusedError) as refused:
        client.import_device(session.device.busid)
    assert refused.value.status == ST_DEV_BUSY
    assert len(device_descriptor(session)) == 18
    assert session.device.busid in [device.busid for device in client.devlist()]


@pytest.mark.rule("import-busy")
def test_a_device_that_becomes_free_while_the_next_client_waits(client: Client, attach: Attach) -> None:
    session = attach("loopback")
    with client.connect() as connection:
        connection.sendall(encode_import_request(session.device.busid))
        session.close()
        reply = receive(connection, ImportReplyReader())
        assert reply.device is not None
        assert len(device_descriptor(Session(connection, reply.device))) == 18


# ---- URBs ----


@pytest.mark.rule("capped-lengths")
@pytest.mark.rule("bug-dropped-silently")
@pytest.mark.parametrize("endpoint", [SOURCE_IN, SINK_OUT, 0x80, 0x00])
@pytest.mark.parametrize("length", [MAX_TRANSFER_LENGTH + 1, 0xFFFFFFFF])
def test_a_length_above_the_limit(daemon: Daemon, attach: Attach, endpoint: int, length: int) -> None:
    session = attach("loopback")
    since = daemon.log.position()
    session.submit(endpoint, length=length)
    expect_ended(daemon, session, since, f"transfer_buffer_length {length}")


@pytest.mark.rule("iso-limit")
@pytest.mark.parametrize("count", [MAX_ISO_PACKETS + 1, 0xFFFFFFFE])
def test_too_many_iso_packets(daemon: Daemon, attach: Attach, count: int) -> None:
    session = attach("audio")
    session.control_out(USB_RECIP_INTERFACE, USB_REQ_SET_INTERFACE, 1, 1)
    since = daemon.log.position()
    session.submit(AUDIO_IN, length=192, number_of_packets=count)
    expect_ended(daemon, session, since, f"number_of_packets {count}")


@pytest.mark.rule("devid-checked")
def test_a_wrong_devid_after_a_right_one(daemon: Daemon, attach: Attach) -> None:
    session = attach("loopback")
    assert len(device_descriptor(session)) == 18
    since = daemon.log.position()
    session.submit(SOURCE_IN, length=512, devid=session.device.devid + 1)
    expect_ended(daemon, session, since, "devid")


def test_an_endpoint_that_does_not_exist(attach: Attach) -> None:
    session = attach("loopback")
    for number_of_packets in (0, 0xFFFFFFFF):
        transfers = [
            session.submit(NO_SUCH_IN, length=512, number_of_packets=number_of_packets),
            session.submit(NO_SUCH_OUT, data=bytes(100_000), number_of_packets=number_of_packets),
            session.submit(LOOPBACK_OUT | 0x08, number_of_packets=number_of_packets),
        ]
        for seqnum in transfers:
            reply = session.wait_submit(seqnum)
            assert (reply.status, reply.actual_length) == (-LINUX_EPIPE, 0)
    assert len(device_descriptor(session)) == 18


def test_an_endpoint_that_does_not_exist_and_perhaps_iso_packets(daemon: Daemon, attach: Attach) -> None:
    session = attach("loopback")
    since = daemon.log.position()
    session.submit(NO_SUCH_IN, length=512, number_of_packets=3)
    expect_ended(daemon, session, since, "no endpoint 7")


@pytest.mark.rule("ep-number")
@pytest.mark.parametrize(("direction", "ep"), [(1, 0x81), (1, 16), (2, 1), (0xFFFFFFFF, 1)])
def test_an_impossible_direction_or_ep(daemon: Daemon, attach: Attach, direction: int, ep: int) -> None:
    session = attach("loopback")
    since = daemon.log.position()
    session.send(Submit(1, session.device.devid, direction, ep, 0, 0))
    expect_ended(daemon, session, since, "ep is 0 to 15")


def test_a_duplicate_seqnum_in_flight(daemon: Daemon, attach: Attach) -> None:
    session = attach("loopback")
    since = daemon.log.position()
    waiting = Submit(77, session.device.devid, 1, LOOPBACK_IN & 0x0F, 0x200, 512)
    session.send(waiting)
    session.send(waiting)
    expect_ended(daemon, session, since, "seqnum 77")


@pytest.mark.rule("ret-seqnum")
def test_a_seqnum_that_is_reused_later(attach: Attach) -> None:
    session = attach("loopback")
    for _ in range(3):
        session.send(Submit(77, session.device.devid, 1, SOURCE_IN & 0x0F, 0x200, 512))
        assert session.wait_submit(77).actual_length == 512


@pytest.mark.rule("unlink-unknown")
def test_an_unlink_of_nothing(attach: Attach) -> None:
    session = attach("loopback")
    assert session.unlink(0xDEADBEEF) == 0
    assert session.unlink(0) == 0
    assert len(device_descriptor(session)) == 18


@pytest.mark.parametrize("name", ["ret_submit_bulk_out", "ret_unlink_too_late"])
def test_a_reply_instead_of_a_command(daemon: Daemon, attach: Attach, name: str) -> None:
    session = attach("loopback")
    since = daemon.log.position()
    session.connection.sendall(golden.load(name))
    expect_ended(daemon, session, since, "neither CMD_SUBMIT nor CMD_UNLINK")


@pytest.mark.parametrize("command", [0, 5, 0x01000000, 0xFFFFFFFF])
def test_an_unknown_command(daemon: Daemon, attach: Attach, command: int) -> None:
    session = attach("loopback")
    since = daemon.log.position()
    session.connection.sendall(struct.pack("!III", command, 1, session.device.devid) + bytes(36))
    expect_ended(daemon, session, since, f"command 0x{command:08x}")


@pytest.mark.rule("lost-client")
@pytest.mark.parametrize("size", [1, 47, 48, 100])
def test_half_a_command_and_then_a_close(daemon: Daemon, attach: Attach, client: Client, size: int) -> None:
    session = attach("loopback")
    submit = Submit(1, session.device.devid, 0, SINK_OUT, 0, 4096, data=bytes(4096))
    session.connection.sendall(encode(submit)[:size])
    session.close()
    with client.import_device(session.device.busid) as successor:
        assert len(device_descriptor(successor)) == 18


def test_a_setup_packet_with_more_than_the_buffer_holds(attach: Attach) -> None:
    session = attach("loopback")
    setup = bytes.fromhex("8006000100000010")  # wLength 0x1000
    reply = session.wait_submit(session.submit(0x80, length=8, setup=setup))
    assert (reply.status, reply.data) == (-LINUX_EINVAL, b"")
    assert len(device_descriptor(session)) == 18


def test_iso_packets_outside_of_the_buffer(attach: Attach) -> None:
    session = attach("audio")
    session.control_out(USB_RECIP_INTERFACE, USB_REQ_SET_INTERFACE, 1, 1)
    for iso in [
        (IsoPacket(0, 0xFFFFFFFF),),
        (IsoPacket(0xFFFFFFFF, 192),),
        (IsoPacket(0, 192), IsoPacket(192, 193)),
        (IsoPacket(0, 192), IsoPacket(0, 192), IsoPacket(0, 192)),
    ]:
        seqnum = session.next_seqnum()
        length = 384
        session.send(
            Submit(seqnum, session.device.devid, 1, AUDIO_IN & 0x0F, 0x200, length, 0, len(iso), 1, iso=iso)
        )
        reply = session.wait_submit(seqnum)
        assert (reply.status, reply.actual_length) == (-LINUX_EINVAL, 0)
    assert session.iso_in(AUDIO_IN, [192]).actual_length == 192


def test_a_client_that_never_reads(attach: Attach, bystander: Bystander, daemon: Daemon) -> None:
    """TCP slows it down, and it uses no more memory than its budget."""
    session = attach("loopback")
    session.connection.setblocking(False)
    request = encode(Submit(0, session.device.devid, 1, SOURCE_IN & 0x0F, 0x200, MAX_TRANSFER_LENGTH))
    sent = 0
    with selectors.DefaultSelector() as selector:
        selector.register(session.connection, selectors.EVENT_WRITE)
        for seqnum in range(200_000):
            message = request[:4] + seqnum.to_bytes(4, "big") + request[8:]
            try:
                sent += session.connection.send(message)
            except BlockingIOError:
                break
        else:
            pytest.fail("the server takes requests without end")
    assert sent > 0
    bystander.check()
    assert resident_size(daemon.worker_pid(session.device.busid)) < 256 << 20


def resident_size(pid: int) -> int:
    """Memory of a process in bytes."""
    return int(psutil.Process(pid).memory_info().rss)


@pytest.mark.parametrize("seed", range(8))
def test_noise(client: Client, attach: Attach, daemon: Daemon, seed: int) -> None:
    noise = random.Random(seed).randbytes(2000)
    with client.connect() as connection:
        connection.sendall(noise)
        expect_closed(connection)
    session = attach("loopback")
    since = daemon.log.position()
    session.connection.sendall(noise)
    expect_ended(daemon, session, since, "neither CMD_SUBMIT nor CMD_UNLINK")


def test_a_transfer_that_fails_does_not_end_the_session(attach: Attach) -> None:
    session = attach("loopback")
    with pytest.raises(TransferError):
        session.bulk_in(NO_SUCH_IN, 512)
    with pytest.raises(TransferError):
        session.control_in(0x80, USB_REQ_GET_DESCRIPTOR, 0x0900, length=4)
    assert len(device_descriptor(session)) == 18
    assert isinstance(session.wait(session.submit(SOURCE_IN, length=512)), RetSubmit)


def test_the_client_of_the_tests_sees_the_end(daemon: Daemon, attach: Attach) -> None:
    session = attach("loopback")
    session.connection.shutdown(socket.SHUT_WR)
    with pytest.raises(ClosedError):
        session.wait(session.next_seqnum())
