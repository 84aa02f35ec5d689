"""Runtime directories: where they are, that nobody else can write them, that nothing is left."""

import os
import stat
import tempfile
from pathlib import Path

import pytest

from usbipd import paths
from usbipd.errors import UsbipdError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root's daemon has an empty root directory")


@pytest.fixture
def files(tmp_path: Path) -> paths.RuntimeFiles:
    return paths.RuntimeFiles(tmp_path / "run" / "control.sock")


def test_root_has_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/home/somebody")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert paths.runtime_directory() == paths.system_runtime_directory()


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
    assert paths.runtime_directory() == tmp_path / "usbipd"


@as_root
def test_after_su_the_directory_of_the_session_is_another_users(user: int, tmp_path: Path) -> None:
    os.chown(tmp_path, user + 1, -1)
    assert paths.runtime_directory() == Path(tempfile.gettempdir(), f"usbipd-{user}")


@pytest.mark.parametrize("session", ["", "relative", "/no/such/directory"])
def test_a_user_without_a_session_has_a_private_one(monkeypatch: pytest.MonkeyPatch, session: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", session)
    assert paths.runtime_directory() == Path(tempfile.gettempdir(), "usbipd-1000")


def test_the_own_daemon_is_asked_before_roots(user: int, tmp_path: Path) -> None:
    assert paths.control_socket() == paths.system_runtime_directory() / "control.sock"
    (tmp_path / "usbipd").mkdir()
    own = tmp_path / "usbipd" / "control.sock"
    own.touch()
    os.chown(own, user, -1)
    assert paths.control_socket() == own


@as_root
def test_what_somebody_else_put_in_our_place_is_not_asked(user: int, tmp_path: Path) -> None:
    (tmp_path / "usbipd").mkdir()
    trap = tmp_path / "usbipd" / "control.sock"
    trap.touch()
    os.chown(trap, user + 1, -1)
    assert paths.control_socket() == paths.system_runtime_directory() / "control.sock"


def test_what_is_made_is_removed(files: paths.RuntimeFiles) -> None:
    files.prepare()
    files.prepare_chroot()
    mode = stat.S_IMODE(files.directory.stat().st_mode)
    assert mode == (0o755 if os.geteuid() == 0 else 0o700)
    files.remove()
    assert not files.directory.exists()


def test_what_is_not_ours_stays(files: paths.RuntimeFiles) -> None:
    files.prepare()
    other = files.directory / "other"
    other.touch()
    files.remove()
    assert other.exists()


def test_preparing_twice_is_no_error(files: paths.RuntimeFiles) -> None:
    files.prepare()
    files.prepare()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_directory_that_others_may_write_is_refused(files: paths.RuntimeFiles, mode: int) -> None:
    files.directory.mkdir()
    files.directory.chmod(mode)
    with pytest.raises(UsbipdError, match="may be written by another user"):
        files.prepare()


@as_root
def test_a_directory_of_somebody_else_is_refused(files: paths.RuntimeFiles) -> None:
    files.directory.mkdir()
    os.chown(files.directory, 1000, 1000)
    with pytest.raises(UsbipdError, match="uid 1000"):
        files.prepare()


def test_a_link_is_no_directory(files: paths.RuntimeFiles, tmp_path: Path) -> None:
    files.directory.symlink_to(tmp_path)
    with pytest.raises(UsbipdError, match="is not a directory"):
        files.prepare()


def test_a_place_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsbipdError, match="No such file or directory"):
        paths.RuntimeFiles(tmp_path / "no" / "such" / "control.sock").prepare()


def test_a_path_that_no_socket_can_have(tmp_path: Path) -> None:
    with pytest.raises(UsbipdError, match="103 bytes"):
        paths.RuntimeFiles(tmp_path / ("x" * 100) / "control.sock").prepare()


@as_root
def test_the_servers_root_directory_is_empty(files: paths.RuntimeFiles) -> None:
    files.prepare()
    files.prepare_chroot()
    assert stat.S_IMODE(files.chroot.stat().st_mode) == 0o755
    (files.chroot / "something").touch()
    with pytest.raises(UsbipdError, match="is not empty"):
        files.prepare_chroot()
