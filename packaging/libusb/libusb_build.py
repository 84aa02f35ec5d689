"""Builds our libusb for macOS: one library, with the patches beside this file.  Run by `make` on a Mac.

It is compiled with Apple's SDK, for the processor of that Mac, and installed in build/libusb/macos as
libusb's own `make install` does.  pkg-config must find it there when our modules are compiled:

    python3 packaging/libusb/libusb_build.py
    export PKG_CONFIG_PATH="$PWD/build/libusb/macos/lib/pkgconfig"

`make darwin-check` uses `compile_library` on other systems, without an SDK.
"""

import ctypes
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import apple_stubs
import mach_o
from libusb_source import BUILD, MARKER, VERSION, SourceError, unpack

PREFIX: Final = BUILD / "macos"
NAME: Final = "libusb-1.0.0.dylib"
LIBRARY: Final = PREFIX / "lib" / NAME
INSTALL_NAME: Final = f"@rpath/{NAME}"
COMPATIBILITY: Final = "7.0.0"
"""As libtool derives it from lt_current in configure.ac, so that this library can replace other builds of the
release."""
OLDEST_MACOS: Final = (12, 0)

_SOURCES: Final = (
    *("core.c", "descriptor.c", "hotplug.c", "io.c", "strerror.c", "sync.c"),
    *("os/darwin_usb.c", "os/events_posix.c", "os/threads_posix.c"),
)
_FLAGS: Final = ("-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unused-but-set-variable")
_LINK: Final = (
    *("-Wl,-install_name," + INSTALL_NAME, "-Wl,-compatibility_version," + COMPATIBILITY),
    *("-Wl,-current_version," + COMPATIBILITY, "-Wl,-headerpad_max_install_names"),
)
_PKG_CONFIG: Final = """prefix={prefix}
libdir=${{prefix}}/lib
includedir=${{prefix}}/include

Name: libusb-1.0
Description: USB devices for programs; usbipd's build for macOS
Version: {version}
Libs: -L${{libdir}} -lusb-1.0 -Wl,-rpath,${{libdir}}
Cflags: -I${{includedir}}/libusb-1.0
"""


class BuildError(Exception):
    """The library is not as expected; the message says how it differs."""


def compile_library(
    compiler: Sequence[str], source: Path, library: Path, environment: Mapping[str, str] | None = None
) -> None:
    """Compiles and links libusb's `source` with `compiler`, which adds flags.

    libusb's own config.h for Xcode is used.  Prints the compiler's warnings.  Raises `BuildError`.
    """
    library.parent.mkdir(parents=True, exist_ok=True)
    sources = [str(source / "libusb" / name) for name in _SOURCES]
    includes = [f"-I{source / 'Xcode'}", f"-I{source / 'libusb'}", "-include", "errno.h"]
    command = [*compiler, *_FLAGS, *includes, *sources, "-dynamiclib", *_LINK, "-o", str(library)]
    done = subprocess.run(  # noqa: S603 - a compiler
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    if done.returncode != 0:
        raise BuildError(f"libusb cannot be compiled:\n{done.stdout}")
    print(done.stdout, end="")


def check(library: Path, processor: str, libraries: Sequence[str]) -> None:
    """Raises `BuildError` unless a library is what macOS and our modules expect.

    `libraries`: what it may be linked with besides the C library.
    """
    found = mach_o.read(library)
    wrong = []
    if found.processor != processor:
        wrong.append(f"it is for {found.processor}, not for {processor}")
    if found.install_name != INSTALL_NAME:
        wrong.append(f"its install name is {found.install_name}, not {INSTALL_NAME}")
    if found.minimum != OLDEST_MACOS:
        wrong.append(f"it needs macOS {found.minimum}, not {OLDEST_MACOS}")
    if sorted(found.libraries) != sorted([*libraries, "/usr/lib/libSystem.B.dylib"]):
        wrong.append(f"it is linked with {', '.join(found.libraries)}")
    if missing := {"libusb_init", "libusb_get_version", "libusb_set_option"} - found.exported:
        wrong.append(f"it has no {', '.join(sorted(missing))}")
    if strange := {name for name in found.exported if not name.startswith(("libusb_", "_"))}:
        wrong.append(f"it exports {', '.join(sorted(strange))}")
    if MARKER.encode() + b"\0" not in library.read_bytes():
        wrong.append(f"it does not say {MARKER}")
    if wrong:
        raise BuildError(f"{library}: {'; '.join(wrong)}")


def install(source: Path, library: Path) -> None:
    """Replaces `PREFIX` by the library, its header, its licence and what pkg-config reads."""
    shutil.rmtree(PREFIX, ignore_errors=True)
    for directory in ("include/libusb-1.0", "lib/pkgconfig"):
        (PREFIX / directory).mkdir(parents=True)
    shutil.copy2(source / "libusb/libusb.h", PREFIX / "include/libusb-1.0")
    shutil.copy2(source / "COPYING", PREFIX)
    shutil.copy2(library, LIBRARY)
    (PREFIX / "lib/libusb-1.0.dylib").symlink_to(NAME)
    (PREFIX / "lib/pkgconfig/libusb-1.0.pc").write_text(_PKG_CONFIG.format(prefix=PREFIX, version=VERSION))


def main() -> int:
    if sys.platform != "darwin":
        sys.exit("this build needs Apple's SDK, on a Mac; elsewhere `make darwin-check` test-compiles libusb")
    processor = {"arm64": "aarch64"}.get(platform.machine(), platform.machine())
    version = ".".join(map(str, OLDEST_MACOS))
    frameworks = [word for name in apple_stubs.FRAMEWORKS for word in ("-framework", name)]
    compiler = [
        *("cc", f"-mmacosx-version-min={version}", "-DHAVE_IOKIT_USB_IOUSBHOSTFAMILYDEFINITIONS_H=1"),
        *frameworks,
    ]
    try:
        source = unpack(BUILD / "source", patched=True)
        library = BUILD / NAME
        compile_library(compiler, source, library)
        check(library, processor, [apple_stubs.path(name) for name in apple_stubs.FRAMEWORKS])
        install(source, library)
    except (BuildError, SourceError, OSError) as error:
        sys.exit(str(error))
    ctypes.CDLL(str(LIBRARY))  # it can be loaded
    print(f"{LIBRARY}: libusb {VERSION}{MARKER} for {processor}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
