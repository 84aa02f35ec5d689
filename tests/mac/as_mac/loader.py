"""Makes usbipd run on Linux as on a Mac.  Runs in each process of the interpreter that `machine.py` creates.

Each module of usbipd, compiled ones too, sees the modules of `stand_ins.py` instead of the real ones:
`sys.platform == "darwin"`, the version of macOS, its programs.  The rest of the process, the standard library
included, sees Linux.  libusb and IOKit are those of the software Mac.  `differences.py` lists what cannot be
as on a Mac.

The product needs no change for this: it starts its children with `sys.executable`, which is that interpreter,
in any environment.
"""

import builtins
import ctypes
import functools
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from tests.mac.as_mac.differences import DIFFERENCES
from tests.mac.as_mac.facts import KERNEL, LIBRARY, MODULES
from tests.mac.as_mac.stand_ins import stand_in

OVER_LIBUSB = ("usb1", "usbipd._claim", "usbipd._pump", "usbipd._iokit")
"""A process connects to the software Mac when it imports one of these."""


class Finder:
    """The first entry of `sys.meta_path`."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in OVER_LIBUSB:
            connect()
        if not name.startswith("usbipd.") and sys.platform == "linux":
            return None
        if name.startswith("usbipd."):
            path = [str(MODULES), *(path or ())]
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        if not name.startswith("usbipd."):
            execute: Any = functools.partial(execute_on, "linux")
        elif isinstance(spec.loader, ExtensionFileLoader):
            execute = execute_compiled
        else:
            execute = execute_source
        vars(spec.loader)["exec_module"] = functools.partial(execute, spec.loader.exec_module)
        return spec


def connect() -> None:
    """Loads the library of the software Mac, once.

    Its soname is that of the system's libusb, so the dynamic linker uses it for everything that needs libusb.
    """
    os.environ["SOFTWARE_MAC"] = KERNEL
    ctypes.CDLL(str(LIBRARY), mode=ctypes.RTLD_GLOBAL)


def execute_source(execute: Any, module: ModuleType) -> None:
    """A module in Python uses `import_as_mac`."""
    module.__dict__["__builtins__"] = dict(vars(builtins), __import__=import_as_mac)
    execute(module)
    differ(module)


def execute_compiled(execute: Any, module: ModuleType) -> None:
    """Compiled code imports `sys` without builtins, and reads the platform while it is imported."""
    execute_on("darwin", execute, module)
    if hasattr(module, "sys"):
        vars(module)["sys"] = stand_in("sys")
    differ(module)


def execute_on(platform: str, execute: Any, module: ModuleType) -> None:
    """Executes a module, also if imported by a module for the other platform."""
    before, sys.platform = sys.platform, platform
    try:
        execute(module)
    finally:
        sys.platform = before


def import_as_mac(
    name: str,
    globals: Mapping[str, object] | None = None,  # noqa: A002 - the names of builtins.__import__
    locals: Mapping[str, object] | None = None,  # noqa: A002
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> object:
    """The `import` statement of usbipd's modules."""
    found = builtins.__import__(name, globals, locals, fromlist or (), level)
    return found if level else stand_in(name) or found


def differ(module: ModuleType) -> None:
    for each in DIFFERENCES:
        if each.module == module.__name__:
            setattr(module, each.name, each.change(getattr(module, each.name)))


sys.meta_path.insert(0, Finder())
