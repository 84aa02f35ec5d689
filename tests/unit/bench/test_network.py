"""The emulated network of the bench: packets pass, are lost, are held.  How fast it is, no test asks."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

if sys.platform != "linux":
    pytest.skip("network namespaces are Linux's", allow_module_level=True)

from tests.bench.network import CLIENT, SERVER, Conditions, Network, build, congestion_controls


def has_namespaces() -> bool:
    """Containers have root without them, or without /dev/net/tun."""
    return (
        os.geteuid() == 0
        and os.access("/dev/net/tun", os.R_OK | os.W_OK)
        and shutil.which("ip") is not None
        and subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode == 0
    )


pytestmark = pytest.mark.skipif(
    not has_namespaces(), reason="takes root, network namespaces, /dev/net/tun and ip(8)"
)

PATIENCE: Final = 20.0
"""Seconds until a packet counts as lost that should come."""
IMPATIENCE: Final = 0.3
"""Seconds in which a packet would come that should not."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("wire")
    build(work)
    return work


def udp(address: str) -> socket.socket:
    """A socket on port 4000 of `address`."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(PATIENCE)
    made.bind((address, 4000))
    return made


class Ends:
    """A socket on each side of a network."""

    def __init__(self, network: Network) -> None:
        with network.server_side():
            self.server = udp(SERVER)
        with network.client_side():
            self.client = udp(CLIENT)

    def __enter__(self) -> "Ends":
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()
        self.client.close()

    def send(self, count: int) -> None:
        """Numbers from 0 on, from the server to the client."""
        for number in range(count):
            self.server.sendto(bytes([number]), (CLIENT, 4000))

    def receive(self, count: int) -> list[int]:
        """At the client."""
        return [self.client.recv(16)[0] for _ in range(count)]


@pytest.fixture
def ends(work: Path) -> Iterator[tuple[Network, Ends]]:
    with Network(work, Conditions(rtt_ms=20)) as network, Ends(network) as ends:
        yield network, ends


def test_packets_pass_in_both_directions_and_in_order(ends: tuple[Network, Ends]) -> None:
    _, sockets = ends
    sockets.send(100)
    assert sockets.receive(100) == list(range(100))
    sockets.client.sendto(b"answer", (SERVER, 4000))
    assert sockets.server.recvfrom(16) == (b"answer", (CLIENT, 4000))


def test_nothing_passes_when_all_is_lost(work: Path) -> None:
    with Network(work, Conditions(rtt_ms=0, loss=1)) as network, Ends(network) as sockets:
        sockets.send(100)
        sockets.client.settimeout(IMPATIENCE)
        with pytest.raises(TimeoutError):
            sockets.client.recv(16)


def test_a_stall_holds_all_packets_and_then_delivers_them(ends: tuple[Network, Ends]) -> None:
    network, sockets = ends
    start = time.monotonic()
    network.stall(200)
    sockets.send(100)
    assert sockets.receive(1) == [0]
    assert time.monotonic() - start >= 0.2  # a busy machine makes it longer, never shorter
    assert sockets.receive(99) == list(range(1, 100))


@pytest.mark.parametrize("control", ["cubic", "reno", "bbr"])
def test_tcp_has_the_congestion_control_that_was_asked_for(work: Path, control: str) -> None:
    if control not in congestion_controls():
        pytest.skip(f"this kernel has no {control}")
    with Network(work, Conditions(rtt_ms=0, congestion_control=control)) as network:
        with network.server_side():
            listener = socket.create_server((SERVER, 0))
        with listener:
            with network.client_side():
                client = socket.create_connection(listener.getsockname(), PATIENCE)
            server, _ = listener.accept()
            with client, server:
                used = {
                    end.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16) for end in (client, server)
                }
    assert {name.rstrip(b"\0").decode() for name in used} == {control}


def test_the_thread_is_back_in_its_own_namespace(ends: tuple[Network, Ends]) -> None:
    network, _ = ends
    own = Path("/proc/thread-self/ns/net").readlink()
    with network.client_side():
        inside = Path("/proc/thread-self/ns/net").readlink()
        with network.server_side():
            assert Path("/proc/thread-self/ns/net").readlink() not in (own, inside)
        assert Path("/proc/thread-self/ns/net").readlink() == inside
    assert Path("/proc/thread-self/ns/net").readlink() == own


def test_nothing_is_left_of_a_bench_that_is_killed(work: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.bench.network import *\n"
        f"with Network(Path({str(work)!r}), Conditions(rtt_ms=1)) as network:\n"
        "    print(network.pid, flush=True); sys.stdin.read()"
    )
    bench = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with bench:
        assert bench.stdout is not None
        wire = Path(f"/proc/{int(bench.stdout.readline())}")
        command = (wire / "cmdline").read_bytes()
        bench.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while wire.exists() and (wire / "cmdline").read_bytes() == command:
        assert time.monotonic() < deadline, "the emulator lives on"
        time.sleep(0.01)


@pytest.mark.parametrize("conditions", [Conditions(rtt_ms=-1), Conditions(rtt_ms=1, loss=2)])
def test_conditions_that_cannot_be_are_refused(
    work: Path, conditions: Conditions, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="no emulated network"), Network(work, conditions):
        pass
    assert "bad number" in capfd.readouterr().err
