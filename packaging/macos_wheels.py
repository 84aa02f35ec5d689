"""Builds wheels for macOS on any system, for both processors: an experiment, never run on a Mac.

Run by `make wheels-macos`, after `make darwin-check` has built the library that the modules are linked with.
The modules use Python's stable ABI, so one wheel fits Python 3.11 and later.  libusb is not included: ours
can only be built on a Mac, so the modules use that of Homebrew or MacPorts.
"""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import apple_stubs
import mach_o
from darwin_check import PROCESSORS, ROOT, includes, run, translate, zig
from libusb_build import INSTALL_NAME, OLDEST_MACOS

BUILD: Final = ROOT / "build/wheels"
TARGET: Final = ROOT / "dist/wheels"
ABI: Final = "cp311-abi3"
STABLE_API: Final = "0x030B0000"
"""Py_LIMITED_API of Python 3.11; tests pass with it on Linux, too."""
PLATFORMS: Final = {"aarch64": "arm64", "x86_64": "x86_64"}
LIBUSB_PATHS: Final = ("/opt/homebrew/lib", "/usr/local/lib", "/opt/local/lib")
"""Homebrew's on Apple silicon and on Intel, MacPorts'."""
SYSTEM: Final = "/usr/lib/libSystem.B.dylib"
FLAGS: Final = (
    *("-O2", "-Wall", "-Werror", "-Wno-unused-function", f"-DPy_LIMITED_API={STABLE_API}"),
    *("-shared", "-undefined", "dynamic_lookup"),  # the interpreter that loads it defines Python's symbols
)


def main() -> int:
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    TARGET.mkdir(parents=True, exist_ok=True)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", BUILD, ROOT)
    [wheel] = BUILD.glob("*.whl")
    frameworks = apple_stubs.write(BUILD / "stubs")[:-1]  # without what libusb alone needs
    where = includes(BUILD / "include")
    for processor in PROCESSORS:
        tree = unpack(wheel, BUILD / processor)
        for module in sorted((ROOT / "cython").glob("*.pyx")):
            library = tree / "usbipd" / f"_{module.stem}.abi3.so"
            source = translate(module, BUILD / f"{module.stem}.c")
            needs = linked(module.stem, processor, frameworks)
            name = f"-Wl,-install_name,{library.name}"
            run(*zig(processor), *FLAGS, *where, source, *needs, name, "-o", library)
            check(library, processor, module.stem)
        tag(tree, f"{ABI}-macosx_{OLDEST_MACOS[0]}_{OLDEST_MACOS[1]}_{PLATFORMS[processor]}")
        run(sys.executable, "-m", "wheel", "pack", "--dest-dir", TARGET, tree)
    for file in sorted(TARGET.glob("*.whl")):
        print(file.relative_to(ROOT))
    return 0


def unpack(wheel: Path, directory: Path) -> Path:
    """The tree of a wheel, without the modules of this system."""
    run(sys.executable, "-m", "wheel", "unpack", "--dest", directory, wheel)
    [tree] = directory.iterdir()
    for module in tree.glob("usbipd/*.so"):
        module.unlink()
    return tree


def linked(module: str, processor: str, frameworks: list[str]) -> Iterable[str]:
    """The linker's arguments for a module."""
    if module == "iokit":
        return frameworks
    libusb = ROOT / f"build/darwin/libusb-1.0.0.{processor}.dylib"
    return (str(libusb), *(f"-Wl,-rpath,{path}" for path in LIBUSB_PATHS))


def check(library: Path, processor: str, module: str) -> None:
    """Exits unless macOS can load `library`."""
    found = mach_o.read(library)
    needed = (
        [apple_stubs.path(name) for name in apple_stubs.FRAMEWORKS] if module == "iokit" else [INSTALL_NAME]
    )
    if (
        (found.processor, found.minimum) != (processor, OLDEST_MACOS)
        or sorted(found.libraries) != sorted([*needed, SYSTEM])
        or found.install_name != library.name
        or found.paths != ([] if module == "iokit" else list(LIBUSB_PATHS))
        or f"PyInit__{module}" not in found.exported
        or (processor == "aarch64" and not found.is_signed)  # Apple silicon runs only signed code
    ):
        sys.exit(f"macOS cannot load {library}: {found}")


def tag(tree: Path, name: str) -> None:
    """Writes the wheel's tag into its file WHEEL, from which its name is made."""
    [file] = tree.glob("*.dist-info/WHEEL")
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("Tag: ")]
    file.write_text("\n".join([*lines, f"Tag: {name}", ""]))


if __name__ == "__main__":
    sys.exit(main())
