"""Modules that usbipd sees instead of some standard modules and psutil.

Runs in processes of a Mac.  A stand-in equals the module except for a few names.
"""

import functools
import importlib
import json
from collections import namedtuple
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from tests.mac.as_mac.facts import LIBRARY, MACOS_VERSION, MOUNTS, PROGRAMS

_PROGRAMS_OF_MACOS: Final = ("/usr/sbin/diskutil", "/usr/sbin/sysctl", "/bin/launchctl")
_IOKIT: Final = "/System/Library/Frameworks/IOKit.framework/"
_GROUPS_OF_EVERY_USER: Final = [12, 61, 701, 100]
"""Groups that macOS's directory adds to those of a user: everyone, localaccounts and others."""


class StandIn(ModuleType):
    """`module` with other values for some names."""

    def __init__(self, module: ModuleType, names: dict[str, object]) -> None:
        super().__init__(module.__name__, module.__doc__)
        self._module = module
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@functools.cache
def stand_in(name: str) -> StandIn | None:
    """The stand-in for the module `name`; None: the module itself is used."""
    if name not in _OTHER_NAMES:
        return None
    return StandIn(importlib.import_module(name), _OTHER_NAMES[name])


def _getgroups() -> list[int]:
    """getgroups$DARWIN_EXTSN, as in Python on macOS: the groups in the directory, not in the kernel."""
    import os
    import pwd

    return [pwd.getpwuid(os.geteuid()).pw_gid, *_GROUPS_OF_EVERY_USER]


def _of_this_mac(program: Any) -> Any:
    return PROGRAMS / Path(program).name if str(program) in _PROGRAMS_OF_MACOS else program


def _run(command: Any, *arguments: Any, **options: Any) -> Any:
    import subprocess

    program, *words = command
    return subprocess.run([_of_this_mac(program), *words], *arguments, **options)


def _cdll(name: Any, *arguments: Any, **options: Any) -> Any:
    """IOKit is in the library of the software Mac; other libraries of macOS do not exist."""
    import ctypes

    return ctypes.CDLL(str(LIBRARY) if str(name).startswith(_IOKIT) else name, *arguments, **options)


_Partition = namedtuple("_Partition", "device mountpoint")


def _disk_partitions(*, all: bool = False) -> list[_Partition]:  # noqa: A002 - psutil's name
    return [_Partition(*each) for each in json.loads(MOUNTS.read_text())]


_OTHER_NAMES: Final[dict[str, dict[str, object]]] = {
    "sys": {"platform": "darwin"},
    "os": {"getgroups": _getgroups},
    "platform": {
        "mac_ver": lambda: (MACOS_VERSION, ("", "", ""), "arm64"),
        "machine": lambda: "arm64",
    },
    "ctypes": {"CDLL": _cdll},
    "subprocess": {"run": _run},
    "psutil": {"disk_partitions": _disk_partitions},
}
