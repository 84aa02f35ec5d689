"""Finding, verifying and patching the source of our libusb; tests/mac tests the patches."""

import hashlib
import io
import re
import shutil
import tarfile
from pathlib import Path
from typing import Final

import libusb_source
import pytest
from libusb_source import SourceError, unpack

ROOT: Final = Path(__file__).parents[3]
PATCH: Final = """Reason    none

--- a/libusb/version.h
+++ b/libusb/version.h
@@ -1,3 +1,3 @@
 first
-second
+patched
 third
"""


@pytest.fixture(autouse=True)
def without_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LIBUSB_SOURCE", raising=False)
    monkeypatch.setattr(libusb_source, "BUILD", tmp_path / "build")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A minimal imitation of libusb's source."""
    tree = tmp_path / "libusb-9.9.9"
    (tree / "libusb/os").mkdir(parents=True)
    (tree / "libusb/os/darwin_usb.c").write_text("/* darwin */\n")
    (tree / "libusb/version.h").write_text("a line before\nfirst\nsecond\nthird\n")
    return tree


needs_patch = pytest.mark.skipif(shutil.which("patch") is None, reason="patch(1) is missing")


@pytest.fixture
def patched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of test patches, used instead of packaging/libusb."""
    directory = tmp_path / "patches"
    directory.mkdir()
    (directory / "0001-second.patch").write_text(PATCH)
    monkeypatch.setattr(libusb_source, "HERE", directory)
    return directory


def archive_of(tree: Path) -> Path:
    archive = tree.with_suffix(".tar.bz2")
    with tarfile.open(archive, "w:bz2") as file:
        file.add(tree, tree.name)
    return archive


@needs_patch
def test_an_archive_is_unpacked_and_patched(
    tree: Path, patched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(tree)
    monkeypatch.setitem(libusb_source.KNOWN, hashlib.sha256(archive.read_bytes()).hexdigest(), "9.9.9")
    target = tmp_path / "target"
    target.mkdir()
    (target / "left by an earlier build").touch()
    assert unpack(target, patched=True, source=archive) == target
    assert (target / "libusb/version.h").read_text() == "a line before\nfirst\npatched\nthird\n"
    assert not (target / "left by an earlier build").exists()
    unpack(target, patched=False, source=archive)
    assert (target / "libusb/version.h").read_text() == "a line before\nfirst\nsecond\nthird\n"


def test_an_unknown_archive_is_not_unpacked(tree: Path, tmp_path: Path) -> None:
    archive = archive_of(tree)
    with pytest.raises(
        SourceError, match=rf"not a known release of libusb: its SHA-256 is {'[0-9a-f]' * 64}$"
    ):
        unpack(tmp_path / "target", patched=False, source=archive)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("name", ["../../outside", "/outside"])
def test_an_archive_cannot_write_elsewhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "bad.tar.bz2"
    with tarfile.open(archive, "w:bz2") as file:
        member = tarfile.TarInfo(name)
        file.addfile(member, io.BytesIO())
    monkeypatch.setitem(libusb_source.KNOWN, hashlib.sha256(archive.read_bytes()).hexdigest(), "9.9.9")
    with pytest.raises(SourceError, match="outside is neither"):
        unpack(tmp_path / "deep/er/target", patched=False, source=archive)
    assert not (tmp_path / "deep/outside").exists()


@needs_patch
def test_a_patch_that_does_not_apply(tree: Path, patched: Path, tmp_path: Path) -> None:
    (tree / "libusb/version.h").write_text("first\nanother second\nthird\n")
    with pytest.raises(SourceError, match=r"0001-second\.patch does not apply"):
        unpack(tmp_path / "target", patched=True, source=tree)


def test_a_directory_that_is_not_libusb(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(SourceError, match=r"is not libusb's source"):
        unpack(tmp_path / "target", patched=False, source=tmp_path / "other")


def test_the_environment_names_the_source(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBUSB_SOURCE", str(tree))
    unpack(tmp_path / "target", patched=False)
    assert (tmp_path / "target/libusb/os/darwin_usb.c").exists()
    assert libusb_source.for_tests() == tree
    monkeypatch.setenv("LIBUSB_SOURCE", str(tmp_path / "nothing"))
    with pytest.raises(SourceError, match=r"LIBUSB_SOURCE=.*nothing does not exist"):
        libusb_source.for_tests()


@pytest.mark.parametrize("system", ["Debian", "another one with apt", "one without apt"])
def test_tests_use_the_archive_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    """apt-get is a script that answers as Debian's does, and writes the archive to its working directory."""
    apt = tmp_path / "apt-get"
    mirror = "echo http://deb.example/debian" if system == "Debian" else "true"
    archive = libusb_source.DEBIAN_ARCHIVE
    apt.write_text(f'#!/bin/sh\ncase "$*" in indextargets*) {mirror} ;; *" source "*) : >{archive} ;; esac\n')
    apt.chmod(0o644 if system == "one without apt" else 0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(libusb_source, "upstream", lambda: Path("upstream"))
    found = libusb_source.for_tests()
    if system == "Debian":
        assert found == tmp_path / "build/debian" / archive
        assert "http://deb.example/debian trixie main" in (found.parent / "sources.list").read_text()
        apt.unlink()
        assert libusb_source.debian("http://other.example") == found, "it is kept"
    else:
        assert found == Path("upstream")


def test_upstreams_archive_is_fetched_once_and_checked(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(tree)
    monkeypatch.setattr(libusb_source, "URL", archive.as_uri())
    with pytest.raises(SourceError, match="not a known release"):
        libusb_source.upstream()
    monkeypatch.setitem(libusb_source.KNOWN, hashlib.sha256(archive.read_bytes()).hexdigest(), "9.9.9")
    kept = libusb_source.upstream()
    archive.unlink()
    assert libusb_source.upstream() == kept
    kept.unlink()
    with pytest.raises(SourceError, match="cannot be fetched"):
        libusb_source.upstream()


def test_the_version_matches_the_release_and_the_last_patch() -> None:
    assert libusb_source.VERSION in libusb_source.KNOWN.values()
    assert f'+#define LIBUSB_RC "{libusb_source.MARKER}"' in libusb_source.patches()[-1].read_text()


@pytest.mark.parametrize("patch", libusb_source.patches(), ids=lambda patch: patch.stem)
def test_each_patch_states_its_reason_and_test(patch: Path) -> None:
    head, _, body = patch.read_text().partition("\n--- a/")
    assert re.fullmatch(
        r"\S.*\n\nReason    \S(.*\n)(          \S.*\n)*"
        r"Upstream  \S(.*\n)(          \S.*\n)*Test      \S(.*\n)(          \S.*\n)*",
        head,
    )
    assert body
    [file] = re.findall(r"tests/mac/\w+\.py", head)
    shown = re.findall(r"test_\w+(?!\w*\.py)", head.partition(file)[2])
    assert shown
    text = (ROOT / file).read_text()
    assert [name for name in shown if f"def {name}(" not in text] == []
