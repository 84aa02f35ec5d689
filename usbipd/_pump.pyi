"""Types of the compiled pump (cython/pump.pyx).  Runs in workers."""

from collections.abc import Sequence
from typing import Final

from usbipd._claim import Claim
from usbipd.ipc.control_messages import DeviceMemory
from usbipd.simulated.device import SimulatedDevice
from usbipd.usb.descriptors import Configuration

CHANNEL: Final[int]
CLAIM_LOST: Final[int]
CLIENT_CLOSED: Final[int]
CLIENT_FAILED: Final[int]
DEVICE_GONE: Final[int]
SIGNAL: Final[int]
COUNTER_WORDS: Final[int]
SMALLEST_BUDGET: Final[int]

class Transfers:
    @property
    def problem(self) -> str | None: ...
    @property
    def reset_reenumerates(self) -> bool: ...

class LibusbTransfers(Transfers):
    def __init__(self, claim: Claim, *, device_memory: DeviceMemory, as_on_macos: bool = ...) -> None: ...

class SimulatedTransfers(Transfers):
    def __init__(self, model: SimulatedDevice, *, as_on_macos: bool = False) -> None: ...

class Pump:
    def __init__(
        self,
        transfers: Transfers,
        *,
        configurations: Sequence[Configuration],
        configuration: int,
        devid: int,
        channel: int,
        counters: object,
        budget: int,
    ) -> None: ...
    def attach(self, client: int) -> None: ...
    def run(self) -> int: ...
    def finish(self) -> bool: ...
    def restore(self) -> int: ...
    @property
    def problem(self) -> str: ...
    @property
    def gone(self) -> bool: ...
    @property
    def unclaimed(self) -> bool: ...
