"""The source distribution is complete: a wheel builds from the archive alone, and its programs run.

Each environment here is new, with only the packages that pyproject.toml names for its purpose.  They are
linked from this environment, so no test needs the network.
"""

import json
import os
import signal
import stat
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from email.parser import Parser
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import pytest
from packaging.requirements import Requirement

import usbipd

ROOT: Final = Path(__file__).parents[3]
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())
GENERATED: Final = ("PKG-INFO", "setup.cfg", "usbipd_ext.egg-info")
"""Files that setuptools adds to a source distribution."""
PATIENCE: Final = 20.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git lists what belongs to the source"),
]


class Environment:
    """A virtual environment with the packages of `requirements`, linked from this one."""

    def __init__(self, directory: Path, requirements: Iterable[str]) -> None:
        venv.create(directory, symlinks=True)
        self._bin = directory / "bin"
        [packages] = directory.glob("lib/python*/site-packages")
        for requirement in requirements:
            files = metadata.files(Requirement(requirement).name) or []
            for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
                (packages / top).symlink_to(metadata.distribution("pip").locate_file(top))

    def run(self, program: str, *arguments: str | Path, cwd: Path) -> str:
        """The output of one of its programs; a nonzero exit fails the test."""
        ended = subprocess.run(
            [self._bin / program, *arguments],
            cwd=cwd,
            env=self.variables(cwd),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def pip(self, verb: str, *arguments: str | Path, cwd: Path) -> None:
        """Runs this environment's pip on that one, without an index."""
        command = [sys.executable, "-m", "pip", "--python", self._bin / "python", verb, *arguments]
        ended = subprocess.run(
            command, cwd=cwd, env=self.variables(cwd), capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr

    def start(self, program: str, *arguments: str | Path, cwd: Path) -> "subprocess.Popen[str]":
        """Starts one of its programs with readable output."""
        return subprocess.Popen(
            [self._bin / program, *arguments],
            cwd=cwd,
            env=self.variables(cwd),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @staticmethod
    def variables(home: Path) -> dict[str, str]:
        """Environment variables: only PATH is inherited."""
        return {"PATH": os.environ["PATH"], "HOME": str(home), "PIP_CONFIG_FILE": os.devnull}


def tracked() -> list[str]:
    """The files of the tree that are tracked, or will be."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of a copy of the tree."""
    directory = tmp_path_factory.mktemp("source")
    for name in tracked():
        copy = directory / "tree" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
        copy.chmod((ROOT / name).stat().st_mode)
    environment = Environment(directory / "environment", PROJECT["build-system"]["requires"])
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(directory)!r})"
    environment.run("python", "-c", build, cwd=directory / "tree")
    return directory / f"usbipd_ext-{usbipd.__version__}.tar.gz"


def build_wheel(source: Path, directory: Path) -> Path:
    """Builds a wheel from an archive or a tree alone."""
    environment = Environment(directory / "environment", PROJECT["build-system"]["requires"])
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--check-build-dependencies"]
    environment.pip("wheel", *options, source, cwd=directory)
    [built] = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the archive alone."""
    return build_wheel(archive, tmp_path_factory.mktemp("wheel"))


def is_executable(mode: int) -> bool:
    return bool(mode & stat.S_IXUSR)


def test_the_archive_contains_the_tracked_files(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        files = {
            member.name.partition("/")[2]: is_executable(member.mode)
            for member in tar.getmembers()
            if member.isfile()
        }
    ours = {name: mode for name, mode in files.items() if name.partition("/")[0] not in GENERATED}
    assert ours == {name: is_executable((ROOT / name).stat().st_mode) for name in tracked()}


def test_the_wheel_contains_only_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        text = archive.read(f"usbipd_ext-{usbipd.__version__}.dist-info/METADATA").decode()
    compiled = {name for name in names if name.endswith(".so")}
    assert {Path(name).name.partition(".")[0] for name in compiled} >= {"_claim", "_pump"}
    package = {name for name in names if name.startswith("usbipd/")} - compiled
    assert package == {name for name in tracked() if name.startswith("usbipd/")}
    others = {name.partition("/")[2] for name in names - package - compiled}
    assert others == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
    fields = Parser().parsestr(text)
    assert (fields["Name"], fields["Version"]) == ("usbipd-ext", usbipd.__version__)
    assert (fields["License-Expression"], fields["License-File"]) == ("MIT", "LICENSE")


def test_a_wheel_contains_a_fetched_usb_ids(archive: Path, tmp_path: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:  # Python before 3.11.4 has no filter for this
            tar.extract(member, tmp_path)
    [tree] = tmp_path.glob("usbipd_ext-*")
    (tree / "build").mkdir()
    (tree / "build/usb.ids").write_bytes(b"fe01  Vendor\n\tfe02  Product\n")
    built = build_wheel(tree, tmp_path)
    with zipfile.ZipFile(built) as wheel:
        assert "usbipd/usb.ids.LICENSE" in wheel.namelist()
    environment = Environment(tmp_path / "installed", PROJECT["project"]["dependencies"])
    environment.pip("install", "--no-index", "--no-deps", built, cwd=tmp_path)
    program = "from usbipd.cli.usb_ids import UsbIds; print(UsbIds().names(0xFE01, 0xFE02))"
    assert environment.run("python", "-c", program, cwd=tmp_path) == "('Vendor', 'Product')\n"


def test_the_installed_programs_run(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "environment", PROJECT["project"]["dependencies"])
    environment.pip("install", "--no-index", "--no-deps", wheel, cwd=tmp_path)
    environment.pip("check", cwd=tmp_path)
    for name in ("usbipd", "usbipd-ext"):
        assert environment.run(name, "--version", cwd=tmp_path) == f"{name} {usbipd.__version__}\n"
    socket = tmp_path / "control.sock"
    options = ["--run", "--listen", "127.0.0.1:0", "--simulate", "loopback", "--socket", socket]
    daemon = environment.start("usbipd-ext", *options, cwd=tmp_path)
    try:
        assert daemon.stdout is not None
        assert " listens on " in daemon.stdout.readline()
        listed: dict[str, Any] = json.loads(
            environment.run("usbipd", "list", "--json", "--socket", socket, cwd=tmp_path)
        )
        assert [device["state"] for device in listed["devices"]] == ["shared"]
        daemon.send_signal(signal.SIGINT)
        _output, log = daemon.communicate(timeout=PATIENCE)
        assert daemon.returncode == 0, log
    finally:
        daemon.kill()
        daemon.wait()
