"""Builds fake_libusb.c, and replaces libusb with it in child processes; failing_memory.c
likewise for the allocator.  Runs in tests and fuzzers.
"""

import os
import shlex
import subprocess
from pathlib import Path

HERE = Path(__file__).parent


def environment_with_fake(directory: Path) -> dict[str, str]:
    """The environment of a process whose libusb is the fake, built in `directory`."""
    flags = subprocess.run(
        ["pkg-config", "--cflags", "libusb-1.0"], check=True, capture_output=True, text=True
    ).stdout
    library = directory / "libusb-1.0.so.0"
    options = ["-shared", "-fPIC", f"-Wl,-soname,{library.name}", *shlex.split(flags)]
    subprocess.run(["cc", *options, "-o", library, HERE / "fake_libusb.c"], check=True)
    return {**os.environ, "LD_LIBRARY_PATH": str(directory)}


def environment_without_memory(directory: Path) -> dict[str, str]:
    """The same, with an allocator that fails on demand, also built in `directory`."""
    library = directory / "failing_memory.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, HERE / "failing_memory.c", "-ldl"], check=True)
    return {**environment_with_fake(directory), "LD_PRELOAD": str(library)}
