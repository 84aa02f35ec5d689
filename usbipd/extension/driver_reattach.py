"""Reattaches the host's drivers to devices that were claimed.  Runs in the extension.

A worker releases its device before it exits.  A worker that was killed leaves it without drivers: Linux then
scans for drivers on request only, and macOS may keep the device captured until it is enumerated again.  Such
a device is *orphaned*.  The store lists every claimed device; if all processes were killed, the next
extension reads from it which devices may be orphaned.
"""

import asyncio
import functools
import logging
import time
from collections.abc import Container, Iterable
from typing import Final

from usbipd.errors import UsbipdError
from usbipd.extension.store import Store, StoredClaim
from usbipd.extension.usb_stack import UsbStack
from usbipd.log import LIMITED
from usbipd.usb.daemon_thread import call_in_daemon_thread
from usbipd.usb.discovery import DeviceRecord
from usbipd.usb.ownership import Ownership

_LOG: Final = logging.getLogger(__name__)

DRIVERS_TIME: Final = 5.0
"""Seconds to wait for the host's drivers to be reattached."""


class DriverReattacher:
    """Tracks the devices whose drivers were detached, and reattaches them; simulated devices have none."""

    def __init__(self, ownership: Ownership, store: Store, stack: UsbStack) -> None:
        self._ownership = ownership
        self._store = store
        self._stack = stack
        self._open: dict[str, bool] = {}
        """By busid: the devices that may be without drivers; True: orphaned."""
        self._scans: dict[str, asyncio.Future[None]] = {}
        """By busid: the scans for drivers in progress."""

    async def begin(self, record: DeviceRecord) -> None:
        """The drivers are about to be detached; the store keeps that for the next extension."""
        self._open.setdefault(record.busid, False)
        try:
            await self._store.begin_claim(
                StoredClaim(record.busid, record.vendor_id, record.product_id, time.time())
            )
        except UsbipdError as error:  # share the device even if the disk is full
            _LOG.error("the claim of %s could not be recorded: %s", record.busid, error, extra=LIMITED)

    def lost(self, busid: str) -> None:
        """The worker ended without releasing the device."""
        if busid in self._open:
            self._open[busid] = True

    def released(self, busid: str) -> None:
        """The worker has released the device."""
        if busid in self._open:
            self._open[busid] = False

    async def finish(self, busid: str, seconds: float) -> None:
        """The claim is over: have the host reattach its drivers, within `seconds`, if they may be missing.

        Never raises: if that fails, the device stays orphaned, now and for the next extension.
        """
        if busid not in self._open:
            return
        try:
            if self._stack.probes_interfaces or self._open[busid]:
                await self._scan(busid, seconds)
        except UsbipdError as error:
            _LOG.warning("%s", error, extra=LIMITED)
            self.lost(busid)
        else:
            await self.forget(busid)

    async def reattach(self, busid: str, seconds: float) -> None:
        """Have the host reattach its drivers, in whatever state the device is.  Raises `UsbipdError`."""
        await self._scan(busid, seconds)
        await self.forget(busid)

    async def forget(self, busid: str) -> None:
        """The device has its drivers again, or was unplugged."""
        if self._open.pop(busid, None) is None:
            return
        try:
            await self._store.end_claim(busid)
        except UsbipdError as error:
            _LOG.error("the end of the claim of %s could not be recorded: %s", busid, error, extra=LIMITED)

    async def forget_absent(self, present: Container[str]) -> None:
        """Forget all devices but those at the busids `present`: they were unplugged."""
        for busid in [busid for busid in self._open if busid not in present]:
            await self.forget(busid)

    async def load(self) -> list[str]:
        """The devices that the last extension held when it was killed; they may be orphaned."""
        busids = [stored.busid for stored in await self._store.claims()]
        self._open = dict.fromkeys(busids, True)
        return busids

    async def orphans(self, busids: Iterable[str]) -> list[str]:
        """Those of `busids` that are orphaned and held by neither a driver nor a program now."""
        orphaned = [busid for busid in busids if self._open.get(busid)]
        return await call_in_daemon_thread(
            lambda: [busid for busid in orphaned if not self._ownership.holders_of(busid)]
        )

    async def _scan(self, busid: str, seconds: float) -> None:
        """Have the host find drivers for the device; after `seconds` the scan continues in the background.

        The call lasts as long as a driver probes the device, forever if the device does not answer: it runs
        in a thread, at most one per port.  Raises `UsbipdError`: not done in time ("hangs"), or failed.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        earlier = self._scans.get(busid)
        if earlier is not None:  # it may have passed interfaces that have lost their driver since
            await asyncio.wait({earlier}, timeout=seconds)
        scan = self._scans.get(busid)
        if scan is None:
            scan = call_in_daemon_thread(functools.partial(self._ownership.give_back, busid))
            self._scans[busid] = scan
            scan.add_done_callback(functools.partial(self._scan_ended, busid))
        done, _pending = await asyncio.wait({scan}, timeout=max(0.0, deadline - loop.time()))
        if not done:
            raise UsbipdError(
                f"{busid}: this host still scans for drivers after {seconds:g} s",
                code="hangs",
                advice="unplug the device and plug it in again",
            )
        error = scan.exception()
        if isinstance(error, UsbipdError):
            raise error
        if error is not None:
            raise UsbipdError(
                f"{busid}: cannot scan for drivers: {error}",
                code="release-failed",
                advice="unplug the device and plug it in again",
            ) from error

    def _scan_ended(self, busid: str, scan: asyncio.Future[None]) -> None:
        del self._scans[busid]
        scan.exception()  # the caller reports it
