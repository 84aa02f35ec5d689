"""The state of one shared device.  Runs in the extension."""

import asyncio
import contextlib
import mmap
import time
from dataclasses import dataclass
from enum import Enum
from typing import Final

from usbipd.counters import latency_of, read_blocked, read_counters, read_rate
from usbipd.errors import ClaimError, IPCError, UsbipdError
from usbipd.extension.event_recorder import EventRecorder
from usbipd.extension.supervisor import Child
from usbipd.ipc.children import ClaimResult, DetachedParameters
from usbipd.ipc.control_messages import Counters, DeviceInfo, DeviceState, HistoryEvent, Rate
from usbipd.ipc.conversation import Event
from usbipd.ipc.messages import EventName
from usbipd.ipc.texts import LONGEST_TEXT
from usbipd.protocol.op import UsbDevice
from usbipd.usb.discovery import DeviceRecord
from usbipd.usb.ownership import USBFS


class ClaimState(Enum):
    """The state of a device's claim."""

    CLAIMING = "a worker is claiming the device"
    READY = "free for a client"
    ATTACHED = "attached by a client"
    RESTORING = "the client has left, the device is being reset"
    FAILED = "the device could not be claimed; usbipd retries"
    RELEASING = "the device is being released to this host"
    ENDED = "the device is no longer shared, or was unplugged"


_END_REASONS: Final = {
    HistoryEvent.RELEASED: "the device is no longer shared",
    HistoryEvent.UNPLUGGED: "the device was unplugged",
    HistoryEvent.FAILED: "the device could not be claimed",
}
"""Why a session ended with its claim."""


@dataclass(frozen=True, slots=True)
class ClaimedDevice:
    """A device that a worker holds."""

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
    """Why a device could not be claimed, and when the next try is."""

    error: UsbipdError
    next_try: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True, eq=False)
class Reservation:
    """A free device, reserved for one client between OP_REQ_IMPORT and OP_REP_IMPORT."""

    device: "Device"
    client: str
    timer: asyncio.TimerHandle
    """Ends the reservation if the client's socket does not arrive."""


@dataclass(slots=True, eq=False)
class Session:
    """One client's use of the device."""

    client: str
    since: float
    """Of the monotonic clock, in seconds."""
    attach_time: float
    """Seconds since the epoch."""
    bytes_in: int
    bytes_out: int
    """The worker's counters when the session began."""
    detached_by: str | None = None
    """The user who ends the session; recorded as the reason in the history."""


# The states of a device and their transitions
#
#                    CLAIM answered             ATTACH
#     --> CLAIMING -----------------> READY -----------------> ATTACHED
#          ^   | CLAIM fails          ^   ^                       | DETACHED
#          |   v                      |   |                       v
#          |  FAILED -----------------'   '----- RESTORED ---- RESTORING
#          |          CLAIM answered later
#          '-- the worker ended in READY, ATTACHED or RESTORING
#
#     each of these -- release_device --> RELEASING -- drivers reattached --> ENDED
#     each of these -- unplugged, or the only try failed ------------------> ENDED


