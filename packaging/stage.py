"""Lays out the files of a package: `stage.py`, see --help.  Used by `make pkg`.

    STAGE/root      the files as installed on a Mac
    STAGE/scripts   the scripts that the Installer runs

Root's executable is not in /usr/local, which may be Homebrew's: only links to it are.
"""

import argparse
import errno
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

import licenses

PACKAGING: Final = Path(__file__).parent
MACOS: Final = PACKAGING / "macos"
HOME: Final = "Library/usbipd"

_BASH: Final = "usr/local/share/bash-completion/completions"
_FISH: Final = "usr/local/share/fish/vendor_completions.d"

LINKS: Final[Mapping[str, str]] = {
    f"{HOME}/usbipd-ext": f"{HOME}/usbipd",  # its name selects the program
    "usr/local/bin/usbipd": f"{HOME}/usbipd",
    "usr/local/sbin/usbipd-ext": f"{HOME}/usbipd-ext",
    "usr/local/sbin/usbipd-uninstall": f"{HOME}/usbipd-uninstall",
    # bash and fish look for a file named after the command; each file serves both commands
    f"{_BASH}/usbipd-ext": f"{_BASH}/usbipd",
    f"{_FISH}/usbipd-ext.fish": f"{_FISH}/usbipd.fish",
}
"""Each link, and its target."""


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description="Lays out the files of the package for macOS.")
    parser.add_argument("--binary", type=Path, required=True, help="the executable, see `make binary`")
    parser.add_argument(
        "--man", type=Path, required=True, help="directory of the manual pages, see `make man`"
    )
    parser.add_argument(
        "--completions", type=Path, required=True, help="directory of the completions, see `make completions`"
    )
    parser.add_argument("--output", type=Path, required=True, help="the stage tree; replaced if it exists")
    arguments = parser.parse_args()
    try:
        stage(arguments.binary, arguments.man, arguments.completions, arguments.output)
    except licenses.MissingError as error:
        print(f"stage: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"stage: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def stage(binary: Path, man: Path, completions: Path, output: Path) -> None:
    """Raises `OSError` for missing files, `licenses.MissingError`."""
    if output.exists():
        if {path.name for path in output.iterdir()} - {"root", "scripts"}:
            raise OSError(errno.ENOTEMPTY, "exists and is not a stage tree", str(output))
        shutil.rmtree(output)
    tree = _Tree(output / "root")
    tree.add(binary, f"{HOME}/usbipd", 0o755)
    tree.add(MACOS / "usbipd-uninstall", f"{HOME}/usbipd-uninstall", 0o755)
    tree.add(MACOS / "launchd.sh", f"{HOME}/launchd.sh")
    tree.add(PACKAGING / "usbipd.toml", f"{HOME}/usbipd.toml.default")
    tree.add(PACKAGING.parent / "LICENSE", f"{HOME}/licenses/usbipd/LICENSE")
    for component, files in licenses.bundled().items():
        for file in files:
            tree.add(file, f"{HOME}/licenses/{component}/{file.name}")
    tree.add(MACOS / "org.usbipd.extension.plist", "Library/LaunchDaemons/org.usbipd.extension.plist")
    # /etc is a link on macOS; an installed directory would replace it
    tree.add(MACOS / "newsyslog.conf", "private/etc/newsyslog.d/usbipd.conf")
    for page in ("usbipd.1", "usbipd-ext.8", "usbipd.toml.5"):
        tree.add(man / page, f"usr/local/share/man/man{page[-1]}/{page}")
    tree.add(completions / "usbipd.bash", f"{_BASH}/usbipd")
    tree.add(completions / "_usbipd", "usr/local/share/zsh/site-functions/_usbipd")
    tree.add(completions / "usbipd.fish", f"{_FISH}/usbipd.fish")
    for link, target in LINKS.items():
        tree.link(link, target)
    scripts = _Tree(output / "scripts")
    for name in ("preinstall", "postinstall"):
        scripts.add(MACOS / "scripts" / name, name, 0o755)
    scripts.add(MACOS / "launchd.sh", "launchd.sh")


class _Tree:
    """A directory to fill, with modes that do not depend on the builder's umask."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True)
        root.chmod(0o755)  # the entry for / in a package

    def add(self, source: Path, place: str, mode: int = 0o644) -> None:
        target = self._prepare(place)
        shutil.copyfile(source, target)
        target.chmod(mode)

    def link(self, place: str, to: str) -> None:
        above = PurePosixPath(place).parent
        self._prepare(place).symlink_to(os.path.relpath(to, above))

    def _prepare(self, place: str) -> Path:
        directory = self._root
        for part in PurePosixPath(place).parent.parts:
            directory /= part
            directory.mkdir(exist_ok=True)
            directory.chmod(0o755)
        return self._root / place


if __name__ == "__main__":
    sys.exit(main())
