"""Takes devices and keeps them: one worker per device, started again when it dies.  Runs in the extension.

The worker claims, the extension decides.  A claim lives exactly as long as its worker: whatever ends the
worker frees the device, and if we still want it, another worker takes it again.
"""

import asyncio
import functools
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from usbipd.counters import counter_page
from usbipd.errors import ClaimError, IPCError, UsbipdError
from usbipd.extension.chronicle import Chronicle
from usbipd.extension.claim import Claim, ClaimedDevice
from usbipd.extension.evidence import check_claimed
from usbipd.extension.returns import DRIVERS_TIME, Returns
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
from usbipd.ipc.conversation import Event, Request
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command, Nothing
from usbipd.ipc.reports import DeviceMemory, HistoryEvent
from usbipd.ipc.row import Role
from usbipd.log import LIMITED
from usbipd.usb.daemon_thread import call_in_daemon_thread
from usbipd.usb.discovery import DeviceRecord
from usbipd.usb.ownership import Ownership
from usbipd.usb.refusal import explain

_LOG: Final = logging.getLogger(__name__)

CLAIM_TIMEOUT: Final = 60.0
"""Seconds from the start of a worker to its claim: drivers may take long to let go of a device."""
EXIT_TIMEOUT: Final = 1.0
"""Seconds that a worker has to end once it said that it is done."""
DISCONNECT_TIMEOUT: Final = 2.0
"""Seconds that a worker has to end its client's session; longer than the pump's own `DRAIN_TIME`.  After that
it is killed, whether it is stopped or waits for its device: the kernel cancels what it has in flight."""
KILL_TIMEOUT: Final = 10.0
"""Seconds that the kernel has to end a killed worker: it may be in a call that waits 5 s for the device."""
STARTING_AT_ONCE: Final = 4
"""Workers that start at one moment: more of them make each other slow, up to the timeout of all."""

FindDevice = Callable[[str], Awaitable[DeviceRecord | None]]
"""The device with this busid, if it is present."""


