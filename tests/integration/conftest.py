"""Daemons, clients, and a bystander whose session the others must not disturb."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.client import Client, Session
from tests.integration.daemon import Daemon

HANDSHAKE_TIMEOUT = 2.0
"""Seconds; short, to keep its tests short."""

CONFIG = f"""\
log_level = "debug"  # at which no line is left out
[limits]
handshake_timeout = {HANDSHAKE_TIMEOUT}
"""

NOTHING_BUT_ERRORS = 'log_level = "error"'
"""A configuration for tests in which strangers cause thousands of log lines."""

NOTIFICATION_IN, ECHO_IN, ECHO_OUT = 0x82, 0x81, 0x01
"""Endpoints of the simulated serial port."""

StartDaemon = Callable[..., Daemon]
Attach = Callable[..., Session]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with one of each simulated device, for all tests of a module."""
    running = Daemon(tmp_path_factory.mktemp("daemon"), config=CONFIG)
    try:
        yield running
        running.stop()
    finally:
        running.kill()


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[StartDaemon]:
    """Starts a daemon for one test: `start_daemon("loopback,loopback")`."""
    started: list[Daemon] = []

    def start(simulate: str, config: str = "", *options: str) -> Daemon:
        directory = tmp_path / str(len(started))
        directory.mkdir()
        started.append(Daemon(directory, simulate, config, *options))
        return started[-1]

    try:
        yield start
        for each in started:
            each.stop()
    finally:
        for each in started:
            each.kill()


@pytest.fixture
def client(daemon: Daemon) -> Client:
    """A client of the daemon."""
    return Client(daemon.host, daemon.port)


@pytest.fixture
def attach(daemon: Daemon, client: Client) -> Iterator[Attach]:
    """Attaches a simulated device by its name for one test: `attach("loopback")`."""
    sessions: list[Session] = []

    def attach_device(name: str) -> Session:
        sessions.append(client.import_device(daemon.busid(name)))
        return sessions[-1]

    yield attach_device
    for session in sessions:
        session.close()


class Bystander:
    """A client that echoes through the serial port and waits for a notification that never comes."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._turn = 0
        self._waiting = session.submit(NOTIFICATION_IN, length=16, interval=8)

    def check(self) -> None:
        """Fails if the session was disturbed."""
        self._turn += 1
        text = f"turn {self._turn}".encode()
        assert self._session.bulk_out(ECHO_OUT, text) == len(text)
        assert self._session.bulk_in(ECHO_IN, 512) == text
        assert self._session.replies == {}

    def leave(self) -> None:
        """The end of its session."""
        assert self._session.unlink(self._waiting) == -104
        self._session.close()


@pytest.fixture
def bystander(daemon: Daemon, client: Client) -> Iterator[Bystander]:
    """Another client with another device, which the test must not disturb."""
    with client.import_device(daemon.busid("serial")) as session:
        at_work = Bystander(session)
        at_work.check()
        yield at_work
        at_work.check()
        assert len(client.devlist()) == daemon.devices
        at_work.leave()
