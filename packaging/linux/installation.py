"""Installs usbipd into a Linux system, and removes it: `installation.py install|uninstall`, see --help.

Run by `make install` and `make uninstall`.  A manifest lists what was installed: an uninstall removes that,
an upgrade removes what the new version no longer has, and neither touches other files.  DESTDIR stands for
the root of the target system, for package builds.

The configuration belongs to the user: a default is installed only if none exists or it is unedited.
"""

import argparse
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import licenses

PACKAGING: Final = Path(__file__).parents[1]
LINUX: Final = PACKAGING / "linux"

CONFIG: Final = "/etc/usbipd/usbipd.toml"
"""usbipd/paths.py; it does not depend on the prefix."""
STATE: Final = "/var/lib/usbipd"
_BELOW: Final = ("", "/bin", "/sbin", "/lib", "/share", "/share/man")
KNOWN_TO_SYSTEMD: Final = ("/usr", "/usr/local")
"""Prefixes below which systemd.unit(5) looks for units."""
STANDARD: Final = frozenset(
    {"/etc", "/opt", "/usr"} | {f"{prefix}{below}" for prefix in KNOWN_TO_SYSTEMD for below in _BELOW}
)
"""Directories of every system: they stay, even if empty or created by a tree that was built elsewhere
(DESTDIR)."""
RUNNING: Final = "/sys/fs/cgroup/system.slice/usbipd.service"
ENABLED: Final = "/etc/systemd/system/multi-user.target.wants/usbipd.service"

_PREFIX: Final = re.compile(r"(/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)+")
"""What needs no quoting in a unit (systemd.service(5), "Command lines")."""


class InstallError(Exception):
    """The message says what is wrong and how to fix it."""


@dataclass(frozen=True)
class File:
    content: bytes
    mode: int = 0o644


@dataclass(frozen=True)
class Link:
    target: str
    """The target, a place of `System`."""


class System:
    """The target system: places are absolute paths in it, `root` is its root directory on this host."""

    def __init__(self, root: Path, prefix: str) -> None:
        """Raises `InstallError`."""
        if not _PREFIX.fullmatch(prefix):
            raise InstallError(f"PREFIX={prefix}: an absolute path of letters, digits and . _ + - is needed")
        self.prefix = prefix
        self.manifest = f"{prefix}/share/usbipd/manifest"
        self.default_config = f"{prefix}/share/usbipd/usbipd.toml"
        self._root = root

    def at(self, place: str) -> Path:
        """The path of a place on this host."""
        return self._root / place[1:]

    def put(self, place: str, item: File | Link) -> None:
        """Writes a file atomically, even over a running executable; modes do not depend on the umask."""
        path = self.at(place)
        new = path.with_name(f"{path.name}.new")
        new.unlink(missing_ok=True)
        if isinstance(item, Link):
            new.symlink_to(os.path.relpath(item.target, Path(place).parent))
        else:
            with new.open("xb") as file:  # nor through a link created meanwhile
                os.fchmod(file.fileno(), item.mode)
                file.write(item.content)
        new.replace(path)

    def make_directories(self, places: Iterable[str]) -> None:
        """Creates the missing ones, parents first."""
        self._root.mkdir(parents=True, exist_ok=True)
        for place in sorted(places):
            path = self.at(place)
            if not path.is_dir():
                path.mkdir()
                path.chmod(0o755)

    def is_same(self, one: str, other: str) -> bool:
        """Whether both are files with the same content."""
        try:
            return self.at(one).read_bytes() == self.at(other).read_bytes()
        except FileNotFoundError:
            return False

    def read_manifest(self) -> tuple[set[str], set[str]]:
        """The installed files and links, and directories.  Raises `InstallError`, `OSError`."""
        try:
            lines = self.at(self.manifest).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return set(), set()
        except UnicodeDecodeError as error:
            raise InstallError(f"{self.at(self.manifest)}, byte {error.start}: not UTF-8 text") from error
        for number, line in enumerate(lines, 1):
            if not line.startswith("/") or ".." in line.split("/") or "\0" in line:
                raise InstallError(
                    f"{self.at(self.manifest)}, line {number}: {line!r} is not an absolute path"
                )
        files = {line for line in lines if not line.endswith("/")}
        directories = {line.rstrip("/") for line in lines if line.endswith("/")}
        expected = {directory for place in (*files, CONFIG) for directory in _above(place)}
        for number, line in enumerate(lines, 1):
            if line in files and line != CONFIG and not line.startswith(f"{self.prefix}/"):
                wrong = f"neither below {self.prefix} nor {CONFIG}"
            elif line.endswith("/") and line.rstrip("/") not in expected:
                wrong = f"a directory that holds none of the files of this list, nor {CONFIG}"
            else:
                continue
            raise InstallError(
                f"{self.at(self.manifest)}, line {number}: {line!r} is {wrong}: "
                "`make install` writes no such line; remove it"
            )
        return files, directories

    def write_manifest(self, files: Iterable[str], directories: Iterable[str]) -> None:
        """Writes the list of what is installed."""
        lines = sorted([*files, *(f"{directory}/" for directory in directories)])
        self.put(self.manifest, File("".join(f"{line}\n" for line in lines).encode()))


