"""The files of a control socket, where others are: of an extension that runs or was killed; none of ours."""

import socket

import pytest

from tests.unit.extension.controlled import Daemon
from tests.unit.extension.fakes import run
from usbipd.errors import UsbipdError
from usbipd.extension.control import IPCHandler
from usbipd.ipc.control_messages import ListResult
from usbipd.ipc.messages import Command, Nothing
from usbipd.paths import RuntimeFiles


async def test_a_second_extension_is_refused(daemon: Daemon) -> None:
    async with daemon.listening():
        with pytest.raises(UsbipdError, match="running already") as caught:
            daemon.new_handler().start_listener()
        assert caught.value.code == "already-running"
        other = IPCHandler(daemon.path.with_name("other.sock"), None, range(0))
        with pytest.raises(UsbipdError, match="running already") as caught:
            other.start_listener()
        assert f"`usbipd-ext --status --socket {daemon.path}` shows it" in (caught.value.advice or "")
        await daemon.ask(Command.LIST, Nothing(), ListResult)


async def test_a_pid_file_stays_as_long_as_its_extension_runs(daemon: Daemon) -> None:
    files = RuntimeFiles(daemon.path)
    async with daemon.listening():
        files.write_pid()
        files.remove_stale_pid()
        assert files.pid_file.exists()
    files.remove_stale_pid()
    assert not files.pid_file.exists()
    files.remove_stale_pid()


async def test_two_that_start_at_one_moment(daemon: Daemon) -> None:
    """The second one does not take the first one's socket for a stale one, whatever it finds there."""
    async with daemon.listening():
        daemon.path.unlink()
        with pytest.raises(UsbipdError, match="running already"):
            daemon.new_handler().start_listener()
    async with daemon.listening():
        await daemon.ask(Command.LIST, Nothing(), ListResult)
    assert not daemon.path.exists()


async def test_the_socket_of_a_killed_extension_is_replaced(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(daemon.path))
    async with daemon.listening():
        await daemon.ask(Command.LIST, Nothing(), ListResult)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_the_socket_of_another_program_stays(daemon: Daemon, kind: socket.SocketKind) -> None:
    async def test() -> None:
        with pytest.raises(UsbipdError, match=f"another program listens on {daemon.path}"):
            daemon.handler.start_listener()

    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(daemon.path))
        if kind is socket.SOCK_STREAM:
            other.listen()
        run(test())
        with socket.socket(socket.AF_UNIX, kind) as client:
            client.connect(str(daemon.path))


def test_the_socket_of_another_program_with_a_full_queue_stays(daemon: Daemon) -> None:
    async def test() -> None:
        with pytest.raises(UsbipdError, match="another program listens"):
            daemon.handler.start_listener()

    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as client:
        other.bind(str(daemon.path))
        other.listen(0)
        client.connect(str(daemon.path))
        run(test())
    assert daemon.path.is_socket()


async def test_a_file_that_is_no_socket_stays(daemon: Daemon) -> None:
    daemon.path.write_text("precious")
    with pytest.raises(UsbipdError, match="is there already and is no socket"):
        daemon.handler.start_listener()
    assert daemon.path.read_text() == "precious"
