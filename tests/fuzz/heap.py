"""The heap of this process as the sanitizers see it, if it runs under them.  Runs in tests and
fuzzers.
"""

import ctypes
from collections.abc import Callable
from functools import cache


@cache
def _ask(name: str) -> Callable[[], int] | None:
    process = ctypes.CDLL(None)
    if not hasattr(process, name):
        return None
    function = process[name]
    function.restype = ctypes.c_size_t
    answer: Callable[[], int] = function
    return answer


def allocated() -> int | None:
    """Bytes that are allocated now; None without a sanitizer."""
    ask = _ask("__sanitizer_get_current_allocated_bytes")
    return None if ask is None else ask()


def leaks() -> bool:
    """Whether memory has leaked; LeakSanitizer then reports it."""
    ask = _ask("__lsan_do_recoverable_leak_check")
    return ask is not None and ask() & 0xFFFFFFFF != 0
