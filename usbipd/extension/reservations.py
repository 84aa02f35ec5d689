"""Reserves devices for clients between OP_REQ_IMPORT and the hand-over to a worker.  Runs in the extension.

RESERVE reserves a device for one client, HANDOVER carries that client's socket, ABANDON reports that the
client left, possibly while its RESERVE still waits for the device.  A reservation that gets neither in time,
or whose server dies, is dropped.  The server limits how many RESERVEs wait at the same time
(usbipd/server/extension.py).
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from usbipd.errors import IPCError, UsbipdError
from usbipd.extension.device import ClaimState, Device, Reservation
from usbipd.ipc.children import AttachParameters, ReserveParameters, ReserveResult
from usbipd.ipc.messages import Command, Nothing
from usbipd.log import LIMITED
from usbipd.protocol.constants import ST_DEV_BUSY, ST_DEV_ERR, ST_NODEV, ST_OK

_LOG: Final = logging.getLogger(__name__)

BUSY_PATIENCE: Final = 1.0
"""Seconds that a client waits for another one to leave: often an attach follows a detach at once."""
RESTORE_PATIENCE: Final = 5.0
"""Seconds that a client waits for a device that is being reset or claimed."""
ATTACH_TIMEOUT: Final = 5.0

_SOON_FREE: Final = (ClaimState.CLAIMING, ClaimState.RESTORING)


class Reservations:
    """All reservations, granted or waiting."""

    def __init__(self, find: Callable[[str, str], Device | None], handover_timeout: float) -> None:
        """`find` returns the device with a busid, if a client at an address can see it;
        `handover_timeout` is in seconds."""
        self._find = find
        self._handover_timeout = handover_timeout
        self._granted: dict[int, Reservation] = {}
        """By number.  Stale if its device has lost its worker: `_take` checks that."""
        self._waiting: dict[int, asyncio.Task[None]] = {}
        """The RESERVEs that wait for a device, by the number of their reservation."""

    async def reserve(self, parameters: ReserveParameters) -> ReserveResult:
        """Reserve the device for this client, or return the OP_REP_IMPORT status that says why not.

        Raises `IPCError` if the number of the reservation is in use.
        """
        number = parameters.reservation
        if number in self._granted or number in self._waiting:
            raise IPCError(f"reservation {number} is in use", code="bad-message")
        busid, address = parameters.busid, parameters.address
        device = self._find(busid, address)
        if device is not None and parameters.wait:
            if not await self._wait_for(device, number):
                return ReserveResult(status=ST_DEV_BUSY)  # the client left: nothing reads this
            device = self._find(busid, address)  # it may have been released, or claimed again
        if device is None:
            return ReserveResult(status=ST_NODEV)
        if device.state is ClaimState.FAILED:
            return ReserveResult(status=ST_DEV_ERR)
        if not device.is_free:
            return ReserveResult(status=ST_DEV_BUSY)
        timer = asyncio.get_running_loop().call_later(self._handover_timeout, self._expire, number)
        device.reservation = self._granted[number] = Reservation(device, parameters.client, timer)
        return ReserveResult(status=ST_OK, device=device.wire_device)

    async def hand_over(self, number: int, descriptor: int) -> Nothing:
        """Pass the client's socket to the worker.

        Raises `UsbipdError` if the reservation is no longer valid or the worker does not accept the client.
        """
        reservation = self._take(number)
        if reservation is None or reservation.device.worker is None:
            raise UsbipdError("the reservation is no longer valid", code="no-reservation")
        device, client, worker = reservation.device, reservation.client, reservation.device.worker
        device.attached(client)  # before ATTACH: the client may leave before its answer arrives
        try:
            await worker.channel.request(
                Command.ATTACH,
                AttachParameters(client=client),
                Nothing,
                timeout=ATTACH_TIMEOUT,
                descriptor=descriptor,
            )
        except (UsbipdError, OSError) as error:
            # It is not known whether the worker serves the client; a new worker is in a known state.
            # Not an error of usbipd if the device is unplugged as the client attaches.
            level = logging.INFO if device.is_gone else logging.ERROR
            _LOG.log(level, "%s did not accept %s: %s", worker.label, client, error, extra=LIMITED)
            worker.channel.close()
            if isinstance(error, OSError):  # out of descriptors
                raise UsbipdError(f"cannot hand over: {error.strerror}", code="hand-over") from error
            raise
        _LOG.info("%s attached by %s", device.record.busid, client, extra=LIMITED)
        return Nothing()

    def abandon(self, number: int) -> Nothing:
        """The client left; no effect if the reservation has ended already."""
        waiting = self._waiting.pop(number, None)
        if waiting is not None:
            waiting.cancel()
        reservation = self._take(number)
        if reservation is not None:
            reservation.device.unreserve()
        return Nothing()

    def drop_all(self) -> None:
        """The server has died, and with it its clients."""
        for number in (*self._waiting, *self._granted):
            self.abandon(number)

    async def _wait_for(self, device: Device, number: int) -> bool:
        """Wait until the device may be free; False: the reservation was abandoned meanwhile."""
        waiting = self._waiting[number] = asyncio.create_task(_until_free(device))
        try:
            await asyncio.wait({waiting})
        finally:
            waiting.cancel()  # if we are cancelled
            still_wanted = self._waiting.pop(number, None) is not None
        return still_wanted

    def _take(self, number: int) -> Reservation | None:
        """End the reservation and return it, if its device is still reserved for it."""
        reservation = self._granted.pop(number, None)
        if reservation is None:
            return None
        reservation.timer.cancel()
        device = reservation.device
        return reservation if device.is_kept and device.reservation is reservation else None

    def _expire(self, number: int) -> None:
        reservation = self._granted[number]
        busid = reservation.device.record.busid
        _LOG.warning("%s: reservation of %s timed out", busid, reservation.client, extra=LIMITED)
        self.abandon(number)


async def _until_free(device: Device) -> None:
    """Wait until the device is free, failed or no longer shared, for a time that depends on its state."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + (RESTORE_PATIENCE if device.state in _SOON_FREE else BUSY_PATIENCE)
    while device.is_kept and not device.is_free and device.state is not ClaimState.FAILED:
        before = device.state
        if not await device.changed(deadline - loop.time()):
            return
        if device.state in _SOON_FREE and before not in _SOON_FREE:
            deadline = loop.time() + RESTORE_PATIENCE
