"""The processors that a Mach-O executable was built for.  Runs in `make pkg`.

Numbers: <mach-o/loader.h>, <mach-o/fat.h>, <mach/machine.h> of macOS.
"""

import struct
from typing import Final

from flatpkg.tree import UnfitError

_MAGIC_64: Final = 0xFEEDFACF  # in the processor's byte order: little-endian on both known ones
_FAT_MAGIC: Final = 0xCAFEBABE  # always big-endian
_PROCESSORS: Final = {0x0100_0007: "x86_64", 0x0100_000C: "arm64"}
_MOST: Final = 8
"""Parts of a universal file.  A class file of Java begins with the same number, and then has 43 or more."""


def architectures(content: bytes) -> list[str]:
    """The processors, by Apple's names; empty if `content` is not a Mach-O file.

    Raises `UnfitError` if it is truncated, or for an unknown processor.
    """
    if content[:4] == struct.pack("<I", _MAGIC_64):
        return [_name(*_unpack("<I", content, 4))]
    if content[:4] == struct.pack(">I", _FAT_MAGIC):
        [count] = _unpack(">I", content, 4)
        if 0 < count <= _MOST:
            return sorted(_name(*_unpack(">I", content, 8 + 20 * index)) for index in range(count))
    return []


def _unpack(form: str, content: bytes, offset: int) -> tuple[int, ...]:
    if len(content) < offset + struct.calcsize(form):
        raise UnfitError(f"a Mach-O file truncated after {len(content)} bytes")
    return struct.unpack_from(form, content, offset)


def _name(processor: int) -> str:
    if processor not in _PROCESSORS:
        raise UnfitError(f"a Mach-O file for processor type {processor:#x}; known are arm64 and x86_64")
    return _PROCESSORS[processor]
