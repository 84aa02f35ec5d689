"""The package that packaging/macos/flatpkg writes, read by code that shares nothing with it."""

import dataclasses
import hashlib
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import make_pkg
import pytest
from flatpkg import bom, cpio
from flatpkg.tree import Entry, UnfitError, read_tree
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.packaging import flat_reader
from tests.unit.packaging.flat_reader import DamagedError, Item, Package, read_package

TIME = make_pkg.FIXED_TIME


class Tree(NamedTuple):
    """A stage tree that the test can change."""

    root: Path
    scripts: Path

    def make(self, version: str = "1.2.3") -> bytes:
        output = self.root.parent / "out" / "usbipd.pkg"
        make_pkg.make(self.root.parent, version, output)
        assert list(output.parent.iterdir()) == [output], "nothing is left beside it"
        return output.read_bytes()


@pytest.fixture
def tree(tmp_path: Path, stage_tree: Path) -> Tree:
    shutil.copytree(stage_tree, tmp_path / "stage", symlinks=True)
    return Tree(tmp_path / "stage" / "root", tmp_path / "stage" / "scripts")


def listed(items: list[Item]) -> list[Item]:
    """As in a Bom: without content, in its order."""
    return sorted((dataclasses.replace(item, content=b"") for item in items), key=lambda item: item.path)


def test_the_bom_lists_the_payload(package: Package) -> None:
    names = [item.path for item in package.bom]
    assert len(names) > 30
    assert listed(package.bom) == listed(package.payload)


def test_everything_has_owner_root_and_one_time(package: Package) -> None:
    for item in (*package.payload, *package.scripts, *package.bom):
        assert (item.uid, item.gid, item.mtime) == (0, 0, TIME), item.path
        assert stat.S_IMODE(item.mode) in (0o644, 0o755), item.path


def test_the_payload_is_the_stage_tree(package: Package, stage_tree: Path) -> None:
    for items, root in ((package.payload, stage_tree / "root"), (package.scripts, stage_tree / "scripts")):
        assert {item.path for item in items} == {
            ".",
            *(f"./{path.relative_to(root)}" for path in root.rglob("*")),
        }
        for item in items:
            path = root / item.path
            if item.target:
                assert str(path.readlink()) == item.target
            else:
                assert path.lstat().st_mode == item.mode
                assert path.is_dir() or path.read_bytes() == item.content


def test_a_directory_precedes_its_contents(package: Package) -> None:
    seen = set()
    for item in package.payload:
        seen.add(item.path)
        if item.path != ".":
            above = item.path.rpartition("/")[0]
            assert above in seen, item.path


