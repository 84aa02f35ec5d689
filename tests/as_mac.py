"""Makes modules of this process take Linux for macOS, and builds the sandbox that Linux has in its place.

Used by tests, and by processes that they start.
"""

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

_SANDBOX: Final = Path(__file__).parent / "mac" / "sandbox.c"


class Mac:
    """What a module takes for `sys`."""

    platform = "darwin"

    def __getattr__(self, name: str) -> object:
        return getattr(sys, name)


def pretend(*modules: ModuleType) -> None:
    """These take this system for macOS from now on."""
    for module in modules:
        vars(module)["sys"] = Mac()


def build_sandbox(directory: Path) -> Path:
    """The library with sandbox_init (tests/mac/sandbox.c), in `directory`."""
    library = directory / "sandbox.so"
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, _SANDBOX], check=True)
    return library
