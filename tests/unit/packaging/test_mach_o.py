"""Reading a library for macOS, and the checks of a build of libusb for macOS.

The files are built here from the structures in <mach-o/loader.h> and <mach-o/nlist.h>.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import libusb_build
import mach_o
import pytest
from libusb_build import BuildError
from libusb_source import MARKER

ARM64: Final = 0x0100000C
X86_64: Final = 0x01000007
SYSTEM: Final = "/usr/lib/libSystem.B.dylib"
IOKIT: Final = "/System/Library/Frameworks/IOKit.framework/Versions/A/IOKit"
EXPORTED: Final = ("libusb_init", "libusb_get_version", "libusb_set_option")


def text_command(kind: int, header: int, text: str) -> bytes:
    """A load command with its string at offset `header`."""
    body = text.encode() + b"\0"
    body += bytes(-(header + len(body)) % 8)
    return struct.pack("<III", kind, header + len(body), header) + bytes(header - 12) + body


def library(
    path: Path,
    *,
    cpu: int = ARM64,
    name: str = "@rpath/libusb-1.0.0.dylib",
    minimum: int = 12 << 16,
    libraries: Sequence[str] = (IOKIT, SYSTEM),
    paths: Sequence[str] = ("@loader_path/libs",),
    exported: Sequence[str] = EXPORTED,
    marker: str = MARKER,
) -> Path:
    commands = [
        text_command(0xD, 24, name),
        *(text_command(0xC, 24, each) for each in libraries),
        *(text_command(0x8000001C, 12, each) for each in paths),
        struct.pack("<IIIIII", 0x32, 24, 1, minimum, 15 << 16, 0),
    ]
    names = [(f"_{each}", 0x0F) for each in exported]
    names += [("_IOIteratorNext", 0x01), ("_static_one", 0x0E), ("_from_debugger", 0xE1)]
    strings, symbols = bytearray(b" \0"), b""
    for symbol, kind in names:
        symbols += struct.pack("<IBBHQ", len(strings), kind, 0, 0, 0)
        strings += symbol.encode() + b"\0"
    size = 32 + sum(map(len, commands)) + 24
    commands.append(struct.pack("<IIIIII", 0x2, 24, size, len(names), size + len(symbols), len(strings)))
    header = struct.pack("<IIIIIIII", 0xFEEDFACF, cpu, 0, 6, len(commands), size - 32, 0, 0)
    path.write_bytes(header + b"".join(commands) + symbols + strings + marker.encode() + b"\0")
    return path


def test_a_library(tmp_path: Path) -> None:
    found = mach_o.read(library(tmp_path / "x.dylib"))
    assert found.processor == "aarch64"
    assert found.install_name == "@rpath/libusb-1.0.0.dylib"
    assert found.minimum == (12, 0)
    assert found.libraries == [IOKIT, SYSTEM]
    assert found.paths == ["@loader_path/libs"]
    assert found.exported == set(EXPORTED)
    assert found.undefined == {"IOIteratorNext"}
    assert not found.is_signed


@pytest.mark.parametrize("data", [b"", b"\x7fELF" + bytes(60), struct.pack("<II", 0xFEEDFACF, 7) + bytes(60)])
def test_a_file_that_is_not_a_library_for_macos(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "x.so"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.so is (not Mach-O|for another processor)"):
        mach_o.read(file)


def test_a_correct_build(tmp_path: Path) -> None:
    libusb_build.check(library(tmp_path / "x.dylib"), "aarch64", [IOKIT])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cpu": X86_64}, "it is for x86_64, not for aarch64"),
        ({"name": "/usr/local/lib/x.dylib"}, "its install name is /usr/local/lib/x.dylib"),
        ({"minimum": 15 << 16 | 4 << 8}, r"it needs macOS \(15, 4\)"),
        ({"libraries": [SYSTEM]}, f"it is linked with {SYSTEM}"),
        ({"libraries": [IOKIT, SYSTEM, "@rpath/other.dylib"]}, "@rpath/other.dylib"),
        ({"exported": EXPORTED[:2]}, "it has no libusb_set_option"),
        ({"exported": (*EXPORTED, "usbi_backend")}, "it exports usbi_backend"),
        ({"marker": "-rc1"}, f"it does not say {MARKER}"),
    ],
)
def test_a_wrong_build(tmp_path: Path, wrong: dict[str, object], said: str) -> None:
    with pytest.raises(BuildError, match=said):
        libusb_build.check(library(tmp_path / "x.dylib", **wrong), "aarch64", [IOKIT])  # type: ignore[arg-type]