class DeviceClaimer:
    """All claims of this daemon, by busid."""

    def __init__(
        self,
        spawner: Spawner,
        ownership: Ownership,
        find_device: FindDevice,
        returns: Returns,
        chronicle: Chronicle,
        *,
        stack: UsbStack,
        confinement: WorkerConfinement,
        transfer_budget: int,
        device_memory: DeviceMemory,
        log_level: str,
        log_to: str,
        on_end: Callable[[], None],
    ) -> None:
        """`on_end` hears of each claim that has ended: its port is free for another device."""
        self._spawner = spawner
        self._ownership = ownership
        self._find_device = find_device
        self._returns = returns
        self._chronicle = chronicle
        self._stack = stack
        self._confinement = confinement
        self._transfer_budget = transfer_budget
        self._device_memory: DeviceMemory = device_memory
        self._log_level = log_level
        self._log_to = log_to
        self._on_end = on_end
        self._starting = asyncio.Semaphore(STARTING_AT_ONCE)
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._hurry: dict[str, asyncio.Event] = {}
        """Set when a keeper that waits for its next try is to look at once."""
        self._parting: dict[int, asyncio.Task[None]] = {}
        """By pid: workers whose device seems to be gone."""
        self._dying: dict[str, Child] = {}
        """By busid: the last worker that was dismissed and had not ended when that was over."""
        self._releasing: set[str] = set()
        """Devices that are being given back: nobody claims them before that is done."""
        self.claims: dict[str, Claim] = {}

    def is_device_claimed(self, busid: str) -> bool:
        """Whether a worker of ours holds the device now."""
        claim = self.claims.get(busid)
        return claim is not None and claim.device is not None

    def refuse_if_hung(self, busid: str) -> None:
        """Raises `ClaimError` if a worker that was killed still has the device."""
        dying = self._dying.get(busid)
        if dying is not None and not dying.ended.is_set():
            raise _hangs(dying)

    async def claim_device(self, record: DeviceRecord, *, force: bool = False) -> ClaimedDevice:
        """Take the device from its drivers and keep it until `release_device`.

        `force` unmounts its file systems first.  Raises `ClaimError` if somebody else has it, or it is not
        there; nothing is kept then.
        """
        held = self.claims.get(record.busid)
        if held is not None and held.device is not None:
            return held.device
        if held is not None:  # it is being tried, or has failed: this try is to say why
            await self.release_device(record.busid, timeout=self._stack.end_time)
        first: asyncio.Future[ClaimedDevice] = asyncio.get_running_loop().create_future()
        self._start_keeper(record, first, force=force)
        # not shield(), which logs what becomes of it when our caller was cancelled
        await asyncio.wait({first})
        return first.result()

    async def restore_claimed_devices(self, records: Sequence[DeviceRecord]) -> None:
        """Keep all of these that are not kept yet, from now on, and return at once.

        One that cannot be taken is FAILED, and tried again until it is released or gone.
        """
        for record in records:
            if record.busid not in self.claims and record.busid not in self._releasing:
                self._start_keeper(record, None, force=False)

    async def release_device(self, busid: str, *, timeout: float) -> None:  # noqa: ASYNC109 - bounds one step
        """Give the device back to this host; a client's session ends.  Nothing happens if it is not claimed.

        A worker that has not given it back after `timeout` seconds is killed, and the host is told to find
        drivers for it.
        """
        claim = self.claims.pop(busid, None)
        if claim is None:
            return
        self._releasing.add(busid)
        try:
            await self._end(claim, timeout)
        finally:
            self._releasing.remove(busid)
        self._on_end()

    async def _end(self, claim: Claim, timeout: float) -> None:  # noqa: ASYNC109 - bounds one step
        busid = claim.record.busid
        keeper = self._keepers.pop(busid)
        del self._hurry[busid]
        keeper.cancel()
        await asyncio.wait({keeper})
        worker = claim.worker
        claim.ended(HistoryEvent.RELEASED)
        if worker is not None:
            await self._release(claim.record, worker, timeout)
        # On Linux also after a worker that gave back what it had taken: it does not know of drivers that were
        # gone when it came, since the worker before it was killed.
        await self._returns.finish(busid, min(timeout, DRIVERS_TIME))
        _LOG.info("%s released", busid)

    async def disconnect(self, busid: str) -> str:
        """End the session of the client that uses the device; its name.  Raises `UsbipdError`."""
        claim = self.claims.get(busid)
        if claim is None or claim.worker is None or claim.client is None:
            raise UsbipdError(
                f"no client uses {busid}", code="not-attached", advice="`usbipd status` shows who uses what"
            )
        worker, client = claim.worker, claim.client
        refusal: UsbipdError | None = None
        try:
            await worker.channel.request(Command.DISCONNECT, Nothing(), Nothing, timeout=DISCONNECT_TIMEOUT)
        except UsbipdError as error:
            if error.code == "gone":  # a worker that could not take all URBs back has ended, and the session
                return client
            refusal = error
        # A worker sends DETACHED before its answer, even if the client has just left on its own.
        if claim.worker is worker and claim.client == client:
            await self._cut_off(worker)
        elif refusal is not None:
            raise refusal
        return client

    async def _cut_off(self, worker: Child) -> None:
        """End a session by killing its worker; the next worker claims the device.  Raises `UsbipdError`."""
        why = f"did not end its client's session within {DISCONNECT_TIMEOUT:g} s"
        _LOG.warning("%s %s: killing it", worker.label, why)
        worker.offence = IPCError(why, code="timeout")
        if not await self._kill(worker):
            raise _hangs(worker)

    def compare(self, present: Sequence[DeviceRecord]) -> None:
        """These devices are plugged in now: what is not among them, or is another one, is let go of."""
        now = {record.busid: record for record in present}
        for busid, claim in self.claims.items():
            record = now.get(busid)
            if record is not None and self._is_same(record, claim.record, claim.worker):
                continue
            self._hurry[busid].set()
            if claim.worker is not None:
                self._doubt(claim, claim.worker)

    def set_log_level(self, level: str) -> None:
        """For the workers that live and those that come."""
        self._log_level = level
        for claim in self.claims.values():
            if claim.worker is not None:
                claim.worker.channel.tell(Command.LOG, LogParameters(level=level))

    def _doubt(self, claim: Claim, worker: Child) -> None:
        """Its device seems to be gone."""
        if worker.pid not in self._parting:
            parting = self._parting[worker.pid] = asyncio.create_task(self._part(claim, worker))
            parting.add_done_callback(functools.partial(self._parted, worker.pid))

    async def _part(self, claim: Claim, worker: Child) -> None:
        """libusb tells the worker, too, that its device is gone, and it ends by itself; if not, we end it."""
        if not await wait_ended(worker, self._stack.gone_time):
            before = claim.record
            if not await self._is_present(claim) or not self._is_same(claim.record, before, worker):
                _LOG.warning("%s has not noticed that its device is gone", worker.label, extra=LIMITED)
                claim.vanished()
                await self._dismiss(worker)

    def _is_same(self, record: DeviceRecord, before: DeviceRecord, worker: Child | None) -> bool:
        """Whether the device listed as `record` is still the one that was listed as `before`.

        `worker` holds it; None: nobody does, and a device that has changed at all is tried again.
        """
        if self._stack.keeps_address:
            return record.devnum == before.devnum
        return record == before if worker is None else _same_device(record, before)

    def _parted(self, pid: int, _task: asyncio.Task[None]) -> None:
        del self._parting[pid]

    # ---- one claim -----------------------------------------------------------------------------------------

    def _start_keeper(
        self, record: DeviceRecord, first: asyncio.Future[ClaimedDevice] | None, *, force: bool
    ) -> None:
        assert record.busid not in self.claims, "one keeper a device: two would take it from each other"
        claim = self.claims[record.busid] = Claim(record, self._chronicle)
        self._hurry[record.busid] = asyncio.Event()
        self._keepers[record.busid] = asyncio.create_task(self._keep(claim, first, force=force))

    async def _keep(self, claim: Claim, first: asyncio.Future[ClaimedDevice] | None, *, force: bool) -> None:
        """Claim, and claim again whenever the worker dies, until the device is gone or we are cancelled.

        `first` is the outcome of the first try; if that fails, there is no claim.  Without it, the first try
        is one of many.
        """
        busid = claim.record.busid
        backoff = Backoff()
        try:
            while await self._is_present(claim):
                try:
                    device = await self._take(claim, force=force)
                except UsbipdError as error:
                    if first is not None and not first.done():
                        self._chronicle.happened(HistoryEvent.FAILED, claim.record, reason=error.message)
                        await self._returns.finish(busid, DRIVERS_TIME)
                        self._forget(claim, HistoryEvent.FAILED)
                        _fail(first, error)
                        return
                    delay = backoff.failed()
                    before = claim.record
                    if claim.failed(error, delay):
                        is_there = await self._is_present(claim) and claim.record == before
                        level = logging.ERROR if is_there else logging.INFO
                        _LOG.log(level, "%s cannot be claimed: %s", busid, error, extra=LIMITED)
                else:
                    if first is not None and not first.done():
                        first.set_result(device)
                    force = False  # said once, for the file systems of that moment
                    backoff.succeeded()
                    assert claim.worker is not None
                    if self._hurry[busid].is_set():  # it changed while it was being taken
                        self._hurry[busid].clear()
                        self._doubt(claim, claim.worker)
                    await claim.worker.ended.wait()
                    if not (claim.is_gone or claim.worker.ended_by_itself):
                        self._returns.lost(busid)
                    delay = backoff.failed()
                    claim.lost(delay)
                _LOG.info("%s has no worker: the next try comes in %.1f s", busid, delay, extra=LIMITED)
                await self._pause(busid, delay)
            _LOG.info("%s was unplugged", busid, extra=LIMITED)
            await self._returns.forget(busid)
            self._forget(claim, HistoryEvent.UNPLUGGED)
            self._on_end()
        finally:
            if first is not None and not first.done():
                _fail(first, ClaimError(f"{busid} was released or is gone", code="gone"))

    async def _pause(self, busid: str, seconds: float) -> None:
        hurry = self._hurry[busid]
        waiting = asyncio.create_task(hurry.wait())
        try:
            await asyncio.wait({waiting}, timeout=seconds)
        finally:
            waiting.cancel()
            hurry.clear()

    async def _is_present(self, claim: Claim) -> bool:
        try:
            record = await self._find_device(claim.record.busid)
        except UsbipdError as error:
            _LOG.error("cannot look for %s: %s", claim.record.busid, error, extra=LIMITED)
            return True  # a try to claim it will tell
        if record is None or not _same_device(record, claim.record):
            return False
        claim.record = record
        return True

    async def _take(self, claim: Claim, *, force: bool) -> ClaimedDevice:
        """Start a worker that claims the device.  Raises `ClaimError`; no worker is left then.

        Except for one that hangs in the kernel, which keeps the device's lock: until that one has ended,
        another one would hang as well, so none is started.  So each port costs one such worker at most.
        """
        record = claim.record
        dying = self._dying.get(record.busid)
        if dying is not None:
            if not await wait_ended(dying, self._stack.end_time):
                raise _hangs(dying)
            self._dying.pop(record.busid, None)
        async with self._starting:
            if record.simulated is None:
                await self._free_from_use(record.busid, force=force)
                await self._returns.begin(record)
            worker: Child | None = None
            try:
                page, descriptor = counter_page()
                with os.fdopen(descriptor):
                    try:
                        confinement = await self._confinement.choose(record.busid)
                        worker = self._spawner.spawn(Role.WORKER, record.busid, _refuse, _listener(claim))
                        self._confinement.given(confinement, worker)
                        parameters = self._parameters(record, confinement)
                        result = await worker.channel.request(
                            Command.CLAIM,
                            parameters,
                            ClaimResult,
                            timeout=CLAIM_TIMEOUT,
                            descriptor=descriptor,
                        )
                        check_claimed(record, result.device)
                        self._confinement.is_confined(worker, result.lacks)
                    except BaseException:
                        await self._undo(worker, record)
                        raise
            except OSError as error:
                failure = UsbipdError(f"cannot start a worker: {error}", code="spawn")
                raise explain(record.busid, failure, []) from error
            except UsbipdError as error:
                if not self._confinement.relax(record.busid, error):
                    raise await self._explain(record, error, worker) from error
                worker = None
        if worker is None:
            return await self._take(claim, force=force)
        if parameters.log_level != self._log_level:  # it has changed meanwhile
            worker.channel.tell(Command.LOG, LogParameters(level=self._log_level))
        how = result.claim_method
        _LOG.info("%s claimed (%s) by worker[%d]", record.busid, how, worker.pid, extra=LIMITED)
        return claim.taken(worker, result, page)

    async def _free_from_use(self, busid: str, *, force: bool) -> None:
        """Raises `ClaimError` while the host uses what is on the device; `force` unmounts that first."""
        try:
            used = await call_in_daemon_thread(lambda: self._ownership.in_use(busid))
            if used and force:
                await call_in_daemon_thread(lambda: self._ownership.unmount(busid))
                _LOG.info("%s: unmounted %s", busid, " and ".join(used))
                used = []
        except OSError as error:  # a device that goes while it is looked at
            raise ClaimError(f"cannot tell whether {busid} is in use: {error}", code="in-use") from error
        if used:
            mounted = all(each.startswith("/") for each in used)
            raise ClaimError(
                f"{busid} is in use on this host: {' and '.join(used)}",
                code="mounted" if mounted else "in-use",
                advice=f"unmount it first, or let `usbipd bind --busid {busid} --force` do it"
                if mounted
                else f"`usbipd bind --busid {busid} --force` says how to end that",
            )

    async def _explain(self, record: DeviceRecord, error: UsbipdError, worker: Child | None) -> ClaimError:
        """What the worker said, with the name of who holds the device."""
        if error.code == "gone" and worker is not None:
            return ClaimError(
                f"{record.busid}: the worker ended with {worker.exit} before it had the device",
                code="worker-ended",
                advice="the log says more",
            )
        holders = []
        if record.simulated is None:
            try:
                holders = await call_in_daemon_thread(lambda: self._ownership.holders_of(record.busid))
            except OSError as problem:
                _LOG.warning("cannot tell who holds %s: %s", record.busid, problem, extra=LIMITED)
        return explain(record.busid, error, holders)

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

    def _forget(self, claim: Claim, event: HistoryEvent) -> None:
        busid = claim.record.busid
        del self.claims[busid], self._keepers[busid], self._hurry[busid]
        claim.ended(event)

    # ---- the end of a worker -------------------------------------------------------------------------------

    async def _release(self, record: DeviceRecord, worker: Child, seconds: float) -> None:
        """Have the worker give its device back and end, in `seconds`."""
        worker.ending = True
        try:
            await worker.channel.request(Command.RELEASE, Nothing(), Nothing, timeout=seconds)
        except UsbipdError as error:
            _LOG.error("%s did not give its device back: %s", worker.label, error)
            self._returns.lost(record.busid)
            if error.code == "timeout":  # it had its time
                await self._kill(worker)
        else:
            self._returns.gave_back(record.busid)
            if not await wait_ended(worker, EXIT_TIMEOUT):
                await self._kill(worker)
        await self._dismiss(worker)

    async def _undo(self, worker: Child | None, record: DeviceRecord) -> None:
        """The claim has failed: nothing is left of it."""
        if worker is not None:
            worker.ending = True
            await self._dismiss(worker)
            if not worker.ended_by_itself:
                self._returns.lost(record.busid)
        # On macOS not after a worker that was killed: the next one claims the device as it is.  To enumerate
        # it again would cause another try at once, without end if each worker crashes.
        if worker is None or worker.ended_by_itself or self._stack.probes_interfaces:
            await self._returns.finish(record.busid, DRIVERS_TIME)

    async def _dismiss(self, worker: Child) -> None:
        """A worker ends when its channel does; one that hangs is killed."""
        worker.channel.close()
        try:
            if not (worker.killed or await wait_ended(worker, self._stack.end_time)):
                await self._kill(worker)
        finally:
            if not worker.ended.is_set() and worker.busid is not None:
                self._dying[worker.busid] = worker

    async def _kill(self, worker: Child) -> bool:
        """Kill a worker; returns whether it ended within `KILL_TIMEOUT`."""
        worker.killed = True
        self._spawner.kill(worker)
        if await wait_ended(worker, KILL_TIMEOUT):
            return True
        _LOG.error("%s was killed, but hangs in the kernel, which waits for its device", worker.label)
        return False


def _hangs(worker: Child) -> ClaimError:
    return ClaimError(
        f"{worker.label} was killed, but hangs in the kernel, which waits for {worker.busid}",
        code="hangs",
        advice="unplug the device",
    )


def _listener(claim: Claim) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        claim.heard(event)
        if isinstance(event.parameters, DetachedParameters | GoneParameters):
            reason = event.parameters.reason
            _LOG.info("%s %s: %s", claim.record.busid, event.event, reason, extra=LIMITED)

    return listen


def _fail(first: asyncio.Future[ClaimedDevice], error: UsbipdError) -> None:
    """The first try has failed; who asked for it may have left meanwhile, then nobody need hear of it."""
    first.set_exception(error)
    first.exception()


def _same_device(one: DeviceRecord, other: DeviceRecord) -> bool:
    return (one.vendor_id, one.product_id, one.serial) == (other.vendor_id, other.product_id, other.serial)


async def _refuse(request: Request) -> Message:
    """A worker asks for nothing; the policy has said so before."""
    raise UsbipdError(f"{request.command} is not for workers", code="not-permitted")
