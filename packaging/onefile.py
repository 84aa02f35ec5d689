"""PyInstaller's settings for one file: for packaging/usbipd.spec, and for what the bench compares it with.

Runs in PyInstaller.
"""

import encodings
import os
import pkgutil
import sys
from pathlib import Path
from typing import Any, Final

PACKAGING: Final = Path(__file__).resolve().parent

_ENCODINGS: Final = {"aliases", "ascii", "idna", "latin_1", "punycode", "utf_8", "utf_16_le"}
"""The codecs in use: with OPTIONS below, no locale needs another.  idna uses punycode."""

ANALYSIS: Final[dict[str, Any]] = {
    "excludes": [
        # Optional imports of modules that we need: shutil, uuid, asyncio, hashlib (which has a SHA-256 built
        # in), logging, random, msgspec.
        *("_bz2", "_lzma", "bz2", "gzip", "lzma", "tarfile", "zipfile", "_uuid", "_ssl", "ssl", "_hashlib"),
        *("multiprocessing", "statistics", "typing_extensions", "importlib.metadata", "importlib.resources"),
        # Debuggers, and parts of the Python that builds.
        *("doctest", "pdb", "pydoc", "readline", "tkinter", "unittest"),
        *("distutils", "_distutils_hack", "pkg_resources", "setuptools", "sitecustomize", "usercustomize"),
        *(
            f"encodings.{module.name}"
            for module in pkgutil.iter_modules(encodings.__path__)
            if module.name not in _ENCODINGS
        ),
    ],
    "optimize": 0,  # with asserts, as tested
}

OPTIONS: Final = [("X utf8", None, "OPTION")]
"""UTF-8 in any locale: files, streams, arguments (PEP 540)."""

EXECUTABLE: Final[dict[str, Any]] = {
    "strip": True,  # removes debug information.  PyInstaller signs afterwards.
    "upx": False,
    # Uncompressed: starts take two thirds of the time.  The packages that contain it are compressed.
    "cdict": {},
    # Where root's files and those of other users are unpacked, in separate directories: ARCHITECTURE.md
    "runtime_tmpdir": "/var/tmp",  # noqa: S108 - a private directory is created there
    # macOS: signs the contents, then the whole, with the hardened runtime; without an identity, ad hoc
    "codesign_identity": os.environ.get("CODESIGN_IDENTITY") or None,
    "entitlements_file": str(PACKAGING / "macos" / "entitlements.plist")
    if sys.platform == "darwin"
    else None,
}


def scripts(analysis: Any) -> list[tuple[str, str, str]]:
    """The scripts to run at the start, without PyInstaller's own hooks.

    The hooks are for programs that look for their sources or for plugins, need modules that are excluded
    here, and would import inspect and pkgutil at each start.
    """
    return [entry for entry in analysis.scripts if not entry[0].startswith("pyi_rth_")]
