"""Takes devices and keeps them: one worker per device, started again when it dies.  Runs in the extension.

The worker claims, the extension decides.  A claim lives exactly as long as its worker: whatever ends the
worker frees the device, and if we still want it, another worker takes it again.
"""

import asyncio
import fcntl
import logging
import mmap
import os
import struct
import tempfile
from collections.abc import Awaitable, Callable
from typing import Final

from usbipd.errors import ClaimError, UsbipdError
from usbipd.extension.claim import Claim, ClaimedDevice
from usbipd.extension.supervisor import Backoff, Child, Spawner, wait_ended
from usbipd.ipc.channel import Event, Request
from usbipd.ipc.messages import (
    ClaimParameters,
    ClaimResult,
    Command,
    DetachedParameters,
    GoneParameters,
    Message,
    Nothing,
    RunAs,
)
from usbipd.ipc.policy import Role
from usbipd.protocol.op import UsbDevice, encode_devlist_reply
from usbipd.usb.discovery import DeviceRecord
from usbipd.usb.ownership import Ownership
from usbipd.worker.report import COUNTER_PAGE_SIZE

_LOG: Final = logging.getLogger(__name__)

CLAIM_TIMEOUT: Final = 60.0
"""Seconds from the start of a worker to its claim: drivers may take long to let go of a device."""
END_TIMEOUT: Final = 1.0
"""Seconds that a worker has to end once it said that it is done."""

FindDevice = Callable[[str], Awaitable[DeviceRecord | None]]
"""The device with this busid, if it is present."""


