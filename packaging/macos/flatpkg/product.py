"""A product archive with one component: what the Installer, installer(8) and pkgutil(8) expect in it.

Runs in `make pkg`.

    Distribution          what to ask and check before installing
    usbipd.pkg/
        Bom               bom.py
        PackageInfo       the component's identifier and scripts
        Payload           gzip of cpio.py: the installed files
        Scripts           the same for the scripts
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
    """The contents of PackageInfo, for pkgbuild (--info, which adds the rest) and for us.

    Existing directories keep their owner and mode: /usr/local may be Homebrew's.
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
    """The whole package; all its times are `time`, seconds since 1970.  Raises `UnfitError`."""
    size = sum(len(entry.content) for entry in payload)
    ElementTree.SubElement(
        info, "payload", {"numberOfFiles": str(len(payload)), "installKBytes": str(-(-size // 1024))}
    )
    found = {entry.path: entry for entry in scripts}
    section = ElementTree.SubElement(info, "scripts")
    for name in SCRIPTS:
        entry = found.get(f"./{name}")
        if entry is None or not entry.mode & 0o100 or entry.is_directory or entry.is_link:
            raise UnfitError(f"no executable script {name}")
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
