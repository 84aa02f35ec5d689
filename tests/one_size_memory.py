"""Memory like macOS's POSIX shared memory, for tests of the counter page on Linux.  Runs in tests."""

import ctypes
import os
from typing import Final

import pytest

_MEMFD_SECRET: Final = 447  # include/uapi/asm-generic/unistd.h
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def memory_of_one_size(size: int) -> int:
    """A descriptor without read(2) and lseek(2) whose size is set once: mm/secretmem.c."""
    descriptor: int = _LIBC.syscall(_MEMFD_SECRET, 0)
    if descriptor < 0:
        pytest.skip("this kernel has no memfd_secret(2)")
    os.ftruncate(descriptor, size)
    return descriptor
