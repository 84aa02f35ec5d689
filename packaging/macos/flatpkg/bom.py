"""Bills of materials: what a package installs, as the Installer's receipt lists it (lsbom(8)).

Runs in `make pkg`.  A Bom is a store of numbered blocks, of which five have names:

    BomInfo   how many paths there are, and how many bytes
    Paths     a tree: an entry's number and attributes, by the number of its directory and its name
    HLIndex, VIndex, Size64   hard links, paths by pattern, sizes beyond 32 bits: empty trees here

All numbers are big-endian.  Apple does not document the format; this is the part that readers agree on.
"""

import stat
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Final

from flatpkg.tree import Entry, UnfitError

_HEADER: Final = struct.Struct(">8sIIIIII")
_HEADER_SPACE: Final = 512
_TREE: Final = struct.Struct(">4sIIIIB")
_NODE: Final = struct.Struct(">HHII")
_PAIR: Final = struct.Struct(">II")
_ATTRIBUTES: Final = struct.Struct(">BBHHIIIIB")

_LARGE_PAGE: Final = 4096
_SMALL_PAGE: Final = 128
_PER_NODE: Final = 256
"""Entries of one node: 12 bytes and 8 for each fit into a large page."""

_COMPLETE: Final = 0x000F
"""Attributes follow, not only the path; higher bits would mean that an executable's sizes follow too."""
_END: Final = bytes(8)

_REVERSED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def bill(entries: Sequence[Entry], time: int) -> bytes:
    """The Bom that matches `cpio.archive` of the same entries and time.  Raises `UnfitError`."""
    store = _Store()
    total = sum(len(entry.content) for entry in entries if not entry.is_directory)
    # One more than the number of paths, as in the output of mkbom(8).
    store.name("BomInfo", struct.pack(">III4I", 1, len(entries) + 1, 1, 0, 0, total & 0xFFFF_FFFF, 0))
    store.name("Paths", _paths(store, entries, time))
    store.name("HLIndex", _empty_tree(store, _LARGE_PAGE))
    virtual = store.add(_empty_tree(store, _SMALL_PAGE))
    store.name("VIndex", struct.pack(">IIIB", 1, virtual, 0, 0))
    store.name("Size64", _empty_tree(store, _LARGE_PAGE))
    return store.encoded()


class _Store:
    """Blocks by number, and the numbers of the named ones.  Block 0 is unused."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = [b""]
        self._names: dict[str, int] = {}

    def add(self, block: bytes) -> int:
        self._blocks.append(block)
        return len(self._blocks) - 1

    def reserve(self) -> int:
        """The number of a block whose content `fill` sets later."""
        return self.add(b"")

    def fill(self, number: int, block: bytes) -> None:
        self._blocks[number] = block

    def name(self, name: str, block: bytes) -> None:
        self._names[name] = self.add(block)

    def encoded(self) -> bytes:
        data, places = bytearray(), [_PAIR.pack(0, 0)]
        for block in self._blocks[1:]:
            places.append(_PAIR.pack(_HEADER_SPACE + len(data), len(block)))
            data += block
        names = struct.pack(">I", len(self._names)) + b"".join(
            struct.pack(">IB", number, len(name)) + name.encode() for name, number in self._names.items()
        )
        # after the blocks' places comes the list of free blocks, with two empty entries
        index = struct.pack(">I", len(places)) + b"".join(places) + struct.pack(">I", 2) + bytes(16)
        names_at = _HEADER_SPACE + len(data)
        index_at = names_at + len(names)
        header = _HEADER.pack(
            b"BOMStore", 1, len(self._blocks) - 1, index_at, len(index), names_at, len(names)
        )
        return header.ljust(_HEADER_SPACE, b"\0") + bytes(data) + names + index


def _paths(store: _Store, entries: Sequence[Entry], time: int) -> bytes:
    """The tree of all entries, in the order of (number of the directory, name)."""
    inside: dict[str, list[Entry]] = {}
    for entry in entries[1:]:
        inside.setdefault(str(PurePosixPath(entry.path).parent), []).append(entry)
    ordered = [(0, ".", entries[0])]
    for number, (_parent, _name, directory) in enumerate(ordered, 1):  # which grows, level by level
        members = {PurePosixPath(each.path).name: each for each in inside.get(_place(directory), [])}
        ordered += [(number, name, members[name]) for name in sorted(members, key=str.encode)]
    pairs = []
    for number, (parent, name, entry) in enumerate(ordered, 1):
        attributes = store.add(_attributes(entry, time))
        key = store.add(struct.pack(">II", number, attributes))
        pairs.append((key, store.add(struct.pack(">I", parent) + name.encode() + b"\0")))
    return _tree(store, pairs, _LARGE_PAGE)


def _place(entry: Entry) -> str:
    return str(PurePosixPath(entry.path))


def _attributes(entry: Entry, time: int) -> bytes:
    kind = {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFLNK: 3}[stat.S_IFMT(entry.mode)]
    size, owner, group = len(entry.content), 0, 0
    fixed = _ATTRIBUTES.pack(kind, 1, _COMPLETE, entry.mode, owner, group, time, size, 1)
    if entry.is_directory:
        return fixed + _END
    checksum = struct.pack(">I", cksum(entry.content))
    if entry.is_link:
        target = entry.content + b"\0"
        return fixed + checksum + struct.pack(">I", len(target)) + target + _END
    return fixed + checksum + _END


def _empty_tree(store: _Store, page: int) -> bytes:
    return _tree(store, [], page)


def _tree(store: _Store, pairs: Sequence[tuple[int, int]], page: int) -> bytes:
    """A tree of (key, value), each a block number: leaves, with a node above if there are several."""
    groups = [pairs[start : start + _PER_NODE] for start in range(0, len(pairs), _PER_NODE)] or [pairs]
    if len(groups) > _PER_NODE:
        raise UnfitError(f"{len(pairs)} entries; the Bom takes {_PER_NODE * _PER_NODE} at most")
    leaves = [store.reserve() for _group in groups]
    for index, (leaf, group) in enumerate(zip(leaves, groups, strict=True)):
        after = leaves[index + 1] if index + 1 < len(leaves) else 0
        before = leaves[index - 1] if index > 0 else 0
        store.fill(leaf, _node(True, after, before, group, page))
    top = leaves[0]
    if len(leaves) > 1:
        last_values = [group[-1][1] for group in groups]
        top = store.add(_node(False, 0, 0, list(zip(leaves, last_values, strict=True)), page))
    return _TREE.pack(b"tree", 1, top, page, len(pairs), 0)


def _node(is_leaf: bool, after: int, before: int, pairs: Iterable[tuple[int, int]], page: int) -> bytes:
    inside = [_PAIR.pack(*pair) for pair in pairs]
    return (_NODE.pack(is_leaf, len(inside), after, before) + b"".join(inside)).ljust(page, b"\0")


def cksum(content: bytes) -> int:
    """The checksum of POSIX cksum(1): a CRC over the content and its length, most significant bit first.

    zlib's uses the same polynomial in the other direction, so it gets the bits of each byte reversed.
    """
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "little")
    reversed_crc = zlib.crc32((content + length).translate(_REVERSED), 0xFFFF_FFFF)
    return int(f"{reversed_crc:032b}"[::-1], 2)
