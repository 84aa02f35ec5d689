"""The devices that can be plugged in, by name.  Runs in the kernel."""

from typing import Any

from tests.mac.kernel.hardware import Hardware
from tests.mac.kernel.packets import Hub, Loopback
from tests.mac.kernel.usbip import UsbipDevice


async def make_hardware(kind: str, options: dict[str, Any]) -> Hardware:
    """`scripted`: controlled by the test, packet by packet.  `loopback`: the same, and data written to an OUT
    endpoint can be read from the IN endpoint with the same number.  `hub`: others can be connected to it.
    `usbip`: a device shared by a USB/IP server, with the options host, port_number and busid.
    """
    if kind in ("loopback", "scripted"):
        return Loopback(**options, echo=kind == "loopback")
    if kind == "hub":
        return Hub(**options)
    if kind == "usbip":
        return await UsbipDevice.connect(**options)
    raise ValueError(f"no device {kind}")
