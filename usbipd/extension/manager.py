"""What is shared: bindings, and the operations on them.  Runs in the extension.

A binding says that a device is to be shared; here they live in memory, as long as the extension does.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final

from usbipd.errors import UsbipdError
from usbipd.extension.claim import Claim, ClaimedDevice
from usbipd.extension.claimer import DeviceClaimer
from usbipd.extension.supervisor import Spawner
from usbipd.ipc.messages import DeviceReport, DeviceState, RunAs
from usbipd.usb.discovery import DeviceRecord, DeviceSource
from usbipd.usb.ownership import USBFS, Ownership

_LOG: Final = logging.getLogger(__name__)

RELEASE_TIMEOUT: Final = 5.0
"""Seconds that a worker has to give its device back: the host's drivers look at it before it answers."""
STOP_TIMEOUT: Final = 1.0
"""The same when the whole daemon ends, which takes 2 s at most."""


class SystemExtensionManager:
    """The devices of this host and the simulated ones, and which of them are shared."""

    def __init__(
        self,
        sources: Sequence[DeviceSource],
        spawner: Spawner,
        ownership: Ownership,
        *,
        run_as: RunAs | None,
        transfer_budget: int,
        log_level: str,
    ) -> None:
        self._sources = sources
        self._ownership = ownership
        self._claimer = DeviceClaimer(
            spawner,
            ownership,
            self._find_device,
            run_as=run_as,
            transfer_budget=transfer_budget,
            log_level=log_level,
        )
        self._bindings: set[str] = set()
        # bind and unbind one after the other: half of each would be neither
        self._lock = asyncio.Lock()
        self._stopping = False

    @property
    def claims(self) -> dict[str, Claim]:
        """By busid; changes as time goes by."""
        return self._claimer.claims

    async def start(self) -> None:
        """Bind the simulated devices, which are there to be shared, and claim all that is bound.

        Raises `ClaimError`.
        """
        async with self._lock:
            records = await self._list_records()
            self._bindings |= {record.busid for record in records if record.simulated is not None}
            await self._claimer.restore_claimed_devices(
                [record for record in records if record.busid in self._bindings]
            )

    async def stop(self) -> None:
        """Give every device back, all at the same time, also those that are being claimed or released."""
        self._stopping = True
        await asyncio.gather(self._release(list(self.claims), STOP_TIMEOUT), self._wait_settled(STOP_TIMEOUT))

    async def claim_device(self, busid: str) -> ClaimedDevice:
        """Take the device from this host.  Raises `UsbipdError`: no such device, or it cannot be had."""
        record = await self._require_device(busid)
        if self._stopping:
            raise UsbipdError("the daemon is ending", code="ending")
        return await self._claimer.claim_device(record)

    async def release_device(self, busid: str) -> None:
        """Give the device back to this host."""
        await self._claimer.release_device(busid, timeout=RELEASE_TIMEOUT)

    def get_claimed_devices(self) -> list[ClaimedDevice]:
        """What our workers hold now."""
        return [claim.device for claim in self.claims.values() if claim.device is not None]

    async def bind(self, busid: str) -> DeviceReport:
        """Share the device from now on.  Raises `UsbipdError`; nothing is bound then."""
        async with self._lock:
            await self.claim_device(busid)
            self._bindings.add(busid)
        return await self._report(await self._require_device(busid))

    async def unbind(self, busid: str | None) -> list[str]:
        """Share one device no longer, or (None) no device at all; the busids that were shared.

        Raises `UsbipdError` if `busid` was not shared.
        """
        async with self._lock:
            if busid is not None and busid not in self._bindings:
                raise UsbipdError(
                    f"{busid} is not shared", code="not-shared", advice="`usbipd list` shows what is"
                )
            busids = sorted(self._bindings) if busid is None else [busid]
            self._bindings -= set(busids)
            await self._release(busids, RELEASE_TIMEOUT)
            return busids

    async def list_devices(self) -> list[DeviceReport]:
        """Every device that is or could be shared.  Raises `UsbipdError` if libusb cannot list them."""
        return [await self._report(record) for record in await self._list_records()]

    async def _release(self, busids: list[str], seconds: float) -> None:
        await asyncio.gather(*(self._claimer.release_device(busid, timeout=seconds) for busid in busids))

    async def _wait_settled(self, seconds: float) -> None:
        """Wait until no bind or unbind is under way, but not longer than that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._lock:
                return

    async def _list_records(self) -> list[DeviceRecord]:
        return [record for source in self._sources for record in await source.list_devices()]

    async def _find_device(self, busid: str) -> DeviceRecord | None:
        return next((record for record in await self._list_records() if record.busid == busid), None)

    async def _require_device(self, busid: str) -> DeviceRecord:
        record = await self._find_device(busid)
        if record is None:
            raise UsbipdError(
                f"there is no device {busid!r}", code="no-device", advice="`usbipd list` shows what there is"
            )
        return record

    async def _report(self, record: DeviceRecord) -> DeviceReport:
        claim = self.claims.get(record.busid)
        drivers: list[str] = []
        if record.simulated is None:
            drivers = await asyncio.to_thread(self._ownership.drivers_of, record.busid)
        device = None if claim is None else claim.device
        if device is not None:
            with contextlib.suppress(ValueError):
                drivers.remove(USBFS)  # that is our own worker
        return DeviceReport(
            busid=record.busid,
            vendor_id=record.vendor_id,
            product_id=record.product_id,
            manufacturer=record.manufacturer,
            product=record.product,
            speed=record.speed.label,
            device_class=record.device_class,
            drivers=drivers,
            simulated=record.simulated is not None,
            state=DeviceState.NOT_SHARED if claim is None else claim.state.shown,
            client=None if claim is None else claim.client,
            claim_method=None if device is None else device.claim_method,
            claim_time=None if device is None else device.claim_time,
            worker_pid=None if claim is None or claim.worker is None else claim.worker.pid,
            error=None if claim is None else claim.error,
            counters=None if claim is None else claim.counters(),
        )
