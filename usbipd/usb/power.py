"""Reports when this Mac has slept.  Runs in the extension, on macOS only.

A sleeping Mac keeps most devices enumerated, with or without power; which of them it enumerates again is not
documented.  IOKit reports those that leave and arrive; after each wake the list is read once more, for any
that IOKit missed.  On Linux the kernel's events are enough (hotplug.py).
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

    Logs sleep and wake, so that a failure caused by them can be recognized.
    """

    def __init__(self, on_wake: Callable[[], None]) -> None:
        self._on_wake = on_wake
        self._listener: PowerListener | None = None
        self.problem: str | None = None
        """Why the system sends no notifications."""

    def start(self) -> None:
        """Start; call inside the running loop.  Never raises: a failure is in `problem`."""
        loop = asyncio.get_running_loop()

        def post(change: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._changed, change)

        try:
            self._listener = PowerListener(post)
        except UsbipdError as error:
            self.problem = error.message
            _LOG.warning("%s", error.message)

    async def stop(self) -> None:
        """Stop; makes no more calls.  Idempotent."""
        listener, self._listener = self._listener, None
        if listener is not None:
            await close_in_time(listener.close)

    def _changed(self, change: str) -> None:
        if self._listener is None:  # a notification from before `stop`
            return
        if change == WAKES:
            _LOG.info("this Mac has woken up")
            self._on_wake()
        else:
            _LOG.info("this Mac is going to sleep")
