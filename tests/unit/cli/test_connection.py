"""The control connection against an extension that is scripted, absent, old or broken, over real sockets."""

import contextlib
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.unit.cli.conftest import drain
from tests.unit.cli.reports import make_binding, make_device
from usbipd.cli.connection import ControlConnection, start_command
from usbipd.errors import ExtensionUnreachableError, UsageError, UsbipdError
from usbipd.ipc.blocking_channel import BlockingChannel
from usbipd.ipc.control_messages import PEOPLE, BindParameters, BindResult, ListResult
from usbipd.ipc.conversation import Request, response_frame
from usbipd.ipc.framing import encode_frame
from usbipd.ipc.message import Message
from usbipd.ipc.messages import IPC_VERSION, Command, EventName, Hello, Nothing, encode

Extension = Callable[..., AbstractContextManager[None]]


def hello(version: int) -> bytes:
    return encode_frame(encode(Hello(ipc_version=version, software="usbipd 9.9.9")), descriptor=False)


def ask(path: Path, timeout: float = 10.0) -> ListResult:
    with ControlConnection(str(path), timeout=timeout) as extension:
        extension.open()
        return extension.request(Command.LIST, Nothing(), ListResult)


def test_several_requests_on_one_connection(extension: Extension, socket_path: Path) -> None:
    seen: list[tuple[Command, Message]] = []

    def answer(request: Request) -> Message:
        seen.append((request.command, request.parameters))
        if request.command is Command.BIND:
            return BindResult(binding=make_binding(), devices=[make_device("3-1")])
        return ListResult(devices=[make_device("3-1")], bindings=[])

    with extension(answer), ControlConnection(str(socket_path)) as control:
        control.open()
        listed = control.request(Command.LIST, Nothing(), ListResult)
        bound = control.request(Command.BIND, BindParameters(busid="3-1"), BindResult)
    assert listed.devices == bound.devices
    assert seen == [(Command.LIST, Nothing()), (Command.BIND, BindParameters(busid="3-1"))]


def test_the_error_of_the_extension_arrives_whole(extension: Extension, socket_path: Path) -> None:
    error = UsbipdError("3-1 is busy", code="busy", advice="close it")
    with extension(lambda _request: error), pytest.raises(UsbipdError) as caught:
        ask(socket_path)
    assert (caught.value.message, caught.value.code, caught.value.advice) == (
        "3-1 is busy",
        "busy",
        "close it",
    )
    assert caught.value.exit_code == 1