def test_instructions_for_the_installer(package: Package) -> None:
    size = sum(item.size for item in package.payload)
    assert package.info.attrib == {
        "format-version": "2",
        "identifier": "org.usbipd.pkg",
        "version": "1.2.3",
        "install-location": "/",
        "auth": "root",
        "overwrite-permissions": "false",
        "relocatable": "false",
        "postinstall-action": "none",
    }
    [payload, scripts] = package.info
    assert payload.attrib == {
        "numberOfFiles": str(len(package.payload)),
        "installKBytes": str(-(-size // 1024)),
    }
    assert [(each.tag, each.attrib) for each in scripts] == [
        ("preinstall", {"file": "./preinstall"}),
        ("postinstall", {"file": "./postinstall"}),
    ]
    assert "@" not in package.files["Distribution"].decode()
    [reference] = package.distribution.findall("pkg-ref")
    assert (reference.get("id"), reference.get("version"), reference.text) == (
        "org.usbipd.pkg",
        "1.2.3",
        "#usbipd.pkg",
    )
    chosen = {line.get("choice") for line in package.distribution.iter("line")}
    assert chosen == {choice.get("id") for choice in package.distribution.findall("choice")}
    assert package.distribution.find("options").get("hostArchitectures") == "arm64,x86_64"  # type: ignore[union-attr]


def test_two_builds_are_equal(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tree.make()
    other = Tree(tmp_path / "elsewhere" / "root", tmp_path / "elsewhere" / "scripts")
    before = os.umask(0o077)
    try:
        for source, target in zip(tree, other, strict=True):
            for path in sorted(source.rglob("*"), reverse=True):  # created in another order, at another time
                copy = target / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                if path.is_symlink():
                    copy.symlink_to(path.readlink())
                elif path.is_file():
                    shutil.copyfile(path, copy)
            for path in source.rglob("*"):
                if not path.is_symlink():
                    (target / path.relative_to(source)).chmod(stat.S_IMODE(path.stat().st_mode))
                    os.utime(target / path.relative_to(source), (1, 1))
    finally:
        os.umask(before)
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    assert hashlib.sha256(other.make()).digest() == hashlib.sha256(first).digest()


def test_the_time_can_be_chosen(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    read = read_package(tree.make())
    assert {item.mtime for item in (*read.payload, *read.scripts, *read.bom)} == {1_700_000_000}


def test_the_time_has_32_bits(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "4294967295")
    assert {item.mtime for item in read_package(tree.make()).bom} == {0xFFFF_FFFF}


@pytest.mark.parametrize("epoch", ["", "-1", "now", "1.5", "4294967296", "99999999999"])
def test_an_invalid_time(tree: Tree, monkeypatch: pytest.MonkeyPatch, epoch: str) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    with pytest.raises(UnfitError, match="not a number of seconds"):
        tree.make()


# ---- 7zz and cpio ------------------------------------------------------------------------------------------

needs_7zz = pytest.mark.skipif(shutil.which("7zz") is None, reason="7zz is not installed (make test-deps)")


def properties(archive: Path) -> dict[str, dict[str, str]]:
    """7zz's properties of each entry, by path."""
    text = subprocess.run(
        ["7zz", "l", "-slt", "-ba", archive], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    entries = {}
    for part in text.strip().split("\n\n"):
        fields = dict(line.split(" = ", 1) for line in part.splitlines() if " = " in line)
        entries[fields["Path"]] = fields
    return entries


@needs_7zz
def test_7zz_reads_the_archive_and_its_contents(package_file: Path, package: Package, tmp_path: Path) -> None:
    subprocess.run(["7zz", "t", package_file], check=True, capture_output=True, timeout=60)
    found = properties(package_file)
    found.pop("[TOC].xml", None)  # 7zz's name for the table of contents
    assert set(found) == {"usbipd.pkg", *package.files}
    for path, fields in found.items():
        assert (fields["User"], fields["Group"]) == ("root", "wheel"), path
        assert fields["Mode"] == ("drwxr-xr-x" if path == "usbipd.pkg" else "-rw-r--r--")
    subprocess.run(["7zz", "x", f"-o{tmp_path}", package_file], check=True, capture_output=True, timeout=60)
    for path, content in package.files.items():
        assert (tmp_path / path).read_bytes() == content


@needs_7zz
@pytest.mark.parametrize("part", ["Payload", "Scripts"])
def test_7zz_lists_the_installed_files(package: Package, tmp_path: Path, part: str) -> None:
    (tmp_path / "part.gz").write_bytes(package.files[f"usbipd.pkg/{part}"])
    subprocess.run(
        ["7zz", "e", f"-o{tmp_path}", tmp_path / "part.gz"], check=True, capture_output=True, timeout=60
    )
    found = properties(tmp_path / "part")
    items = {item.path: item for item in (package.payload if part == "Payload" else package.scripts)}
    assert set(found) == set(items)
    for path, fields in found.items():
        assert fields["Mode"] == stat.filemode(items[path].mode), path
        assert fields["Size"] == str(items[path].size), path
        assert (fields["User ID"], fields["Group ID"]) == ("0", "0"), path
        assert fields.get("Symbolic Link", "") == items[path].target, path


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed (make test-deps)")
def test_cpio_reads_the_payload(package: Package) -> None:
    payload = flat_reader.unzip(package.files["usbipd.pkg/Payload"])
    done = subprocess.run(["cpio", "-itvn"], input=payload, capture_output=True, check=True)
    lines = done.stdout.decode().splitlines()
    assert len(lines) == len(package.payload)
    for line, item in zip(lines, package.payload, strict=True):
        mode, _links, uid, gid, *_rest = line.split()
        assert (mode, uid, gid) == (stat.filemode(item.mode), "0", "0"), line


# ---- damaged packages --------------------------------------------------------------------------------------


def test_any_changed_byte_is_found(package_file: Path) -> None:
    """Shows that the reader rejects wrong packages."""
    data = package_file.read_bytes()

    @settings(max_examples=300, deadline=None)
    @given(st.integers(0, len(data) - 1), st.integers(1, 255))
    def change(place: int, by: int) -> None:
        changed = bytearray(data)
        changed[place] ^= by
        with pytest.raises(DamagedError):
            read_package(bytes(changed))

    change()


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_truncated_package_is_found(package_file: Path, data: st.DataObject) -> None:
    whole = package_file.read_bytes()
    with pytest.raises(DamagedError):
        read_package(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(DamagedError):
        read_package(whole + b"\0")


@pytest.mark.parametrize("part", ["Bom", "Payload", "Scripts", "PackageInfo"])
def test_a_damaged_part_raises_no_other_error(package: Package, part: str) -> None:
    """Each reader separately, without the checksums of the enclosing archive."""
    data = package.files[f"usbipd.pkg/{part}"]
    read = {
        "Bom": flat_reader.read_bom,
        "PackageInfo": flat_reader.parse_xml,
    }.get(part, lambda each: list(flat_reader.read_cpio(flat_reader.unzip(each))))
    chance = random.Random(4711)
    for _turn in range(300):
        changed = bytearray(data[: chance.choice([len(data), chance.randrange(len(data))])])
        for _change in range(chance.randrange(3)):
            if changed:
                changed[chance.randrange(len(changed))] ^= chance.randrange(1, 256)
        try:
            read(bytes(changed))
        except DamagedError:
            continue


# ---- the parts ---------------------------------------------------------------------------------------------


@given(st.binary(max_size=2000))
def test_cksum(content: bytes) -> None:
    assert bom.cksum(content) == flat_reader.cksum(content)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_536, 100_001])
def test_cksum_agrees_with_cksum(size: int) -> None:
    content = random.Random(size).randbytes(size)
    done = subprocess.run(["cksum"], input=content, capture_output=True, check=True)
    assert done.stdout.split() == [str(bom.cksum(content)).encode(), str(size).encode()]


@pytest.mark.parametrize("count", [1, 255, 256, 257, 600, 5000])
def test_a_bom_of_many_pages(count: int) -> None:
    directories = [Entry(f"./{number % 7}", stat.S_IFDIR | 0o755, b"") for number in range(7)]
    files = [
        Entry(f"./{number % 7}/{number}", stat.S_IFREG | 0o644, str(number).encode())
        for number in range(count)
    ]
    entries = [Entry(".", stat.S_IFDIR | 0o755, b""), *directories, *files]
    read = flat_reader.read_bom(bom.bill(entries, TIME))
    assert listed(read) == listed(list(flat_reader.read_cpio(cpio.archive(entries, TIME))))


@pytest.mark.slow
def test_more_entries_than_a_bom_holds() -> None:
    root = Entry(".", stat.S_IFDIR | 0o755, b"")
    files = [Entry(f"./{number}", stat.S_IFREG | 0o644, b"") for number in range(65_536)]
    with pytest.raises(UnfitError, match="65537 entries; the Bom takes 65536 at most"):
        bom.bill([root, *files], TIME)


@pytest.mark.slow
def test_more_than_cpio_holds() -> None:
    with pytest.raises(UnfitError, match=r"a name of 262144 bytes; a cpio archive has 262143 at most"):
        cpio.archive([Entry("x" * 262_143, stat.S_IFREG | 0o644, b"")], TIME)
    root = Entry(".", stat.S_IFDIR | 0o755, b"")
    with pytest.raises(UnfitError, match="one entry more than the 262143"):
        cpio.archive((root for _number in range(262_144)), TIME)
    for time in (-1, 1 << 33):
        with pytest.raises(UnfitError, match=f"time {time}"):
            cpio.archive([root], time)


class Sized(bytes):
    """Bytes that report a chosen length."""

    def __len__(self) -> int:
        return 1 << 33


def test_a_file_larger_than_cpio_holds() -> None:
    with pytest.raises(
        UnfitError, match=r"\./large: 8589934592 bytes; a cpio archive has 8589934591 at most"
    ):
        cpio.archive([Entry("./large", stat.S_IFREG | 0o644, Sized())], TIME)


# ---- trees that cannot be packed ---------------------------------------------------------------------------


Spoil = Callable[[Path], object]


def link(place: str, target: str) -> Spoil:
    return lambda root: (root / place).symlink_to(target)


def mode(place: str, bits: int) -> Spoil:
    return lambda root: (root / place).chmod(bits)


def large(root: Path) -> None:
    with (root / "large").open("wb") as file:
        file.truncate(1 << 32)


def deep(root: Path) -> None:
    place = root
    for _level in range(5):
        place /= "d" * 250
        place.mkdir()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (
            link("link", "/Library/usbipd/usbipd"),
            r"\./link: points to /Library/usbipd/usbipd, which differs on another volume",
        ),
        (link("link", "../outside"), r"\./link: points to \.\./outside, outside the package"),
        (link("usr/link", "../.."), r"\./usr/link: points to \.\./\.\., outside the package"),
        (link("link", "usr/nothing"), r"\./link: points to usr/nothing, which is not in the package"),
        (lambda root: os.mkfifo(root / "fifo"), r"\./fifo: neither a regular file nor a directory"),
        (
            mode("Library/usbipd/usbipd", 0o4755),
            r"\./Library/usbipd/usbipd: mode 4755: files that root installs",
        ),
        (mode("Library/usbipd/launchd.sh", 0o664), r"\./Library/usbipd/launchd.sh: mode 0664"),
        (mode("usr/local", 0o1777), r"\./usr/local: mode 1777"),
        (large, r"\./large: 4294967296 bytes, more than the 4294967295 that a package can list"),
        (deep, r"the path has 1[0-9]+ bytes, more than the 1023 of macOS"),
        (lambda root: (root / "a\nb").touch(), r"'\./a\\nb': the name has unprintable characters"),
        (lambda root: (root / os.fsdecode(b"\xff")).touch(), r"the name is not UTF-8"),
        (lambda root: (root / "library").touch(), r"\./library: the same file as \./Library on a Mac"),
    ],
)
def test_a_tree_that_cannot_be_packed(tree: Tree, spoil: Spoil, why: str) -> None:
    before = tree.make()
    spoil(tree.root)
    with pytest.raises(UnfitError, match=why):
        tree.make()
    assert (tree.root.parent / "out" / "usbipd.pkg").read_bytes() == before, "the package is as it was"


def test_no_tree(tmp_path: Path) -> None:
    with pytest.raises(UnfitError, match="no such directory"):
        read_tree(tmp_path / "none")


@pytest.mark.parametrize("name", ["preinstall", "postinstall"])
def test_a_missing_or_unexecutable_script(tree: Tree, name: str) -> None:
    (tree.scripts / name).chmod(0o644)
    with pytest.raises(UnfitError, match=f"no executable script {name}"):
        tree.make()
    (tree.scripts / name).unlink()
    with pytest.raises(UnfitError, match=f"no executable script {name}"):
        tree.make()


@pytest.mark.parametrize("version", ["", "1.0rc1", "v1", "1..2", "1.0\n"])
def test_a_version_that_the_installer_cannot_compare(tree: Tree, version: str) -> None:
    with pytest.raises(UnfitError, match="must be numbers separated by dots"):
        tree.make(version)


def test_no_executable(tree: Tree) -> None:
    (tree.root / "Library/usbipd/usbipd").unlink()
    with pytest.raises(UnfitError, match=r"\./Library/usbipd/usbipd"):
        tree.make()
