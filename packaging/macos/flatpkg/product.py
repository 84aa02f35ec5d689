"""A product archive with one component: what the Installer, installer(8) and pkgutil(8) expect in it.

Runs in `make pkg`.

    Distribution          what to ask and check before anything is installed
    usbipd.pkg/
        Bom               bom.py
        PackageInfo       who the component is, and which scripts it has
        Payload           gzip of cpio.py: what is installed
        Scripts           the same of the scripts
"""

import gzip
from collections.abc import Sequence
from typing import Final
from xml.etree import ElementTree

from flatpkg import bom, cpio, xar
from flatpkg.tree import Entry, UnfitError

SCRIPTS: Final = ("preinstall", "postinstall")
COMPONENT: Final = "usbipd.pkg"


def package_info(identifier: str, version: str) -> ElementTree.Element:
    """What PackageInfo contains, by pkgbuild or by us; pkgbuild takes it with --info and adds the rest.

    Directories that are there keep their owner and mode: /usr/local may be Homebrew's.
    """
    return ElementTree.Element(
        "pkg-info",
        {
            "format-version": "2",
            "identifier": identifier,
            "version": version,
            "install-location": "/",
            "auth": "root",
            "overwrite-permissions": "false",
            "relocatable": "false",
            "postinstall-action": "none",
        },
    )


def archive(
    distribution: str,
    info: ElementTree.Element,
    payload: Sequence[Entry],
    scripts: Sequence[Entry],
    time: int,
) -> bytes:
    """The whole package, everything in it of `time`, seconds since 1970.  Raises `UnfitError`."""
    size = sum(len(entry.content) for entry in payload)
    ElementTree.SubElement(
        info, "payload", {"numberOfFiles": str(len(payload)), "installKBytes": str(-(-size // 1024))}
    )
    found = {entry.path: entry for entry in scripts}
    section = ElementTree.SubElement(info, "scripts")
    for name in SCRIPTS:
        entry = found.get(f"./{name}")
        if entry is None or not entry.mode & 0o100 or entry.is_directory or entry.is_link:
            raise UnfitError(f"there is no script {name} that can be executed")
        ElementTree.SubElement(section, name, {"file": f"./{name}"})
    component = xar.Directory(
        COMPONENT,
        (
            xar.File("Bom", bom.bill(payload, time)),
            xar.File("Payload", _compressed(payload, time)),
            xar.File("Scripts", _compressed(scripts, time)),
            xar.File("PackageInfo", ElementTree.tostring(info, encoding="utf-8", xml_declaration=True)),
        ),
    )
    return xar.archive((xar.File("Distribution", distribution.encode()), component), time)


def _compressed(entries: Sequence[Entry], time: int) -> bytes:
    return gzip.compress(
        cpio.archive(entries, time), 9, mtime=0
    )  # mtime: no time of this build in the gzip header