def test_what_was_told_often_is_one_thing(extension: Extension, socket_path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        channel = BlockingChannel(connection, "scripted extension", PEOPLE)
        watch = channel.receive(10)
        assert isinstance(watch, Request)
        for _number in range(3):
            channel.push(EventName.CHANGED, Nothing())
        channel.respond(watch, Nothing())
        drain(connection)

    with extension(talk=talk), ControlConnection(str(socket_path), timeout=10) as control:
        control.open()
        control.request(Command.WATCH, Nothing(), Nothing)
        assert control.wait_for_events(10.0)
        assert not control.wait_for_events(0.0)


def connect_error(path: Path) -> ExtensionUnreachableError:
    with pytest.raises(ExtensionUnreachableError) as caught:
        ask(path)
    return caught.value


def test_a_path_that_is_no_socket(tmp_path: Path) -> None:
    """Also if the kernel says that we lack a right, as of a file that we may not write."""
    file = tmp_path / "file"
    file.touch(0o400)
    for path in (file, tmp_path):
        error = connect_error(path)
        assert (error.message, error.code) == (f"{path} is not a socket", "unreachable")
        assert "--socket" in (error.advice or "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use every socket")
def test_a_socket_that_we_may_not_use(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o000)
        assert connect_error(path).code == "no-permission"


def test_a_service_is_started_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usbipd.control_socket.system_runtime_directory", lambda: str(tmp_path))
    monkeypatch.setattr("usbipd.paths.systemd_unit", lambda: tmp_path / "usbipd.service")
    usual, named = tmp_path / "control.sock", tmp_path / "other.sock"
    assert start_command(str(usual)) == "`sudo systemctl start usbipd`"
    assert advice(usual).startswith("start it with `sudo systemctl start usbipd`, or name its socket")
    assert start_command(str(named)) == "`sudo usbipd-ext --run`", "the service has another socket"
    job = tmp_path / "org.usbipd.extension.plist"
    monkeypatch.setattr("usbipd.paths.launch_daemon", lambda: job)
    job.touch()
    assert start_command(str(usual)) == "`sudo launchctl kickstart system/org.usbipd.extension`"
    monkeypatch.setattr("usbipd.paths.launch_daemon", lambda: None)
    monkeypatch.setattr("usbipd.paths.systemd_unit", lambda: None)
    assert start_command(str(usual)) == "`sudo usbipd-ext --run`"


def test_a_job_that_the_user_has_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "org.usbipd.extension.plist"
    monkeypatch.setattr("usbipd.paths.launch_daemon", lambda: job)
    monkeypatch.setattr("usbipd.control_socket.system_runtime_directory", lambda: str(tmp_path))
    before, elsewhere = advice(tmp_path / "control.sock"), "start it with `sudo usbipd-ext --run`"
    job.touch()
    assert before.startswith(elsewhere), "there is no job"
    assert advice(tmp_path / "other.sock").startswith(elsewhere), "the job has another socket"
    *_first, settings, switch, enable, bootstrap, _look = advice(tmp_path / "control.sock").splitlines()
    assert "System Settings > General > Login Items & Extensions" in settings
    assert "switch usbipd on" in switch
    assert enable == "  3. Run `sudo launchctl enable system/org.usbipd.extension`."
    assert bootstrap == f"  4. Run `sudo launchctl bootstrap system {job}`."


def advice(socket_path: Path) -> str:
    with pytest.raises(ExtensionUnreachableError, match="the extension is not running") as caught:
        ask(socket_path)
    assert caught.value.advice is not None
    return caught.value.advice


def test_an_extension_that_goes_while_nothing_is_asked(extension: Extension, socket_path: Path) -> None:
    with ControlConnection(str(socket_path), timeout=10) as control:
        with extension(talk=lambda connection: connection.recv(1)):
            control.open()
        with pytest.raises(ExtensionUnreachableError) as caught:
            control.wait_for_events(10.0)
    assert caught.value.code == "gone"


def test_what_is_told_has_to_be_an_event(extension: Extension, socket_path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        BlockingChannel(connection, "scripted extension", PEOPLE)
        connection.sendall(response_frame(1, Nothing()))
        drain(connection)

    with extension(talk=talk), ControlConnection(str(socket_path), timeout=10) as control:
        control.open()
        with pytest.raises(ExtensionUnreachableError) as caught:
            control.wait_for_events(10.0)
    assert caught.value.code == "bad-message"


def test_it_may_be_opened_again(extension: Extension, socket_path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        channel = BlockingChannel(connection, "scripted extension", PEOPLE)
        request = channel.receive(10)
        assert isinstance(request, Request)
        channel.respond(request, ListResult(devices=[], bindings=[]))
        drain(connection)

    with extension(talks=[talk, talk]), ControlConnection(str(socket_path), timeout=10) as control:
        for _round in range(2):
            control.open()
            assert control.request(Command.LIST, Nothing(), ListResult).devices == []
            control.close()
            control.close()


def test_a_request_may_have_a_time_of_its_own(extension: Extension, socket_path: Path) -> None:
    with extension(talk=drain), ControlConnection(str(socket_path), timeout=10) as control:
        control.open()
        with pytest.raises(ExtensionUnreachableError, match=r"0\.05 s"):
            control.request(Command.LIST, Nothing(), ListResult, timeout=0.05)


def fails_to_ask(path: Path, code: str, timeout: float = 10.0) -> ExtensionUnreachableError:
    with pytest.raises(ExtensionUnreachableError) as caught:
        ask(path, timeout)
    assert caught.value.code == code
    assert caught.value.exit_code == 3
    assert caught.value.advice
    return caught.value


def test_no_socket(socket_path: Path) -> None:
    assert str(socket_path) in fails_to_ask(socket_path, "not-running").message


def test_a_socket_that_a_dead_extension_left(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
    fails_to_ask(socket_path, "not-running")


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_no_permission(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        listener.listen()
        for directory in (socket_path.parent, *socket_path.parent.parents):
            if directory.owner() == "root" and directory.name.startswith("pytest"):
                directory.chmod(0o755)
        socket_path.chmod(0o600)
        os.seteuid(65534)
        try:
            assert str(socket_path) in fails_to_ask(socket_path, "no-permission").message
        finally:
            os.seteuid(0)


def test_a_path_that_no_socket_can_have(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="103 bytes"):
        ask(tmp_path / ("x" * 104))


def test_an_extension_of_another_version(extension: Extension, socket_path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        connection.sendall(hello(IPC_VERSION + 1))
        drain(connection)

    with extension(talk=talk):
        error = fails_to_ask(socket_path, "version")
    assert "usbipd 9.9.9" in error.message


def test_an_extension_of_another_version_that_has_closed_already(
    extension: Extension, socket_path: Path
) -> None:
    closed = []

    def talk(connection: socket.socket) -> None:
        connection.sendall(hello(IPC_VERSION + 1))
        connection.recv(4096)
        closed.append(True)

    with ControlConnection(str(socket_path), timeout=10) as control:
        with extension(talk=talk):
            control.open()
        assert closed  # and only now the request is sent
        with pytest.raises(ExtensionUnreachableError, match=r"usbipd 9\.9\.9"):
            control.request(Command.LIST, Nothing(), ListResult)


@pytest.mark.parametrize("said", [b"", hello(IPC_VERSION)[:7], hello(IPC_VERSION)])
def test_an_extension_that_closes(extension: Extension, socket_path: Path, said: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        drain(connection)

    with extension(talk=talk):
        fails_to_ask(socket_path, "gone")


def test_an_extension_that_goes_before_the_hello(socket_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(socket_path))
    listener.listen()
    connections = []

    class Connection(socket.socket):
        def connect(self, address: object) -> None:
            super().connect(address)  # type: ignore[arg-type]
            listener.close()
            connections.append(self)

    monkeypatch.setattr(socket, "socket", Connection)
    fails_to_ask(socket_path, "gone")
    assert [connection.fileno() for connection in connections] == [-1]


def test_an_extension_that_accepts_no_connection(socket_path: Path) -> None:
    """Linux says at once that the queue is full, macOS refuses; a command does not hang."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(socket_path))
        listener.listen(0)
        for _number in range(4):  # more than the queue takes
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            waiting.connect_ex(str(socket_path))
        end = threading.Timer(5, listener.close)
        end.start()
        stack.callback(end.cancel)
        fails_to_ask(socket_path, "busy" if sys.platform == "linux" else "not-running", timeout=0.05)


def test_an_extension_that_says_nothing(extension: Extension, socket_path: Path) -> None:
    with extension(talk=drain):
        assert "0.05 s" in fails_to_ask(socket_path, "timeout", timeout=0.05).message


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "bad-frame"),
        (struct.pack(">IB", 4, 0) + b"\xc1\xc1\xc1\xc1", "bad-message"),
    ],
)
def test_something_else_answers(extension: Extension, socket_path: Path, said: bytes, code: str) -> None:
    def talk(connection: socket.socket) -> None:
        connection.sendall(said)
        drain(connection)

    with extension(talk=talk):
        fails_to_ask(socket_path, code)
