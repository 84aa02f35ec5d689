"""Builds the installer package from the stage tree: `make_pkg.py STAGE VERSION OUTPUT`.  Used by `make pkg`.

On a Mac Apple's tools build it, and productsign signs it if PKG_SIGN_IDENTITY names an identity
("Developer ID Installer: ...").  Elsewhere flatpkg/ builds it, unsigned and reproducible.

SOURCE_DATE_EPOCH: the time of all files inside, seconds since 1970; default: a fixed one.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from flatpkg import macho, product
from flatpkg.tree import UnfitError, read_tree

HERE: Final = Path(__file__).parent
IDENTIFIER: Final = "org.usbipd.pkg"
EXECUTABLE: Final = "./Library/usbipd/usbipd"
FIXED_TIME: Final = 1_577_836_800
"""2020-01-01, in UTC."""
BY_APPLE: Final = sys.platform == "darwin"
"""Whether Apple's tools build the package."""
LATEST: Final = 0xFFFF_FFFF
"""The limit of the 32-bit times in a Bom."""


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description="Builds the installer package from the stage tree.")
    parser.add_argument("stage", type=Path, help="directory with root/ and scripts/, see packaging/stage.py")
    parser.add_argument("version", help="version of the package")
    parser.add_argument("output", type=Path, help="the package")
    arguments = parser.parse_args()
    try:
        make(arguments.stage, arguments.version, arguments.output)
    except (UnfitError, OSError) as error:
        print(f"make_pkg: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"make_pkg: {error.cmd[0]} ended with {error.returncode}", file=sys.stderr)
        return 1
    return 0


def make(stage: Path, version: str, output: Path) -> None:
    """Raises `UnfitError`, `OSError`, `subprocess.CalledProcessError`; `output` is complete or unchanged."""
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)*", version):
        raise UnfitError(
            f"version {version!r}: must be numbers separated by dots, which the Installer can compare"
        )
    payload, scripts = read_tree(stage / "root"), read_tree(stage / "scripts")
    binary = next((entry for entry in payload if entry.path == EXECUTABLE), None)
    if binary is None:
        raise UnfitError(f"{stage / 'root'}: {EXECUTABLE} does not exist")
    try:
        processors = macho.architectures(binary.content)
    except UnfitError as error:
        raise UnfitError(f"{EXECUTABLE}: {error}") from error
    if not processors:
        if BY_APPLE:
            raise UnfitError(f"{EXECUTABLE} is not a Mach-O executable")
        print(
            "make_pkg: the executable is not for macOS: use this package for reading and tests only",
            file=sys.stderr,
        )
        processors = ["arm64", "x86_64"]
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        made = Path(scratch, output.name)
        if BY_APPLE:
            by_apple(stage, version, processors, made)
        else:
            text = distribution(version, processors, f"#{product.COMPONENT}")
            info = product.package_info(IDENTIFIER, version)
            made.write_bytes(product.archive(text, info, payload, scripts, time()))
        made.replace(output)


def time() -> int:
    """The time of all files in the package.  Raises `UnfitError`."""
    text = os.environ.get("SOURCE_DATE_EPOCH", str(FIXED_TIME))
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) > LATEST:
        raise UnfitError(f"SOURCE_DATE_EPOCH={text}: not a number of seconds from 0 to {LATEST}")
    return int(text)


def distribution(version: str, processors: list[str], component: str) -> str:
    """The file Distribution; `component` is the component's name in it."""
    text = (HERE / "Distribution").read_text(encoding="utf-8")
    values = {
        "VERSION": version,
        "IDENTIFIER": IDENTIFIER,
        "ARCHITECTURES": ",".join(processors),
        "COMPONENT": component,
    }
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def by_apple(stage: Path, version: str, processors: list[str], output: Path) -> None:
    """Builds it with Apple's tools.  Raises `OSError`, `subprocess.CalledProcessError`."""
    with tempfile.TemporaryDirectory() as scratch:
        info, outline = Path(scratch, "PackageInfo"), Path(scratch, "Distribution")
        ElementTree.ElementTree(product.package_info(IDENTIFIER, version)).write(info, encoding="utf-8")
        outline.write_text(distribution(version, processors, product.COMPONENT), encoding="utf-8")
        component, unsigned = Path(scratch, product.COMPONENT), Path(scratch, "unsigned.pkg")
        _run(
            *("pkgbuild", "--root", stage / "root", "--scripts", stage / "scripts", "--info", info),
            *("--identifier", IDENTIFIER, "--version", version, "--install-location", "/"),
            *("--ownership", "recommended", component),
        )
        _run("productbuild", "--distribution", outline, "--package-path", scratch, unsigned)
        identity = os.environ.get("PKG_SIGN_IDENTITY")
        if identity:
            _run("productsign", "--timestamp", "--sign", identity, unsigned, output)
        else:
            output.write_bytes(unsigned.read_bytes())


def _run(*command: str | Path) -> None:
    # COPYFILE_DISABLE: keep extended attributes of the builder's files out of the package
    environment = os.environ | {"COPYFILE_DISABLE": "1"}
    subprocess.run([str(part) for part in command], check=True, env=environment)  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
