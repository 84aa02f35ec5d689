"""Access by the address of a client: 127.0.0.1 and its neighbours on loopback."""

import os
import signal
import threading

import pytest

from tests.client import Client, ClosedError, RefusedError, read_some
from tests.integration.conftest import ECHO_IN, ECHO_OUT, StartDaemon
from tests.integration.daemon import Daemon
from tests.loopback import from_other_addresses
from usbipd.limiter import BURST
from usbipd.protocol.constants import OP_HEADER_SIZE, ST_NODEV
from usbipd.protocol.op import encode_import_reply, encode_import_request
from usbipd.simulated.descriptors import ID_VENDOR
from usbipd.simulated.loopback import Loopback
from usbipd.simulated.serial import Serial
from usbipd.usb.descriptors import parse_device

pytestmark = from_other_addresses

LOOPBACK, SERIAL = "240-1", "240-2"
"""Busids of the two devices of these tests, simulated as "loopback,serial"."""
DEVICES = "loopback,serial"

LOOPBACK_ID, SERIAL_ID = (
    f"{ID_VENDOR:04x}:{parse_device(model.device_descriptor)['idProduct']:04x}"
    for model in (Loopback, Serial)
)


def client(daemon: Daemon, source: str) -> Client:
    return Client(daemon.host, daemon.port, source=source)


def listed(daemon: Daemon, source: str) -> list[str]:
    """The busids that a client from this address sees."""
    return [device.busid for device in client(daemon, source).devlist()]


def answer_to_import(daemon: Daemon, source: str, busid: str) -> bytes:
    """All bytes from the server for this OP_REQ_IMPORT until it closes."""
    answer = b""
    with client(daemon, source).connect() as connection:
        connection.sendall(encode_import_request(busid))
        try:
            while True:
                answer += read_some(connection, 4096)
        except ClosedError:
            return answer


def use(daemon: Daemon, source: str) -> None:
    """Attach the serial port and let it echo."""
    with client(daemon, source).import_device(SERIAL) as session:
        assert session.bulk_out(ECHO_OUT, b"hello") == 5
        assert session.bulk_in(ECHO_IN, 512) == b"hello"
    daemon.wait_for_state(SERIAL, "shared")


# ---- the list of the whole server --------------------------------------------------------------------------


