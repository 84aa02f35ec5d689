"""The simulated device that a worker runs.  Used by the extension and by workers."""

from usbipd.ipc.message import Message


class SimulatedSpec(Message, frozen=True):
    """The name of a simulated device and its checked options."""

    name: str
    options: dict[str, str]
