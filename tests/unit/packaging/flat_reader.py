"""Reads an installer package strictly, and shares no code with the writer.

Any bytes give a `Package` or `DamagedError`.  It checks everything known about the formats, the order of keys
in a tree, and that no bytes are left over.
"""

import gzip
import hashlib
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree


class DamagedError(Exception):
    """The message says what is wrong with the package."""


def need(condition: object, what: str) -> None:
    if not condition:
        raise DamagedError(what)


@dataclass(frozen=True)
class Item:
    """An entry of a cpio archive or of a Bom."""

    path: str
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    checksum: int
    """cksum(1) of the content or of a link's target; 0 for a directory."""
    target: str
    """The target of a link."""
    content: bytes = b""
    """Of a file in a cpio archive."""


@dataclass(frozen=True)
class Package:
    files: dict[str, bytes]
    """The members of the product archive by path."""
    distribution: ElementTree.Element
    info: ElementTree.Element
    payload: list[Item]
    scripts: list[Item]
    bom: list[Item]


def read_package(data: bytes) -> Package:
    """Raises `DamagedError`."""
    files = read_xar(data)
    names = {"Distribution", *(f"usbipd.pkg/{name}" for name in ("Bom", "PackageInfo", "Payload", "Scripts"))}
    need(set(files) == names, f"holds {sorted(files)}")
    return Package(
        files,
        parse_xml(files["Distribution"]),
        parse_xml(files["usbipd.pkg/PackageInfo"]),
        list(read_cpio(unzip(files["usbipd.pkg/Payload"]))),
        list(read_cpio(unzip(files["usbipd.pkg/Scripts"]))),
        read_bom(files["usbipd.pkg/Bom"]),
    )


def parse_xml(text: bytes) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DamagedError(f"not XML: {error}") from error


def unzip(data: bytes) -> bytes:
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedError(f"not gzip: {error}") from error


# ---- xar ---------------------------------------------------------------------------------------------------


def read_xar(data: bytes) -> dict[str, bytes]:
    """The regular files by path."""
    need(len(data) >= 28, "no room for a header")
    magic, size, version, packed, unpacked, algorithm = struct.unpack_from(">4sHHQQL", data)
    need((magic, size, version, algorithm) == (b"xar!", 28, 1, 1), "not a xar header")
    table, heap = data[28 : 28 + packed], data[28 + packed :]
    need(len(table) == packed, "the table is truncated")
    need(hashlib.sha1(table).digest() == heap[:20], "the table's checksum is wrong")
    try:
        text = zlib.decompress(table)
    except zlib.error as error:
        raise DamagedError(f"the table: {error}") from error
    need(len(text) == unpacked, "the table has the wrong size")
    toc = parse_xml(text).find("toc")
    assert toc is not None
    need(
        [toc.findtext(f"checksum/{key}") for key in ("offset", "size")] == ["0", "20"], "the table's checksum"
    )
    need(toc.find("checksum").get("style") == "sha1", "the table's checksum")  # type: ignore[union-attr]
    files: dict[str, bytes] = {}
    end = _read_members(toc, "", heap, 20, files)
    need(end == len(heap), "the heap does not end with its last file")
    return files


def _read_members(
    parent: ElementTree.Element, place: str, heap: bytes, offset: int, files: dict[str, bytes]
) -> int:
    for node in parent.findall("file"):
        path = place + (node.findtext("name") or "")
        owner = [node.findtext(key) for key in ("uid", "gid", "user", "group")]
        need(owner == ["0", "0", "root", "wheel"], f"{path} belongs to {owner}")
        kind, mode = node.findtext("type"), node.findtext("mode")
        if kind == "directory":
            need(mode == "0755", f"{path} has mode {mode}")
            offset = _read_members(node, f"{path}/", heap, offset, files)
            continue
        need((kind, mode) == ("file", "0644"), f"{path} is a {kind} of mode {mode}")
        length, start, size = (
            int(node.findtext(f"data/{key}") or -1) for key in ("length", "offset", "size")
        )
        need(start == offset and size == length >= 0, f"{path} does not follow the previous file")
        content = heap[start : start + length]
        need(len(content) == length, f"{path} is truncated")
        for which in ("extracted", "archived"):
            need(
                hashlib.sha1(content).hexdigest() == node.findtext(f"data/{which}-checksum"),
                f"{path}: checksum",
            )
        need(node.find("data/encoding").get("style") == "application/octet-stream", path)  # type: ignore[union-attr]
        files[path] = content
        offset += length
    return offset


