"""Which simulated device a worker is to be.  Used by the extension and by workers."""

from usbipd.ipc.message import Message


class SimulatedSpec(Message, frozen=True):
    """The name of a simulated device, with its options as the user wrote them."""

    name: str
    options: dict[str, str]
