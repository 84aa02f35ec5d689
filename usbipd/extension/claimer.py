"""Claims devices: one worker per device, restarted when it dies.  Runs in the extension.

The worker claims, the extension decides.  A claim lasts exactly as long as its worker: when the worker exits,
the device is free, and while it is shared, another worker claims it.  The state of each device is in
`device.py`.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from usbipd.counters import counter_page
from usbipd.errors import ClaimError, IPCError, UsbipdError
from usbipd.extension.claim_result import check_claim_result
from usbipd.extension.device import ClaimedDevice, ClaimState, Device
from usbipd.extension.driver_reattach import DRIVERS_TIME, DriverReattacher
from usbipd.extension.event_recorder import EventRecorder
from usbipd.extension.supervisor import Backoff, Child, Spawner, wait_ended
from usbipd.extension.usb_stack import UsbStack
from usbipd.extension.worker_confinement import WorkerConfinement
from usbipd.ipc.children import (
    ClaimParameters,
    ClaimResult,
    Confinement,
    DetachedParameters,
    GoneParameters,
    LogParameters,
)
from usbipd.ipc.control_messages import DeviceMemory, HistoryEvent
from usbipd.ipc.conversation import Event, Request
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command, Nothing
from usbipd.ipc.row import Role
from usbipd.log import LIMITED
from usbipd.usb.claim_errors import explain_claim_error
from usbipd.usb.daemon_thread import call_in_daemon_thread
from usbipd.usb.discovery import DeviceRecord
from usbipd.usb.ownership import Ownership

_LOG: Final = logging.getLogger(__name__)

CLAIM_TIMEOUT: Final = 60.0
"""Seconds from the start of a worker to its claim: drivers may take long to release a device."""
EXIT_TIMEOUT: Final = 1.0
"""Seconds for a worker to exit after its last answer."""
DISCONNECT_TIMEOUT: Final = 2.0
"""Seconds for a worker to end its client's session; longer than the pump's `DRAIN_TIME`.  After that it is
killed, whether it is stopped or waits for its device: the kernel cancels its URBs in flight."""
POLL_INTERVAL: Final = 0.1
"""Seconds between two checks for a device that is being enumerated again."""
KILL_TIMEOUT: Final = 10.0
"""Seconds for the kernel to end a killed worker: it may be in a call that waits 5 s for the device."""
STARTING_AT_ONCE: Final = 4
"""Workers that start at the same time: more of them slow each other down until all time out."""

FindDevice = Callable[[str], Awaitable[DeviceRecord | None]]
"""Lists the devices and returns the one with this busid; None: it is not present."""
FirstTry = asyncio.Future[ClaimedDevice | UsbipdError]
"""A failure is a result, not an exception: asyncio logs an exception that no caller retrieves."""


class DeviceClaimer:
    """Claims the shared devices and releases them."""

    def __init__(
        self,
        spawner: Spawner,
        ownership: Ownership,
        find_device: FindDevice,
        reattacher: DriverReattacher,
        recorder: EventRecorder,
        *,
        stack: UsbStack,
        confinement: WorkerConfinement,
        transfer_budget: int,
        device_memory: DeviceMemory,
        log_level: str,
        log_to: str,
        on_end: Callable[[], None],
    ) -> None:
        """`on_end` is called when a device is dropped: its port is free for another one."""
        self._spawner = spawner
        self._ownership = ownership
        self._find_device = find_device
        self._reattacher = reattacher
        self._recorder = recorder
        self._stack = stack
        self._confinement = confinement
        self._transfer_budget = transfer_budget
        self._device_memory: DeviceMemory = device_memory
        self._log_level = log_level
        self._log_to = log_to
        self._on_end = on_end
        self._starting = asyncio.Semaphore(STARTING_AT_ONCE)
        self._devices: dict[str, Device] = {}
        """By busid; includes devices being released, and ended ones whose last worker hangs."""

    @property
    def shared_devices(self) -> dict[str, Device]:
        """The devices that are claimed now, or will be, by busid."""
        return {busid: device for busid, device in self._devices.items() if device.is_kept}

    def find(self, busid: str) -> Device | None:
        """The shared device with this busid."""
        device = self._devices.get(busid)
        return device if device is not None and device.is_kept else None

    def is_device_claimed(self, busid: str) -> bool:
        """Whether one of our workers holds the device now."""
        device = self.find(busid)
        return device is not None and device.claimed is not None

    def refuse_if_hung(self, busid: str) -> None:
        """Raises `ClaimError` if a killed worker still holds the device."""
        device = self._devices.get(busid)
        if device is not None and device.hung is not None and not device.hung.ended.is_set():
            raise _hangs(device.hung)

    async def claim_device(self, record: DeviceRecord, *, force: bool = False) -> ClaimedDevice:
        """Detach the drivers of a device that has just been listed, and hold it until `release_device`.

        `force` unmounts its file systems first.  Raises `ClaimError` if it cannot be claimed; it is then not
        retried.
        """
        device = self.find(record.busid)
        if device is not None and device.claimed is not None:
            return device.claimed
        if device is not None:  # being claimed, or failed: claim it again, to report why
            await self.release_device(record.busid, timeout=self._stack.end_time)
        first: FirstTry = asyncio.get_running_loop().create_future()
        self._start(record, first, force=force, is_current=device is None)
        await asyncio.wait({first})  # not cancelled with our caller
        result = first.result()
        if isinstance(result, UsbipdError):
            raise result
        return result

    async def restore_claimed_devices(self, records: Sequence[DeviceRecord]) -> None:
        """Start to claim those of the devices just listed that are not shared yet; return at once.

        A device that cannot be claimed is FAILED, and retried until it is released or removed.
        """
        for record in records:
            device = self._devices.get(record.busid)
            if device is None or device.state is ClaimState.ENDED:
                self._start(record, None, force=False, is_current=True)

    async def release_device(self, busid: str, *, timeout: float) -> None:  # noqa: ASYNC109 - bounds one step
        """Release the device to this host and end its client's session; no effect if it is not shared.

        A worker that has not released it after `timeout` seconds is killed; the host then scans for drivers.
        """
        device = self.find(busid)
        if device is None:
            return
        assert device.task is not None, "a shared device has one"
        device.state = ClaimState.RELEASING  # no client can attach it, and no other task starts for it
        try:
            device.task.cancel()
            await asyncio.wait({device.task})
            worker = device.worker
            device.ended(HistoryEvent.RELEASED)
            if worker is not None:
                await self._release(device, worker, timeout)
            # On Linux also after a worker that reattached what it had detached: it does not know of drivers
            # that were missing when it started because an earlier worker had been killed.
            await self._reattacher.finish(busid, min(timeout, DRIVERS_TIME))
            _LOG.info("%s released", busid)
        finally:
            self._drop(device)
        self._on_end()

    def _drop(self, device: Device) -> None:
        """Drop a device that has ended, unless the next claim of its port must wait for a worker."""
        device.state = ClaimState.ENDED
        if device.hung is None:
            del self._devices[device.record.busid]

    async def disconnect(self, busid: str, by: str) -> str:
        """Disconnect the client that uses the device; returns the client.  Raises `UsbipdError`."""
        device = self.find(busid)
        if device is None or device.worker is None or device.session is None:
            raise UsbipdError(
                f"no client uses {busid}", code="not-attached", advice="`usbipd status` shows all clients"
            )
        worker, session = device.worker, device.session
        session.detached_by = by
        failure: UsbipdError | None = None
        try:
            await worker.channel.request(Command.DISCONNECT, Nothing(), Nothing, timeout=DISCONNECT_TIMEOUT)
        except UsbipdError as error:
            if error.code == "gone":  # a worker that could not reap all URBs exits, which ends the session
                return session.client
            failure = error
        # A worker sends DETACHED before its answer, even if the client has just disconnected.
        if device.session is session:
            await self._cut_off(worker)
        elif failure is not None:
            raise failure
        return session.client

    async def _cut_off(self, worker: Child) -> None:
        """End a session by killing its worker; the next worker claims the device.  Raises `UsbipdError`."""
        why = f"did not end its client's session within {DISCONNECT_TIMEOUT:g} s"
        _LOG.warning("%s %s: killing it", worker.label, why)
        worker.offence = IPCError(why, code="timeout")
        if not await self._kill(worker):
            raise _hangs(worker)

    def compare(self, present: Sequence[DeviceRecord]) -> None:
        """Check each shared device that is not among the `present` ones, or has changed."""
        now = {record.busid: record for record in present}
        for busid, device in self.shared_devices.items():
            record = now.get(busid)
            if record is not None and self._is_same(record, device.record, device.worker):
                continue
            device.recheck.set()
            self._suspect(device)

    def set_log_level(self, level: str) -> None:
        """Set the log level of all workers, present and future."""
        self._log_level = level
        for device in self._devices.values():
            if device.worker is not None:
                device.worker.channel.tell(Command.LOG, LogParameters(level=level))

    def _suspect(self, device: Device) -> None:
        """The device seems to be unplugged: end its worker unless that exits."""
        if device.worker is not None and (device.departing is None or device.departing.done()):
            device.departing = asyncio.create_task(self._depart(device, device.worker))

    async def _depart(self, device: Device, worker: Child) -> None:
        """libusb notifies the worker, too, and it exits; if it does not, end it."""
        if not await wait_ended(worker, self._stack.gone_time):
            before = device.record
            if not await self._is_present(device) or not self._is_same(device.record, before, worker):
                _LOG.warning("%s did not notice that its device was unplugged", worker.label, extra=LIMITED)
                device.is_gone = True
                await self._dismiss(device, worker)

    def _is_same(self, record: DeviceRecord, before: DeviceRecord, worker: Child | None) -> bool:
        """Whether the device listed as `record` is still the one that was listed as `before`.

        `worker` holds it; None: no worker does, and a device that has changed in any way is retried.
        """
        if self._stack.keeps_address:
            return record.devnum == before.devnum
        return record == before if worker is None else _same_device(record, before)

    # ---- one device ----------------------------------------------------------------------------------------

    def _start(self, record: DeviceRecord, first: FirstTry | None, *, force: bool, is_current: bool) -> None:
        before = self._devices.get(record.busid)
        assert before is None or before.state is ClaimState.ENDED, "two tasks would claim one device"
        device = Device(record, self._recorder, None if before is None else before.hung)
        self._devices[record.busid] = device
        device.task = asyncio.create_task(self._keep(device, first, force=force, is_current=is_current))

    async def _keep(self, device: Device, first: FirstTry | None, *, force: bool, is_current: bool) -> None:
        """Claim the device, again whenever its worker dies, until it is unplugged or we are cancelled.

        `first` gets the result of the first try; if that fails, the device is dropped.  Without it, a first
        try that fails is retried.  `is_current`: the record has just been listed, and is not looked up again.
        """
        busid = device.record.busid
        backoff = Backoff()
        try:
            while is_current or await self._is_present(device):
                is_current = False
                try:
                    claimed = await self._take(device, force=force)
                except UsbipdError as error:
                    if first is not None and not first.done():
                        self._recorder.record(HistoryEvent.FAILED, device.record, reason=error.message)
                        if not self._stack.probes_interfaces:  # else `_undo` has done it
                            await self._reattacher.finish(busid, DRIVERS_TIME)
                        self._forget(device, HistoryEvent.FAILED)
                        first.set_result(error)
                        return
                    delay = backoff.failed()
                    before = device.record
                    if device.failed(error, delay):
                        is_present = await self._is_present(device) and device.record == before
                        level = logging.ERROR if is_present else logging.INFO
                        _LOG.log(level, "%s cannot be claimed: %s", busid, error, extra=LIMITED)
                else:
                    if first is not None and not first.done():
                        first.set_result(claimed)
                    force = False  # applies to the first claim only
                    backoff.succeeded()
                    assert device.worker is not None
                    if device.recheck.is_set():  # it changed while it was being claimed
                        device.recheck.clear()
                        self._suspect(device)
                    await device.worker.ended.wait()
                    if not (device.is_gone or device.worker.exited):
                        self._reattacher.lost(busid)
                    delay = backoff.failed()
                    device.lost(delay)
                _LOG.info("%s has no worker: retrying in %.1f s", busid, delay, extra=LIMITED)
                await device.pause(delay)
            _LOG.info("%s was unplugged", busid, extra=LIMITED)
            await self._reattacher.forget(busid)
            self._forget(device, HistoryEvent.UNPLUGGED)
            self._on_end()
        except Exception:
            _LOG.exception("claiming %s failed", busid)
            if first is not None and not first.done():
                first.set_result(ClaimError("internal error: see the log", code="internal"))
            raise
        finally:
            if first is not None and not first.done():
                first.set_result(ClaimError(f"{busid} was released or unplugged", code="gone"))

    async def _is_present(self, device: Device) -> bool:
        try:
            record = await self._find_device(device.record.busid)
        except UsbipdError as error:
            _LOG.error("cannot check for %s: %s", device.record.busid, error, extra=LIMITED)
            return True  # the next claim will show
        if record is None or not _same_device(record, device.record):
            return False
        device.record = record
        return True

    async def _take(self, device: Device, *, force: bool) -> ClaimedDevice:
        """Start a worker that claims the device.  Raises `ClaimError`; no worker is left then.

        The exception is a worker that hangs in the kernel, which holds the device's lock: until it ends,
        another one would hang as well, so none is started.  So at most one worker per port hangs.
        """
        record = device.record
        if device.hung is not None:
            if not await wait_ended(device.hung, self._stack.end_time):
                raise _hangs(device.hung)
            device.hung = None
        async with self._starting:
            if record.simulated is None:
                await self._free_from_use(record.busid, force=force)
                await self._reattacher.begin(record)
            worker: Child | None = None
            try:
                try:
                    page, descriptor = counter_page()
                    with os.fdopen(descriptor):
                        confinement = await self._confinement.choose(record.busid)
                        worker = self._spawner.spawn(Role.WORKER, record.busid, _refuse, _listener(device))
                        self._confinement.assign(confinement, worker)
                        parameters = self._parameters(record, confinement)
                        result = await worker.channel.request(
                            Command.CLAIM,
                            parameters,
                            ClaimResult,
                            timeout=CLAIM_TIMEOUT,
                            descriptor=descriptor,
                        )
                    check_claim_result(record, result.device)
                    self._confinement.is_confined(worker, result.lacks)
                except BaseException:
                    await self._undo(device, worker)
                    raise
            except OSError as error:
                failure = UsbipdError(f"cannot start a worker: {error}", code="spawn")
                raise explain_claim_error(record.busid, failure, []) from error
            except UsbipdError as error:
                if not self._confinement.relax(record.busid, error):
                    raise await self._explain(record, error, worker) from error
                worker = None
        if worker is None:
            await self._wait_until_back(device)
            return await self._take(device, force=force)
        if parameters.log_level != self._log_level:  # changed meanwhile
            worker.channel.tell(Command.LOG, LogParameters(level=self._log_level))
        how = result.claim_method
        _LOG.info("%s claimed (%s) by worker[%d]", record.busid, how, worker.pid, extra=LIMITED)
        return device.taken(worker, result, page)

    async def _wait_until_back(self, device: Device) -> None:
        """Wait for a device that a worker has released: macOS enumerates it again, and its record changes.

        Raises `ClaimError` if it does not reappear within `gone_time`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._stack.gone_time
        while not await self._is_present(device):
            if loop.time() >= deadline:
                busid, seconds = device.record.busid, self._stack.gone_time
                raise ClaimError(
                    f"{busid} was released and did not reappear within {seconds:g} s",
                    code="gone",
                    advice="unplug the device and plug it in again",
                )
            await asyncio.sleep(POLL_INTERVAL)

    async def _free_from_use(self, busid: str, *, force: bool) -> None:
        """Raises `ClaimError` if the host uses the device's file systems; `force` unmounts them first."""
        try:
            used = await call_in_daemon_thread(lambda: self._ownership.in_use(busid))
            if used and force:
                await call_in_daemon_thread(lambda: self._ownership.unmount(busid))
                _LOG.info("%s: unmounted %s", busid, " and ".join(used))
                used = []
        except OSError as error:  # the device was unplugged meanwhile
            raise ClaimError(f"cannot tell whether {busid} is in use: {error}", code="in-use") from error
        if used:
            mounted = all(each.startswith("/") for each in used)
            raise ClaimError(
                f"{busid} is in use on this host: {' and '.join(used)}",
                code="mounted" if mounted else "in-use",
                advice=f"unmount it first, or let `usbipd bind {busid} --force` do it"
                if mounted
                else f"`usbipd bind {busid} --force` shows what to do",
            )

    async def _explain(self, record: DeviceRecord, error: UsbipdError, worker: Child | None) -> ClaimError:
        """The worker's error, with the driver or program that holds the device."""
        if error.code == "gone" and worker is not None:
            return ClaimError(
                f"{record.busid}: the worker ended with {worker.exit} while claiming the device",
                code="worker-ended",
                advice="see the daemon's log for details",
            )
        holders = []
        if record.simulated is None:
            try:
                holders = await call_in_daemon_thread(lambda: self._ownership.holders_of(record.busid))
            except OSError as problem:
                _LOG.warning("cannot tell what holds %s: %s", record.busid, problem, extra=LIMITED)
        return explain_claim_error(record.busid, error, holders)

    def _parameters(self, record: DeviceRecord, confinement: Confinement | None) -> ClaimParameters:
        return ClaimParameters(
            busid=record.busid,
            busnum=record.busnum,
            devnum=record.devnum,
            path=record.path,
            simulated=record.simulated,
            confinement=confinement,
            transfer_budget=self._transfer_budget,
            device_memory=self._device_memory,
            log_level=self._log_level,
            log_to=self._log_to,
        )

    def _forget(self, device: Device, event: HistoryEvent) -> None:
        device.ended(event)
        self._drop(device)

    # ---- the end of a worker -------------------------------------------------------------------------------

    async def _release(self, device: Device, worker: Child, seconds: float) -> None:
        """Have the worker release its device and exit, within `seconds`."""
        worker.ending = True
        try:
            await worker.channel.request(Command.RELEASE, Nothing(), Nothing, timeout=seconds)
        except UsbipdError as error:
            _LOG.error("%s did not release its device: %s", worker.label, error)
            self._reattacher.lost(device.record.busid)
            if error.code == "timeout":
                await self._kill(worker)
        else:
            self._reattacher.released(device.record.busid)
            if not await wait_ended(worker, EXIT_TIMEOUT):
                await self._kill(worker)
        await self._dismiss(device, worker)

    async def _undo(self, device: Device, worker: Child | None) -> None:
        """Clean up after a claim that failed."""
        if worker is not None:
            worker.ending = True
            await self._dismiss(device, worker)
            if not worker.exited:
                self._reattacher.lost(device.record.busid)
        # On macOS not after a worker that was killed: the next one claims the device as it is.  Enumerating
        # it again would cause another try at once, endlessly if each worker crashes.
        if worker is None or worker.exited or self._stack.probes_interfaces:
            await self._reattacher.finish(device.record.busid, DRIVERS_TIME)

    async def _dismiss(self, device: Device, worker: Child) -> None:
        """Close a worker's channel, so that it exits; kill it if it hangs."""
        worker.channel.close()
        try:
            # A killed worker may still be exiting, and holds its device until it has ended.
            seconds = EXIT_TIMEOUT if worker.killed else self._stack.end_time
            if not await wait_ended(worker, seconds) and not worker.killed:
                await self._kill(worker)
        finally:
            if not worker.ended.is_set():
                device.hung = worker

    async def _kill(self, worker: Child) -> bool:
        """Kill a worker; returns whether it ended within `KILL_TIMEOUT`."""
        worker.killed = True
        self._spawner.kill(worker)
        if await wait_ended(worker, KILL_TIMEOUT):
            return True
        _LOG.error("%s was killed, but hangs in the kernel waiting for its device", worker.label)
        return False


def _hangs(worker: Child) -> ClaimError:
    return ClaimError(
        f"{worker.label} was killed, but hangs in the kernel waiting for {worker.busid}",
        code="hangs",
        advice="unplug the device",
    )


def _listener(device: Device) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        device.on_event(event)
        if isinstance(event.parameters, DetachedParameters | GoneParameters):
            reason = event.parameters.reason
            _LOG.info("%s %s: %s", device.record.busid, event.event, reason, extra=LIMITED)

    return listen


def _same_device(one: DeviceRecord, other: DeviceRecord) -> bool:
    return (one.vendor_id, one.product_id, one.serial) == (other.vendor_id, other.product_id, other.serial)


async def _refuse(request: Request) -> Message:
    """Never called: the table of commands lets workers send none."""
    raise UsbipdError(f"workers may not send {request.command}", code="not-permitted")
