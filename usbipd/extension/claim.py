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

from usbipd.counters import read_blocked, read_counters, read_rate
from usbipd.errors import ClaimError, IPCError, UsbipdError
from usbipd.extension.chronicle import Chronicle
from usbipd.extension.supervisor import Child
from usbipd.ipc.children import ClaimResult, DetachedParameters
from usbipd.ipc.conversation import Event
from usbipd.ipc.messages import EventName
from usbipd.ipc.reports import Counters, DeviceState, HistoryEvent, Rate
from usbipd.protocol.op import UsbDevice
from usbipd.usb.discovery import DeviceRecord


class ClaimState(Enum):
    """What a claim is doing."""

    CLAIMING = "the worker is taking the device"
    READY = "free for a client"
    ATTACHED = "a client uses it"
    RESTORING = "the client is gone, the device is being reset"
    FAILED = "the device could not be taken; tried again later"
    ENDED = "the device is no longer shared, or gone"


_LAST_WORDS: Final = {
    HistoryEvent.RELEASED: "the device is not shared any more",
    HistoryEvent.UNPLUGGED: "the device was unplugged",
    HistoryEvent.FAILED: "the device could not be taken",
}
"""Why a session ended with its claim."""


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


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a device could not be taken, and what comes next."""

    error: UsbipdError
    next_try: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class _Session:
    """One client's use of the device."""

    client: str
    since: float
    """Of the monotonic clock, in seconds."""
    bytes_in: int
    bytes_out: int
    """What the worker had moved before."""


