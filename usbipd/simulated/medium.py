"""Where a simulated disk keeps its blocks: memory or a file.  Runs in workers.

Offsets and lengths are bytes; who calls has made sure that they lie inside the medium.  Everything that
touches a file may raise `OSError`.
"""

import fcntl
import mmap
import os
import re
import stat
from pathlib import Path
from typing import Final, Protocol

from usbipd.errors import UsageError

BLOCK_SIZE: Final = 512
DEFAULT_SIZE: Final = 64 << 20

_SIZE: Final = re.compile(r"([1-9][0-9]{0,18})([KMGT]?)", re.ASCII)
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MAX_SIZE: Final = 1 << 50
"""A PiB: no file system of today keeps a larger file, and every offset in it is a valid off_t."""


class Medium(Protocol):
    """Blocks that can be read and written."""

    size: int

    def read(self, offset: int, length: int) -> bytes | memoryview: ...

    def write(self, offset: int, data: memoryview) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class MemoryMedium:
    """Blocks in memory, zero at first; pages that were never written take no memory."""

    def __init__(self, size: int) -> None:
        try:
            self._map = mmap.mmap(-1, size)
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"--simulate: no memory for a disk of {size} bytes ({error})",
                advice="Choose a smaller size, or keep the disk in a file: file=PATH.",
            ) from error
        self._blocks = memoryview(self._map)
        self.size = size

    def read(self, offset: int, length: int) -> memoryview:
        """A view of the blocks themselves, without a copy."""
        return self._blocks[offset : offset + length]

    def write(self, offset: int, data: memoryview) -> None:
        """Copies `data` into the blocks."""
        self._blocks[offset : offset + len(data)] = data

    def flush(self) -> None:
        """Memory has nothing to write back to."""

    def close(self) -> None:
        """Gives the memory back."""
        self._blocks.release()
        self._map.close()


class FileMedium:
    """Blocks in a file, which this process alone uses."""

    def __init__(self, path: Path, size: int | None) -> None:
        """Opens `path`; if it is missing or empty it gets `size` bytes (None: DEFAULT_SIZE), all zero.

        Raises `UsageError` if it is not a file, has another size than `size`, is not a multiple of
        BLOCK_SIZE, cannot be read and written, or is in use by another simulated disk.
        """
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        except OSError as error:
            raise UsageError(
                f"--simulate: cannot open {path} as a disk: {error.strerror}",
                advice="Give a file that you may read and write, or one that does not exist yet.",
            ) from error
        try:
            self.size = self._examine(size)
        except BaseException:
            os.close(self._fd)
            raise

    def _examine(self, size: int | None) -> int:
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"--simulate: {self._path} is not a regular file, so it cannot be a disk")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"--simulate: {self._path} is in use by another simulated disk") from error
        present = os.fstat(self._fd).st_size
        if present == 0:
            wanted = size or DEFAULT_SIZE
            try:
                os.ftruncate(self._fd, wanted)
            except OSError as error:
                raise UsageError(
                    f"--simulate: cannot give {self._path} {wanted} bytes: {error.strerror}"
                ) from error
            return wanted
        if size is not None and present != size:
            raise UsageError(
                f"--simulate: {self._path} has {present} bytes, not the {size} that size= says",
                advice="Leave size= out to take the file as it is, or name a file that does not exist yet.",
            )
        if present % BLOCK_SIZE:
            raise UsageError(
                f"--simulate: {self._path} has {present} bytes, which is not a multiple of {BLOCK_SIZE}"
            )
        return present

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes; fewer left in the file, because it was truncated, is an `OSError`."""
        data = os.pread(self._fd, length, offset)
        if len(data) < length:
            raise OSError(f"{self._path} ends before byte {offset + length}")
        return data

    def write(self, offset: int, data: memoryview) -> None:
        """Writes `data` to the host's cache of the file."""
        while data:
            written = os.pwrite(self._fd, data, offset)
            data, offset = data[written:], offset + written

    def flush(self) -> None:
        """Returns when what was written is on the host's disk."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Flushes and closes the file."""
        try:
            self.flush()
        finally:
            os.close(self._fd)


def parse_size(text: str) -> int:
    """Bytes for "65536", "512K", "64M", "1G" or "1T" (powers of 1024).

    Raises `UsageError` for anything else, and for what is no multiple of BLOCK_SIZE or above 1024T.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"--simulate: size {text!r} is not a number of bytes such as 65536, 512K, 64M or 1G")
    size = int(match[1]) * _UNITS[match[2]]
    if size % BLOCK_SIZE:
        raise UsageError(f"--simulate: size {text!r} is not a multiple of {BLOCK_SIZE} bytes")
    if size > _MAX_SIZE:
        raise UsageError(f"--simulate: size {text!r} is above 1024T")
    return size