def test_a_server_admits_only_allowed_clients(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(DEVICES, 'allow = ["127.0.0.2", "127.0.1.0/24", "::1"]')
    for source in ("127.0.0.2", "127.0.1.1", "127.0.1.255"):
        assert listed(daemon, source) == [LOOPBACK, SERIAL]
    use(daemon, "127.0.0.2")
    for source in ("127.0.0.1", "127.0.0.3", "127.0.2.0"):
        with client(daemon, source).connect() as connection, pytest.raises(ClosedError):
            read_some(connection, 1)  # closed before any request
        assert answer_to_import(daemon, source, SERIAL) == b""
    first = daemon.log.wait_for(" 127.0.2.0:")
    daemon.log.wait_for(" 127.0.2.0:", daemon.log.lines().index(first) + 1)
    refused = [line for line in daemon.log.lines() if " refused: its address is not allowed" in line]
    sources = [line.split("]: ")[1].partition(":")[0] for line in refused]
    assert sources == [source for source in ("127.0.0.1", "127.0.0.3", "127.0.2.0") for _twice in range(2)]


def test_the_command_line_sets_it_too(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(DEVICES, 'allow = ["127.0.0.1"]', "--allow", "127.0.0.2", "--allow", "127.0.0.3")
    assert listed(daemon, "127.0.0.2") == listed(daemon, "127.0.0.3") == [LOOPBACK, SERIAL]
    assert answer_to_import(daemon, "127.0.0.1", SERIAL) == b""


def test_the_next_server_has_the_same_list(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(DEVICES, 'allow = ["127.0.0.2"]')
    [server] = [each["pid"] for each in daemon.status()["processes"] if each["role"] == "server"]
    since = daemon.log.position()
    os.kill(server, signal.SIGKILL)
    daemon.log.wait_for(f"listens on {daemon.host}:{daemon.port}", since)
    assert answer_to_import(daemon, "127.0.0.1", SERIAL) == b""
    use(daemon, "127.0.0.2")


@pytest.mark.slow
def test_a_flood_of_refused_clients_locks_out_no_others(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(DEVICES, 'allow = ["127.0.0.2"]\n[limits]\nmax_connections = 2')
    enough = threading.Event()
    refused = [0, 0, 0]

    def flood(number: int) -> None:
        while not enough.is_set():
            try:
                client(daemon, "127.0.0.3").connect().close()
            except OSError:  # out of local ports, or the server was faster
                continue
            refused[number] += 1

    threads = [threading.Thread(target=flood, args=[number]) for number in range(len(refused))]
    for thread in threads:
        thread.start()
    try:
        for _number in range(30):
            assert listed(daemon, "127.0.0.2") == [LOOPBACK, SERIAL]
        use(daemon, "127.0.0.2")
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    assert any(refused)
    named = [line for line in daemon.log.lines() if "127.0.0.3:" in line and " more lines like " not in line]
    assert len(named) <= BURST


# ---- the tables of single devices --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "devices",
    [
        f'busid = "{SERIAL}"',
        f'hardware_id = "{SERIAL_ID}"',
        f'busid = "{SERIAL}"\nhardware_id = "{SERIAL_ID}"',
    ],
    ids=["by port", "by hardware id", "by both"],
)
def test_a_client_sees_only_its_allowed_devices(start_daemon: StartDaemon, devices: str) -> None:
    daemon = start_daemon(DEVICES, f'[[access]]\n{devices}\nallow = ["127.0.0.1"]')
    assert listed(daemon, "127.0.0.1") == [LOOPBACK, SERIAL]
    assert listed(daemon, "127.0.0.2") == [LOOPBACK]
    with pytest.raises(RefusedError) as caught:
        client(daemon, "127.0.0.2").import_device(SERIAL)
    assert caught.value.status == ST_NODEV
    use(daemon, "127.0.0.1")


def test_a_hidden_device_gets_the_answer_of_a_missing_one(start_daemon: StartDaemon) -> None:
    """Free or in use; an allowed client gets the answer busy."""
    daemon = start_daemon(DEVICES, f'[[access]]\nbusid = "{SERIAL}"\nallow = ["127.0.0.1", "127.0.0.3"]')
    nothing = encode_import_reply(ST_NODEV, None)
    assert len(nothing) == OP_HEADER_SIZE
    assert answer_to_import(daemon, "127.0.0.2", "9-9") == nothing
    assert answer_to_import(daemon, "127.0.0.2", SERIAL) == nothing
    with client(daemon, "127.0.0.1").import_device(SERIAL) as session:
        assert answer_to_import(daemon, "127.0.0.2", SERIAL) == nothing
        assert answer_to_import(daemon, "127.0.0.3", SERIAL) not in (nothing, b"")
        assert listed(daemon, "127.0.0.2") == [LOOPBACK]
        assert session.bulk_out(ECHO_OUT, b"hello") == 5
        assert session.bulk_in(ECHO_IN, 512) == b"hello", "the one who has it has not noticed"


def test_all_matching_tables_must_allow_the_client(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(
        DEVICES,
        f"""
        [[access]]
        busid = "{SERIAL}"
        allow = ["127.0.0.1", "127.0.0.2"]
        [[access]]
        hardware_id = "{SERIAL_ID}"
        allow = ["127.0.0.2", "127.0.0.3"]
        [[access]]
        hardware_id = "{LOOPBACK_ID}"
        busid = "{SERIAL}"
        allow = ["192.0.2.1"]
        """,
    )
    assert listed(daemon, "127.0.0.1") == [LOOPBACK]
    assert listed(daemon, "127.0.0.2") == [LOOPBACK, SERIAL]
    assert listed(daemon, "127.0.0.3") == [LOOPBACK]


def test_a_table_cannot_admit_a_client_that_the_server_refuses(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(
        DEVICES, f'allow = ["127.0.0.1"]\n[[access]]\nbusid = "{SERIAL}"\nallow = ["127.0.0.0/8"]'
    )
    assert listed(daemon, "127.0.0.1") == [LOOPBACK, SERIAL]
    assert answer_to_import(daemon, "127.0.0.2", SERIAL) == b""
