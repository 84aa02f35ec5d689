"""packaging/locked.txt: the packages of a release."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[3]
AGAIN = "run `make lock`"


def entries() -> list[str]:
    """One package each, with its hashes and its reason."""
    text = (ROOT / "packaging/locked.txt").read_text()
    return re.findall(r"^[a-z0-9].*\n(?: .*\n)*", text, re.MULTILINE)


def test_every_package_has_one_version_and_hashes() -> None:
    assert entries()
    for entry in entries():
        assert re.match(r"[a-z0-9-]+==\S+ (; .* )?\\\n +--hash=sha256:[0-9a-f]{64}", entry), entry


def test_it_satisfies_the_build_and_its_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    locked = {}
    for entry in entries():
        name, version = re.match(r"([^=]+)==(\S+)", entry).groups()  # type: ignore[union-attr]
        locked[name] = Version(version)
    extras = project["project"]["optional-dependencies"]
    asked = project["build-system"]["requires"] + project["project"]["dependencies"]
    for each in map(Requirement, asked + extras["binary"] + extras["dev"]):
        if each.name != "usbipd-ext":
            has = locked.get(each.name)
            assert has is not None, f"{each} is missing: {AGAIN}"
            assert each.specifier.contains(has), f"{each}, but {has} is locked: {AGAIN}"
