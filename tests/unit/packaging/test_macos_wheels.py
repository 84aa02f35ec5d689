"""Checks and names of wheels for macOS."""

from pathlib import Path
from typing import Final

import apple_stubs
import macos_wheels
import pytest

from tests.unit.packaging.test_mach_o import SYSTEM, X86_64, library

LIBUSB: Final = "@rpath/libusb-1.0.0.dylib"
WHEEL: Final = """Wheel-Version: 1.0
Generator: setuptools
Root-Is-Purelib: false
Tag: cp311-cp311-linux_x86_64

"""


def module(directory: Path, **parts: object) -> Path:
    """A module for Intel, which may be unsigned."""
    right = {
        "cpu": X86_64,
        "name": "_pump.abi3.so",
        "libraries": [SYSTEM, LIBUSB],
        "paths": macos_wheels.LIBUSB_PATHS,
        "exported": ["PyInit__pump"],
    }
    return library(directory / "_pump.abi3.so", **{**right, **parts})  # type: ignore[arg-type]


def test_a_loadable_module(tmp_path: Path) -> None:
    macos_wheels.check(module(tmp_path), "x86_64", "pump")
    frameworks = [apple_stubs.path(name) for name in apple_stubs.FRAMEWORKS]
    iokit = module(tmp_path, libraries=[*frameworks, SYSTEM], paths=[], exported=["PyInit__iokit"])
    macos_wheels.check(iokit, "x86_64", "iokit")


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "/home/builder/_pump.abi3.so"},
        {"minimum": 15 << 16},
        {"libraries": [SYSTEM]},
        {"libraries": [SYSTEM, LIBUSB, "@rpath/software-mac.dylib"]},
        {"paths": ["/home/builder/lib"]},
        {"exported": ["PyInit__claim"]},
        {"cpu": 0x0100000C},
    ],
)
def test_an_unloadable_module(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(SystemExit, match="macOS cannot load "):
        macos_wheels.check(module(tmp_path, **wrong), "x86_64", "pump")


def test_apple_silicon_loads_only_signed_modules(tmp_path: Path) -> None:
    unsigned = module(tmp_path, cpu=0x0100000C)
    with pytest.raises(SystemExit, match="is_signed=False"):
        macos_wheels.check(unsigned, "aarch64", "pump")


def test_the_tag_of_a_wheel(tmp_path: Path) -> None:
    file = tmp_path / "usbipd_ext-0.1.0.dist-info/WHEEL"
    file.parent.mkdir()
    file.write_text(WHEEL)
    macos_wheels.tag(tmp_path, "cp311-abi3-macosx_12_0_arm64")
    assert file.read_text().splitlines()[-1] == "Tag: cp311-abi3-macosx_12_0_arm64"
    assert "linux" not in file.read_text()
    assert "Root-Is-Purelib: false" in file.read_text()
