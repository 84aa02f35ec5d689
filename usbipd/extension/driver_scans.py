"""Has the host find drivers for what we release.  Runs in the extension.

That is a call which lasts as long as a driver probes the device, for ever if the device does not answer.  So
it runs in a thread, one for each port at most; those of several ports run at the same time.
"""

import asyncio
import functools

from usbipd.errors import UsbipdError
from usbipd.usb.daemon_thread import call_in_daemon_thread
from usbipd.usb.ownership import Ownership


class DriverScans:
    """The scans that are under way."""

    def __init__(self, ownership: Ownership) -> None:
        self._ownership = ownership
        self._running: dict[str, asyncio.Future[None]] = {}
        """By busid."""

    async def scan(self, busid: str, seconds: float) -> None:
        """Have the host find drivers for the device, in `seconds`; then it is left to it.

        While an earlier scan of that port hangs, no other one is started.  Raises `UsbipdError`: not done in
        time, code "hangs", or not possible.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        earlier = self._running.get(busid)
        if earlier is not None:  # it may have passed the interfaces that have lost their driver since
            await asyncio.wait({earlier}, timeout=seconds)
        scan = self._running.get(busid)
        if scan is None:
            scan = call_in_daemon_thread(functools.partial(self._ownership.give_back, busid))
            self._running[busid] = scan
            scan.add_done_callback(functools.partial(self._ended, busid))
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

    def _ended(self, busid: str, scan: asyncio.Future[None]) -> None:
        del self._running[busid]
        scan.exception()  # who waits for it tells
