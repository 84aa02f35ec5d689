"""Compiles and links all Cython modules and our libusb for macOS, for both of its processors, on any system.

Run by `make darwin-check`.  zig's C compiler (PyPI: ziglang) has the C library's headers for macOS, and
cython/iokit_min.h declares what we use of IOKit.  Python's headers are those of this Python, whose sizes are
the same on every 64-bit Unix.  Symbols of Python, libusb and IOKit stay undefined, as in an extension module
on a Mac.

libusb is compiled with the headers of the software Mac (tests/mac), and linked with stubs of Apple's
frameworks.  Only Apple's headers have the order of the functions in IOUSBLib's interfaces and their
identifiers: the libusb of a release is compiled with those, on a Mac (packaging/libusb).

The output is in build/darwin and is not meant to be run.  It proves that the sources compile, ours without a
warning, that their assertions hold, and that they use only what macOS declares.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

import apple_stubs
import libusb_build
import libusb_source
import mach_o
from libusb_build import OLDEST_MACOS

ROOT: Final = Path(__file__).parents[1]
BUILD: Final = ROOT / "build/darwin"
ZIG_CACHE: Final = str(ROOT / "build/zig")
ENVIRONMENT: Final = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": ZIG_CACHE, "ZIG_LOCAL_CACHE_DIR": ZIG_CACHE}

PROCESSORS: Final = ("aarch64", "x86_64")
"""zig's names."""
SYSTEM: Final = "macos.12.0"
APPLE: Final = ("CoreFoundation", "IOKit", "Security", "software_mac")
"""Directories of tests/mac/include; the others are for Linux only: zig has them for macOS."""

FLAGS: Final = ["-O1", "-Wall", "-Werror", "-Wno-unused-function", "-shared", "-undefined", "dynamic_lookup"]


def main() -> int:
    shutil.rmtree(BUILD, ignore_errors=True)
    where = includes(BUILD / "include")
    for module in sorted((ROOT / "cython").glob("*.pyx")):
        source = translate(module, BUILD / f"{module.stem}.c")
        for processor in PROCESSORS:
            library = BUILD / f"_{module.stem}.{processor}.so"
            run(*zig(processor), *FLAGS, *where, source, "-o", library)
            if (found := mach_o.read(library)).processor != processor or found.minimum != OLDEST_MACOS:
                sys.exit(f"{library} is for {found.processor} with macOS {found.minimum}")
            print(f"usbipd._{module.stem} for {processor}: {library.relative_to(ROOT)}")
    check_libusb()
    return 0


def includes(headers: Path) -> list[str]:
    """Include options; Python's headers are linked into the new directory `headers`."""
    link_python_headers(headers)
    libusb = run("pkg-config", "--cflags-only-I", "libusb-1.0")
    return [f"-I{headers}", f"-I{ROOT / 'cython'}", *shlex.split(libusb)]


def translate(module: Path, source: Path) -> Path:
    """Translates a Cython module to `source`, in C."""
    name = f"usbipd._{module.stem}"
    run(
        sys.executable, "-m", "cython", "-3", "--module-name", name, "-I", module.parent, "-o", source, module
    )
    return source


def check_libusb() -> None:
    """Compiles and links libusb, with our patches."""
    apple = BUILD / "apple"
    apple.mkdir()
    for name in APPLE:
        (apple / name).symlink_to(ROOT / "tests/mac/include" / name)
    linker = apple_stubs.write(BUILD / "stubs")
    libraries = [*map(apple_stubs.path, apple_stubs.FRAMEWORKS), apple_stubs.SOFTWARE_MAC]
    try:
        source = libusb_source.unpack(BUILD / "libusb", patched=True, source=libusb_source.for_tests())
        for processor in PROCESSORS:
            library = BUILD / f"libusb-1.0.0.{processor}.dylib"
            compiler = [*zig(processor), f"-I{apple}", *linker]
            libusb_build.compile_library(compiler, source, library, ENVIRONMENT)
            libusb_build.check(library, processor, libraries)
            print(f"libusb for {processor}: {library.relative_to(ROOT)}")
    except (libusb_source.SourceError, libusb_build.BuildError) as error:
        sys.exit(str(error))


def zig(processor: str) -> tuple[str, ...]:
    """The compiler for a processor, as the beginning of a command."""
    return (sys.executable, "-m", "ziglang", "cc", "-target", f"{processor}-{SYSTEM}")


def link_python_headers(directory: Path) -> None:
    """Links to the headers of this Python.

    Debian's pyconfig.h only includes that of the target, if the target is a Debian system.
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
    """The standard output of a command; exits if it fails."""
    done = subprocess.run(  # noqa: S603 - every word of it is in this file
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    if done.returncode != 0:
        sys.exit(f"{shlex.join(str(word) for word in command)}: exit code {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
