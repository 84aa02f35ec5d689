"""Which USB devices this host has.  Runs in the extension.

sysfs has them on Linux (sysfs_devices.py), the IORegistry on macOS (registry_devices.py).  Either may hang
where a device, a driver or the system's USB stack does: lists are made in a thread, one at a time, with a
deadline.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from usbipd.errors import UsbipdError
from usbipd.protocol.constants import Speed
from usbipd.simulated.spec import SimulatedSpec
from usbipd.usb.daemon_thread import call_in_daemon_thread

LIST_TIME: Final = 3.0
"""Seconds that one list may take; after that, the last one is used.  Less than the checks of the daemon's
health have (`HEALTH_TIMEOUT`), which report it."""
RESET_TIME: Final = 2.0
"""Seconds in which a bus reset is over; a device that is without an address after that is left out."""
RESET_LOOK: Final = 0.05
"""Seconds between two lists while a device is being reset."""


HUB: Final = UsbipdError(
    "it is a hub, which cannot be shared", code="hub", advice="bind the devices connected to it"
)
"""Why a hub is left out."""
BY_RULE: Final = frozenset({HUB.code, "imported"})
"""Codes of what is left out because it is to be: nothing is wrong with these devices."""


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """One device that could be shared: where it is, and what is known without claiming it."""

    busid: str
    busnum: int
    devnum: int
    path: str
    """As OP_REP_* shows it: in sysfs on Linux, our own name elsewhere."""
    vendor_id: int
    product_id: int
    serial: str | None
    """iSerialNumber's string; logged at debug level only."""
    device_class: int
    speed: Speed
    manufacturer: str | None
    product: str | None
    simulated: SimulatedSpec | None = None
    registry_id: int | None = None
    """Of the device's entry in the IORegistry; None on Linux.  It changes whenever the device is enumerated:
    when it is plugged in, and when a capture ends; not when one begins."""


class DeviceSource(Protocol):
    """Something that has devices: this host, or a set of simulated ones."""

    @property
    def problem(self) -> str | None:
        """What is missing in the last list, because the system does not answer; None: nothing."""

    async def list_devices(self) -> list[DeviceRecord]:
        """The devices of this moment, ordered by busid.  Raises `UsbipdError`."""

    @property
    def left_out(self) -> Mapping[str, UsbipdError]:
        """By busid: what the last list left out although it is present, and why."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What one look at the host has found."""

    devices: list[DeviceRecord] = field(default_factory=list)
    left_out: Mapping[str, UsbipdError] = field(default_factory=dict)
    """By busid: devices that are present and cannot be shared, and why."""
    unanswered: str | None = None
    """The devices about which the system has not answered yet; None: it has, about all."""


class HostDevices(Protocol):
    """The system's own list of devices."""

    def list_all(self) -> Listing:
        """The devices of this moment, in any order.  May block, and may hang.  Raises `UsbipdError`."""

    def notify(self, on_late: Callable[[], None]) -> None:
        """Call `on_late`, in any thread, whenever devices that were left out as unanswered are known."""


class DeviceDiscovery:
    """The devices on this host's buses.

    Without hubs, which cannot be used alone, and unless `offer_imported` without those that this host itself
    imported: sharing them again could run in a circle (usbip_bind.c refuses them too).
    """

    def __init__(self, devices: HostDevices) -> None:
        self._devices = devices
        self._last = Listing()
        self._call: asyncio.Future[Listing] | None = None
        """The list that a thread makes now."""
        self._is_overdue = False
        """Whether that one has missed its deadline."""
        self._next: asyncio.Task[list[DeviceRecord]] | None = None
        """The list that will begin when that one has ended; all who ask meanwhile get it."""
        self._on_late: Callable[[], None] = lambda: None

    def notify(self, on_late: Callable[[], None]) -> None:
        """Call `on_late` when a list that missed its deadline arrives; inside the running loop."""
        self._on_late = on_late
        loop = asyncio.get_running_loop()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(on_late)

        self._devices.notify(tell)

    @property
    def problem(self) -> str | None:
        """As in `DeviceSource`."""
        if self._is_overdue:
            return (
                f"the system has not listed its USB devices within {LIST_TIME:g} s: "
                "devices plugged in or out since then are not known"
            )
        return self._last.unanswered

    @property
    def left_out(self) -> Mapping[str, UsbipdError]:
        """As in `DeviceSource`."""
        return self._last.left_out

    async def list_devices(self) -> list[DeviceRecord]:
        """As in `DeviceSource`: milliseconds, `LIST_TIME` at most.  If that is over, the last list.

        While a device is being reset, Linux shows its address as 0 (hub_port_reset, drivers/usb/core/hub.c):
        it is neither gone nor another one, so that is waited for.
        """
        if self._is_overdue:
            return self._last.devices
        if self._next is None:
            self._next = asyncio.create_task(self._list())
            self._next.add_done_callback(_retrieve)
        return await asyncio.shield(self._next)

    async def _list(self) -> list[DeviceRecord]:
        deadline = asyncio.get_running_loop().time() + LIST_TIME
        settled_by = time.monotonic() + RESET_TIME
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    listing = await self._look()
                    settled = [device for device in listing.devices if device.devnum != 0]
                    if len(settled) == len(listing.devices) or time.monotonic() > settled_by:
                        break
                    await asyncio.sleep(RESET_LOOK)
        except TimeoutError:
            self._is_overdue = self._call is not None
            return self._last.devices
        finally:
            if self._next is asyncio.current_task():
                self._next = None
        settled.sort(key=lambda device: (device.busnum, device.busid))
        self._last = Listing(settled, listing.left_out, listing.unanswered)
        return settled

    async def _look(self) -> Listing:
        while self._call is not None:
            await asyncio.wait({self._call})
        if self._next is asyncio.current_task():
            self._next = None  # who asks from here on wants a later one
        self._call = call_in_daemon_thread(self._devices.list_all)
        self._call.add_done_callback(self._ended)
        return await asyncio.shield(self._call)

    def _ended(self, call: asyncio.Future[Listing]) -> None:
        _retrieve(call)
        self._call = None
        if self._is_overdue:
            self._is_overdue = False
            self._on_late()


def _retrieve(future: asyncio.Future[Listing] | asyncio.Future[list[DeviceRecord]]) -> None:
    """Those who waited for it may have left: then its error is for no one."""
    if not future.cancelled():
        future.exception()
