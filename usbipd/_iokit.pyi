"""Types of the compiled view of the IORegistry (cython/iokit.pyx).  Runs in the extension, on macOS."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

ATTEMPTS: int
SLEEPS: Final[str]
WAKES: Final[str]

class Device(NamedTuple):
    registry_id: int
    location: int
    ports: list[int]
    properties: dict[str, int | str]

class Entry(NamedTuple):
    depth: int
    class_name: str
    name: str
    registry_id: int
    properties: dict[str, int | str]

def error_name(code: int) -> str: ...
def usb_devices(keys: Sequence[str]) -> list[Device]: ...
def entries_below(registry_id: int, keys: Sequence[str]) -> list[Entry]: ...
def reenumerate(registry_id: int) -> None: ...

class DeviceListener:
    def __init__(self, on_event: Callable[[], None]) -> None: ...
    def close(self) -> None: ...

class PowerListener:
    def __init__(self, on_change: Callable[[str], None]) -> None: ...
    def close(self) -> None: ...
