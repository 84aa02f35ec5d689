"""Says when this Mac has slept.  Runs in the extension, on macOS only.

A Mac keeps most devices in their places while it sleeps, with or without power, and which of them come back
as others is not documented.  IOKit reports those that leave and arrive; after each wake the list is read
once more, for what it may have missed.  On Linux the kernel's own events are enough (hotplug.py).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from usbipd._iokit import WAKES, PowerListener
from usbipd.errors import UsbipdError
from usbipd.usb.daemon_thread import close_in_time

_LOG: Final = logging.getLogger(__name__)


class PowerWatch:
    """Calls `on_wake`, in the event loop's thread, when the system has woken up.

    Sleep and wake are logged, so that what fails there can be told from what fails elsewhere.
    """

    def __init__(self, on_wake: Callable[[], None]) -> None:
        self._on_wake = on_wake
        self._listener: PowerListener | None = None
        self.problem: str | None = None
        """Why the system does not tell."""

    def start(self) -> None:
        """Begin; inside the running loop.  Never raises: what does not work is in `problem`."""
        loop = asyncio.get_running_loop()

        def tell(change: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._changed, change)

        try:
            self._listener = PowerListener(tell)
        except UsbipdError as error:
            self.problem = error.message
            _LOG.warning("%s", error.message)

    async def stop(self) -> None:
        """Make no more calls.  Idempotent."""
        listener, self._listener = self._listener, None
        if listener is not None:
            await close_in_time(listener.close)

    def _changed(self, change: str) -> None:
        if self._listener is None:  # told before it was stopped
            return
        if change == WAKES:
            _LOG.info("this Mac has woken up")
            self._on_wake()
        else:
            _LOG.info("this Mac goes to sleep")
