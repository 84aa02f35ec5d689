"""Reports when devices arrive or leave.  Runs in the extension.

The events come from the kernel on Linux (uevents.py) and from IOKit on macOS (registry_events.py).  Without
them, the list of devices is read every two seconds.  After suspend a host enumerates again each device that
has lost power: it leaves and arrives, so nothing else is needed.
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
"""Seconds of events that count as one change: a hub arrives with all devices connected to it."""
LATE: Final = 1.0
"""Seconds from the last event to one more change: drivers bind shortly after their device arrives, and a
claim that failed meanwhile can be retried."""
START_TIME: Final = 5.0
"""Seconds within which a listener must start; if it hangs, the list of devices is read until it does."""
POLL_INTERVAL: Final = 2.0
"""Seconds between two reads of the list of devices while no events arrive."""

SYSFS_DEVICES: Final = Path("/sys/bus/usb/devices")  # Linux Documentation/ABI/testing/sysfs-bus-usb


class EventListener(Protocol):
    """A source of device events.

    From any thread, it calls one function for each event, and once when it has started; it calls another
    with the reason if it cannot start or stops receiving events.
    """

    def start(self) -> None:
        """Start; call inside the running loop.  Never raises."""

    async def stop(self) -> None:
        """Make no more calls."""


Listen = Callable[[Callable[[], None], Callable[[str], None]], EventListener]
"""Creates a listener from its two functions."""


def host_listener() -> Listen:
    """The listener of this platform."""
    if sys.platform == "linux":
        from usbipd.usb.uevents import UeventListener

        return UeventListener
    from usbipd.usb.registry_events import RegistryListener  # its compiled part exists only on macOS

    return RegistryListener


class Hotplug:
    """Calls `on_change` after devices arrive or leave: in the event loop's thread, once for a burst of
    events, and once more when drivers have had time to bind.  Also once after the start, for earlier
    changes."""

    def __init__(self, on_change: Callable[[], None], listen: Listen | None = None) -> None:
        """`listen` is for tests; the default is the listener of this platform."""
        self._on_change = on_change
        self._listen = listen or host_listener()
        self._listener: EventListener | None = None
        self._poller: asyncio.Task[None] | None = None
        self._soon: asyncio.TimerHandle | None = None
        self._late: asyncio.TimerHandle | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self.problem: str | None = None
        """Why no events arrive, and what usbipd does instead."""

    def start(self) -> None:
        """Start; call inside the running loop.  Never raises: a failure is in `problem` soon after."""
        loop = asyncio.get_running_loop()

        def post(callback: Callable[..., None], *arguments: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(callback, *arguments)

        self._watchdog = loop.call_later(
            START_TIME, self._poll_instead, f"no device reported within {START_TIME:g} s"
        )
        self._listener = self._listen(
            lambda: post(self._on_event), lambda reason: post(self._poll_instead, reason)
        )
        self._listener.start()

    async def stop(self) -> None:
        """Stop; makes no more calls."""
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
        if self._poller is not None:  # the listener did start, late
            self._poller.cancel()
            self._poller = self.problem = None
        self._schedule_change()

    def _schedule_change(self) -> None:
        if self._listener is None:  # an event from before `stop`
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
                    self._schedule_change()
            await asyncio.sleep(POLL_INTERVAL)


def _signature() -> frozenset[object]:
    """A value that changes when the set of devices does.  Raises `OSError`, `UsbipdError`."""
    if sys.platform == "linux":
        # each enumeration gives a new devnum: drivers/usb/core/hub.c, choose_devnum
        return frozenset((path.parent.name, path.read_text()) for path in SYSFS_DEVICES.glob("*/devnum"))
    from usbipd._iokit import usb_devices

    return frozenset(device.registry_id for device in usb_devices(()))
