"""Binds and unbinds devices, and claims the bound ones.  Runs in the extension.

A device that matches a binding is claimed whenever it is present: when the daemon starts, when the device is
plugged in, or when it reappears as another device (a bootloader) that is bound too.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Iterable, Sequence
from typing import Final

from usbipd.access import AccessList
from usbipd.errors import UsbipdError
from usbipd.extension.bindings import Bindings, binding_info
from usbipd.extension.claimer import DeviceClaimer
from usbipd.extension.device import ClaimedDevice, ClaimState, Device, device_info
from usbipd.extension.driver_reattach import DRIVERS_TIME, DriverReattacher
from usbipd.extension.event_recorder import EventRecorder
from usbipd.extension.store import Binding, Store
from usbipd.extension.supervisor import Spawner
from usbipd.extension.usb_stack import UsbStack
from usbipd.extension.worker_confinement import WorkerConfinement
from usbipd.ipc.children import DevlistResult
from usbipd.ipc.control_messages import (
    BindParameters,
    BindResult,
    DeviceInfo,
    DeviceMemory,
    HardwareId,
    HistoryEvent,
    LeftOutInfo,
    ListResult,
    UnbindParameters,
    UnbindResult,
)
from usbipd.log import LIMITED
from usbipd.usb.daemon_thread import call_in_daemon_thread
from usbipd.usb.discovery import HUB, DeviceRecord, DeviceSource
from usbipd.usb.identity import DeviceRule
from usbipd.usb.ownership import Ownership

_LOG: Final = logging.getLogger(__name__)

FIRST_CLAIMS: Final = 10.0
"""Seconds for which the start of the daemon waits for the claims of bound devices."""
BIND_TIME: Final = 2.0
"""Seconds for drivers to bind to a device that was enumerated again."""
POLL_INTERVAL: Final = 0.1
"""Seconds between two checks for the drivers of a device that was released."""
LIST_RETRY: Final = 5.0
"""Seconds until the devices are listed again after a failure."""


class SystemExtensionManager:
    """Shares devices of this host and simulated ones."""

    def __init__(
        self,
        sources: Sequence[DeviceSource],
        spawner: Spawner,
        ownership: Ownership,
        store: Store,
        bindings: Bindings,
        recorder: EventRecorder,
        *,
        stack: UsbStack,
        with_real: bool,
        confinement: WorkerConfinement,
        transfer_budget: int,
        device_memory: DeviceMemory,
        log_level: str,
        log_to: str,
    ) -> None:
        """`with_real`: whether devices of this host are offered, not only simulated ones."""
        self._sources = sources
        self._with_real = with_real
        self._ownership = ownership
        self._stack = stack
        self._bindings = bindings
        self._recorder = recorder
        self._reattacher = DriverReattacher(ownership, store, stack)
        self._claimer = DeviceClaimer(
            spawner,
            ownership,
            self._find_device,
            self._reattacher,
            recorder,
            stack=stack,
            confinement=confinement,
            transfer_budget=transfer_budget,
            device_memory=device_memory,
            log_level=log_level,
            log_to=log_to,
            on_end=self.devices_changed,
        )
        # serializes bind, unbind and release
        self._lock = asyncio.Lock()
        self._changed = asyncio.Event()
        self._orphaned: list[str] = []
        """Busids of devices that a killed extension held, until it is known whether they are present."""
        self._follower: asyncio.Task[None] | None = None
        self.is_running = True
        """Whether the daemon is not shutting down."""

    @property
    def shared_devices(self) -> dict[str, Device]:
        """The devices that are claimed now, or will be, by busid."""
        return self._claimer.shared_devices

    async def start(self) -> None:
        """Bind the simulated devices; claim all bound devices that are present, and later those plugged in.

        Raises `UsbipdError` if a simulated device cannot be claimed: the user asked for it.
        """
        async with self._lock:
            await self._bindings.load()
            records = await self._list_records()
            simulated = [record for record in records if record.simulated is not None]
            for record in simulated:
                self._bindings.bind_simulated(record)
            self._orphaned = await self._reattacher.load()
            await self._release_orphaned(records)
            await self._claim_all(simulated, force=False)
            await self._follow(records)
            await self._wait_for_first_claims()
        self._follower = asyncio.create_task(self._follow_changes())

    async def stop(self) -> None:
        """Release all devices concurrently, including those that are being claimed or released."""
        self.is_running = False
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.wait({self._follower})
        await asyncio.gather(self._release(self.shared_devices), self._wait_settled(self._stack.stop_time))

    def devices_changed(self) -> None:
        """List the devices again: one was plugged in or unplugged, or a port became free."""
        self._changed.set()

    def set_log_level(self, level: str) -> None:
        """Set the log level of all workers, present and future."""
        self._claimer.set_log_level(level)

    # ---- requests of users ---------------------------------------------------------------------------------

    async def claim_device(self, record: DeviceRecord, *, force: bool = False) -> ClaimedDevice:
        """Claim a device that has just been listed.  Raises `UsbipdError` if it cannot be claimed.

        `force` unmounts its file systems first.
        """
        return await self._claimer.claim_device(record, force=force)

    async def release_device(self, busid: str) -> None:
        """Release the device to this host."""
        seconds = self._stack.release_time if self.is_running else self._stack.stop_time
        await self._claimer.release_device(busid, timeout=seconds)

    def get_claimed_devices(self) -> list[ClaimedDevice]:
        """The devices that workers hold now."""
        return [device.claimed for device in self.shared_devices.values() if device.claimed is not None]

    async def bind(self, parameters: BindParameters, by: str) -> BindResult:
        """Share a device, or all devices with one hardware id, from now on.

        Raises `UsbipdError` if one that is present cannot be claimed; nothing is bound then.
        """
        async with self._lock:
            AccessList(parameters.allow)  # raises before anything is claimed
            rule, records = await self._resolve(parameters)
            if not self.is_running:
                raise UsbipdError("the daemon is shutting down", code="ending")
            new = [record for record in records if not self._claimer.is_device_claimed(record.busid)]
            binding = Binding(
                rule=rule,
                product=records[0].product if records else None,
                allow=tuple(parameters.allow),
                created=time.time(),
                created_by=by,
            )
            try:
                await self._claim_all(new, force=parameters.force)
                await self._bindings.add(
                    binding, simulated=parameters.busid is not None and records[0].simulated is not None
                )
            except BaseException:
                await self._release_unbound()
                self.devices_changed()  # another binding may match what was released here
                raise
            for record in records:
                self._recorder.record(HistoryEvent.BOUND, record, reason=f"by {by}")
            if not records:
                self._recorder.record(
                    HistoryEvent.BOUND,
                    vendor_id=rule.vendor_id,
                    product_id=rule.product_id,
                    reason=f"by {by}",
                )
        shared = binding_info(binding, [record.busid for record in records])
        return BindResult(binding=shared, devices=await self._describe(records))

    async def unbind(self, parameters: UnbindParameters, by: str) -> UnbindResult:
        """Remove bindings, and release the devices that no other binding shares.

        Raises `UsbipdError` if no binding matches.
        """
        async with self._lock:
            bindings = self._select(parameters)
            records = await self._list_records()
            removed = self._bindings.describe(bindings, records)
            await self._bindings.remove(bindings)
            for binding in bindings:
                self._recorder.record(
                    HistoryEvent.UNBOUND,
                    busid=binding.rule.busid,
                    vendor_id=binding.rule.vendor_id,
                    product_id=binding.rule.product_id,
                    product=binding.product,
                    reason=f"by {by}",
                )
            return UnbindResult(bindings=removed, busids=await self._release_unbound())

    async def detach(self, busid: str, by: str) -> str:
        """Disconnect the client that uses the device; returns the client.  Raises `UsbipdError`."""
        return await self._claimer.disconnect(busid, by)

    async def release(self, busid: str) -> list[str]:
        """Have this host reattach its drivers to a device that is not bound; returns the drivers.

        Raises `UsbipdError` if the device is bound or that fails.
        """
        async with self._lock:
            record = await self._require_device(busid)
            if not self.is_running:
                raise UsbipdError("the daemon is shutting down", code="ending")
            if record.simulated is not None:
                raise UsbipdError(f"{busid} is simulated: this host has no driver for it", code="simulated")
            device = self._claimer.find(busid)
            if device is not None or self._bindings.matching(record):
                shared = record if device is None else device.record  # the port may have another device now
                held = self._claimer.is_device_claimed(busid)
                raise UsbipdError(
                    f"{busid} is shared: a worker of this daemon holds it"
                    if held
                    else f"{busid} is bound: this daemon claims it as soon as it can",
                    code="shared",
                    advice=f"`{self._how_to_unbind(shared)}` stops sharing it and releases it",
                )
            self._claimer.refuse_if_hung(busid)
            if os.geteuid() != 0:
                raise UsbipdError(
                    f"{busid} cannot be released: this daemon does not run as root",
                    code="not-root",
                    advice="start the daemon as root, with sudo or as a service",
                )
            await self._reattacher.reattach(busid, self._stack.release_time)
            return await self._wait_for_drivers(busid)

    async def orphans(self) -> list[str]:
        """Busids of unbound devices that were left without drivers and are still unused.

        Raises `UsbipdError` if the devices cannot be listed.
        """
        records, shared = await self._list_records(), self.shared_devices
        return await self._reattacher.orphans(each.busid for each in records if each.busid not in shared)

    async def list_devices(self) -> list[DeviceInfo]:
        """All devices that are or could be shared.  Raises `UsbipdError` if the host cannot list them."""
        return await self._describe(await self._list_records())

    async def survey(self) -> ListResult:
        """All devices, and all bindings with the devices that each shares.

        Raises `UsbipdError` if the host cannot list its devices.
        """
        records = await self._list_records()
        devices = await self._describe(records)
        return ListResult(
            devices=devices,
            bindings=self._bindings.describe(self._bindings.all(), records),
            left_out=[
                LeftOutInfo(busid=busid, reason=error.message, code=error.code, advice=error.advice)
                for source in self._sources
                for busid, error in sorted(source.left_out.items())
                if error is not HUB
            ],
        )

    # ---- requests of clients -------------------------------------------------------------------------------

    def offers(self, addresses: Sequence[str]) -> DevlistResult:
        """The devices that a client at each of these addresses can import, free or not.

        Each access list is evaluated once per address, however many devices have it.
        """
        devices = [
            (device.wire_device, self._bindings.access_to(device.record))
            for device in self.shared_devices.values()
            if device.wire_device is not None
        ]
        kinds = {access for _device, access in devices}
        allowed = [frozenset(access for access in kinds if access.allows(address)) for address in addresses]
        offered = [(device, access) for device, access in devices if any(access in each for each in allowed)]
        different = {each: number for number, each in enumerate(dict.fromkeys(allowed))}
        return DevlistResult(
            devices=[device for device, _access in offered],
            lists=[
                [index for index, (_device, access) in enumerate(offered) if access in each]
                for each in different
            ],
            list_of=[different[each] for each in allowed],
        )

    def find_for(self, busid: str, address: str) -> Device | None:
        """The device with this busid, if a client at `address` can see it."""
        device = self._claimer.find(busid)
        if device is None or not self._bindings.access_to(device.record).allows(address):
            return None
        return device

    # ---- devices that are plugged in -----------------------------------------------------------------------

    async def _follow_changes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                records = await self._list_records()
                await self._follow(records)
                if self._is_complete:
                    await self._reattacher.forget_absent(
                        {*self.shared_devices, *(each.busid for each in records)}
                    )
                if self._orphaned:
                    async with (
                        self._lock
                    ):  # else the claim of a concurrent bind would be removed from the store
                        await self._release_orphaned(records)
            except UsbipdError as error:
                _LOG.error("%s", error, extra=LIMITED)
                asyncio.get_running_loop().call_later(LIST_RETRY, self._changed.set)
            self._recorder.changed()

    @property
    def _is_complete(self) -> bool:
        """Whether the last list contains every device that is present."""
        return all(source.problem is None for source in self._sources)

    async def _follow(self, records: Sequence[DeviceRecord]) -> None:
        """`records` are plugged in now: claim the bound ones, check those that are missing."""
        if self.is_running:
            self._claimer.compare(records)
            await self._claimer.restore_claimed_devices(
                [record for record in records if self._bindings.matching(record)]
            )

    async def _wait_for_first_claims(self) -> None:
        """Wait until each claim has been tried once, for at most `FIRST_CLAIMS` seconds."""
        deadline = time.monotonic() + FIRST_CLAIMS
        for device in self.shared_devices.values():
            while device.state is ClaimState.CLAIMING and await device.changed(deadline - time.monotonic()):
                continue

    async def _release_orphaned(self, records: Sequence[DeviceRecord]) -> None:
        """Reattach, concurrently, the drivers of unbound devices that the last extension held.

        If all its processes were killed at the same time, none released them.  A device that is missing from
        an incomplete list may be present, so it is checked later.  A bound one is claimed again anyway.
        """
        present = {record.busid: record for record in records}
        is_complete = self._is_complete
        known = [busid for busid in self._orphaned if busid in present or is_complete]
        self._orphaned = [busid for busid in self._orphaned if busid not in known]
        unbound = []
        for busid in known:
            record = present.get(busid)
            if record is None:
                await self._reattacher.forget(busid)
            elif self._claimer.find(busid) is None and not self._bindings.matching(record):
                _LOG.warning("%s: reattaching drivers left detached by a previous run", busid)
                unbound.append(busid)
        await asyncio.gather(*(self._reattacher.finish(busid, DRIVERS_TIME) for busid in unbound))

    async def _claim_all(self, records: Iterable[DeviceRecord], *, force: bool) -> None:
        """Claim all of these concurrently.  Raises the first error, once all have been tried."""
        results = await asyncio.gather(
            *(self.claim_device(record, force=force) for record in records), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _release_unbound(self) -> list[str]:
        """Release the devices that no binding shares; returns their busids."""
        busids = sorted(
            busid
            for busid, device in self.shared_devices.items()
            if not self._bindings.matching(device.record)
        )
        await self._release(busids)
        return busids

    async def _release(self, busids: Iterable[str]) -> None:
        await asyncio.gather(*map(self.release_device, busids))

    async def _wait_settled(self, seconds: float) -> None:
        """Wait until no bind or unbind is in progress, for at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._lock:
                return

    async def _resolve(self, parameters: BindParameters) -> tuple[DeviceRule, list[DeviceRecord]]:
        """The rule to bind, and the devices that match it now.  Raises `UsbipdError`."""
        if parameters.busid is not None and parameters.hardware is None:
            record = await self._require_device(parameters.busid)
            return DeviceRule.of_port(record), [record]
        if parameters.hardware is not None and parameters.busid is None:
            rule = _hardware_rule(parameters.hardware)
            records = [record for record in await self._list_records() if rule.fits(record)]
            if not records and not self._with_real:
                raise UsbipdError(
                    f"this daemon shares simulated devices only, and {rule.describe()} is not one of them",
                    code="no-device",
                    advice="to share devices of this machine, start the daemon without --simulate, or with "
                    "--real-devices",
                )
            return rule, records
        raise UsbipdError("bind takes either a busid or a hardware id", code="bad-message")

    def _select(self, parameters: UnbindParameters) -> list[Binding]:
        """The bindings to remove.  Raises `UsbipdError` if none matches."""
        everything = self._bindings.all()
        if parameters.hardware is not None:
            rule = _hardware_rule(parameters.hardware)
            selected = [binding for binding in everything if binding.rule == rule]
            problem = f"no binding for hardware id {rule.describe()}"
        elif parameters.busid is not None:
            selected = [binding for binding in everything if binding.rule.busid == parameters.busid]
            problem = f"{parameters.busid} is not shared"
        else:
            return everything
        if selected:
            return selected
        advice = "`usbipd list` shows the shared devices"
        device = self._claimer.find(parameters.busid or "")
        if device is not None and self._bindings.matching(device.record):
            problem = f"{parameters.busid} is shared by its hardware id, not by its port"
            advice = f"`{self._how_to_unbind(device.record)}` unbinds it at any port"
        raise UsbipdError(problem, code="not-shared", advice=advice)

    def _how_to_unbind(self, record: DeviceRecord) -> str:
        """The command that unbinds a shared device."""
        rules = [binding.rule for binding in self._bindings.matching(record)]
        rule = next((rule for rule in rules if rule.busid is not None), rules[0])
        if rule.busid is not None:
            return f"usbipd unbind {rule.busid}"
        serial = ":SERIAL" if rule.serial is not None else ""
        return f"usbipd unbind {rule.vendor_id:04x}:{rule.product_id:04x}{serial}"

    async def _list_records(self) -> list[DeviceRecord]:
        return [record for source in self._sources for record in await source.list_devices()]

    async def _find_device(self, busid: str) -> DeviceRecord | None:
        return next((record for record in await self._list_records() if record.busid == busid), None)

    async def _require_device(self, busid: str) -> DeviceRecord:
        record = await self._find_device(busid)
        if record is not None:
            return record
        for source in self._sources:
            if (reason := source.left_out.get(busid)) is not None:
                raise UsbipdError(
                    f"{busid} cannot be shared: {reason.message}", code=reason.code, advice=reason.advice
                )
        raise UsbipdError(
            f"device {busid!r} does not exist", code="no-device", advice="`usbipd list` shows all devices"
        )

    async def _describe(self, records: Sequence[DeviceRecord]) -> list[DeviceInfo]:
        """All devices at the same moment, except for the host's drivers, which are read one by one."""
        held = await call_in_daemon_thread(lambda: self._drivers_of(records))
        return [
            device_info(record, self._claimer.find(record.busid), drivers)
            for record, drivers in zip(records, held, strict=True)
        ]

    async def _wait_for_drivers(self, busid: str) -> list[str]:
        """The drivers that hold the device, as soon as one does; empty if none does in time.

        Raises `UsbipdError` if the device disappears and does not reappear.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (0.0 if self._stack.probes_interfaces else BIND_TIME)
        while True:
            record = await self._find_device(busid)
            drivers = [] if record is None else (await self._describe([record]))[0].drivers
            if drivers or loop.time() >= deadline:
                break
            await asyncio.sleep(POLL_INTERVAL)
        if record is None:
            raise UsbipdError(
                f"{busid} was released and did not reappear within {BIND_TIME:g} s",
                code="gone",
                advice="unplug the device and plug it in again",
            )
        return drivers

    def _drivers_of(self, records: Sequence[DeviceRecord]) -> list[list[str]]:
        """May block."""
        return [
            self._ownership.drivers_of(record.busid) if record.simulated is None else [] for record in records
        ]


def _hardware_rule(hardware: HardwareId) -> DeviceRule:
    return DeviceRule(hardware.vendor_id, hardware.product_id, hardware.serial)
