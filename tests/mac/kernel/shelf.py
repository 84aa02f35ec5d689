"""The devices that can be plugged in, by name.  Runs in the kernel."""

from typing import Any

from tests.mac.kernel.hardware import Hardware
from tests.mac.kernel.packets import Loopback


async def make_hardware(kind: str, options: dict[str, Any]) -> Hardware:
    """`scripted`: does what the test says, packet by packet.  `loopback`: the same, and what is written to an
    OUT endpoint can be read at the IN endpoint of its number.
    """
    if kind in ("loopback", "scripted"):
        return Loopback(**options, echo=kind == "loopback")
    raise ValueError(f"there is no device {kind}")
