"""The server's main: the extension's orders and the limits of its process."""

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loopback import from_other_addresses
from usbipd.addresses import parse_listen
from usbipd.errors import UsbipdError
from usbipd.ipc.blocking_channel import BlockingChannel
from usbipd.ipc.children import CHILDREN, Confinement, LogParameters, ServeParameters, ServeResult
from usbipd.ipc.messages import Command, Nothing

PATIENCE = 20.0

SERVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
from usbipd.server.process import main
{before}
sys.exit(main([]))
"""


class Server:
    """A server process, and the extension's end of its channel."""

    def __init__(self, before: str = "") -> None:
        """`before` is Python that the process runs first."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVER.format(before=before), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                text=True,
            )
        self._channel = BlockingChannel(ours, "extension", CHILDREN)

    def place_of(self, what: str) -> Path:
        """The working directory ("cwd") or the root directory ("root") of the process, as Linux names it."""
        return Path(f"/proc/{self._process.pid}/{what}").readlink()

    def serve(
        self, *, allow: list[str], log_level: str, chroot: Path | None = None, log_to: str = "stderr"
    ) -> None:
        parameters = ServeParameters(
            listen=["127.0.0.1:0"],
            allow=allow,
            max_connections=8,
            max_connections_per_address=8,
            handshake_timeout=PATIENCE,
            lost_client_timeout=120,
            send_buffer=0,
            confinement=None if chroot is None else Confinement(run_as=None, root=str(chroot)),
            log_level=log_level,
            log_to=log_to,
        )
        result = self._channel.request(Command.SERVE, parameters, ServeResult, timeout=PATIENCE)
        [self._address] = map(parse_listen, result.listening)

    def log(self, level: str) -> None:
        self._channel.request(Command.LOG, LogParameters(level=level), Nothing, timeout=PATIENCE)

    def ping(self) -> None:
        self._channel.request(Command.PING, Nothing(), Nothing, timeout=PATIENCE)

    def meet(self, source: str) -> None:
        """Send bytes that are not USB/IP until the server closes the connection."""
        connection = socket.create_connection(self._address, PATIENCE, (source, 0))
        with connection as client, contextlib.suppress(ConnectionError):
            client.sendall(b"GET / HTTP/1.1")
            assert client.recv(1) == b""

    def end(self) -> list[str]:
        """The log lines about clients."""
        self._channel.close()
        _output, log = self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0, log
        return [line for line in log.splitlines() if "127.0.0." in line]

    def close(self) -> None:
        """Close the channel, as an exiting extension does."""
        self._channel.close()

    def wait(self) -> tuple[int, str]:
        """Its exit code and log after it has exited."""
        _output, log = self._process.communicate(timeout=PATIENCE)
        return self._process.returncode, log

    def connect(self) -> None:
        """Connect and leave at once."""
        socket.create_connection(self._address, PATIENCE).close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    try:
        yield running
    finally:
        running.kill()


@from_other_addresses
def test_the_level_of_the_log_follows_the_extension(server: Server) -> None:
    server.serve(allow=[], log_level="error")
    for source, level in (("127.0.0.1", "info"), ("127.0.0.2", "error"), ("127.0.0.3", "info")):
        server.meet(source)
        server.log(level)
    server.meet("127.0.0.4")
    lines = server.end()
    assert len(lines) == 2
    assert " WARNING server[" in lines[0]
    assert "127.0.0.2:" in lines[0]
    assert "127.0.0.4:" in lines[1]


def test_it_answers_a_ping(server: Server) -> None:
    server.serve(allow=[], log_level="error")
    server.ping()
    assert server.end() == []


@from_other_addresses
def test_the_extension_sets_the_allowed_addresses(server: Server) -> None:
    server.serve(allow=["127.0.0.2"], log_level="info")
    server.meet("127.0.0.1")
    server.meet("127.0.0.2")
    refused, closed = server.end()
    assert " refused: its address is not allowed" in refused
    assert "127.0.0.2:" in closed


def test_it_exits_when_a_listener_fails() -> None:
    """The extension then starts another server."""
    broken = Server("from usbipd.server.coordinator import ServerCoordinator as C; C._admit = None")
    try:
        broken.serve(allow=[], log_level="info")
        broken.connect()
        code, log = broken.wait()
        assert code == 1
        assert re.search(r"the listener on 127\.0\.0\.1:[0-9]+ has failed", log)
    finally:
        broken.kill()


def test_unexpected_orders(server: Server) -> None:
    with pytest.raises(UsbipdError, match="the server does not accept log now"):
        server.log("debug")
    with pytest.raises(UsbipdError, match=r"write 10\.0\.0\.0/8"):
        server.serve(allow=["10.0.0.1/8"], log_level="info")
    server.serve(allow=[], log_level="info")
    with pytest.raises(UsbipdError, match="unknown log level 'loud'"):
        server.log("loud")
    with pytest.raises(UsbipdError, match="the server does not accept serve now"):
        server.serve(allow=[], log_level="info")
    assert server.end() == []


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs root's rights and /proc")
def test_nothing_outside_the_chroot_is_accessible(server: Server, tmp_path: Path) -> None:
    server.serve(allow=[], log_level="info", chroot=tmp_path)
    assert (server.place_of("root"), server.place_of("cwd")) == (tmp_path, tmp_path)
    assert server.end() == []


OPENS_A_LOG = """
import os, sys, syslog
def tell(*_arguments):
    print("the log of", os.readlink("/proc/thread-self/ns/net"), file=sys.stderr, flush=True)
syslog.openlog = tell
"""


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs root's rights and /proc")
def test_the_log_socket_is_opened_outside_the_network_of_the_host(tmp_path: Path) -> None:
    server = Server(OPENS_A_LOG)
    try:
        server.serve(allow=[], log_level="error", chroot=tmp_path, log_to="syslog")
        own = server.place_of("ns/net")
        if own == Path("/proc/self/ns/net").readlink():
            pytest.skip("no network namespace can be made here")
        server.close()
        assert server.wait() == (0, f"the log of {own}\n")
    finally:
        server.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root's rights")
def test_a_chroot_must_be_an_empty_directory(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsbipdError, match="is not empty: file"):
        server.serve(allow=[], log_level="info", chroot=tmp_path)
    assert server.end() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root's rights")
def test_a_chroot_that_does_not_exist(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UsbipdError, match=r"cannot chroot to .*/none: No such file or directory"):
        server.serve(allow=[], log_level="info", chroot=tmp_path / "none")
    assert server.end() == []


LIMITED = """
import logging, resource, sys
from usbipd.server.process import _allow_connections
logging.basicConfig(stream=sys.stdout, format="%(message)s")
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 200))
print(_allow_connections({wanted}), resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (16, ["16 (64, 200)"]),
        (128, ["128 (176, 200)"]),
        (
            4096,
            ["max_connections is 4096, but the limit of open files (ulimit -Hn) is 200", "152 (200, 200)"],
        ),
    ],
)
def test_the_limit_of_open_files_follows_max_connections(wanted: int, said: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.format(wanted=wanted)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == said
