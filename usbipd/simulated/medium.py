"""Storage of a simulated disk: memory or a file.  Runs in workers.

Offsets and lengths are bytes; the caller ensures that they lie inside the medium.  Every operation on a file
may raise `OSError`.
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
"""1 PiB: more than any disk needs, and every offset in it is a valid off_t."""


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
                advice="choose a smaller size, or keep the disk in a file: file=PATH",
            ) from error
        self._blocks = memoryview(self._map)
        self.size = size

    def read(self, offset: int, length: int) -> memoryview:
        """A view of the blocks, without a copy."""
        return self._blocks[offset : offset + length]

    def write(self, offset: int, data: memoryview) -> None:
        """Copies `data` into the blocks."""
        self._blocks[offset : offset + len(data)] = data

    def flush(self) -> None:
        """Nothing to do for memory."""

    def close(self) -> None:
        """Releases the memory."""
        self._blocks.release()
        self._map.close()


class FileMedium:
    """Blocks in a file that only this process uses."""

    def __init__(self, path: Path, size: int | None) -> None:
        """Opens `path`; a missing or empty file gets `size` bytes (None: DEFAULT_SIZE), all zero.

        Raises `UsageError` if it is not a regular file, has another size than `size`, is not a multiple of
        BLOCK_SIZE, cannot be read and written, or is in use by another simulated disk.
        """
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        except OSError as error:
            raise UsageError(
                f"--simulate: cannot open {path} as a disk: {error.strerror}",
                advice="name a file that you may read and write, or one that does not exist yet",
            ) from error
        try:
            self.size = self._examine(size)
        except BaseException:
            os.close(self._fd)
            raise

    def _examine(self, size: int | None) -> int:
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"--simulate: {self._path} cannot be a disk: it is not a regular file")
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
                    f"--simulate: cannot extend {self._path} to {wanted} bytes: {error.strerror}"
                ) from error
            return wanted
        if size is not None and present != size:
            raise UsageError(
                f"--simulate: {self._path} has {present} bytes, not the {size} of size=",
                advice="omit size= to use the file as it is, or name a file that does not exist yet",
            )
        if present % BLOCK_SIZE:
            raise UsageError(f"--simulate: {self._path} has {present} bytes, not a multiple of {BLOCK_SIZE}")
        return present

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes; raises `OSError` if the file was truncated before their end."""
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
        """Returns once all written data is on the host's disk."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Flushes and closes the file."""
        try:
            self.flush()
        finally:
            os.close(self._fd)


def parse_size(text: str) -> int:
    """Bytes for "65536", "512K", "64M", "1G" or "1T" (powers of 1024).

    Raises `UsageError` for anything else, for a size that is not a multiple of BLOCK_SIZE, and above 1024T.
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
