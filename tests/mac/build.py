"""Makes build/mac: libusb's darwin backend over our CoreFoundation and IOKit, for Linux.  Runs in `make
test-mac`.

    sources/           libusb's source: what LIBUSB_SOURCE names (a directory or a tarball), or Debian's
    apt/               apt's lists and sources for that; nothing outside this tree is written
    VARIANT/           libusb-1.0.so.0 and _iokit of one variant

Variants: `stock` is libusb unmodified, `ours` with the patches of packaging/libusb; `-asan` behind the name:
with AddressSanitizer and UndefinedBehaviorSanitizer.  What is up to date is not made again.

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
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
HERE: Final = ROOT / "build" / "mac"
MAC: Final = Path(__file__).parent
PATCHES: Final = ROOT / "packaging" / "libusb"
LIBRARY: Final = "libusb-1.0.so.0"

SUITE: Final = "trixie"
TARBALL: Final = "libusb-1.0_1.0.28.orig.tar.bz2"
SHA256: Final = "966bb0d231f94a474eaae2e67da5ec844d3527a1f386456394ff432580634b29"

FILES: Final = (
    *("core.c", "descriptor.c", "hotplug.c", "io.c", "strerror.c", "sync.c"),
    *("os/darwin_usb.c", "os/events_posix.c", "os/threads_posix.c"),
)
COMPILE: Final = ("-std=gnu11", "-O1", "-g", "-fPIC", "-fvisibility=hidden", "-fno-omit-frame-pointer")
WARN: Final = ("-Wall", "-Wextra", "-Werror")
SANITIZE: Final = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


class BuildError(Exception):
    """A software Mac cannot be built; the message says why."""


def run(*command: str | Path, **options: object) -> None:
    subprocess.run(command, check=True, **options)  # type: ignore[call-overload]


# ---- libusb's source -----------------------------------------------------------------------------


def source() -> Path:
    """The directory with libusb's source: it has libusb/os/darwin_usb.c."""
    given = os.environ.get("LIBUSB_SOURCE")
    if given:
        path = Path(given).resolve()
        if not path.exists():
            raise BuildError(f"LIBUSB_SOURCE={given} does not exist")
        return path if path.is_dir() else _unpacked(path, _digest(path))
    tarball = HERE / "apt" / TARBALL
    if not tarball.exists():
        _download(tarball)
    if _digest(tarball) != SHA256:
        tarball.unlink()
        raise BuildError(f"{TARBALL} is not what it should be (sha256)")
    return _unpacked(tarball, SHA256)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _unpacked(tarball: Path, digest: str) -> Path:
    directory = HERE / "sources" / digest[:16]
    if not directory.exists():
        new = directory.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        with tarfile.open(tarball) as archive:
            archive.extractall(new, filter="data")
        new.rename(directory)
    [found] = [each.parents[2] for each in directory.glob("**/libusb/os/darwin_usb.c")]
    return found


def _mirror() -> str:
    """Where this system gets its packages from, of Debian's archive."""
    answer = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for line in answer.splitlines():
        uri, _, origin = line.partition(" ")
        if "security" not in uri and (origin == "Debian" or "debian" in uri):
            return uri
    return "http://deb.debian.org/debian/"


def _download(tarball: Path) -> None:
    """Debian's own source package, by an apt whose lists, sources and cache lie in the tree."""
    apt = tarball.parent
    lists, cache = apt / "lists", apt / "cache"
    for each in (lists / "partial", cache):
        each.mkdir(parents=True, exist_ok=True)
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    signed = f"[signed-by={keyring}] " if keyring.exists() else ""
    (apt / "sources.list").write_text(f"deb-src {signed}{_mirror()} {SUITE} main\n")
    options = {
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": lists,
        "Dir::Cache": cache,
        "APT::Sandbox::User": "root",  # the tree may be closed to _apt
    }
    chosen = [f"-o{name}={value}" for name, value in options.items()]
    print(f"fetching {TARBALL} from Debian {SUITE}")
    run("apt-get", *chosen, "-qq", "update", cwd=apt)
    run("apt-get", *chosen, "-qq", "--tar-only", "--download-only", "source", f"libusb-1.0/{SUITE}", cwd=apt)
    if not tarball.exists():
        raise BuildError(f"Debian {SUITE} has no {TARBALL} any more")


# ---- compiling -----------------------------------------------------------------------------------


@contextmanager
def _alone() -> Iterator[None]:
    HERE.mkdir(parents=True, exist_ok=True)
    with (HERE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def patches(variant: str) -> list[Path]:
    return sorted(PATCHES.glob("*.patch")) if variant.startswith("ours") else []


def _state(libusb: Path, variant: str) -> str:
    """What the result is made of: if this has not changed, the result is up to date."""
    ours = [*(MAC / "iokit").iterdir(), *(MAC / "include").rglob("*.h"), *(ROOT / "cython").iterdir()]
    files = [Path(__file__), *ours, *patches(variant), *(libusb / "libusb").rglob("*.[ch]")]
    stamps = sorted((str(each), each.stat().st_mtime_ns, each.stat().st_size) for each in files)
    return hashlib.sha256(json.dumps([stamps, sys.version]).encode()).hexdigest()


def build(variant: str = "stock") -> Path:
    """The directory with libusb-1.0.so.0 of this variant, made if it is out of date."""
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
                directory.rename(old)  # a process that is just starting finds the old one or the new one
            new.rename(directory)
            shutil.rmtree(old, ignore_errors=True)
        return directory


def _compile(libusb: Path, variant: str, directory: Path) -> None:
    print(f"building {directory.relative_to(ROOT)} from {libusb}")
    if found := patches(variant):
        shutil.copytree(libusb / "libusb", directory / "source" / "libusb")
        libusb = directory / "source"
        for patch in found:
            run("patch", "--quiet", "--strip=1", f"--input={patch}", cwd=libusb)
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
    """usbipd._iokit over the same library, as `DIRECTORY/usbipd_iokit/_iokit….so`."""
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
    includes = [f"-I{ROOT / 'cython'}", f"-I{sysconfig.get_path('include')}"]
    link = [f"-L{directory}", "-lusb-1.0"]
    run(*compiler, "-O1", "-g", "-w", "-fPIC", "-shared", *includes, text, *link, "-o", module)


def main() -> None:
    try:
        for variant in sys.argv[1:] or ["stock"]:
            build(variant)
    except BuildError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
