"""Builds build/mac: libusb's darwin backend on our CoreFoundation and IOKit, for Linux.  Runs in `make
test-mac`.

    sources/           libusb's source, from the archive that packaging/libusb/libusb_source.py finds
    VARIANT/           libusb-1.0.so.0 and _iokit of one variant

Variants: `stock` is libusb unmodified, `ours` with the patches of packaging/libusb; the suffix `-asan` adds
AddressSanitizer and UndefinedBehaviorSanitizer.  1.0.28 also gets time_of_a_reset.patch.  Up-to-date variants
are not rebuilt.

    python -m tests.mac.build [VARIANT...]
"""

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
sys.path.append(str(ROOT / "packaging" / "libusb"))

import libusb_source  # noqa: E402

HERE: Final = ROOT / "build" / "mac"
MAC: Final = Path(__file__).parent
LIBRARY: Final = "libusb-1.0.so.0"

FILES: Final = (
    *("core.c", "descriptor.c", "hotplug.c", "io.c", "strerror.c", "sync.c"),
    *("os/darwin_usb.c", "os/events_posix.c", "os/threads_posix.c"),
)
COMPILE: Final = ("-std=gnu11", "-O1", "-g", "-fPIC", "-fvisibility=hidden", "-fno-omit-frame-pointer")
WARN: Final = ("-Wall", "-Wextra", "-Werror")
SANITIZE: Final = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def run(*command: str | Path, **options: object) -> None:
    subprocess.run(command, check=True, **options)  # type: ignore[call-overload]


# ---- libusb's source -----------------------------------------------------------------------------


def source() -> Path:
    """The directory with libusb's unmodified source.  Raises `SourceError`."""
    found = libusb_source.for_tests()
    if found.is_dir():
        return found.resolve()
    directory = HERE / "sources" / libusb_source.check(found)
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        libusb_source.unpack(directory, patched=False, source=found)
    return directory


# ---- compiling -----------------------------------------------------------------------------------


@contextmanager
def _alone() -> Iterator[None]:
    HERE.mkdir(parents=True, exist_ok=True)
    with (HERE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def patches(variant: str) -> list[Path]:
    return libusb_source.patches() if variant.startswith("ours") else []


def _corrections(libusb: Path) -> list[Path]:
    """Patches without which the tests would fail at random with this version."""
    is_1_0_28 = "#define LIBUSB_MICRO 28" in (libusb / "libusb/version.h").read_text()
    return [MAC / "time_of_a_reset.patch"] if is_1_0_28 else []


def _state(libusb: Path, variant: str) -> str:
    """A digest of all inputs: if it is unchanged, the result is up to date."""
    ours = [*(MAC / "iokit").iterdir(), *(MAC / "include").rglob("*.h"), *(ROOT / "cython").iterdir()]
    applied = [*patches(variant), *_corrections(libusb)]
    files = [Path(__file__), *ours, *applied, *(libusb / "libusb").rglob("*.[ch]")]
    stamps = sorted((str(each), each.stat().st_mtime_ns, each.stat().st_size) for each in files)
    return hashlib.sha256(json.dumps([stamps, sys.version]).encode()).hexdigest()


def build(variant: str = "stock") -> Path:
    """The directory with libusb-1.0.so.0 of this variant, rebuilt if out of date."""
    with _alone():
        libusb = source()
        directory = HERE / variant
        state = _state(libusb, variant)
        stamp = directory / ".state"
        if not stamp.exists() or stamp.read_text() != state:
            new, old = (HERE / f"{variant}.{end}" for end in ("new", "old"))
            for each in (new, old):
                shutil.rmtree(each, ignore_errors=True)
            new.mkdir(parents=True)
            _compile(libusb, variant, new)
            (new / ".state").write_text(state)
            if directory.exists():
                directory.rename(old)  # a starting process finds the old one or the new one
            new.rename(directory)
            shutil.rmtree(old, ignore_errors=True)
        return directory


def _compile(libusb: Path, variant: str, directory: Path) -> None:
    print(f"building {directory.relative_to(ROOT)} from {libusb}")
    corrections = _corrections(libusb)
    if patches(variant) or corrections:
        tree = directory / "source"
        libusb = libusb_source.unpack(tree, patched=bool(patches(variant)), source=libusb)
        for patch in corrections:
            libusb_source.apply(patch, tree)
    objects = directory / "objects"
    objects.mkdir()
    compiler: list[str | Path] = [*shlex.split(os.environ.get("CC", "cc"))]
    if variant.endswith("-asan"):
        compiler = [os.environ.get("CLANG", "clang"), *SANITIZE]
    include = MAC / "include"
    made = []
    for name in FILES:
        target = objects / f"libusb-{Path(name).stem}.o"
        where = [f"-I{libusb / 'libusb'}", f"-I{libusb / 'libusb' / 'os'}"]
        config: list[str | Path] = ["-include", include / "config.h", "-w", f"-I{include}"]
        run(*compiler, *COMPILE, *config, *where, "-c", libusb / "libusb" / name, "-o", target)
        made.append(target)
    for each in sorted((MAC / "iokit").glob("*.c")):
        target = objects / f"{each.stem}.o"
        run(*compiler, *COMPILE, *WARN, "-D_GNU_SOURCE", f"-I{include}", "-c", each, "-o", target)
        made.append(target)
    run(*compiler, "-shared", "-pthread", f"-Wl,-soname,{LIBRARY}", "-o", directory / LIBRARY, *made)
    (directory / "libusb-1.0.so").symlink_to(LIBRARY)
    _compile_iokit(compiler, directory)


def _compile_iokit(compiler: list[str | Path], directory: Path) -> None:
    """usbipd._iokit on the same library, as `DIRECTORY/usbipd_iokit/_iokit….so`."""
    module = directory / f"_iokit{sysconfig.get_config_var('EXT_SUFFIX')}"
    text = directory / "objects" / "iokit.c"
    cython: list[str | Path] = [
        sys.executable,
        "-m",
        "cython",
        "-3",
        "--module-name",
        "usbipd._iokit",
        "-I",
        ROOT / "cython",
    ]
    run(*cython, "-o", text, ROOT / "cython" / "iokit.pyx")
    includes = ["-DUSBIPD_HAS_IOKIT", f"-I{MAC / 'include'}"]
    includes += [f"-I{ROOT / 'cython'}", f"-I{sysconfig.get_path('include')}"]
    link = [f"-L{directory}", "-lusb-1.0"]
    run(*compiler, "-O1", "-g", "-w", "-fPIC", "-shared", *includes, text, *link, "-o", module)


def main() -> None:
    try:
        for variant in sys.argv[1:] or ["stock"]:
            build(variant)
    except libusb_source.SourceError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
