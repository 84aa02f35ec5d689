"""xar archives: a header, a compressed table of contents in XML, and a heap.  Runs in `make pkg`.

Format: https://github.com/apple-oss-distributions/xar, xar/include/xar.h and the comments of xar/lib/.
Members are stored uncompressed, since the large ones are compressed already.
"""

import hashlib
import struct
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from xml.etree import ElementTree

_HEADER: Final = struct.Struct(">4sHHQQL")
_MAGIC: Final = b"xar!"
_VERSION: Final = 1
_SHA1: Final = 1  # XAR_CKSUM_SHA1; Apple's productbuild writes it too
_DIGEST_SIZE: Final = 20


@dataclass(frozen=True, slots=True)
class File:
    """A file in the archive."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory in the archive."""

    name: str
    members: "tuple[File | Directory, ...]"


def archive(members: "tuple[File | Directory, ...]", time: int) -> bytes:
    """The members, owned by root and made at `time`, seconds since 1970."""
    heap = bytearray(_DIGEST_SIZE)  # the checksum of the table, not known yet
    root = ElementTree.Element("xar")
    table = ElementTree.SubElement(root, "toc")
    checksum = ElementTree.SubElement(table, "checksum", style="sha1")
    _add(checksum, "offset", 0)
    _add(checksum, "size", _DIGEST_SIZE)
    moment = datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    _add(table, "creation-time", moment.removesuffix("Z"))
    _Table(heap, moment).add(table, members)
    text = ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)
    compressed = zlib.compress(text, 9)
    heap[:_DIGEST_SIZE] = hashlib.sha1(compressed, usedforsecurity=False).digest()
    header = _HEADER.pack(_MAGIC, _HEADER.size, _VERSION, len(compressed), len(text), _SHA1)
    return header + compressed + bytes(heap)


class _Table:
    """The growing table of contents, and the heap."""

    def __init__(self, heap: bytearray, moment: str) -> None:
        self._heap = heap
        self._moment = moment
        self._last_id = 0

    def add(self, parent: ElementTree.Element, members: tuple[File | Directory, ...]) -> None:
        for member in members:
            self._last_id += 1
            node = ElementTree.SubElement(parent, "file", id=str(self._last_id))
            if isinstance(member, File):
                self._describe(node, member.name, "file", "0644")
                self._store(ElementTree.SubElement(node, "data"), member.content)
            else:
                self._describe(node, member.name, "directory", "0755")
                self.add(node, member.members)

    def _describe(self, node: ElementTree.Element, name: str, kind: str, mode: str) -> None:
        _add(node, "name", name)
        _add(node, "type", kind)
        _add(node, "mode", mode)
        for key, value in (("uid", "0"), ("user", "root"), ("gid", "0"), ("group", "wheel")):
            _add(node, key, value)
        _add(node, "mtime", self._moment)

    def _store(self, data: ElementTree.Element, content: bytes) -> None:
        digest = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        _add(data, "length", len(content))
        _add(data, "offset", len(self._heap))
        _add(data, "size", len(content))
        ElementTree.SubElement(data, "encoding", style="application/octet-stream")
        _add(data, "extracted-checksum", digest).set("style", "sha1")
        _add(data, "archived-checksum", digest).set("style", "sha1")
        self._heap += content


def _add(parent: ElementTree.Element, name: str, value: str | int) -> ElementTree.Element:
    child = ElementTree.SubElement(parent, name)
    child.text = str(value)
    return child
