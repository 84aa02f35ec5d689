"""The counter page: a compromised worker has its descriptor, and the extension keeps reading."""

import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.one_size_memory import memory_of_one_size
from usbipd import counters
from usbipd.counters import COUNTER_PAGE_SIZE, read_blocked, read_counters, read_rate

HOSTILE = """
import fcntl, mmap, os, sys
page, size = int(sys.argv[1]), int(sys.argv[2])
memory = mmap.mmap(page, size)

def shrunk():
    os.ftruncate(page, 1)

def emptied():
    os.ftruncate(page, 0)

def grown():
    os.ftruncate(page, 64 * size)

def allocated():
    os.posix_fallocate(page, 0, 64 * size)

def written():
    os.pwrite(page, bytes(size), size)

def sealed():
    fcntl.fcntl(page, 1033, 8)  # F_ADD_SEALS, F_SEAL_WRITE

def punched():
    import ctypes
    if ctypes.CDLL(None, use_errno=True).fallocate(page, 3, ctypes.c_long(0), ctypes.c_long(size)) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")

for what in range(200):
    for act in (shrunk, emptied, grown, allocated, written, sealed, punched):
        try:
            act()
        except (OSError, AttributeError):
            continue
        if act is not punched:  # which leaves zeros and the size
            print("done:", what)
memory[:8] = (4711).to_bytes(8, sys.byteorder)
memory.close()
os.close(page)
print("closed")
"""


def page_of_one_size() -> tuple[mmap.mmap, int]:
    """As on macOS."""
    descriptor = memory_of_one_size(COUNTER_PAGE_SIZE)
    return mmap.mmap(descriptor, COUNTER_PAGE_SIZE, prot=mmap.PROT_READ), descriptor


@pytest.mark.parametrize("make", [counters.counter_page, page_of_one_size])
def test_a_hostile_worker_can_only_change_the_counters(
    make: Callable[[], tuple[mmap.mmap, int]],
) -> None:
    page, descriptor = make()
    worker = subprocess.Popen(
        [sys.executable, "-c", HOSTILE, str(descriptor), str(COUNTER_PAGE_SIZE)],
        pass_fds=[descriptor],
        stdout=subprocess.PIPE,
        text=True,
    )
    size = os.fstat(descriptor).st_size
    os.close(descriptor)
    while worker.poll() is None:  # SIGBUS would kill this process
        read_counters(page), read_rate(page), read_blocked(page)
    said, _ = worker.communicate()
    assert (worker.returncode, said) == (0, "closed\n")
    assert (size, len(page)) == (COUNTER_PAGE_SIZE, COUNTER_PAGE_SIZE)
    assert read_counters(page).urbs == 4711
    assert not any(page[8:])


def test_shared_memory_has_no_name_and_is_a_page_of_zeros() -> None:
    """The way of macOS; Linux has it too, but without the fixed size."""
    is_named = Path("/dev/shm").glob  # where Linux has the names
    before = set(is_named("usbipd-*"))
    descriptor = counters.shared_memory()
    try:
        os.ftruncate(descriptor, COUNTER_PAGE_SIZE)
        assert set(is_named("usbipd-*")) <= before
        assert not os.get_inheritable(descriptor)
        with (
            mmap.mmap(descriptor, COUNTER_PAGE_SIZE) as written,
            mmap.mmap(descriptor, COUNTER_PAGE_SIZE, prot=mmap.PROT_READ) as page,
        ):
            assert not any(page[:])
            written[:8] = (7).to_bytes(8, sys.byteorder)
            assert read_counters(page).urbs == 7
    finally:
        os.close(descriptor)


def test_no_descriptor_is_left_when_there_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: int) -> None:
        raise OSError(28, "No space left on device")

    before = len(list(Path("/dev/fd").iterdir()))
    monkeypatch.setattr(os, "ftruncate", fail)
    with pytest.raises(OSError, match="No space left"):
        counters.counter_page()
    assert len(list(Path("/dev/fd").iterdir())) == before
