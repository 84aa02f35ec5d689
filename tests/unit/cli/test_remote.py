"""`usbipd list --remote` against a scripted TCP server on loopback."""

import socket
import struct
from collections.abc import Callable

import pytest

from tests.golden import load
from tests.golden.messages import DEVICE
from tests.unit.cli.conftest import serving
from usbipd.cli.remote import fetch_devlist
from usbipd.errors import UsbipdError
from usbipd.protocol.constants import OP_REP_DEVLIST, ST_ERROR, USBIP_VERSION
from usbipd.protocol.op import UsbDevice, encode_devlist_reply, encode_devlist_request

GOOD = encode_devlist_reply([DEVICE])


def fetch(
    talk: Callable[[socket.socket], None], *, family: int = socket.AF_INET, timeout: float = 10
) -> object:
    """The result of `fetch_devlist` with a server that does `talk`."""
    listener = socket.create_server(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family)
    host, port = listener.getsockname()[:2]
    with serving(listener, talk):
        return fetch_devlist(host, port, timeout)


def request_of(connection: socket.socket) -> bytes:
    return connection.recv(8, socket.MSG_WAITALL)


def failure(talk: Callable[[socket.socket], None], *, timeout: float = 10) -> UsbipdError:
    with pytest.raises(UsbipdError) as caught:
        fetch(talk, timeout=timeout)
    assert "127.0.0.1:" in caught.value.message
    assert caught.value.exit_code == 1
    return caught.value


def test_an_ipv6_address_with_a_port_is_written_in_brackets() -> None:
    with pytest.raises(UsbipdError) as caught:
        fetch_devlist("::1:3240", 3240, 0.5)
    assert caught.value.advice == "an IPv6 address with a port is written in brackets: [::1]:3240"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_good_answer(family: int) -> None:
    requests = []

    def talk(connection: socket.socket) -> None:
        requests.append(request_of(connection))
        connection.sendall(GOOD)

    assert fetch(talk, family=family) == (DEVICE,)
    assert requests == [encode_devlist_request()] == [load("op_req_devlist")]


def test_no_devices() -> None:
    assert fetch(lambda connection: connection.sendall(encode_devlist_reply([]))) == ()


def test_answer_byte_by_byte_from_a_server_that_stays_connected() -> None:
    def talk(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request_of(connection)
        for byte in GOOD:
            connection.sendall(bytes([byte]))
        assert connection.recv(1) == b""  # until the client has the whole answer and disconnects

    devices = fetch(talk)
    assert devices == (DEVICE,)
    assert isinstance(devices, tuple)
    assert isinstance(devices[0], UsbDevice)


def test_another_protocol_answers() -> None:
    error = failure(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    assert error.code == "not-usbip"
    assert "0x4854" in error.message  # "HT"


def test_an_older_server() -> None:
    reply = struct.pack(">HHI", 0x0106, OP_REP_DEVLIST, 0) + GOOD[8:]
    error = failure(lambda connection: connection.sendall(reply))
    assert error.code == "not-usbip"
    assert "version 0x0106" in error.message
    assert "another version" in (error.advice or "")


def test_impossible_device_count() -> None:
    reply = struct.pack(">HHII", USBIP_VERSION, OP_REP_DEVLIST, 0, 0xFFFFFFFF)
    assert failure(lambda connection: connection.sendall(reply)).code == "not-usbip"


def test_a_refusal() -> None:
    reply = struct.pack(">HHI", USBIP_VERSION, OP_REP_DEVLIST, ST_ERROR)
    error = failure(lambda connection: connection.sendall(reply))
    assert error.code == "no-list"
    assert "status 5" in error.message


@pytest.mark.parametrize("length", [0, 4, 8, 12, 100, len(GOOD) - 1])
def test_an_early_close(length: int) -> None:
    def talk(connection: socket.socket) -> None:
        request_of(connection)
        connection.sendall(GOOD[:length])

    error = failure(talk)
    assert error.code == "lost"
    assert f"{length} bytes" in error.message


def test_a_reset() -> None:
    def talk(connection: socket.socket) -> None:
        request_of(connection)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    assert failure(talk).code == "lost"


@pytest.mark.parametrize("said", [b"", GOOD[:20]])
def test_silence(said: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        request_of(connection)
        connection.sendall(said)
        assert connection.recv(1) == b""  # until the client times out

    error = failure(talk, timeout=0.05)
    assert error.code == "timed-out"
    assert "0.05 s" in error.message


def test_timeout_covers_the_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends a few bytes now and then does not extend it."""
    clock = iter([0.0, 0.0, 9.95])
    monkeypatch.setattr("usbipd.cli.remote.time.monotonic", lambda: next(clock, 10.0))

    def talk(connection: socket.socket) -> None:
        request_of(connection)
        connection.sendall(GOOD[:8])
        connection.settimeout(5)
        assert connection.recv(1) == b""  # until the remaining 0.05 s are over

    assert failure(talk, timeout=10).code == "timed-out"


def test_connection_refused() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(UsbipdError, match="refused") as caught:
            fetch_devlist("127.0.0.1", unused.getsockname()[1], 10)
    assert caught.value.code == "refused"


@pytest.mark.parametrize("host", ["a..b", "nonsense.invalid"])
def test_no_such_host(host: str) -> None:
    with pytest.raises(UsbipdError, match=host) as caught:
        fetch_devlist(host, 3240, 10)
    assert caught.value.code == "host-not-found"


def test_an_address_without_a_route() -> None:
    # TCP cannot connect to a multicast address on any network.
    with pytest.raises(UsbipdError, match=r"224\.0\.0\.1:3240") as caught:
        fetch_devlist("224.0.0.1", 3240, 10)
    assert caught.value.code == "unreachable"
