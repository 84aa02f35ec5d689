"""Gets libusb's source, verified and with our patches.  Runs in builds of libusb: for macOS, and for tests.

The source is upstream's archive of a release; on Debian, tests take Debian's.  LIBUSB_SOURCE names a
directory, or another archive that is known here.
"""

import getpass
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path
from typing import Final

VERSION: Final = "1.0.30"
MARKER: Final = "-usbipd2"
"""`libusb_get_version()->rc` of the patched library; 0008-version.patch."""

URL: Final = f"https://github.com/libusb/libusb/releases/download/v{VERSION}/libusb-{VERSION}.tar.bz2"
KNOWN: Final = {
    "fea36f34f9156400209595e300840767ab1a385ede1dc7ee893015aea9c6dbaf": VERSION,
    # The .orig.tar.bz2 of Debian's source package libusb-1.0 in trixie: only for tests
    "966bb0d231f94a474eaae2e67da5ec844d3527a1f386456394ff432580634b29": "1.0.28",
}
"""The versions of archives by their SHA-256."""
DEBIAN_SUITE: Final = "trixie"
DEBIAN_ARCHIVE: Final = "libusb-1.0_1.0.28.orig.tar.bz2"
DEBIAN_KEYS: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"

HERE: Final = Path(__file__).resolve().parent
BUILD: Final = HERE.parents[1] / "build/libusb"
TIMEOUT: Final = 60.0
"""Seconds without an answer after which a download has failed."""


class SourceError(Exception):
    """The source is missing or wrong; the message says which."""


def patches() -> list[Path]:
    """Our patches, in order."""
    return sorted(HERE.glob("*.patch"))


def unpack(target: Path, *, patched: bool, source: Path | None = None) -> Path:
    """Unpacks libusb's source to `target`, which is replaced, and returns the tree.

    `source` is a directory or an archive; None: LIBUSB_SOURCE, or else upstream's archive, which is fetched
    once and kept.  Raises `SourceError`, `OSError`.
    """
    source = source or named() or upstream()
    shutil.rmtree(target, ignore_errors=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(".git"))
    else:
        check(source)
        _extract(source, target)
    if not (target / "libusb/os/darwin_usb.c").is_file():
        raise SourceError(f"{source} is not libusb's source: it has no libusb/os/darwin_usb.c")
    for patch in patches() if patched else ():
        apply(patch, target)
    return target


def named() -> Path | None:
    """What LIBUSB_SOURCE names.  Raises `SourceError` if it does not exist."""
    if not (value := os.environ.get("LIBUSB_SOURCE")):
        return None
    path = Path(value)
    if not path.exists():
        raise SourceError(f"LIBUSB_SOURCE={value} does not exist")
    return path


def upstream() -> Path:
    """Upstream's archive, fetched unless an earlier build has fetched it.  Raises `SourceError`."""
    path = BUILD / URL.rpartition("/")[2]
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        with urllib.request.urlopen(URL, timeout=TIMEOUT) as answer, part.open("wb") as file:
            shutil.copyfileobj(answer, file)
        check(part)
    except OSError as error:
        raise SourceError(
            f"{URL} cannot be fetched ({error}): LIBUSB_SOURCE=PATH names an archive or a directory"
        ) from None
    part.rename(path)
    return path


def for_tests() -> Path:
    """LIBUSB_SOURCE, or else Debian's archive on a Debian, upstream's elsewhere.  Raises `SourceError`."""
    if given := named():
        return given
    mirror = _mirror()
    return debian(mirror) if mirror else upstream()


def _mirror() -> str | None:
    """apt's mirror for packages of Debian; None: apt is not installed or has none."""
    if shutil.which("apt-get") is None:
        return None
    found = _apt("indextargets", "--format", "$(REPO_URI)", "Identifier: Packages", "Label: Debian").split()
    return found[0] if found else None


def debian(mirror: str) -> Path:
    """The archive in Debian's source package, from our own list of sources.  Raises `SourceError`."""
    directory = BUILD / "debian"
    if found := list(directory.glob(DEBIAN_ARCHIVE)):
        return found[0]
    shutil.rmtree(directory, ignore_errors=True)
    for name in ("lists/partial", "cache/archives/partial"):
        (directory / name).mkdir(parents=True)
    (directory / "sources.list").write_text(
        f"deb-src [signed-by={DEBIAN_KEYS}] {mirror} {DEBIAN_SUITE} main\n"
    )
    own = (
        *("-o", f"Dir::Etc::sourcelist={directory}/sources.list", "-o", "Dir::Etc::sourceparts=-"),
        *("-o", f"Dir::State::lists={directory}/lists", "-o", f"Dir::Cache={directory}/cache"),
        *("-o", f"APT::Sandbox::User={getpass.getuser()}"),  # as root: not _apt, which may not read a home
    )
    _apt(*own, "--quiet=2", "update")
    _apt(*own, "--quiet=2", "source", "--tar-only", "--download-only", "libusb-1.0", directory=directory)
    found = list(directory.glob(DEBIAN_ARCHIVE))
    if not found:
        raise SourceError(f"Debian {DEBIAN_SUITE} has no {DEBIAN_ARCHIVE}")
    return found[0]


def _apt(*words: str, directory: Path | None = None) -> str:
    """What apt-get prints.  Raises `SourceError`."""
    command = ["apt-get", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=directory)  # noqa: S603 - fixed words
    if done.returncode != 0:
        raise SourceError(f"cannot fetch Debian's source of libusb: {done.stderr.strip()}")
    return done.stdout


def check(archive: Path) -> str:
    """The version of an archive.  Raises `SourceError` if it is unknown, `OSError`."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if (version := KNOWN.get(digest)) is None:
        raise SourceError(f"{archive} is not a known release of libusb: its SHA-256 is {digest}")
    return version


def _extract(archive: Path, target: Path) -> None:
    """Extracts everything below the archive's only directory."""
    unpacked = target.with_name(f"{target.name}.unpacked")
    shutil.rmtree(unpacked, ignore_errors=True)
    with tarfile.open(archive) as file:
        for member in file:  # Python before 3.11.4 has no filter for this
            name = Path(member.name)
            if not (member.isreg() or member.isdir()) or ".." in name.parts or name.is_absolute():
                raise SourceError(f"{archive}: {member.name} is neither a file nor a directory below it")
            file.extract(member, unpacked)
    [tree] = unpacked.iterdir()
    tree.rename(target)
    unpacked.rmdir()


def apply(patch: Path, tree: Path) -> None:
    """Patches `tree`.  Raises `SourceError` unless each line of the patch is found; lines may have moved."""
    command = ["patch", "-d", str(tree), "-p1", "-F0", "-s", "-t", "-i", str(patch)]
    done = subprocess.run(  # noqa: S603 - patch(1), on our own files
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        raise SourceError(f"{patch.name} does not apply to {tree}:\n{done.stdout}")


if __name__ == "__main__":
    try:
        print(unpack(Path(sys.argv[1]), patched=True))
    except SourceError as error:
        sys.exit(str(error))