# ---- cpio --------------------------------------------------------------------------------------------------


def read_cpio(data: bytes) -> Iterator[Item]:
    """The entries of an archive in the format odc."""
    offset, numbers = 0, set()
    while True:
        header = data[offset : offset + 76]
        need(len(header) == 76 and header[:6] == b"070707", f"no header at {offset}")
        need(set(header) <= set(b"01234567"), f"not an octal number at {offset}")
        widths, fields = (6, 6, 6, 6, 6, 6, 6, 11, 6, 11), []
        place = 6
        for width in widths:
            fields.append(int(header[place : place + width], 8))
            place += width
        _device, number, mode, uid, gid, _links, special, mtime, name_size, size = fields
        name = data[offset + 76 : offset + 76 + name_size]
        offset += 76 + name_size
        content = data[offset : offset + size]
        offset += size
        need(len(content) == size and name[-1:] == b"\0" and b"\0" not in name[:-1], "an entry is truncated")
        path = name[:-1].decode()
        if path == "TRAILER!!!":
            need(offset == len(data), "data after the end")
            return
        need(number not in numbers, f"{path} has the inode of another entry")
        numbers.add(number)
        need(special == 0, f"{path} is a device")
        is_link = mode & 0o170000 == 0o120000
        is_directory = mode & 0o170000 == 0o040000
        need(not is_directory or size == 0, f"{path} is a directory with content")
        checksum = 0 if is_directory else cksum(content)
        target = content.decode() if is_link else ""
        yield Item(path, mode, uid, gid, mtime, size, checksum, target, b"" if is_link else content)


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte << 24
        for _bit in range(8):
            crc = (crc << 1) ^ (0x04C11DB7 if crc & 0x80000000 else 0)
        table.append(crc & 0xFFFFFFFF)
    return table


_CRC = _crc_table()


def cksum(content: bytes) -> int:
    """As POSIX cksum(1) defines it, byte by byte."""
    crc, length = 0, len(content)
    tail = bytearray()
    while length:
        tail.append(length & 0xFF)
        length >>= 8
    for byte in (*content, *tail):
        crc = ((crc << 8) ^ _CRC[(crc >> 24) ^ byte]) & 0xFFFFFFFF
    return crc ^ 0xFFFFFFFF


# ---- Bom ---------------------------------------------------------------------------------------------------


class _Blocks:
    """The blocks of a Bom by number and by name."""

    def __init__(self, data: bytes) -> None:
        need(len(data) >= 512, "no room for a header")
        magic, version, used, index_at, index_size, names_at, names_size = struct.unpack_from(
            ">8sIIIIII", data
        )
        need((magic, version) == (b"BOMStore", 1), "not a Bom header")
        need(not any(data[32:512]), "the header is not padded with zeros")
        index = _part(data, index_at, index_size, "the index")
        names = _part(data, names_at, names_size, "the names")
        need(index_at + index_size == len(data), "the index is not at the end")
        [count] = struct.unpack_from(">I", index)
        need(index_size == 4 + 8 * count + 4 + 16 and count == used + 1, "the index has the wrong size")
        places = list(struct.iter_unpack(">II", index[4 : 4 + 8 * count]))
        need(places[0] == (0, 0), "block 0 is not empty")
        self._blocks = [_part(data, at, size, f"block {number}") for number, (at, size) in enumerate(places)]
        covered = 512
        for at, size in places[1:]:
            need(at == covered, "blocks overlap or leave gaps")
            covered += size
        need(names_at == covered and index_at == covered + names_size, "data between the parts")
        self.names: dict[str, bytes] = {}
        offset = 4
        for _name in range(struct.unpack_from(">I", names)[0]):
            number, length = struct.unpack_from(">IB", names, offset)
            self.names[names[offset + 5 : offset + 5 + length].decode()] = self[number]
            offset += 5 + length
        need(offset == names_size, "the names have the wrong size")

    def __getitem__(self, number: int) -> bytes:
        need(0 < number < len(self._blocks), f"no block {number}")
        return self._blocks[number]

    def tree(self, block: bytes, page: int) -> list[tuple[bytes, bytes]]:
        """Keys and values of a tree."""
        magic, version, top, size, count, zero = struct.unpack(">4sIIIIB", block)
        need((magic, version, size, zero) == (b"tree", 1, page, 0), "not a tree with that page size")
        is_leaf, inside, after, before = struct.unpack_from(">HHII", self[top])
        leaves = [top]
        if not is_leaf:
            need((after, before) == (0, 0) and inside > 1, "a branch with siblings, or with one leaf")
            branch = [struct.unpack_from(">II", self[top], 12 + 8 * each) for each in range(inside)]
            leaves = [leaf for leaf, _last in branch]
        pairs: list[tuple[bytes, bytes]] = []
        for index, leaf in enumerate(leaves):
            node = self[leaf]
            need(len(node) == page, "a node is not a page")
            is_leaf, inside, after, before = struct.unpack_from(">HHII", node)
            need(is_leaf == 1, "not a leaf")
            need(after == (leaves[index + 1] if index + 1 < len(leaves) else 0), "wrong next leaf")
            need(before == (leaves[index - 1] if index else 0), "wrong previous leaf")
            numbers = [struct.unpack_from(">II", node, 12 + 8 * each) for each in range(inside)]
            if len(leaves) > 1:
                need(branch[index] == (leaf, numbers[-1][1]), "a branch does not name the last key of a leaf")
            pairs += [(self[key], self[value]) for key, value in numbers]
        need(len(pairs) == count, "a tree with the wrong size")
        return pairs


