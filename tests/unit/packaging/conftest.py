"""A stage tree and its package for all tests, and a Mac for each test."""

import os
from collections.abc import Iterator
from pathlib import Path

import licenses
import make_pkg
import pytest
from stage import stage

from tests.unit.packaging.built import BUILT
from tests.unit.packaging.flat_reader import Package, read_package
from tests.unit.packaging.mac import SHELLS, Mac


@pytest.fixture(scope="session", autouse=True)
def without_apples_tools() -> Iterator[None]:
    """flatpkg/ builds the package, also on a Mac: Apple's tools would refuse the test's executable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_pkg, "BY_APPLE", False)
        yield


@pytest.fixture(scope="session")
def stage_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of `packaging/stage.py` with test files in place of make's, built with umask 077."""
    directory = tmp_path_factory.mktemp("stage")
    for name in BUILT:
        (directory / name).write_text(f"this is {name}\n" * 3)
    with pytest.MonkeyPatch.context() as patch:
        # every development environment has these; the rest comes with `make binary`
        patch.setattr(licenses, "DISTRIBUTIONS", ("libusb1", "msgspec", "psutil"))
        before = os.umask(0o077)
        try:
            stage(directory / "usbipd", directory, directory, directory / "tree")
        finally:
            os.umask(before)
    return directory / "tree"


@pytest.fixture(scope="session")
def package_file(stage_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the stage tree."""
    output = tmp_path_factory.mktemp("package") / "usbipd.pkg"
    make_pkg.make(stage_tree, "1.2.3", output)
    return output


@pytest.fixture(scope="session")
def package(package_file: Path) -> Package:
    """The package's contents."""
    return read_package(package_file.read_bytes())


@pytest.fixture(params=list(SHELLS))
def mac(tmp_path: Path, package: Package, request: pytest.FixtureRequest) -> Mac:
    """A Mac on which the package can be installed; its scripts run in each shell that may be /bin/sh."""
    return Mac(tmp_path, request.param, package)
