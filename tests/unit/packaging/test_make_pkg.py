"""Building the package: its processors, the tools, and the errors."""

import shutil
import struct
import sys
from pathlib import Path

import make_pkg
import pytest
from flatpkg.macho import architectures
from flatpkg.tree import UnfitError

from tests.unit.packaging.flat_reader import read_package

X86_64, ARM64 = 0x0100_0007, 0x0100_000C


def thin(processor: int) -> bytes:
    return struct.pack("<II", 0xFEEDFACF, processor) + bytes(100)


def universal(*processors: int) -> bytes:
    parts = b"".join(struct.pack(">IIIII", each, 0, 4096, 100, 14) for each in processors)
    return struct.pack(">II", 0xCAFEBABE, len(processors)) + parts + bytes(100)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (thin(ARM64), ["arm64"]),
        (thin(X86_64), ["x86_64"]),
        (universal(X86_64, ARM64), ["arm64", "x86_64"]),
        (b"\x7fELF" + bytes(100), []),
        (b"#!/bin/sh\n", []),
        (b"", []),
        (struct.pack(">II", 0xCAFEBABE, 0x0000_0041), []),  # a class file of Java 21
    ],
)
def test_processors(content: bytes, names: list[str]) -> None:
    assert architectures(content) == names


@pytest.mark.parametrize("content", [thin(ARM64)[:6], universal(ARM64)[:6], universal(ARM64, X86_64)[:30]])
def test_a_truncated_executable(content: bytes) -> None:
    with pytest.raises(UnfitError, match=f"truncated after {len(content)} bytes"):
        architectures(content)


def test_an_unknown_processor() -> None:
    with pytest.raises(UnfitError, match="processor type 0x12; known are arm64 and x86_64"):
        architectures(thin(0x12))


@pytest.fixture
def tree(stage_tree: Path, tmp_path: Path) -> Path:
    """The stage tree, with an executable that the test can replace."""
    shutil.copytree(stage_tree, tmp_path / "stage", symlinks=True)
    return tmp_path / "stage"


def executable(tree: Path) -> Path:
    return tree / "root" / "Library/usbipd/usbipd"


def host_architectures(package: bytes) -> str | None:
    options = read_package(package).distribution.find("options")
    assert options is not None
    return options.get("hostArchitectures")


def test_the_installer_is_told_the_processors(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    executable(tree).write_bytes(thin(ARM64))
    make_pkg.make(tree, "1.0", tmp_path / "usbipd.pkg")
    assert host_architectures((tmp_path / "usbipd.pkg").read_bytes()) == "arm64"
    assert capsys.readouterr().err == ""


def test_an_executable_for_another_system_is_reported(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pkg.make(tree, "1.0", tmp_path / "usbipd.pkg")
    assert "the executable is not for macOS" in capsys.readouterr().err


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["make_pkg.py", *map(str, arguments)])
    return make_pkg.main()


def test_a_truncated_executable_fails_the_build(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    executable(tree).write_bytes(thin(ARM64)[:5])
    assert run(monkeypatch, tree, "1.0", tmp_path / "usbipd.pkg") == 1
    error = "make_pkg: ./Library/usbipd/usbipd: a Mach-O file truncated after 5 bytes\n"
    assert capsys.readouterr().err == error
    assert not (tmp_path / "usbipd.pkg").exists()


def test_no_stage_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, "1.0", tmp_path / "usbipd.pkg") == 1
    assert capsys.readouterr().err == f"make_pkg: {tmp_path}/root: no such directory\n"


# ---- by Apple's tools --------------------------------------------------------------------------------------

TOOL = """#!/bin/sh
echo "${0##*/} $*" >>"$CALLS"
[ "${0##*/}" != "$FAILS" ] || exit 70
for last; do :; done
case ${0##*/} in
pkgbuild)
    [ "$COPYFILE_DISABLE" = 1 ] || exit 1
    while [ "$1" != --info ]; do shift; done
    cp "$2" "$CALLS.info"
    ;;
productbuild) cp "$2" "$CALLS.distribution" ;;
esac
echo "made by ${0##*/}" >"$last"
"""


@pytest.fixture
def calls(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Mac whose tools record their arguments; the tree contains an executable for it."""
    for name in ("pkgbuild", "productbuild", "productsign"):
        (tmp_path / name).write_text(TOOL)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(make_pkg, "BY_APPLE", True)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("FAILS", "")
    monkeypatch.delenv("PKG_SIGN_IDENTITY", raising=False)
    executable(tree).write_bytes(universal(ARM64, X86_64))
    return tmp_path / "calls"


def test_a_mac_uses_apples_tools(tree: Path, tmp_path: Path, calls: Path) -> None:
    make_pkg.make(tree, "1.0", tmp_path / "usbipd.pkg")
    assert (tmp_path / "usbipd.pkg").read_text() == "made by productbuild\n"
    build, product = calls.read_text().splitlines()
    options = build.split()
    assert options[0] == "pkgbuild"
    for option, value in {
        "--root": str(tree / "root"),
        "--scripts": str(tree / "scripts"),
        "--identifier": "org.usbipd.pkg",
        "--version": "1.0",
        "--install-location": "/",
        "--ownership": "recommended",
    }.items():
        assert options[options.index(option) + 1] == value
    assert product.startswith("productbuild --distribution ")
    assert 'overwrite-permissions="false"' in Path(f"{calls}.info").read_text()
    distribution = Path(f"{calls}.distribution").read_text()
    assert ">usbipd.pkg</pkg-ref>" in distribution, "productbuild marks it as included"
    assert 'hostArchitectures="arm64,x86_64"' in distribution


def test_it_is_signed_if_an_identity_is_set(
    tree: Path, tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PKG_SIGN_IDENTITY", "Developer ID Installer: Example (0123456789)")
    make_pkg.make(tree, "1.0", tmp_path / "usbipd.pkg")
    assert (tmp_path / "usbipd.pkg").read_text() == "made by productsign\n"
    sign = calls.read_text().splitlines()[-1]
    assert sign.startswith("productsign --timestamp --sign Developer ID Installer: Example (0123456789) ")


@pytest.mark.parametrize("tool", ["pkgbuild", "productbuild", "productsign"])
def test_a_tool_that_fails(
    tree: Path,
    tmp_path: Path,
    calls: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tool: str,
) -> None:
    monkeypatch.setenv("PKG_SIGN_IDENTITY", "somebody")
    monkeypatch.setenv("FAILS", tool)
    assert run(monkeypatch, tree, "1.0", tmp_path / "usbipd.pkg") == 1
    assert capsys.readouterr().err == f"make_pkg: {tool} ended with 70\n"
    assert not (tmp_path / "usbipd.pkg").exists()


@pytest.mark.usefixtures("calls")
def test_a_mac_packs_only_executables_for_macos(tree: Path, tmp_path: Path) -> None:
    executable(tree).write_bytes(b"\x7fELF")
    with pytest.raises(UnfitError, match="is not a Mach-O executable"):
        make_pkg.make(tree, "1.0", tmp_path / "usbipd.pkg")
