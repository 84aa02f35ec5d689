"""Writes the executable's bill of materials, in CycloneDX: `bill_of_materials.py CONTENTS.json OUTPUT`.

packaging/usbipd.spec writes CONTENTS.json.  Each file and module belongs to one component: Python itself, a
package from PyPI, libusb, or a system library that Python needs.  usb.ids is one, too.  Run by `make binary`.
"""

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution, packages_distributions
from pathlib import Path
from typing import Any

import usb_ids
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

BOOTLOADER = "pyinstaller"
"""Its launcher and importers are in every executable that it builds."""


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    contents = json.loads(source.read_text())
    files = [(name, Path(path)) for name, path in contents["files"]]
    parts = components(contents["libusb"], contents["modules"], files)
    if (names := contents["usb_ids"]) is not None:
        parts.append(of_usb_ids(Path(names)))
    bom = Bom(components=parts)
    ours = distribution("usbipd-ext")
    bom.metadata.component = Component(
        name="usbipd", version=ours.version, type=ComponentType.APPLICATION, licenses=licenses(ours)
    )
    for each in bom.components:
        bom.register_dependency(bom.metadata.component, [each])
    text = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2)
    target.write_text(text + "\n")


def components(
    libusb: dict[str, Any], modules: Iterable[str], files: list[tuple[str, Path]]
) -> list[Component]:
    """All components except usbipd itself."""
    owners = packages_distributions()
    tops = {name.partition("/")[0].partition(".")[0] for name, _path in files}
    tops |= {module.partition(".")[0] for module in modules}
    names = {name for top in tops for name in owners.get(top, [])} - set(owners["usbipd"]) | {BOOTLOADER}
    found = [of_package(distribution(name)) for name in sorted(names)]
    found.append(
        Component(
            name="python",
            version=platform.python_version(),
            licenses=[LicenseFactory().make_from_string("PSF-2.0")],
            purl=PackageURL("generic", None, "python", platform.python_version()),
        )
    )
    for name, path in files:
        if name.startswith("libusb-1.0"):
            found.append(of_libusb(path, **libusb))
        elif "/" not in name and not name.lower().startswith(("libpython", "python")):
            found.append(of_library(name, *of_system(path)))
    return found


def of_package(package: Distribution) -> Component:
    return Component(
        name=package.name,
        version=package.version,
        licenses=licenses(package),
        purl=PackageURL("pypi", None, package.name.lower(), package.version),
    )


def licenses(package: Distribution) -> list[License]:
    said = package.metadata.get("License-Expression") or package.metadata.get("License")
    return [LicenseFactory().make_from_string(said)] if said and "\n" not in said else []


def of_libusb(path: Path, version: str, source: dict[str, Any] | None) -> Component:
    """`source`: what our own build was made from; None: libusb is the one in libusb-package."""
    if source is None:
        package = distribution("libusb-package")
        origin = f"from {package.name} {package.version} of PyPI"
    else:
        patches = ", ".join(source["patches"])
        origin = f"from {source['url']} with these patches in packaging/libusb of usbipd's source: {patches}"
    return of_library(
        "libusb", version, path, origin, [LicenseFactory().make_from_string("LGPL-2.1-or-later")]
    )


def of_usb_ids(path: Path) -> Component:
    """The names of vendors and products: the file of a release, or that of the system."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    origin = f"from {usb_ids.URL}" if digest == usb_ids.SHA256 else of_system(path)[2]
    version = usb_ids.version(path)
    return Component(
        name="usb.ids",
        version=version,
        type=ComponentType.DATA,
        description=origin,
        licenses=[LicenseFactory().make_from_string(usb_ids.TERMS)],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
        purl=PackageURL("generic", None, "usb.ids", version),
    )


def of_library(
    name: str,
    version: str | None,
    path: Path,
    origin: str | None = None,
    terms: Iterable[License] = (),
) -> Component:
    return Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        description=origin,
        licenses=terms,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=hashlib.sha256(path.read_bytes()).hexdigest())],
        purl=PackageURL("generic", None, name, version),
    )


def of_system(path: Path) -> tuple[str | None, Path, str | None]:
    """The version of the Debian package that `path` comes from, the file, and where it is from."""
    real = path.resolve()
    for name in (
        str(path),
        str(real),
        str(real).removeprefix("/usr"),
    ):  # dpkg knows a file by one of these names
        if owner := ask_dpkg("-S", name):
            package = owner.partition(": ")[0]
            return ask_dpkg("-W", "-f", "${Version}", package), real, f"from the Debian package {package}"
    return None, real, None


def ask_dpkg(*question: str) -> str | None:
    """None: dpkg is not installed, or does not know."""
    try:
        command = ["dpkg-query", *question]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    main()
