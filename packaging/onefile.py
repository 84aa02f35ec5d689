"""How PyInstaller makes one file: for packaging/usbipd.spec, and for what the bench compares it with.

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
"""Those that are used: with OPTIONS below, no locale asks for another one.  idna uses punycode."""

ANALYSIS: Final[dict[str, Any]] = {
    "excludes": [
        # Tried by modules that we need, and not missed by them: shutil, uuid, asyncio, hashlib (which has a
        # SHA-256 built in), logging, random, msgspec.
        *("_bz2", "_lzma", "bz2", "gzip", "lzma", "tarfile", "zipfile", "_uuid", "_ssl", "ssl", "_hashlib"),
        *("multiprocessing", "statistics", "typing_extensions", "importlib.metadata", "importlib.resources"),
        # Debuggers, and what belongs to the Python that builds.
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
"""UTF-8 whatever the locale is: files, streams, arguments (PEP 540)."""

EXECUTABLE: Final[dict[str, Any]] = {
    "strip": True,  # of what only debuggers read.  PyInstaller signs afterwards.
    "upx": False,
    # Nothing is compressed: a start costs two thirds.  The packages in which it travels are.
    "cdict": {},
    # Where root's files and those of any user lie, each in a separate directory: ARCHITECTURE.md
    "runtime_tmpdir": "/var/tmp",  # noqa: S108 - a private directory is created there
    # macOS: signs what is inside, then the whole, with the hardened runtime; without an identity, ad hoc
    "codesign_identity": os.environ.get("CODESIGN_IDENTITY") or None,
    "entitlements_file": str(PACKAGING / "macos" / "entitlements.plist")
    if sys.platform == "darwin"
    else None,
}


def scripts(analysis: Any) -> list[tuple[str, str, str]]:
    """What is run at the start, without PyInstaller's own hooks.

    They are for programs that look for their sources or for plugins, need modules that are excluded here, and
    would import inspect and pkgutil at each start.
    """
    return [entry for entry in analysis.scripts if not entry[0].startswith("pyi_rth_")]
