"""Types of the compiled view of the IORegistry (cython/iokit.pyx).  Runs in the extension, on macOS."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

ATTEMPTS: int
SLEEPS: Final[str]
WAKES: Final[str]

class Entry(NamedTuple):
    depth: int
    class_name: str
    name: str
    registry_id: int
    properties: dict[str, int | str]

def error_name(code: int) -> str: ...
def entries_below(location: int, keys: Sequence[str]) -> list[Entry]: ...

class PowerListener:
    def __init__(self, on_change: Callable[[str], None]) -> None: ...
    def close(self) -> None: ...