class DeviceClaimer:
    """All claims of this daemon, by busid."""

    def __init__(
        self,
        spawner: Spawner,
        ownership: Ownership,
        find_device: FindDevice,
        *,
        run_as: RunAs | None,
        transfer_budget: int,
        log_level: str,
    ) -> None:
        self._spawner = spawner
        self._ownership = ownership
        self._find_device = find_device
        self._run_as = run_as
        self._transfer_budget = transfer_budget
        self._log_level = log_level
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self.claims: dict[str, Claim] = {}

    def is_device_claimed(self, busid: str) -> bool:
        """Whether a worker of ours holds the device now."""
        claim = self.claims.get(busid)
        return claim is not None and claim.device is not None

    async def claim_device(self, record: DeviceRecord) -> ClaimedDevice:
        """Take the device from its drivers and keep it until `release_device`.

        Raises `ClaimError` if somebody else has it, or it is not there; nothing is kept then.
        """
        held = self.claims.get(record.busid)
        if held is not None and held.device is not None:
            return held.device
        if held is not None:  # the last tries failed: this one is to say why
            await self.release_device(record.busid, timeout=END_TIMEOUT)
        claim = self.claims[record.busid] = Claim(record)
        first: asyncio.Future[ClaimedDevice] = asyncio.get_running_loop().create_future()
        self._keepers[record.busid] = asyncio.create_task(self._keep(claim, first))
        return await asyncio.shield(first)

    async def release_device(self, busid: str, *, timeout: float) -> None:  # noqa: ASYNC109 - bounds one step
        """Give the device back to this host; a client's session ends.  Nothing happens if it is not claimed.

        A worker that has not given it back after `timeout` seconds is killed, and the kernel is told to look
        for drivers.
        """
        claim = self.claims.pop(busid, None)
        if claim is None:
            return
        keeper = self._keepers.pop(busid)
        keeper.cancel()
        await asyncio.wait({keeper})
        worker = claim.worker
        claim.ended()
        if worker is None or not await self._release(worker, timeout):
            await self._give_back(worker, claim.record)
        _LOG.info("%s released", busid)

    async def restore_claimed_devices(self, records: list[DeviceRecord]) -> None:
        """Claim all of these at the same time.  Raises the first `ClaimError`, when all tries are over."""
        results = await asyncio.gather(
            *(self.claim_device(record) for record in records), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _take(self, claim: Claim) -> ClaimedDevice:
        """Start a worker that claims the device.  Raises `ClaimError`; no worker is left then."""
        record = claim.record
        if record.simulated is None:
            try:
                points = await asyncio.to_thread(self._ownership.mount_points_of, record.busid)
            except OSError as error:  # a device that goes while it is looked at
                raise ClaimError(
                    f"cannot tell whether {record.busid} is in use: {error}", code="in-use"
                ) from error
            if points:
                raise ClaimError(
                    f"{record.busid} is in use: it is mounted on {' and '.join(points)}",
                    code="mounted",
                    advice=f"unmount it first: umount {' '.join(points)}",
                )
        try:
            page, descriptor = _counter_page()
            with os.fdopen(descriptor):
                worker = self._spawner.spawn(Role.WORKER, record.busid, _refuse, _listener(claim))
                try:
                    result = await worker.channel.request(
                        Command.CLAIM,
                        self._parameters(record),
                        ClaimResult,
                        timeout=CLAIM_TIMEOUT,
                        descriptor=descriptor,
                    )
                    _check(record, result.device)
                except BaseException:
                    await self._give_back(worker, record)
                    raise
        except OSError as error:
            raise ClaimError(f"cannot start a worker: {error}", code="spawn") from error
        except UsbipdError as error:
            raise ClaimError(error.message, code=error.code, advice=error.advice) from error
        _LOG.info("%s claimed (%s) by worker[%d]", record.busid, result.claim_method, worker.pid)
        return claim.taken(worker, result, page)

    def _parameters(self, record: DeviceRecord) -> ClaimParameters:
        return ClaimParameters(
            busid=record.busid,
            busnum=record.busnum,
            devnum=record.devnum,
            path=record.path,
            simulated=record.simulated,
            run_as=self._run_as,
            transfer_budget=self._transfer_budget,
            log_level=self._log_level,
        )

    async def _keep(self, claim: Claim, first: asyncio.Future[ClaimedDevice]) -> None:
        """Claim, and claim again whenever the worker dies, until the device is gone or we are cancelled.

        `first` is the outcome of the first try; if that fails, there is no claim.
        """
        busid = claim.record.busid
        backoff = Backoff()
        try:
            while await self._is_present(claim):
                try:
                    device = await self._take(claim)
                except UsbipdError as error:
                    if not first.done():
                        self._forget(claim)
                        _fail(first, error)
                        return
                    _LOG.error("%s cannot be claimed again: %s", busid, error)
                    claim.failed(error.message)
                else:
                    if not first.done():
                        first.set_result(device)
                    backoff.succeeded()
                    assert claim.worker is not None
                    await claim.worker.ended.wait()
                    claim.lost()
                delay = backoff.failed()
                _LOG.warning("%s has no worker: the next try comes in %.1f s", busid, delay)
                await asyncio.sleep(delay)
            _LOG.warning("%s is gone", busid)
            self._forget(claim)
        finally:
            if not first.done():
                _fail(first, ClaimError(f"{busid} was released or is gone", code="gone"))

    async def _is_present(self, claim: Claim) -> bool:
        try:
            record = await self._find_device(claim.record.busid)
        except UsbipdError as error:
            _LOG.error("cannot look for %s: %s", claim.record.busid, error)
            return True  # a try to claim it will tell
        if record is None or not _same_device(record, claim.record):
            return False
        claim.record = record
        return True

    def _forget(self, claim: Claim) -> None:
        del self.claims[claim.record.busid], self._keepers[claim.record.busid]
        claim.ended()

    async def _release(self, worker: Child, seconds: float) -> bool:
        """Whether the worker gives its device back and ends, in `seconds`."""
        worker.ending = True
        try:
            await worker.channel.request(Command.RELEASE, Nothing(), Nothing, timeout=seconds)
        except UsbipdError as error:
            _LOG.error("%s did not give its device back: %s", worker.label, error)
            if error.code == "timeout":
                self._spawner.kill(worker)  # it had its time
            return False
        return await wait_ended(worker, END_TIMEOUT)

    async def _give_back(self, worker: Child | None, record: DeviceRecord) -> None:
        """Make sure that a failed worker is gone and its device back with its drivers."""
        if worker is not None:
            worker.ending = True
            worker.channel.close()
            if not await wait_ended(worker, END_TIMEOUT):
                self._spawner.kill(worker)
                await worker.ended.wait()
        if record.simulated is None:
            await asyncio.to_thread(self._ownership.give_back, record.busid)


def _listener(claim: Claim) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        claim.heard(event)
        if isinstance(event.parameters, DetachedParameters | GoneParameters):
            _LOG.info("%s %s: %s", claim.record.busid, event.event, event.parameters.reason)

    return listen


def _fail(first: asyncio.Future[ClaimedDevice], error: UsbipdError) -> None:
    """The first try has failed; who asked for it may have left meanwhile, then nobody need hear of it."""
    first.set_exception(error)
    first.exception()


def _check(record: DeviceRecord, device: UsbDevice) -> None:
    """Raises `ClaimError` unless `device` is the one that was to be claimed and fits the wire.

    Every client is shown what the worker says here, at the end of a conversation with a device of unknown
    make.
    """
    if (device.busid, device.busnum, device.devnum) != (record.busid, record.busnum, record.devnum):
        raise ClaimError(f"{record.busid}: the worker claimed {device.busid}", code="bad-message")
    try:
        encode_devlist_reply([device])
    except (ValueError, struct.error) as error:
        raise ClaimError(
            f"{record.busid} cannot be described to clients: {error}", code="bad-message"
        ) from error


def _same_device(one: DeviceRecord, other: DeviceRecord) -> bool:
    return (one.vendor_id, one.product_id) == (other.vendor_id, other.product_id)


async def _refuse(request: Request) -> Message:
    """A worker asks for nothing; the policy has said so before."""
    raise UsbipdError(f"{request.command} is not for workers", code="not-permitted")


def _counter_page() -> tuple[mmap.mmap, int]:
    """A page of zeros that a worker may map too, and its descriptor, which the caller closes."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("usbipd-counters", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, COUNTER_PAGE_SIZE)
        # A worker that shrank it would make us read behind the end of a file, which is SIGBUS.
        fcntl.fcntl(
            descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        )
    else:
        with tempfile.TemporaryFile() as file:
            file.truncate(COUNTER_PAGE_SIZE)
            descriptor = os.dup(file.fileno())
    return mmap.mmap(descriptor, COUNTER_PAGE_SIZE, prot=mmap.PROT_READ), descriptor
