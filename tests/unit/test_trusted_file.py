"""Paths that root trusts: only files that no other user can replace or change."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from usbipd.config import load
from usbipd.errors import UsageError
from usbipd.privileges import GROUPS_OF_ROOT
from usbipd.trusted_file import UntrustedError, open_trusted

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")

ANNA = 54321
"""A user, and a group, without a name."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file in a directory of a directory, which only we can change."""
    directory = tmp_path / "above" / "own"
    directory.mkdir(parents=True)
    path = directory / "file"
    path.write_text("listen = ['127.0.0.1']\n")
    return path


def read(path: Path, *, every_directory: bool = True) -> str:
    before = set(os.listdir("/dev/fd"))  # noqa: PTH208
    try:
        descriptor = open_trusted(path, os.O_RDONLY | os.O_NOFOLLOW, every_directory=every_directory)
        assert not os.get_inheritable(descriptor)
        with os.fdopen(descriptor) as opened:
            return opened.read()
    finally:
        assert set(os.listdir("/dev/fd")) == before, "no descriptor is left"  # noqa: PTH208


def test_a_file_that_only_we_can_change(file: Path, tmp_path: Path) -> None:
    assert read(file) == file.read_text()
    (tmp_path / "link").symlink_to("above/../above/./own")
    (tmp_path / "absolute").symlink_to(tmp_path / "link")
    assert read(tmp_path / "absolute" / "file") == file.read_text()
    assert read(tmp_path / "link" / ".." / "own" / "file") == file.read_text()


def test_what_cannot_be_opened(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        read(link)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        read(loop / "file")
    for path in (tmp_path / "none", tmp_path / "none" / "file"):
        with pytest.raises(FileNotFoundError):
            read(path)
    with pytest.raises(NotADirectoryError):
        read(file / "file")
    with pytest.raises(IsADirectoryError):
        open_trusted(tmp_path / "above", os.O_WRONLY)


def theirs(path: Path) -> None:
    os.chown(path, ANNA, 0)


def their_groups(path: Path) -> None:
    os.chown(path, 0, ANNA)
    path.chmod(0o775)


def of_roots_group(path: Path) -> None:
    """As with an ACL for another user, whose mask replaces the group's permissions."""
    os.chown(path, 0, 0)
    path.chmod(0o775)


def everybodys(path: Path) -> None:
    path.chmod(0o777)


CHANGES = [
    (theirs, f"belongs to {ANNA}"),
    (their_groups, f"may be written by the group {ANNA}"),
    pytest.param(
        of_roots_group,
        "may be written by the group root",
        marks=pytest.mark.skipif(0 in GROUPS_OF_ROOT, reason="the members of that group may become root"),
    ),
    (everybodys, "may be written by every user"),
]


@as_root
@pytest.mark.parametrize("which", ["file", "own", "above"])
@pytest.mark.parametrize(("change", "who"), CHANGES)
def test_the_user_who_could_change_it_is_named(
    file: Path, which: str, change: Callable[[Path], None], who: str
) -> None:
    path = {"file": file, "own": file.parent, "above": file.parent.parent}[which]
    change(path)
    with pytest.raises(UntrustedError, match=re.escape(f"{path} {who}")):
        read(file)
    if which == "above":
        assert read(file, every_directory=False) == file.read_text()
    else:
        with pytest.raises(UntrustedError):
            read(file, every_directory=False)


@as_root
def test_a_group_that_can_become_root_is_trusted(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Mac /Library/Application Support may be writable by `admin`."""
    their_groups(file.parent)
    monkeypatch.setattr("usbipd.trusted_file.GROUPS_OF_ROOT", frozenset({0, ANNA}))
    assert read(file) == file.read_text()


@as_root
def test_a_sticky_directory_is_trusted(file: Path) -> None:
    file.parent.parent.chmod(0o1777)
    assert read(file) == file.read_text()
    os.chown(file.parent, ANNA, 0)
    with pytest.raises(UntrustedError, match=f"own belongs to {ANNA}"):
        read(file)


@as_root
def test_a_link_of_another_user_is_not_followed(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file.parent)
    assert read(link / "file") == file.read_text()
    os.chown(link, ANNA, 0, follow_symlinks=False)
    with pytest.raises(UntrustedError, match=f"link belongs to {ANNA}"):
        read(link / "file")


@as_root
@pytest.mark.parametrize("every_directory", [True, False])
def test_a_link_in_a_directory_of_another_user_is_not_followed(
    file: Path, tmp_path: Path, *, every_directory: bool
) -> None:
    """Even if root created it: the owner of the directory may have moved it there."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "link").symlink_to(file.parent)
    os.chown(home, ANNA, 0)
    with pytest.raises(UntrustedError, match=f"home belongs to {ANNA}"):
        read(home / "link" / "file", every_directory=every_directory)


@as_root
def test_a_device_is_not_a_configuration() -> None:
    with pytest.raises(UsageError, match="/dev/null: not a regular file"):
        load(Path("/dev/null"))


@as_root
def test_the_configuration_is_root_s(file: Path) -> None:
    assert load(file).listen == ("127.0.0.1",)
    os.chown(file.parent.parent, ANNA, 0)
    with pytest.raises(UsageError) as caught:
        load(file)
    why = f"refusing to read it: {file.parent.parent} belongs to {ANNA}"
    assert caught.value.message == f"{file}: {why}"
    assert caught.value.code == "bad-config"
    assert "usbipd.toml" in (caught.value.advice or "")
    assert str(file.parent) not in (caught.value.advice or ""), "it is not our directory"