def _part(data: bytes, at: int, size: int, what: str) -> bytes:
    need(at + size <= len(data), f"{what} lies outside")
    return data[at : at + size]


def read_bom(data: bytes) -> list[Item]:
    """The entries, in the order of (number of the directory, name)."""
    try:
        return _read_bom(data)
    except (struct.error, UnicodeDecodeError, KeyError) as error:
        raise DamagedError(f"a part of the Bom is truncated: {error!r}") from error


def _read_bom(data: bytes) -> list[Item]:
    blocks = _Blocks(data)
    need(
        set(blocks.names) == {"BomInfo", "Paths", "HLIndex", "VIndex", "Size64"},
        f"names: {set(blocks.names)}",
    )
    for name in ("HLIndex", "Size64"):
        need(blocks.tree(blocks.names[name], 4096) == [], f"{name} is not empty")
    one, virtual, zero, last = struct.unpack(">IIIB", blocks.names["VIndex"])
    need((one, zero, last) == (1, 0, 0) and blocks.tree(blocks[virtual], 128) == [], "VIndex")
    entries: list[Item] = []
    places: dict[int, str] = {}
    before = (-1, b"")
    for key, value in blocks.tree(blocks.names["Paths"], 4096):
        number, attributes = struct.unpack(">II", key)
        [parent] = struct.unpack_from(">I", value)
        need(value[-1:] == b"\0" and b"\0" not in value[4:-1], "an unterminated name")
        name = value[4:-1]
        need((parent, name) > before, f"{name!r} is out of order")
        before = (parent, name)
        path = name.decode() if parent == 0 else f"{places[parent]}/{name.decode()}"
        need(number not in places, f"duplicate number {number}")
        places[number] = path
        entries.append(_read_attributes(path, blocks[attributes]))
    version, count, infos, *info = struct.unpack(">III4I", blocks.names["BomInfo"])
    total = sum(entry.size for entry in entries)
    need((version, count, infos) == (1, len(entries) + 1, 1) and info == [0, 0, total, 0], "BomInfo")
    return entries


def _read_attributes(path: str, block: bytes) -> Item:
    kind, one, complete, mode, uid, gid, mtime, size, also_one = struct.unpack_from(">BBHHIIIIB", block)
    need((one, complete, also_one) == (1, 0x0F, 1), f"{path}: attributes")
    need(
        {1: 0o100000, 2: 0o040000, 3: 0o120000}.get(kind) == mode & 0o170000, f"{path}: type {kind}, {mode:o}"
    )
    rest, checksum, target = block[struct.calcsize(">BBHHIIIIB") :], 0, ""
    if kind != 2:
        [checksum] = struct.unpack_from(">I", rest)
        rest = rest[4:]
    if kind == 3:
        [length] = struct.unpack_from(">I", rest)
        need(rest[4 : 4 + length][-1:] == b"\0", f"{path}: an unterminated target")
        target, rest = rest[4 : 3 + length].decode(), rest[4 + length :]
    need(rest == bytes(8), f"{path}: attributes are not padded with zeros")
    return Item(path, mode, uid, gid, mtime, size, checksum, target)
