"""Makes modules of this process treat Linux as macOS, and builds the sandbox library that Linux uses instead.

Used by tests and the processes they start.
"""

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

_SANDBOX: Final = Path(__file__).parent / "mac" / "sandbox.c"


class Mac:
    """A replacement for a module's `sys`."""

    platform = "darwin"

    def __getattr__(self, name: str) -> object:
        return getattr(sys, name)


def pretend(*modules: ModuleType) -> None:
    """Make these modules treat this system as macOS."""
    for module in modules:
        vars(module)["sys"] = Mac()


def build_sandbox(directory: Path) -> Path:
    """The library with sandbox_init (tests/mac/sandbox.c), in `directory`."""
    library = directory / "sandbox.so"
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, _SANDBOX], check=True)
    return library
