"""A Mac in a directory: its root, users and launchd, as far as the scripts of the package use them."""

import os
import shlex
import stat
import subprocess
from pathlib import Path
from typing import Final

from tests.unit.packaging.flat_reader import Item, Package

FAKES: Final = Path(__file__).parent / "fake_macos"
LABEL: Final = "org.usbipd.extension"
SUPPORT: Final = "Library/Application Support/usbipd"

SHELLS: Final = {"dash": ["dash"], "bash": ["bash", "--posix"]}
"""macOS's /bin/sh is bash 3.2 in POSIX mode, unless the administrator has chosen dash."""

OWN_PATH: Final = "\nPATH=/usr/bin:/bin:/usr/sbin:/sbin "
OWN_ROOT: Final = "\nroot="
"""The beginning of the lines that restrict a script to the system's programs and the real root."""


class Mac:
    """Files below `root`; the fakes' state and records below `fake`."""

    def __init__(self, directory: Path, shell: str, package: Package) -> None:
        self._package = package
        self.root = directory / "root"
        self.fake = directory / "fake"
        self.shell = SHELLS[shell]
        self.scripts = directory / "scripts"
        self.root.mkdir()
        self.fake.mkdir()
        for name, taken in {"Users": "UniqueID", "Groups": "PrimaryGroupID"}.items():
            for account, number in {"root": 0, "_usbmuxd": 213}.items():
                record = self.fake / "users" / name / account
                record.mkdir(parents=True)
                (record / taken).write_text(f"{number}\n")
        (self.fake / "uid").write_text("0\n")
        lay_out(package.scripts, self.scripts)
        self._let_in(self.scripts / "preinstall", OWN_PATH, OWN_ROOT)
        self._let_in(self.scripts / "postinstall", OWN_PATH, OWN_ROOT)

    def unpack(self, default: str | None = None) -> None:
        """Lay out the payload as the Installer does, with the receipt; `default`: with that usbipd.toml."""
        lay_out(self._package.payload, self.root)
        self._let_in(self.root / "Library/usbipd/usbipd-uninstall", OWN_PATH, OWN_ROOT)
        if default is not None:
            (self.root / "Library/usbipd/usbipd.toml.default").write_text(default)
        (self.fake / "receipt").write_text("org.usbipd.pkg\n")

    def _let_in(self, script: Path, *lines: str) -> None:
        """Make a script use this Mac: unchanged, it uses only the real one."""
        text = script.read_text()
        seen = {
            OWN_PATH: f"\nPATH={shlex.quote(f'{FAKES}:' + os.environ['PATH'])} ",
            OWN_ROOT: f"\nroot={shlex.quote(str(self.root))}",
        }
        for line in lines:
            assert text.count(line) == 1, f"{script.name} must have one line that begins with {line!r}"
            text = text.replace(line, seen[line])
        script.write_text(text)

    def run(self, name: str, volume: str = "/") -> "subprocess.CompletedProcess[str]":
        """Runs a script of the package, as the Installer does."""
        return self._run(self.scripts / name, "usbipd.pkg", volume, volume, "/")

    def uninstall(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Runs the installed uninstaller."""
        return self._run(self.root / "Library/usbipd/usbipd-uninstall", *arguments)

    def _run(self, script: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
        (self.fake / "calls").unlink(missing_ok=True)
        return subprocess.run(
            [*self.shell, str(script), *arguments],
            env={
                "PATH": os.environ["PATH"],
                "FAKE": str(self.fake),
                "ROOT": str(self.root),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            umask=0o022,
        )

    @property
    def calls(self) -> list[str]:
        """The programs of macOS that the last script called, in order."""
        path = self.fake / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def calls_of(self, program: str) -> list[str]:
        """The first argument of each call of a program."""
        return [call.split()[1] for call in self.calls if call.split()[0] == program]

    @property
    def has_job(self) -> bool:
        """Whether launchd has the job."""
        return (self.fake / "loaded").exists()

    def load_job(self, lingers: int = 0) -> None:
        """Load the job of an earlier installation, which stays for `lingers` more checks after bootout."""
        (self.fake / "loaded").touch()
        (self.fake / "lingers").write_text("\n" * lingers)

    def let_answer(self, code: int) -> None:
        """Make the installed `usbipd-ext` exit with `code`: 0 if a daemon answers, 3 if none does."""
        (self.root / "Library/usbipd/usbipd").write_text(
            f'#!/bin/sh\n[ "${{0##*/}} $*" = "usbipd-ext --status" ] || exit 2\necho answered\nexit {code}\n'
        )

    def let_fail(self, code: int, words: str, message: str = "") -> None:
        """Make calls that contain `words` exit with `code`, printing `message`."""
        (self.fake / "fail").write_text(f"{code} {words}\n")
        (self.fake / "message").write_text(message)

    def user(self, name: str = "_usbipd") -> dict[str, str]:
        """The record of a user; empty if none exists."""
        return self._record("Users", name)

    def group(self, name: str = "_usbipd") -> dict[str, str]:
        """The record of a group; empty if none exists."""
        return self._record("Groups", name)

    def _record(self, kind: str, name: str) -> dict[str, str]:
        record = self.fake / "users" / kind / name
        return {path.name: path.read_text().strip() for path in record.iterdir()} if record.is_dir() else {}

    def files(self) -> dict[str, bytes | str]:
        """All files and links below the root."""
        return {
            str(path.relative_to(self.root)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
            for path in sorted(self.root.rglob("*"))
            if path.is_symlink() or path.is_file()
        }


def lay_out(items: list[Item], root: Path) -> None:
    """Extract a cpio archive to a directory, replacing existing files."""
    for item in items:
        path = root / item.path
        if item.target:
            path.unlink(missing_ok=True)
            path.symlink_to(item.target)
            continue
        if stat.S_ISDIR(item.mode):
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(item.content)
        path.chmod(stat.S_IMODE(item.mode))
