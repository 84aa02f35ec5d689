"""Directories and files: their paths, that no other user can write them, that none is left."""

import errno
import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from usbipd import paths
from usbipd.errors import UsbipdError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root's daemon has an empty root directory")


@pytest.fixture
def files(tmp_path: Path) -> paths.RuntimeFiles:
    return paths.RuntimeFiles(tmp_path / "run" / "control.sock")


def test_created_files_are_removed(files: paths.RuntimeFiles) -> None:
    assert files.prepare()
    files.prepare_chroot()
    mode = stat.S_IMODE(files.directory.stat().st_mode)
    assert mode == (0o755 if os.geteuid() == 0 else 0o700)
    files.remove(made=True)
    assert not files.directory.exists()


def test_a_directory_that_existed_before_stays(files: paths.RuntimeFiles) -> None:
    files.directory.mkdir(0o700)
    assert not files.prepare()
    files.prepare_chroot()
    files.remove(made=False)
    assert list(files.directory.iterdir()) == []


def test_the_pid_file_has_our_pid_and_is_removed(files: paths.RuntimeFiles) -> None:
    files.prepare()
    files.pid_file.write_text("a longer one that was left behind\n")
    files.write_pid()
    assert files.pid_file == files.directory / "control.pid"
    assert files.pid_file.read_text() == f"{os.getpid()}\n"
    assert stat.S_IMODE(files.pid_file.stat().st_mode) == 0o644
    files.remove(made=True)
    assert not files.directory.exists()


def test_the_pid_file_is_readable_with_any_umask(files: paths.RuntimeFiles) -> None:
    files.prepare()
    before = os.umask(0o077)
    try:
        files.write_pid()
    finally:
        os.umask(before)
    assert stat.S_IMODE(files.pid_file.stat().st_mode) == 0o644


def test_a_pid_file_that_cannot_be_written(files: paths.RuntimeFiles) -> None:
    files.prepare()
    files.pid_file.mkdir()
    with pytest.raises(UsbipdError, match=r"control\.pid: Is a directory"):
        files.write_pid()


def test_files_of_others_stay(files: paths.RuntimeFiles) -> None:
    files.prepare()
    other = files.directory / "other"
    other.touch()
    files.remove(made=True)
    assert other.exists()


def test_preparing_twice_is_not_an_error(files: paths.RuntimeFiles) -> None:
    files.prepare()
    files.prepare()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_directory_that_others_can_write_is_refused(files: paths.RuntimeFiles, mode: int) -> None:
    files.directory.mkdir()
    files.directory.chmod(mode)
    with pytest.raises(UsbipdError, match="may be written by another user"):
        files.prepare()


@as_root
def test_a_directory_of_another_user_is_refused(files: paths.RuntimeFiles) -> None:
    files.directory.mkdir()
    os.chown(files.directory, 1000, 1000)
    with pytest.raises(UsbipdError, match="uid 1000"):
        files.prepare()


def test_a_link_is_not_a_directory(files: paths.RuntimeFiles, tmp_path: Path) -> None:
    files.directory.symlink_to(tmp_path)
    with pytest.raises(UsbipdError, match="is not a directory"):
        files.prepare()


def test_a_place_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsbipdError, match="No such file or directory"):
        paths.RuntimeFiles(tmp_path / "no" / "such" / "control.sock").prepare()


def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
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