class Device:
    """The state machine above, driven by `DeviceClaimer`, `Reservations` and events of the worker."""

    def __init__(self, record: DeviceRecord, recorder: EventRecorder, hung: Child | None = None) -> None:
        self.record = record
        """From the last listing."""
        self.state = ClaimState.CLAIMING
        self.failure: Failure | None = None
        self._recorder = recorder
        self._change = asyncio.Event()

        # from the first try until it is released or unplugged
        self.task: asyncio.Task[None] | None = None
        """Claims the device, and again whenever its worker has ended."""
        self.recheck = asyncio.Event()
        """Set when the device has changed; cuts a retry delay short."""

        # while a worker holds it
        self.worker: Child | None = None
        self.wire_device: UsbDevice | None = None
        self.claimed: ClaimedDevice | None = None
        self.is_gone = False
        """Whether the device was unplugged after it was claimed."""
        self.departing: asyncio.Task[None] | None = None
        """Ends a worker whose device seems to be unplugged, unless it exits."""
        self._page: mmap.mmap | None = None
        self._held_since: float | None = None
        """Of the monotonic clock, in seconds; None: no worker holds it."""
        self._said_gone = False
        """Whether the worker has sent DEVICE_GONE."""

        # while a client is about to use it, or uses it
        self.reservation: Reservation | None = None
        self.session: Session | None = None

        # until the port is claimed again
        self.hung = hung
        """The last worker of this port that did not end in time."""

    @property
    def shown(self) -> DeviceState:
        """The state shown to users.

        SHARED means that a client can attach it now, or after the reset that follows another client.  Until
        the first worker has claimed the device, it is NOT_SHARED.  A device that lost its worker is FAILED,
        although a client that arrives then waits for the next worker.
        """
        if self.state is ClaimState.ATTACHED:
            return DeviceState.ATTACHED
        if self.failure is not None:
            return DeviceState.FAILED
        return DeviceState.NOT_SHARED if self.claimed is None else DeviceState.SHARED

    @property
    def is_free(self) -> bool:
        return self.state is ClaimState.READY and self.reservation is None

    @property
    def is_kept(self) -> bool:
        """Whether it is claimed, or will be."""
        return self.state not in (ClaimState.RELEASING, ClaimState.ENDED)

    @property
    def client(self) -> str | None:
        """The client that uses the device."""
        return None if self.session is None else self.session.client

    def taken(self, worker: Child, result: ClaimResult, page: mmap.mmap) -> ClaimedDevice:
        """`worker` has claimed the device, which is now free for a client."""
        worker.user = result.user
        self.worker = worker
        self.wire_device = result.device
        self._page = page
        self.is_gone = self._said_gone  # DEVICE_GONE may follow the answer before we are called
        self._held_since = time.monotonic()
        self.failure = None
        claimed = self.claimed = ClaimedDevice(
            device_id=result.device.devid,
            bus_id=result.device.busid,
            vendor_id=result.device.idVendor,
            product_id=result.device.idProduct,
            product_string=self.record.product,
            claim_time=time.time(),
            claim_method=result.claim_method,
        )
        self._become(ClaimState.READY)
        self._recorder.record(HistoryEvent.CLAIMED, self.record)
        return claimed

    def lost(self, next_try: float) -> None:
        """The worker has ended, and with it any session; the next worker starts in `next_try` seconds."""
        assert self.worker is not None, "only a claimed device can lose its worker"
        reason = f"the worker ended with {self.worker.exit}"
        by = None if self.session is None else self.session.detached_by
        self._end_session(reason if by is None else f"by {by}: {reason}")
        if self.is_gone:  # it may be plugged in again, and claimed before its absence was noticed
            self._end_claim(HistoryEvent.UNPLUGGED)
        else:
            self._end_claim(HistoryEvent.FAILED, reason)
            error = ClaimError(reason, code="worker-ended", advice="see the daemon's log for details")
            self.failure = Failure(error, time.time() + next_try)
        self._clear()
        self._become(ClaimState.CLAIMING)

    def ended(self, event: HistoryEvent) -> None:
        """No worker holds it any longer: RELEASED, UNPLUGGED, or FAILED at the first try."""
        self._end_session(_END_REASONS[event])
        self._clear()
        self._become(ClaimState.RELEASING if event is HistoryEvent.RELEASED else ClaimState.ENDED)
        is_recorded = self.is_gone if event is HistoryEvent.UNPLUGGED else self._held_since is None
        if not is_recorded:
            self._end_claim(event)

    def failed(self, error: UsbipdError, next_try: float) -> bool:
        """The device could not be claimed; the next try is in `next_try` seconds.

        Returns whether the reason is new: a repeated failure must not fill log and history.
        """
        news = self.failure is None or self.failure.error.message != error.message
        self.failure = Failure(error, time.time() + next_try)
        self._said_gone = False
        self._become(ClaimState.FAILED)
        if news:
            self._recorder.record(HistoryEvent.FAILED, self.record, reason=error.message)
        return news

    def unreserve(self) -> None:
        """The client left before it was attached."""
        self.reservation = None
        self._become(self.state)

    def attached(self, client: str) -> None:
        """The reservation has become a session."""
        self.reservation = None
        counters = self.counters()
        moved = (0, 0) if counters is None else (counters.bytes_in, counters.bytes_out)
        self.session = Session(client, time.monotonic(), time.time(), *moved)
        self._become(ClaimState.ATTACHED)
        self._recorder.record(HistoryEvent.ATTACHED, self.record, client=client)

    def on_event(self, event: Event) -> None:
        """Handle an event from the worker.  Raises `IPCError` if it is not valid in this state.

        DETACHED and RESTORED are valid once per ATTACH, in this order, and DEVICE_GONE once.  So the work
        that events cause (history, watchers) is bounded by the number of attachments.
        """
        if not self.is_kept:
            return  # sent before the worker read RELEASE
        if event.event is EventName.DETACHED and self.state is ClaimState.ATTACHED:
            assert isinstance(event.parameters, DetachedParameters)
            assert self.session is not None, "attached"
            by = self.session.detached_by
            self._end_session(event.parameters.reason if by is None else f"by {by}")
            self._become(ClaimState.RESTORING)
        elif event.event is EventName.RESTORED and self.state is ClaimState.RESTORING:
            self._become(ClaimState.READY)
        elif event.event is EventName.DEVICE_GONE and not self._said_gone:
            self._said_gone = True
            if self.worker is not None:
                self.is_gone = True
        else:
            raise IPCError(f"unexpected {event.event} ({self.state.value})", code="bad-message")

    def counters(self) -> Counters | None:
        """The traffic of the worker; None without a worker."""
        return None if self._page is None else read_counters(self._page)

    def rate(self) -> Rate | None:
        """The traffic per second now; None without a worker."""
        return None if self._page is None else read_rate(self._page)

    def blocked(self) -> float | None:
        """Seconds for which the worker has been blocked in a call to the device; None: it is not."""
        return None if self._page is None else read_blocked(self._page)

    async def changed(self, seconds: float) -> bool:
        """Whether the state changes within `seconds`."""
        return await _is_set_within(seconds, self._change)

    async def pause(self, seconds: float) -> None:
        """Wait until the next try: for `seconds`, or until a recheck is due."""
        await _is_set_within(seconds, self.recheck)
        self.recheck.clear()

    def _end_session(self, reason: str) -> None:
        session, counters, self.session = self.session, self.counters(), None
        if session is None:
            return
        moved_in, moved_out = (0, 0) if counters is None else (counters.bytes_in, counters.bytes_out)
        self._recorder.record(
            HistoryEvent.DETACHED,
            self.record,
            client=session.client,
            reason=reason,
            seconds=time.monotonic() - session.since,
            bytes_in=max(0, moved_in - session.bytes_in),
            bytes_out=max(0, moved_out - session.bytes_out),
        )

    def _end_claim(self, event: HistoryEvent, reason: str | None = None) -> None:
        """Record the end of a claim, with its duration; a device that was not held has none.

        Each CLAIMED in the history has exactly one end before the next.
        """
        since, self._held_since = self._held_since, None
        seconds = None if since is None else time.monotonic() - since
        self._recorder.record(event, self.record, reason=reason, seconds=seconds)

    def _clear(self) -> None:
        self.worker = self.wire_device = self.claimed = self._page = self.reservation = None
        self._said_gone = False

    def _become(self, state: ClaimState) -> None:
        self.state = state
        self._change.set()
        self._change = asyncio.Event()
        self._recorder.changed()


