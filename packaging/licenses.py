"""Finds the licence texts of everything that the executable bundles.  Run by make, in stage.py and
linux/installation.py.

Those of packages come from the installed packages, so that they match the bundled versions.
"""

import sys
import sysconfig
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

DISTRIBUTIONS: Final = ("libusb1", "libusb-package", "msgspec", "psutil", "pyinstaller")
"""From PyPI.  Of pyinstaller the bootloader is bundled; libusb-package brings libusb for Linux."""

LIBUSB: Final = ("libusb1", "COPYING.LESSER")
"""libusb is under LGPL 2.1 or later, whose text never varies: libusb1 has a copy."""

USB_IDS: Final = Path(__file__).with_name("usb.ids.LICENSE")
"""The licence of usb.ids, see usb_ids.py; the file itself has none."""


class MissingError(Exception):
    """A missing licence text; the message names its component."""


def bundled() -> Mapping[str, list[Path]]:
    """The texts, by component.  Raises `MissingError`."""
    texts = {name: of_distribution(name) for name in DISTRIBUTIONS}
    texts["libusb"] = [path for path in texts[LIBUSB[0]] if path.name == LIBUSB[1]]
    if not texts["libusb"]:
        raise MissingError(f"the package {LIBUSB[0]} has no {LIBUSB[1]}, the licence of libusb")
    texts["python"] = [of_python()]
    texts["usb.ids"] = [USB_IDS]
    return texts


def of_distribution(name: str) -> list[Path]:
    """The licence files in an installed package's metadata.  Raises `MissingError`."""
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        raise MissingError(
            f"the package {name}, which is bundled, is not installed in {sys.prefix}"
        ) from None
    found = [
        Path(str(file.locate()))
        for file in files
        if ".dist-info" in str(file)
        and file.name.upper().startswith(("LICENSE", "LICENCE", "COPYING", "NOTICE"))
    ]
    texts = sorted(path for path in found if path.is_file())
    if not texts:
        raise MissingError(f"the package {name} has no licence text: add one")
    return texts


def of_python() -> Path:
    """Python's own licence.  Raises `MissingError`."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    places = [
        Path(sysconfig.get_path("stdlib"), "LICENSE.txt"),  # python.org, Homebrew, built by hand
        Path("/usr/share/doc", version, "copyright"),  # Debian
    ]
    for path in places:
        if path.is_file():
            return path
    raise MissingError(f"no licence text of Python in {' or '.join(map(str, places))}")
