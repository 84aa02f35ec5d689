"""What `doctor` finds out by itself."""

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.unit.cli.conftest import drain
from tests.unit.cli.reports import make_status
from tests.unit.cli.test_connection import hello
from usbipd import __version__, privileges
from usbipd.cli import offline_checks
from usbipd.cli.connection import ControlConnection
from usbipd.errors import ExtensionUnreachableError, UsbipdError
from usbipd.ipc.control_messages import CheckResult, CheckState, HealthResult
from usbipd.ipc.conversation import Request
from usbipd.ipc.message import Message
from usbipd.ipc.messages import IPC_VERSION, Command

Extension = Callable[..., AbstractContextManager[None]]

STORE = CheckResult(name="store", state=CheckState.WARNING, message="old")


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host on which nothing of ours is, whatever is on this one."""
    monkeypatch.setattr("usbipd.paths.state_directory", lambda: tmp_path / "state")
    monkeypatch.setattr("usbipd.paths.launch_daemon", lambda: None)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr("usbipd.cli.offline_checks.USBIP_PORT", unused.getsockname()[1])


def examine(path: Path) -> dict[str, CheckResult]:
    with ControlConnection(str(path), timeout=10) as extension:
        return {check.name: check for check in offline_checks.examine(extension)}


def states(found: dict[str, CheckResult]) -> dict[str, str]:
    return {name: check.state.value for name, check in found.items()}


def answer(request: Request) -> Message | UsbipdError:
    if request.command is Command.HEALTH:
        return HealthResult(checks=[STORE])
    return make_status([], version=__version__)


def test_an_extension_that_answers_examines_itself(extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        found = examine(socket_path)
    assert list(found) == ["extension", "permission", "store"]
    assert found["extension"].state is CheckState.OK
    assert found["store"] == STORE


def test_an_extension_that_cannot_say_how_it_is(extension: Extension, socket_path: Path) -> None:
    def half(request: Request) -> Message | UsbipdError:
        if request.command is Command.STATUS:
            return UsbipdError("libusb fails", code="libusb", advice="install it")
        return answer(request)

    with extension(half):
        found = examine(socket_path)
    assert states(found) == {"extension": "failed", "store": "warning"}
    assert found["extension"].steps == ["Install it"]


def test_an_extension_that_refuses(extension: Extension, socket_path: Path) -> None:
    with extension(lambda _request: UsbipdError("permission denied", code="not-permitted")):
        assert states(examine(socket_path)) == {"extension": "failed"}


def test_without_an_extension_the_host_is_examined(socket_path: Path) -> None:
    found = examine(socket_path)
    assert states(found) == {
        "extension": "failed",
        "runtime": "ok",
        "libusb": "ok",
        "store": "ok",
        "port": "ok",
    }
    assert len(found["extension"].steps) == 3


def test_an_extension_of_another_version(extension: Extension, socket_path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        connection.sendall(hello(IPC_VERSION + 1))
        drain(connection)

    with extension(talk=talk):
        found = examine(socket_path)
    assert found["extension"].state is CheckState.FAILED
    assert "another version" in found["extension"].message
    assert found["extension"].steps[0].startswith("Restart the extension")
    assert "libusb" in found


def test_an_extension_that_was_updated_under_the_command() -> None:
    check = offline_checks.check_extension(make_status([], version="9.9.9"))
    assert check.state is CheckState.WARNING
    assert "9.9.9" in check.message
    assert check.steps


@pytest.mark.parametrize(
    ("uid", "owner", "groups", "group", "state"),
    [
        (0, "root", [], None, CheckState.OK),
        (1000, "user 1000", [], None, CheckState.OK),  # the extension is theirs
        (1000, "root", [5, 27], 27, CheckState.OK),
        (1000, "root", [5], 27, CheckState.WARNING),
        (1000, "root", [5], None, CheckState.WARNING),
    ],
)
def test_permission(
    monkeypatch: pytest.MonkeyPatch,
    uid: int,
    owner: str,
    groups: list[int],
    group: int | None,
    state: CheckState,
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: uid)
    monkeypatch.setattr("os.getegid", lambda: 5)
    monkeypatch.setattr("os.getgroups", lambda: groups)
    monkeypatch.setattr(privileges, "admin_group", lambda: group)
    monkeypatch.setattr(privileges, "user_name", lambda number: "root" if number == 0 else f"user {number}")
    check = offline_checks.check_permission(make_status([], user=owner))
    assert check.state is state
    assert bool(check.steps) == (state is CheckState.WARNING)
    if check.steps:
        assert ("create the group" in check.steps[1]) == (group is None)


def test_a_runtime_directory_that_an_extension_makes(tmp_path: Path) -> None:
    check = offline_checks.check_runtime(tmp_path / "none" / "control.sock")
    assert check.state is CheckState.OK
    assert "does not exist" in check.message


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_a_runtime_directory_that_others_may_write(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(0o755)
    assert offline_checks.check_runtime(directory / "control.sock").state is CheckState.OK
    directory.chmod(mode)
    check = offline_checks.check_runtime(directory / "control.sock")
    assert check.state is CheckState.FAILED
    assert f"{mode:04o}" in check.message
    assert check.steps
    assert not any("emove" in step for step in check.steps), "it may be the user's own, or /tmp"


def test_a_runtime_directory_of_somebody_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = os.stat_result((stat.S_IFDIR | 0o755, 0, 0, 0, 12345, 0, 0, 0, 0, 0))
    monkeypatch.setattr(Path, "lstat", lambda _path: found)
    assert "12345" in offline_checks.check_runtime(tmp_path / "control.sock").message


def test_something_in_the_place_of_the_runtime_directory(tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.write_text("")
    assert "not a directory" in offline_checks.check_runtime(file / "control.sock").message
    check = offline_checks.check_runtime(file / "deeper" / "control.sock")
    assert check.state is CheckState.FAILED


def test_a_socket_that_was_left(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
    found = examine(socket_path)
    assert states(found)["extension"] == "failed"
    assert "was left" in found["runtime"].message


def test_a_socket_of_another_program(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        listener.listen()
        check = offline_checks.check_runtime(socket_path)
    assert check.state is CheckState.FAILED
    assert f"a program listens on {socket_path}" in check.message


def test_the_store(tmp_path: Path) -> None:
    assert "does not exist" in offline_checks.check_state().message
    directory = tmp_path / "state"
    directory.mkdir()
    assert "does not exist" in offline_checks.check_state().message
    (directory / "usbipd.sqlite").write_bytes(b"SQLite format 3\0")
    assert offline_checks.check_state().message.endswith("is readable")


def test_a_store_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "state" / "usbipd.sqlite").mkdir(parents=True)
    check = offline_checks.check_state()
    assert check.state is CheckState.FAILED
    assert check.steps


def test_no_place_for_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise UsbipdError("no home", code="bad-path", advice="choose a place with --state")

    monkeypatch.setattr("usbipd.paths.state_directory", nowhere)
    check = offline_checks.check_state()
    assert (check.state, check.steps) == (CheckState.FAILED, ("Choose a place with --state",))


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        check = offline_checks.check_port(host, port)
    assert check.state is CheckState.FAILED
    assert str(port) in check.message
    assert check.steps
    assert offline_checks.check_port(host, port).state is CheckState.OK


def test_a_port_whose_program_accepts_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is stopped is in the way, too, and the command does not wait for it."""
    monkeypatch.setattr(offline_checks, "TIMEOUT", 0.05)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _number in range(4):  # more than its queue takes
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        end = threading.Timer(5, listener.close)
        end.start()
        stack.callback(end.cancel)
        check = offline_checks.check_port(*listener.getsockname())
    assert check.state is CheckState.FAILED


