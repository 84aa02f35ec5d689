"""The path of the control socket; a socket of another user is never used instead."""

import os
from pathlib import Path

import pytest

from usbipd import control_socket

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


def test_root_has_a_fixed_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/home/somebody")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert control_socket.runtime_directory() == control_socket.system_runtime_directory()


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> int:
    """An unprivileged user, whose session directory is `tmp_path`."""
    uid = os.geteuid() or 1000
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    os.chown(tmp_path, uid, -1)
    return uid


@pytest.mark.usefixtures("user")
def test_a_user_has_the_directory_of_the_session(tmp_path: Path) -> None:
    assert control_socket.runtime_directory() == str(tmp_path / "usbipd")


@as_root
def test_after_su_the_session_directory_belongs_to_another_user(
    user: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(tmp_path, user + 1, -1)
    monkeypatch.delenv("TMPDIR", raising=False)
    assert control_socket.runtime_directory() == f"/tmp/usbipd-{user}"


@pytest.mark.parametrize("session", ["", "relative", "/no/such/directory"])
@pytest.mark.parametrize(
    ("temporary", "directory"),
    [
        ("/var/folders/zz/T/", "/var/folders/zz/T/usbipd-1000"),  # as on macOS
        ("", "/tmp/usbipd-1000"),
        ("relative", "/tmp/usbipd-1000"),
    ],
)
def test_a_user_without_a_session_has_a_private_one(
    monkeypatch: pytest.MonkeyPatch, session: str, temporary: str, directory: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", session)
    monkeypatch.setenv("TMPDIR", temporary)
    assert control_socket.runtime_directory() == directory


def test_the_users_daemon_takes_precedence_over_roots(user: int, tmp_path: Path) -> None:
    assert control_socket.usual_control_socket() == control_socket.system_control_socket()
    (tmp_path / "usbipd").mkdir()
    own = tmp_path / "usbipd" / "control.sock"
    own.touch()
    os.chown(own, user, -1)
    assert control_socket.usual_control_socket() == str(own)


@as_root
def test_a_socket_of_another_user_in_our_place_is_ignored(user: int, tmp_path: Path) -> None:
    (tmp_path / "usbipd").mkdir()
    trap = tmp_path / "usbipd" / "control.sock"
    trap.touch()
    os.chown(trap, user + 1, -1)
    assert control_socket.usual_control_socket() == control_socket.system_control_socket()
