"""One device that is shared, from the extension's side.  Runs in the extension.

    CLAIMING -> READY <-> ATTACHED -> RESTORING -> READY
    any -> CLAIMING when the worker has died;  CLAIMING <-> FAILED while the device cannot be taken
    any -> ENDED

A READY claim may be reserved: one client then waits between OP_REQ_IMPORT and OP_REP_IMPORT.
"""

import asyncio
import mmap
import time
from dataclasses import dataclass
from enum import Enum
from typing import Final

from usbipd.errors import IPCError
from usbipd.extension.supervisor import Child
from usbipd.ipc.channel import Event
from usbipd.ipc.messages import ClaimResult, Counters, DeviceState, EventName
from usbipd.protocol.op import UsbDevice
from usbipd.usb.discovery import DeviceRecord
from usbipd.worker.report import read_counters


class ClaimState(Enum):
    """What a claim is doing, with the state that people see."""

    CLAIMING = "the worker is taking the device"
    READY = "free for a client"
    ATTACHED = "a client uses it"
    RESTORING = "the client is gone, the device is being reset"
    FAILED = "the device could not be taken; tried again later"
    ENDED = "the device is no longer shared, or gone"

    @property
    def shown(self) -> DeviceState:
        return _SHOWN.get(self, DeviceState.SHARED)


_SHOWN: Final = {ClaimState.ATTACHED: DeviceState.ATTACHED, ClaimState.FAILED: DeviceState.FAILED}


@dataclass(frozen=True, slots=True)
class ClaimedDevice:
    """What is known of a device that we hold."""

    device_id: int
    """The devid of USB/IP: busnum << 16 | devnum."""
    bus_id: str
    vendor_id: int
    product_id: int
    product_string: str | None
    claim_time: float
    """Seconds since the epoch."""
    claim_method: str


class Claim:
    """The state machine above.  Whoever waits for a change of it calls `changed`."""

    def __init__(self, record: DeviceRecord) -> None:
        self.record = record
        self.state = ClaimState.CLAIMING
        self.worker: Child | None = None
        self.wire_device: UsbDevice | None = None
        self.device: ClaimedDevice | None = None
        self.client: str | None = None
        self.reservation: int | None = None
        self.error: str | None = None
        self._page: mmap.mmap | None = None
        self._change = asyncio.Event()

    @property
    def is_free(self) -> bool:
        return self.state is ClaimState.READY and self.reservation is None

    def taken(self, worker: Child, result: ClaimResult, page: mmap.mmap) -> ClaimedDevice:
        """The worker has the device, which is then free for a client."""
        worker.user = result.user
        self.worker = worker
        self.wire_device = result.device
        self._page = page
        self.error = None
        device = self.device = ClaimedDevice(
            device_id=result.device.devid,
            bus_id=result.device.busid,
            vendor_id=result.device.idVendor,
            product_id=result.device.idProduct,
            product_string=self.record.product,
            claim_time=time.time(),
            claim_method=result.claim_method,
        )
        self._become(ClaimState.READY)
        return device

    def lost(self) -> None:
        """The worker is gone, and its client with it."""
        self._clear()
        self._become(ClaimState.CLAIMING)

    def ended(self) -> None:
        """The claim is over."""
        self._clear()
        self._become(ClaimState.ENDED)

    def failed(self, error: str) -> None:
        """The device could not be taken (again)."""
        self.error = error
        self._become(ClaimState.FAILED)

    def reserve(self, reservation: int) -> None:
        """Keep a free device for the client with that reservation."""
        self.reservation = reservation

    def unreserve(self) -> None:
        """The client left before it had the device."""
        self.reservation = None
        self._announce()

    def attached(self, client: str) -> None:
        """The reservation has become a session."""
        self.reservation = None
        self.client = client
        self._become(ClaimState.ATTACHED)

    def heard(self, event: Event) -> None:
        """The worker tells something.  Raises `IPCError` if it cannot be so."""
        if self.state is ClaimState.ENDED:
            return  # said before it read that it is to give its device back
        if event.event is EventName.DETACHED and self.state is ClaimState.ATTACHED:
            self.client = None
            self._become(ClaimState.RESTORING)
        elif event.event is EventName.RESTORED and self.state in (ClaimState.RESTORING, ClaimState.READY):
            self._become(ClaimState.READY)
        elif event.event is not EventName.DEVICE_GONE:
            raise IPCError(f"{event.event} while {self.state.value}", code="bad-message")

    def counters(self) -> Counters | None:
        """What the worker has moved; None while there is none."""
        return None if self._page is None else read_counters(self._page)

    async def changed(self, seconds: float) -> bool:
        """Whether anything changes within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._change.wait()
        except TimeoutError:
            return False
        return True

    def _clear(self) -> None:
        self.worker = self.wire_device = self.device = self.client = self.reservation = self._page = None

    def _become(self, state: ClaimState) -> None:
        self.state = state
        self._announce()

    def _announce(self) -> None:
        self._change.set()
        self._change = asyncio.Event()