async def _is_set_within(seconds: float, event: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


def device_info(record: DeviceRecord, device: Device | None, drivers: list[str]) -> DeviceInfo:
    """The device as reported to users; `drivers` hold its interfaces on this host."""
    claimed = counters = failure = None
    if device is not None:
        claimed, counters, failure = device.claimed, device.counters(), device.failure
    if claimed is not None:
        drivers = list(drivers)
        with contextlib.suppress(ValueError):
            drivers.remove(USBFS)  # that is our own worker
    return DeviceInfo(
        busid=record.busid,
        vendor_id=record.vendor_id,
        product_id=record.product_id,
        serial=record.serial,
        manufacturer=record.manufacturer,
        product=record.product,
        speed=record.speed.label,
        device_class=record.device_class,
        drivers=drivers,
        simulated=record.simulated is not None,
        state=DeviceState.NOT_SHARED if device is None else device.shown,
        client=None if device is None else device.client,
        claim_method=None if claimed is None else claimed.claim_method,
        claim_time=None if claimed is None else claimed.claim_time,
        attach_time=None if device is None or device.session is None else device.session.attach_time,
        worker_pid=None if device is None or device.worker is None else device.worker.pid,
        error=None if failure is None else failure.error.message[:LONGEST_TEXT],
        advice=None if failure is None else (failure.error.advice or "")[:LONGEST_TEXT] or None,
        next_try=None if failure is None else failure.next_try,
        counters=counters,
        rate=None if device is None else device.rate(),
        latency=None if counters is None else latency_of(counters),
    )