def _above(place: str) -> set[str]:
    """The directories above a place, except the root."""
    return {str(directory) for directory in Path(place).parents[:-1]}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description="Installs usbipd into a Linux system, or removes it.")
    parser.add_argument("action", choices=("install", "uninstall"))
    parser.add_argument("--destdir", default="", help="directory that stands for the root of the system")
    parser.add_argument(
        "--prefix", default="/usr/local", help="where to install everything except the configuration"
    )
    parser.add_argument("--dist", type=Path, default=Path("dist"), help="output of `make binary`")
    parser.add_argument("--man", type=Path, default=Path("build/man"), help="output of `make man`")
    parser.add_argument(
        "--completions", type=Path, default=Path("build/completions"), help="output of `make completions`"
    )
    arguments = parser.parse_args(argv)
    try:
        if sys.platform == "darwin" and not arguments.destdir:
            raise InstallError("macOS is installed from a package: make pkg")
        system = System(Path(arguments.destdir or "/"), arguments.prefix)
        if arguments.action == "install":
            is_upgrade = system.at(system.manifest).exists()
            said = install(system, contents(system, arguments.dist, arguments.man, arguments.completions))
            said += [] if arguments.destdir else how_to_start(system, is_upgrade)
        else:
            if not arguments.destdir:
                check_stopped(system)
            said = uninstall(system, frozenset() if arguments.destdir else STANDARD)
    except (InstallError, licenses.MissingError) as error:
        print(f"{arguments.action}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{arguments.action}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    for line in said:
        print(line)
    return 0


def contents(system: System, dist: Path, man: Path, completions: Path) -> Mapping[str, File | Link]:
    """Everything to install except the configuration, by place.  Raises `InstallError`, `MissingError`."""
    prefix = system.prefix
    share, documents = f"{prefix}/share", f"{prefix}/share/doc/usbipd"
    bash, fish = f"{share}/bash-completion/completions", f"{share}/fish/vendor_completions.d"
    sources = {
        f"{documents}/usbipd.cdx.json": dist / "usbipd.cdx.json",
        f"{documents}/README.md": PACKAGING.parent / "README.md",
        f"{documents}/licenses/usbipd/LICENSE": PACKAGING.parent / "LICENSE",
        **{
            f"{documents}/licenses/{component}/{file.name}": file
            for component, files in licenses.bundled().items()
            for file in files
        },
        **{
            f"{share}/man/man{page[-1]}/{page}": man / page
            for page in ("usbipd.1", "usbipd-ext.8", "usbipd.toml.5")
        },
        f"{bash}/usbipd": completions / "usbipd.bash",
        f"{share}/zsh/site-functions/_usbipd": completions / "_usbipd",
        f"{fish}/usbipd.fish": completions / "usbipd.fish",
        f"{prefix}/lib/sysusers.d/usbipd.conf": LINUX / "sysusers.conf",
        system.default_config: PACKAGING / "usbipd.toml",
    }
    unit = (LINUX / "usbipd.service").read_text().replace("@PREFIX@", prefix)
    return {
        **{place: File(_read(source)) for place, source in sources.items()},
        f"{prefix}/bin/usbipd": File(_read(dist / "usbipd"), 0o755),
        f"{prefix}/sbin/usbipd-ext": Link(f"{prefix}/bin/usbipd"),  # the name decides what it is
        f"{prefix}/lib/systemd/system/usbipd.service": File(unit.encode()),
        # bash and fish look for a file named after the command; each file serves both commands
        f"{bash}/usbipd-ext": Link(f"{bash}/usbipd"),
        f"{fish}/usbipd-ext.fish": Link(f"{fish}/usbipd.fish"),
    }


def _read(source: Path) -> bytes:
    try:
        return source.read_bytes()
    except FileNotFoundError:
        raise InstallError(
            f"there is no {source}: run `make binary man completions` first, as an ordinary user"
        ) from None


def install(system: System, items: Mapping[str, File | Link]) -> list[str]:
    """Returns messages about the configuration.  Raises `InstallError`, `OSError`."""
    older, owned = system.read_manifest()
    files = {*items, system.manifest}
    for place in sorted(files - older):
        if os.path.lexists(system.at(place)):
            raise InstallError(
                f"{system.at(place)} exists and was not installed by `make install`: "
                "remove it, or choose another PREFIX"
            )
    config, default = system.at(CONFIG), items[system.default_config]
    assert isinstance(default, File)
    is_unedited = not os.path.lexists(config) or (
        CONFIG in older and system.is_same(CONFIG, system.default_config)
    )
    if is_unedited or CONFIG in older:
        files.add(CONFIG)
    needed = {directory for place in (*files, CONFIG) for directory in _above(place)}
    owned |= {place for place in needed if not system.at(place).is_dir()}
    # first, so that an uninstall can remove the rest of an interrupted install
    system.make_directories(_above(system.manifest))
    system.write_manifest(older | files, owned)
    system.make_directories(needed)
    if is_unedited:
        # After an interruption between the two, an old one beside the new default would pass for edited; a
        # missing one equals the default.
        config.unlink(missing_ok=True)
    system.put(system.default_config, default)
    if is_unedited:
        system.put(CONFIG, default)
    for place, item in items.items():
        system.put(place, item)
    for place in older - files:
        system.at(place).unlink(missing_ok=True)
    _remove_empty(system, owned - needed)
    system.write_manifest(files, owned & needed)
    if system.is_same(CONFIG, system.default_config):
        return []
    return [f"{config} is kept; the default is {system.at(system.default_config)}."]


def how_to_start(system: System, is_upgrade: bool) -> list[str]:
    """The commands that the administrator runs."""
    unit = f"{system.prefix}/lib/systemd/system/usbipd.service"
    name = "usbipd" if system.prefix in KNOWN_TO_SYSTEMD else unit
    commands = [
        f"systemd-sysusers {system.prefix}/lib/sysusers.d/usbipd.conf",
        "systemctl daemon-reload",
        "systemctl try-restart usbipd" if is_upgrade else f"systemctl enable --now {name}",
    ]
    return [
        f"usbipd is installed below {system.prefix}.  As root, run:",
        *(f"    {command}" for command in commands),
    ]


def check_stopped(system: System) -> None:
    """Raises `InstallError` if systemd would lose the unit of an active or enabled service."""
    if any(os.path.lexists(system.at(place)) for place in (RUNNING, ENABLED)):
        raise InstallError("first run: systemctl disable --now usbipd")


def uninstall(system: System, keep: Collection[str]) -> list[str]:
    """What is kept, and why, without the directories `keep`.  Raises `InstallError`, `OSError`."""
    files, directories = system.read_manifest()
    if not files:
        raise InstallError(f"usbipd is not installed below {system.prefix}: no {system.at(system.manifest)}")
    said = [f"usbipd has been removed from {system.prefix}."]
    if CONFIG in files and not system.is_same(CONFIG, system.default_config):
        files.remove(CONFIG)
    if os.path.lexists(system.at(CONFIG)) and CONFIG not in files:
        said.append(f"{system.at(CONFIG)} is kept.")
    if system.at(STATE).is_dir():
        said.append(f"{system.at(STATE)} is kept: it contains bindings and history.")
    for place in sorted(files - {system.manifest}):
        system.at(place).unlink(missing_ok=True)
    system.at(system.manifest).unlink()
    _remove_empty(system, directories.difference(keep))
    return said


def _remove_empty(system: System, directories: Iterable[str]) -> None:
    """Children first; a directory with other contents is kept."""
    for place in sorted(directories, reverse=True):
        path = system.at(place)
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


if __name__ == "__main__":
    sys.exit(main())
