"""The service for well-behaved clients while others flood the server.

At least 99 % of their requests are served, for every kind of flood, from one address or from as many as it
has connections.  A bystander's device stays attached, and no process exits.
"""

from collections.abc import Iterator

import pytest

from tests.client import Client, ClosedError, Session
from tests.flood import MODES, Flood
from tests.integration.conftest import NOTHING_BUT_ERRORS
from tests.integration.daemon import Daemon
from tests.loopback import FLOOD, from_other_addresses
from usbipd.protocol.constants import USB_DT_DEVICE, USB_REQ_GET_DESCRIPTOR
from usbipd.simulated.loopback import LOOPBACK_IN, LOOPBACK_OUT

pytestmark = from_other_addresses

IN_USE, *FREE = (f"240-{number}" for number in range(1, 6))
ONE = ["127.9.9.9"]
CLIENTS = 50
"""Well-behaved clients beside each flood that list the devices; as many others import one."""
MOST_REFUSED = CLIENTS * 2 // 100


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon for all floods."""
    devices = ",".join(["loopback"] * (1 + len(FREE)))
    running = Daemon(tmp_path_factory.mktemp("daemon"), devices, NOTHING_BUT_ERRORS)
    try:
        yield running
        running.stop()
    finally:
        running.kill()


@pytest.fixture(scope="module")
def bystander(daemon: Daemon) -> Iterator[Session]:
    """Holds the device that the floods import."""
    with Client(daemon.host, daemon.port, source="127.0.0.5").import_device(IN_USE) as session:
        yield session


def processes(daemon: Daemon) -> list[int]:
    return [process["pid"] for process in daemon.status()["processes"]]


def connection_errors(daemon: Daemon, client: Client, number: int) -> Iterator[Exception]:
    """List the devices and import one; returns the errors of closed connections."""
    try:
        assert len(client.devlist()) == daemon.devices
    except (ClosedError, ConnectionError) as error:
        yield error
    try:
        with client.import_device(FREE[number % len(FREE)]) as session:
            descriptor = session.control_in(0x80, USB_REQ_GET_DESCRIPTOR, USB_DT_DEVICE << 8, length=18)
            assert len(descriptor) == 18
    except (ClosedError, ConnectionError) as error:
        yield error


@pytest.mark.slow
@pytest.mark.parametrize("connections", [64, 300])
@pytest.mark.parametrize("sources", [ONE, FLOOD], ids=["one address", "many addresses"])
@pytest.mark.parametrize("mode", MODES)
def test_well_behaved_clients_are_served_beside_a_flood(
    daemon: Daemon, bystander: Session, mode: str, sources: list[str], connections: int
) -> None:
    before = processes(daemon)
    client = Client(daemon.host, daemon.port, source="127.0.0.77")
    flood = Flood(daemon.host, daemon.port, mode, connections=connections, sources=sources, busid=IN_USE)
    with flood:
        refused = [error for number in range(CLIENTS) for error in connection_errors(daemon, client, number)]
    assert len(refused) <= MOST_REFUSED, refused
    assert flood.made >= connections
    assert bystander.bulk_out(LOOPBACK_OUT, b"still here") == 10
    assert bystander.bulk_in(LOOPBACK_IN, 512) == b"still here"
    assert processes(daemon) == before