@pytest.mark.parametrize(
    ("script", "state", "words"),
    [
        ("exit 0", CheckState.FAILED, "does not answer"),
        ("exit 113", CheckState.FAILED, "exit code 113"),
        (
            'test "$1 $2" = "print system/org.usbipd.extension" || exit 9',
            CheckState.FAILED,
            "does not answer",
        ),
    ],
)
def test_launchd(tmp_path: Path, script: str, state: CheckState, words: str) -> None:
    job, launchctl = tmp_path / "org.usbipd.extension.plist", tmp_path / "launchctl"
    job.write_text("")
    launchctl.write_text(f"#!/bin/sh\n{script}\n")
    launchctl.chmod(0o755)
    check = offline_checks.check_launchd(job, launchctl)
    assert check.state is state
    assert words in check.message
    assert check.steps


def test_no_launchd_job(tmp_path: Path) -> None:
    check = offline_checks.check_launchd(tmp_path / "org.usbipd.extension.plist", tmp_path / "launchctl")
    assert check.state is CheckState.WARNING
    assert "does not start by itself" in check.message


def test_launchctl_that_cannot_be_run(tmp_path: Path) -> None:
    job = tmp_path / "org.usbipd.extension.plist"
    job.write_text("")
    assert offline_checks.check_launchd(job, tmp_path / "none").state is CheckState.FAILED


def test_launchd_is_looked_at_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, socket_path: Path
) -> None:
    monkeypatch.setattr("usbipd.paths.launch_daemon", lambda: tmp_path / "org.usbipd.extension.plist")
    assert examine(socket_path)["launchd"].state is CheckState.WARNING


def test_other_reasons_bring_their_own_advice() -> None:
    error = ExtensionUnreachableError("you have no permission", code="no-permission", advice="use sudo")
    assert offline_checks.unreachable(error, "/run/usbipd/control.sock").steps == ("Use sudo",)
