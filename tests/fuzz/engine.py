"""libFuzzer, from Python: `python -m tests.fuzz.engine TARGET [options, directories and files of libFuzzer]`.

Runs in the interpreter of tests/sanitized, which has libFuzzer inside; campaign.py starts it.  The compiled
pump reports the edges that an input reached; Python code reports none.
"""

import ctypes
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Final

from tests.fuzz import heap
from tests.fuzz.targets import target

LEAK_CHECK_EVERY: Final = 10.0
"""Seconds between two checks for leaks: each takes as long as some hundred inputs."""

_CALLBACK: Final = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_ubyte), ctypes.c_size_t)


def fuzz(run: Callable[[bytes], None], arguments: Sequence[str]) -> int:
    """Calls `run` with one input after another until it raises, a sanitizer reports or the time is over.

    `arguments` are libFuzzer's; new inputs go into the first directory.  Returns its exit code.  What makes
    `run` fail is written to a file, whose name libFuzzer prints.
    """
    next_look = time.monotonic() + LEAK_CHECK_EVERY

    def one(data: "ctypes._Pointer[ctypes.c_ubyte]", size: int) -> int:
        nonlocal next_look
        try:
            run(ctypes.string_at(data, size))
            if time.monotonic() >= next_look:
                assert not heap.leaks(), "memory is lost, by this input or by one of the last seconds"
                next_look = time.monotonic() + LEAK_CHECK_EVERY
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os.abort()
        return 0

    callback = _CALLBACK(one)
    words = [sys.argv[0].encode(), *(each.encode() for each in arguments)]
    argv = (ctypes.c_char_p * (len(words) + 1))(*words, None)
    pointer = ctypes.cast(argv, ctypes.POINTER(ctypes.c_char_p))
    driver = ctypes.PyDLL(None).LLVMFuzzerRunDriver
    return int(driver(ctypes.byref(ctypes.c_int(len(words))), ctypes.byref(pointer), callback))


if __name__ == "__main__":
    sys.exit(fuzz(target(sys.argv[1]), sys.argv[2:]))
