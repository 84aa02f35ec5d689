"""The fake libusb in the hands of a test, and the pump of its device.  Runs where test_libusb.py starts it:
in a process whose libusb-1.0.so.0 is fake_libusb.c.
"""

import ctypes
from typing import Final

from tests.unit.worker.rig import Rig
from tests.urb import Reply, Submit
from usbipd import _pump
from usbipd._claim import Claim
from usbipd.ipc.control_messages import DeviceMemory

BULK_OUT, BULK_IN, INTERRUPT_IN, ISO_OUT, ISO_IN = 0x01, 0x81, 0x82, 0x05, 0x85
COMPLETED, CANCELLED, STALL = 0, 3, 4  # enum libusb_transfer_status
VENDOR_IN: Final = bytes.fromhex("c0 01 0000 0000 4000")

fake = ctypes.CDLL("libusb-1.0.so.0")
fake.fake_device_memory.restype = ctypes.c_long
fake.fake_limit_device_memory.argtypes = (ctypes.c_long,)
fake.fake_bus.restype = fake.fake_journal.restype = fake.fake_submitted.restype = ctypes.c_char_p


def journal() -> list[str]:
    """The calls that changed something, since it was asked last."""
    return [line.strip() for line in fake.fake_journal().decode().splitlines()]


def bus() -> list[str]:
    """The requests that the device was sent, since it was asked last."""
    return [line.strip() for line in fake.fake_bus().decode().splitlines()]


def submitted(endpoint: int) -> tuple[int, int, int, bytes]:
    """Type, flags, length and data of the oldest transfer of `endpoint`."""
    kind, flags, length, *data = fake.fake_submitted(endpoint).decode().split()
    return int(kind), int(flags), int(length), bytes.fromhex("".join(data))


class LibusbRig(Rig):
    """The pump of the fake device, claimed."""

    def __init__(
        self,
        *,
        device_memory: DeviceMemory = "on",
        claim: type[Claim] = Claim,
    ) -> None:
        self.claim = claim(1, 2)
        self.claim.take()
        transfers = _pump.LibusbTransfers(self.claim, device_memory=device_memory)
        self._start(transfers, self.claim.descriptors.configurations, self.claim.configuration)

    def ended(self, endpoint: int, status: int = COMPLETED, data: bytes = b"") -> list[Reply]:
        """The replies once the device has ended the oldest transfer of `endpoint`."""
        assert fake.fake_complete(endpoint, status, data, len(data))
        self.turn()
        return self.received()

    def waiting(self, *submits: Submit) -> None:
        assert self.exchange(*submits) == []

    def close(self) -> None:
        """The next rig gets the one context of the fake, so nothing of this one may be left to be freed
        later.
        """
        super().close()
        del self.transfers, self.claim