HOME = Path("/home/alice")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of user 1000 in the user database, as which this process runs; $HOME differs."""
    entry = pwd.struct_passwd(("alice", "x", 1000, 1000, "", str(HOME), "/bin/sh"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(pwd, "getpwuid", {1000: entry}.__getitem__)
    monkeypatch.setenv("HOME", "/root")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    return HOME


@pytest.mark.parametrize(
    ("platform", "state", "config", "job"),
    [
        ("linux", "/var/lib/usbipd", "/etc/usbipd/usbipd.toml", None),
        (
            "darwin",
            "/Library/Application Support/usbipd",
            "/Library/Application Support/usbipd/usbipd.toml",
            "/Library/LaunchDaemons/org.usbipd.extension.plist",
        ),
    ],
)
def test_the_state_of_roots_daemon_has_fixed_paths(
    monkeypatch: pytest.MonkeyPatch, platform: str, state: str, config: str, job: str | None
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_STATE_HOME", "/home/alice/state")
    monkeypatch.setenv("HOME", "/home/alice")
    assert paths.state_directory() == Path(state)
    assert paths.config_file() == Path(config)
    assert paths.launch_daemon() == (None if job is None else Path(job))


@pytest.mark.parametrize(
    ("platform", "session", "place"),
    [
        ("linux", None, "/home/alice/.local/state/usbipd"),
        ("linux", "", "/home/alice/.local/state/usbipd"),
        ("linux", "relative", "/home/alice/.local/state/usbipd"),
        ("linux", "/data/state", "/data/state/usbipd"),
        ("darwin", None, "/home/alice/Library/Application Support/usbipd"),
    ],
)
@pytest.mark.usefixtures("home")
def test_a_user_keeps_state_at_home(
    monkeypatch: pytest.MonkeyPatch, platform: str, session: str | None, place: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    if session is not None:
        monkeypatch.setenv("XDG_STATE_HOME", session)
    assert paths.state_directory() == Path(place)


@pytest.mark.usefixtures("home")
def test_an_unknown_user_has_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1001)
    with pytest.raises(UsbipdError, match="no entry for uid 1001") as caught:
        paths.state_directory()
    assert "--state" in (caught.value.advice or "")


def test_a_state_directory_is_created_with_its_parents(tmp_path: Path) -> None:
    directory = tmp_path / "one" / "two" / "usbipd"
    before = os.umask(0)
    try:
        paths.prepare_state_directory(directory)
        paths.prepare_state_directory(directory)
    finally:
        os.umask(before)
    for made in (directory, directory.parent, directory.parent.parent):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_state_directory_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(UsbipdError, match="may be written by another user") as caught:
        paths.prepare_state_directory(tmp_path)
    assert caught.value.advice == "choose another place with --state, in a directory that only you can change"


@pytest.mark.parametrize("what", ["a file", "of others", "not empty"])
def test_no_advice_changes_a_directory_that_may_belong_to_others(tmp_path: Path, what: str) -> None:
    """--socket may name any file: that of /tmp/x.sock is /tmp."""
    directory = tmp_path / "directory"
    files = paths.RuntimeFiles(directory / "x.sock")
    if what == "a file":
        directory.touch()
    else:
        directory.mkdir()
        directory.chmod(0o1777 if what == "of others" else 0o755)
        (directory / paths.CHROOT / "kept").mkdir(parents=True)
    if what == "not empty" and os.geteuid() != 0:
        pytest.skip("only root's server has a chroot")
    if what == "not empty":
        files.prepare()
    with pytest.raises(UsbipdError) as caught:
        (files.prepare_chroot if what == "not empty" else files.prepare)()
    assert caught.value.advice is not None
    assert str(tmp_path) not in caught.value.advice
    assert caught.value.advice.startswith("choose another place with --socket")


def test_a_state_directory_that_others_can_read_is_accepted(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    paths.prepare_state_directory(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


@as_root
def test_a_state_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 1000, 1000)
    with pytest.raises(UsbipdError, match="uid 1000"):
        paths.prepare_state_directory(tmp_path)


PREPARE = [
    pytest.param(lambda path: paths.prepare_state_directory(path), id="state"),
    pytest.param(lambda path: paths.RuntimeFiles(path / "control.sock").prepare(), id="runtime"),
]
on_linux = pytest.mark.skipif(sys.platform == "darwin", reason="/var/run may be writable by a group there")


@as_root
@on_linux
@pytest.mark.parametrize("prepare", PREPARE)
@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("change", ["owner", "group", "mode", "link"])
def test_root_refuses_one_below_a_directory_of_another_user(
    tmp_path: Path, prepare: Callable[[Path], None], change: str, *, is_there: bool
) -> None:
    theirs = tmp_path / "theirs"
    directory = theirs / "between" / "usbipd"
    directory.parent.mkdir(parents=True)
    if is_there:
        directory.mkdir(0o700)
    match change:
        case "owner":
            os.chown(theirs, 1000, 1000)
        case "group":
            os.chown(theirs, 0, 1000)
            theirs.chmod(0o775)
        case "mode":
            theirs.chmod(0o777)
        case "link":
            (tmp_path / "link").symlink_to(theirs)
            os.chown(tmp_path / "link", 1000, 1000, follow_symlinks=False)
            directory = tmp_path / "link" / "between" / "usbipd"
    with pytest.raises(UsbipdError, match="another user can replace this directory:") as caught:
        prepare(directory)
    assert caught.value.code == "bad-path"
    assert caught.value.advice is not None
    assert "in a directory that only you can change" in caught.value.advice
    assert directory.exists() == is_there


@pytest.mark.parametrize("prepare", PREPARE)
def test_a_sticky_directory_above_and_a_link_of_ours_do_no_harm(
    tmp_path: Path, prepare: Callable[[Path], None]
) -> None:
    (tmp_path / "sticky").mkdir()
    (tmp_path / "sticky").chmod(0o1777)
    (tmp_path / "link").symlink_to("sticky")
    prepare(tmp_path / "link" / "usbipd")
    prepare(tmp_path / "link" / "usbipd")
    assert (tmp_path / "sticky" / "usbipd").is_dir()


@as_root
def test_a_directory_right_below_the_root(tmp_path: Path) -> None:
    """In a process with another root directory."""
    program = (
        "import os, sys; from pathlib import Path; from usbipd import paths; os.chroot(sys.argv[1]);"
        "paths.prepare_state_directory(Path('/state')); paths.RuntimeFiles(Path('/control.sock')).prepare()"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


@pytest.mark.parametrize("prepare", PREPARE)
def test_a_link_in_the_place_of_a_new_directory_is_not_followed(
    tmp_path: Path, prepare: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, other = tmp_path / "usbipd", tmp_path / "other"
    other.mkdir(0o770)
    other.chmod(0o770)
    make = os.mkdir

    def make_and_lose(path: str, mode: int, *, dir_fd: int | None = None) -> None:
        make(path, mode, dir_fd=dir_fd)
        directory.rmdir()
        directory.symlink_to(other)

    monkeypatch.setattr(os, "mkdir", make_and_lose)
    with pytest.raises(UsbipdError, match=r"ot a directory|Too many levels of symbolic links"):
        prepare(directory)
    assert stat.S_IMODE(other.stat().st_mode) == 0o770


@pytest.mark.parametrize("below", ["usbipd", "more/usbipd"])
def test_a_state_directory_below_a_file(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsbipdError, match=r"Not a directory|is not a directory"):
        paths.prepare_state_directory(tmp_path / "file" / below)


def test_a_directory_without_search_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(UsbipdError, match="Permission denied") as caught:
        paths.prepare_state_directory(tmp_path / "usbipd")
    assert caught.value.advice == "choose another place with --state"


def test_a_unit_counts_only_if_systemd_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    booted, units = tmp_path / "booted", tmp_path / "units"
    monkeypatch.setattr(paths, "_SYSTEMD_RUNS", str(booted))
    monkeypatch.setattr(paths, "_UNIT_DIRECTORIES", (str(tmp_path / "none"), str(units)))
    units.mkdir()
    (units / "usbipd.service").touch()
    assert paths.systemd_unit() is None
    booted.mkdir()
    assert paths.systemd_unit() == units / "usbipd.service"
    (units / "usbipd.service").unlink()
    assert paths.systemd_unit() is None


def test_a_pid_file_of_another_user_stays(tmp_path: Path) -> None:
    directory = tmp_path / "everybody's"
    directory.mkdir()
    directory.chmod(0o777)
    files = paths.RuntimeFiles(directory / "control.sock")
    files.write_pid()
    files.remove_stale_pid()
    assert files.pid_file.exists(), "others may write there"
    directory.chmod(0o700)
    files.pid_file.unlink()
    files.pid_file.mkdir()
    files.remove_stale_pid()
    assert files.pid_file.exists(), "no file"
    paths.RuntimeFiles(Path("/")).remove_stale_pid()
