"""Compiles and links all Cython modules for macOS, for both of its processors, on any system.

Run by `make darwin-check`.  zig's C compiler (PyPI: ziglang) has the C library's headers for macOS, and what
we use of IOKit stands in cython/iokit_min.h.  The headers are those of this Python, whose sizes are the same
on every 64-bit Unix.  Names of Python, libusb and IOKit stay open, as in an extension module on a Mac.

What comes out lies in build/darwin and is not meant to be run.  It proves that the sources compile without a
warning, that the assertions in them hold, and that they use nothing that macOS does not declare.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
BUILD: Final = ROOT / "build/darwin"
ZIG_CACHE: Final = str(ROOT / "build/zig")

PROCESSORS: Final = {"aarch64": 0x0100000C, "x86_64": 0x01000007}
"""zig's names, and CPU_TYPE_ARM64 and CPU_TYPE_X86_64 of <mach/machine.h>."""
SYSTEM: Final = "macos.12.0"
MACH_O: Final = 0xFEEDFACF  # MH_MAGIC_64 of <mach-o/loader.h>

FLAGS: Final = ["-O1", "-Wall", "-Werror", "-Wno-unused-function", "-shared", "-undefined", "dynamic_lookup"]


def main() -> int:
    shutil.rmtree(BUILD, ignore_errors=True)
    headers = BUILD / "include"
    link_python_headers(headers)
    libusb = run("pkg-config", "--cflags-only-I", "libusb-1.0")
    includes = [f"-I{headers}", f"-I{ROOT / 'cython'}", *shlex.split(libusb)]
    for module in sorted((ROOT / "cython").glob("*.pyx")):
        source = BUILD / f"{module.stem}.c"
        name = f"usbipd._{module.stem}"
        cython = [sys.executable, "-m", "cython", "-3", "--module-name", name, "-I", module.parent]
        run(*cython, "-o", source, module)
        for processor, cpu_type in PROCESSORS.items():
            library = BUILD / f"_{module.stem}.{processor}.so"
            target = ["-target", f"{processor}-{SYSTEM}"]
            run(sys.executable, "-m", "ziglang", "cc", *target, *FLAGS, *includes, source, "-o", library)
            with library.open("rb") as file:
                start = file.read(8)
            if start != MACH_O.to_bytes(4, "little") + cpu_type.to_bytes(4, "little"):
                sys.exit(f"{library} is not Mach-O for {processor}: it begins with {start.hex(' ')}")
            print(f"{name} for {processor}: {library.relative_to(ROOT)}")
    return 0


def link_python_headers(directory: Path) -> None:
    """Links to the headers of this Python.

    Debian's pyconfig.h only includes the one of the target, if that is a system of Debian's.
    """
    include = Path(sysconfig.get_path("include"))
    directory.mkdir(parents=True)
    for header in include.iterdir():
        (directory / header.name).symlink_to(header)
    own = include.parent / str(sysconfig.get_config_var("MULTIARCH")) / include.name / "pyconfig.h"
    if own.exists():
        (directory / "pyconfig.h").unlink()
        (directory / "pyconfig.h").symlink_to(own)


def run(*command: str | Path) -> str:
    """The standard output of a command; ends this program if it fails."""
    done = subprocess.run(  # noqa: S603 - every word of it stands in this file
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "ZIG_GLOBAL_CACHE_DIR": ZIG_CACHE, "ZIG_LOCAL_CACHE_DIR": ZIG_CACHE},
    )
    if done.returncode != 0:
        sys.exit(f"{shlex.join(str(word) for word in command)}: exit code {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
