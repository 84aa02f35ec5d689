"""Types of the compiled view of the IORegistry (cython/iokit.pyx).  Runs in the extension, on macOS."""

from collections.abc import Sequence
from typing import NamedTuple

ATTEMPTS: int

class Entry(NamedTuple):
    depth: int
    class_name: str
    name: str
    properties: dict[str, int | str]

def error_name(code: int) -> str: ...
def entries_below(location: int, keys: Sequence[str]) -> list[Entry]: ...
