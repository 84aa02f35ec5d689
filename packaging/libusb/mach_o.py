"""Reads the parts of a library that macOS's dynamic linker reads.  Runs in builds for macOS, on any system.

One Mach-O file for one 64-bit processor; the numbers are from <mach-o/loader.h> and <mach-o/nlist.h>.
"""

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Final

MAGIC: Final = 0xFEEDFACF  # MH_MAGIC_64
CPU_TYPES: Final = {0x0100000C: "aarch64", 0x01000007: "x86_64"}
"""zig's names of CPU_TYPE_ARM64 and CPU_TYPE_X86_64."""


class Command(IntEnum):
    """The load commands that are read here."""

    SYMTAB = 0x2
    LOAD_DYLIB = 0xC
    ID_DYLIB = 0xD
    CODE_SIGNATURE = 0x1D
    VERSION_MIN_MACOSX = 0x24
    BUILD_VERSION = 0x32
    RPATH = 0x8000001C


_N_STAB: Final = 0xE0
_N_TYPE: Final = 0x0E
_N_EXT: Final = 0x01


@dataclass(slots=True)
class Library:
    """The contents of one file."""

    processor: str
    install_name: str | None = None
    minimum: tuple[int, int] | None = None
    """The oldest macOS, as (12, 0)."""
    libraries: list[str] = field(default_factory=list)
    """The libraries it is linked with."""
    paths: list[str] = field(default_factory=list)
    """The directories of @rpath."""
    exported: set[str] = field(default_factory=set)
    """Names without their leading underscore."""
    undefined: set[str] = field(default_factory=set)
    is_signed: bool = False


def read(file: Path) -> Library:
    """Raises `ValueError` if `file` is not a Mach-O file for a known processor, `OSError`."""
    data = file.read_bytes()
    if len(data) < 32 or struct.unpack_from("<I", data)[0] != MAGIC:
        raise ValueError(f"{file} is not Mach-O: it begins with {data[:8].hex(' ')}")
    cpu_type, _subtype, _type, count = struct.unpack_from("<IIII", data, 4)
    if cpu_type not in CPU_TYPES:
        raise ValueError(f"{file} is for another processor: {cpu_type:#x}")
    found = Library(CPU_TYPES[cpu_type])
    at = 32
    for _ in range(count):
        command, size = struct.unpack_from("<II", data, at)
        _read_command(found, data, at, command)
        at += size
    return found


def _read_command(found: Library, data: bytes, at: int, command: int) -> None:
    match command:
        case Command.ID_DYLIB:
            found.install_name = _text(data, at)
        case Command.LOAD_DYLIB:
            found.libraries.append(_text(data, at))
        case Command.RPATH:
            found.paths.append(_text(data, at))
        case Command.VERSION_MIN_MACOSX:
            found.minimum = _version(struct.unpack_from("<I", data, at + 8)[0])
        case Command.BUILD_VERSION:
            found.minimum = _version(struct.unpack_from("<I", data, at + 12)[0])
        case Command.CODE_SIGNATURE:
            found.is_signed = True
        case Command.SYMTAB:
            _read_symbols(found, data, *struct.unpack_from("<IIII", data, at + 8))


def _read_symbols(found: Library, data: bytes, at: int, count: int, strings: int, size: int) -> None:
    names = data[strings : strings + size]
    for each in range(count):
        offset, kind = struct.unpack_from("<IB", data, at + 16 * each)
        if kind & _N_STAB or not kind & _N_EXT:
            continue
        name = names[offset : names.index(b"\0", offset)].decode().removeprefix("_")
        (found.exported if kind & _N_TYPE else found.undefined).add(name)


def _text(data: bytes, at: int) -> str:
    """The string of a load command, whose offset is its first field."""
    start = at + struct.unpack_from("<I", data, at + 8)[0]
    return data[start : data.index(b"\0", start)].decode()


def _version(packed: int) -> tuple[int, int]:
    """X.Y of xxxx.yy.zz."""
    return packed >> 16, packed >> 8 & 0xFF