class Claim:
    """The state machine above.  Whoever waits for a change of it calls `changed`."""

    def __init__(self, record: DeviceRecord, chronicle: Chronicle) -> None:
        self.record = record
        self.state = ClaimState.CLAIMING
        self.worker: Child | None = None
        self.wire_device: UsbDevice | None = None
        self.device: ClaimedDevice | None = None
        self.reservation: int | None = None
        self.failure: Failure | None = None
        self._chronicle = chronicle
        self._session: _Session | None = None
        self.detached_by: str | None = None
        """The user who ends the session; the history then names that user as the reason."""
        self._held_since: float | None = None
        """Of the monotonic clock, in seconds: when the worker took the device; None: it has none."""
        self._is_gone = False
        """Whether the device was unplugged after it was taken."""
        self._said_gone = False
        """Whether the worker has sent DEVICE_GONE."""
        self._page: mmap.mmap | None = None
        self._change = asyncio.Event()

    @property
    def shown(self) -> DeviceState:
        """The state that people see.

        SHARED is what a client can have now, at most after the reset behind the client before it.  While the
        first worker takes the device it is this host's; one that was held and lost its worker has FAILED,
        though a client that comes then waits for the next worker.
        """
        if self.state is ClaimState.ATTACHED:
            return DeviceState.ATTACHED
        if self.failure is not None:
            return DeviceState.FAILED
        return DeviceState.NOT_SHARED if self.device is None else DeviceState.SHARED

    @property
    def is_free(self) -> bool:
        return self.state is ClaimState.READY and self.reservation is None

    @property
    def is_gone(self) -> bool:
        """Whether the device was unplugged after it was taken."""
        return self._is_gone

    @property
    def client(self) -> str | None:
        """Who uses the device."""
        return None if self._session is None else self._session.client

    def taken(self, worker: Child, result: ClaimResult, page: mmap.mmap) -> ClaimedDevice:
        """The worker has the device, which is then free for a client."""
        worker.user = result.user
        self.worker = worker
        self.wire_device = result.device
        self._page = page
        self._is_gone = self._said_gone  # it may say so directly behind its answer, before we are called
        self._held_since = time.monotonic()
        self.failure = None
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
        self._chronicle.happened(HistoryEvent.CLAIMED, self.record)
        return device

    def lost(self, next_try: float) -> None:
        """The worker is gone, and its client with it; another one comes in `next_try` seconds."""
        assert self.worker is not None, "only what was taken can be lost"
        reason = f"the worker ended with {self.worker.exit}"
        self._end_session(reason if self.detached_by is None else f"by {self.detached_by}: {reason}")
        if self._is_gone:  # perhaps it is back already, and claimed again before anybody misses it
            self._end_claim(HistoryEvent.UNPLUGGED)
        else:
            self._end_claim(HistoryEvent.FAILED, reason)
            error = ClaimError(reason, code="worker-ended", advice="the log says more")
            self.failure = Failure(error, time.time() + next_try)
        self._clear()
        self._become(ClaimState.CLAIMING)

    def ended(self, event: HistoryEvent) -> None:
        """The claim is over: RELEASED by us, UNPLUGGED, or FAILED at the first try."""
        self._end_session(_LAST_WORDS[event])
        self._clear()
        self._become(ClaimState.ENDED)
        is_told = self._is_gone if event is HistoryEvent.UNPLUGGED else self._held_since is None
        if not is_told:
            self._end_claim(event)

    def vanished(self) -> None:
        """The device was unplugged, whether its worker knows that or not."""
        self._is_gone = True

    def failed(self, error: UsbipdError, next_try: float) -> bool:
        """The device could not be taken (again); tried once more in `next_try` seconds.

        Whether that is news: one that fails again and again for one reason does not fill log and history.
        """
        news = self.failure is None or self.failure.error.message != error.message
        self.failure = Failure(error, time.time() + next_try)
        self._said_gone = False  # the next worker has not
        self._become(ClaimState.FAILED)
        if news:
            self._chronicle.happened(HistoryEvent.FAILED, self.record, reason=error.message)
        return news

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
        counters = self.counters()
        moved = (0, 0) if counters is None else (counters.bytes_in, counters.bytes_out)
        self._session = _Session(client, time.monotonic(), *moved)
        self._become(ClaimState.ATTACHED)
        self._chronicle.happened(HistoryEvent.ATTACHED, self.record, client=client)

    def heard(self, event: Event) -> None:
        """Handle an event from the worker.  Raises `IPCError` if it does not fit the state.

        DETACHED and RESTORED are valid once per ATTACH, in this order, and DEVICE_GONE once.  So the work
        that events cause (history, watchers) is bounded by the number of attachments.
        """
        if self.state is ClaimState.ENDED:
            return  # said before it read that it is to give its device back
        if event.event is EventName.DETACHED and self.state is ClaimState.ATTACHED:
            assert isinstance(event.parameters, DetachedParameters)
            by = self.detached_by
            self._end_session(event.parameters.reason if by is None else f"by {by}")
            self._become(ClaimState.RESTORING)
        elif event.event is EventName.RESTORED and self.state is ClaimState.RESTORING:
            self._become(ClaimState.READY)
        elif event.event is EventName.DEVICE_GONE and not self._said_gone:
            self._said_gone = True
            if self.worker is not None:
                self.vanished()
        else:
            raise IPCError(f"{event.event} while {self.state.value}", code="bad-message")

    def counters(self) -> Counters | None:
        """What the worker has moved; None while there is none."""
        return None if self._page is None else read_counters(self._page)

    def rate(self) -> Rate | None:
        """What it moves per second now; None while there is none."""
        return None if self._page is None else read_rate(self._page)

    def blocked(self) -> float | None:
        """Seconds for which the worker has been in a call that waits for the device; None: it is in none."""
        return None if self._page is None else read_blocked(self._page)

    async def changed(self, seconds: float) -> bool:
        """Whether anything changes within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._change.wait()
        except TimeoutError:
            return False
        return True

    def _end_session(self, reason: str) -> None:
        session, counters, self._session = self._session, self.counters(), None
        self.detached_by = None
        if session is None:
            return
        moved_in, moved_out = (0, 0) if counters is None else (counters.bytes_in, counters.bytes_out)
        self._chronicle.happened(
            HistoryEvent.DETACHED,
            self.record,
            client=session.client,
            reason=reason,
            seconds=time.monotonic() - session.since,
            bytes_in=max(0, moved_in - session.bytes_in),
            bytes_out=max(0, moved_out - session.bytes_out),
        )

    def _end_claim(self, event: HistoryEvent, reason: str | None = None) -> None:
        """Each CLAIMED of the history has one end before the next; what was not held just has the event."""
        since, self._held_since = self._held_since, None
        seconds = None if since is None else time.monotonic() - since
        self._chronicle.happened(event, self.record, reason=reason, seconds=seconds)

    def _clear(self) -> None:
        self.worker = self.wire_device = self.device = self.reservation = self._page = None
        self._said_gone = False

    def _become(self, state: ClaimState) -> None:
        self.state = state
        self._announce()

    def _announce(self) -> None:
        self._change.set()
        self._change = asyncio.Event()
        self._chronicle.changed()
