"""Says when devices come or go.  Runs in the extension.

The kernel reports them on Linux (uevents.py), IOKit on macOS (registry_events.py).  Where neither does, the
list of devices is read every two seconds.  After suspend a host enumerates again what has lost its power:
these devices leave and arrive, and nothing else is needed.
"""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from usbipd.errors import UsbipdError
from usbipd.usb.daemon_thread import call_in_daemon_thread

_LOG: Final = logging.getLogger(__name__)

BURST: Final = 0.1
"""Seconds in which events are one change: a hub arrives with all devices connected to it."""
LATE: Final = 1.0
"""Seconds after the last event when there is one more change: drivers bind a moment after their device has
arrived, and a claim that met one of them while it did may be tried again."""
START_TIME: Final = 5.0
"""Seconds in which a listener has begun; if it hangs, the list of devices is read until it has."""
POLL_INTERVAL: Final = 2.0
"""Seconds between two looks at the list of devices, where nothing tells of them."""

SYSFS_DEVICES: Final = Path("/sys/bus/usb/devices")  # Linux Documentation/ABI/testing/sysfs-bus-usb


class EventListener(Protocol):
    """Something that tells of devices.

    From any thread, it calls one function for each event, and once when it has begun, and another one with
    the reason if it cannot listen (any more).
    """

    def start(self) -> None:
        """Begin; inside the running loop.  Never raises."""

    async def stop(self) -> None:
        """Make no more calls."""


Listen = Callable[[Callable[[], None], Callable[[str], None]], EventListener]
"""Makes a listener of its two functions."""


def host_listener() -> Listen:
    """That of this platform."""
    if sys.platform == "linux":
        from usbipd.usb.uevents import UeventListener

        return UeventListener
    from usbipd.usb.registry_events import RegistryListener  # its compiled part exists on macOS only

    return RegistryListener


class Hotplug:
    """Calls `on_change` after devices have come or gone: in the event loop's thread, once for a burst of
    events, and once more when drivers have had time to bind.  Also once when it has begun to listen, for what
    came before."""

    def __init__(self, on_change: Callable[[], None], listen: Listen | None = None) -> None:
        """`listen` is for tests; otherwise it is the one of this platform."""
        self._on_change = on_change
        self._listen = listen or host_listener()
        self._listener: EventListener | None = None
        self._poller: asyncio.Task[None] | None = None
        self._soon: asyncio.TimerHandle | None = None
        self._late: asyncio.TimerHandle | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self.problem: str | None = None
        """Why the system does not tell of devices here, and what is done instead."""

    def start(self) -> None:
        """Begin; inside the running loop.  Never raises: what does not work is in `problem` soon after."""
        loop = asyncio.get_running_loop()

        def tell(callback: Callable[..., None], *arguments: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(callback, *arguments)

        self._watchdog = loop.call_later(
            START_TIME, self._poll_instead, f"no device reported within {START_TIME:g} s"
        )
        self._listener = self._listen(
            lambda: tell(self._on_event), lambda reason: tell(self._poll_instead, reason)
        )
        self._listener.start()

    async def stop(self) -> None:
        """Make no more calls."""
        listener, self._listener = self._listener, None
        for timer in (self._soon, self._late, self._watchdog):
            if timer is not None:
                timer.cancel()
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.wait({self._poller})
        if listener is not None:
            await listener.stop()

    def _on_event(self) -> None:
        assert self._watchdog is not None
        self._watchdog.cancel()
        if self._poller is not None:  # it did start in the end
            self._poller.cancel()
            self._poller = self.problem = None
        self._heard()

    def _heard(self) -> None:
        if self._listener is None:  # told before it was stopped
            return
        loop = asyncio.get_running_loop()
        if self._soon is None:
            self._soon = loop.call_later(BURST, self._change_soon)
        if self._late is not None:
            self._late.cancel()
        self._late = loop.call_later(LATE, self._on_change)

    def _change_soon(self) -> None:
        self._soon = None
        self._on_change()

    def _poll_instead(self, reason: str) -> None:
        assert self._watchdog is not None
        self._watchdog.cancel()
        if self._listener is None:
            return
        self.problem = f"{reason}; the list of devices is read every {POLL_INTERVAL:.0f} s instead"
        _LOG.warning("%s", self.problem)
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())

    async def _poll(self) -> None:
        known: frozenset[object] | None = None
        while True:
            try:
                present = await call_in_daemon_thread(_signature)
            except (OSError, UsbipdError) as error:
                _LOG.debug("cannot list devices: %s", error)
            else:
                if present != known:
                    known = present
                    self._heard()
            await asyncio.sleep(POLL_INTERVAL)


def _signature() -> frozenset[object]:
    """Something that differs when other devices are there.  Raises `OSError`, `UsbipdError`."""
    if sys.platform == "linux":
        # devnum is new whenever a device is enumerated: drivers/usb/core/hub.c, choose_devnum
        return frozenset((path.parent.name, path.read_text()) for path in SYSFS_DEVICES.glob("*/devnum"))
    from usbipd._iokit import usb_devices

    return frozenset(device.registry_id for device in usb_devices(()))
