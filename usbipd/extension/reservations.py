"""Clients on their way from OP_REQ_IMPORT to a worker.  Runs in the extension.

RESERVE keeps a device for one client, HANDOVER brings that client's socket, ABANDON says that the client
left, also while its RESERVE still waits for the device.  A reservation that sees neither in time, or whose
server dies, is dropped.  The server limits how many RESERVEs wait at once (usbipd/server/extension.py).
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from usbipd.errors import IPCError, UsbipdError
from usbipd.extension.claim import Claim, ClaimState
from usbipd.ipc.children import AttachParameters, ReserveParameters, ReserveResult
from usbipd.ipc.messages import Command, Nothing
from usbipd.log import LIMITED
from usbipd.protocol.constants import ST_DEV_BUSY, ST_DEV_ERR, ST_NODEV, ST_OK

_LOG: Final = logging.getLogger(__name__)

BUSY_PATIENCE: Final = 1.0
"""Seconds that a client waits for one that may be about to leave, as in a detach and attach in a row."""
RESTORE_PATIENCE: Final = 5.0
"""Seconds that it waits for a device that is being reset or claimed."""
ATTACH_TIMEOUT: Final = 5.0

_SOON_FREE: Final = (ClaimState.CLAIMING, ClaimState.RESTORING)


class Reservations:
    """All clients that wait between reservation and hand-over."""

    def __init__(
        self, claims: Mapping[str, Claim], may_use: Callable[[Claim, str], bool], handover_timeout: float
    ) -> None:
        """`claims` are by busid and change under us; `may_use` says whether a client's address may know of
        one; `handover_timeout` is in seconds."""
        self._claims = claims
        self._may_use = may_use
        self._handover_timeout = handover_timeout
        self._pending: dict[int, tuple[Claim, str, asyncio.TimerHandle]] = {}
        self._waiting: dict[int, asyncio.Task[None]] = {}
        """The RESERVEs that wait for a device, by the number of their reservation."""

    async def reserve(self, parameters: ReserveParameters) -> ReserveResult:
        """Keep the device for this client, or the OP_REP_IMPORT status that says why not.

        Raises `IPCError` if the number of the reservation is in use.
        """
        number = parameters.reservation
        if number in self._pending or number in self._waiting:
            raise IPCError(f"reservation {number} is in use", code="bad-message")
        claim = self._visible(parameters)
        if claim is not None and parameters.wait:
            if not await self._wait_for(claim, number):
                return ReserveResult(status=ST_DEV_BUSY)  # the client left: nothing reads this
            claim = self._visible(parameters)  # it may have been released, or claimed again
        if claim is None:
            return ReserveResult(status=ST_NODEV)
        if claim.state is ClaimState.FAILED:
            return ReserveResult(status=ST_DEV_ERR)
        if not claim.is_free:
            return ReserveResult(status=ST_DEV_BUSY)
        timer = asyncio.get_running_loop().call_later(self._handover_timeout, self._expire, number)
        self._pending[number] = (claim, parameters.client, timer)
        claim.reserve(number)
        return ReserveResult(status=ST_OK, device=claim.wire_device)

    async def hand_over(self, number: int, descriptor: int) -> Nothing:
        """Give the client's socket to the worker.

        Raises `UsbipdError` if the reservation is no longer good or the worker does not take the client.
        """
        claim, client = self._take(number)
        if claim is None or claim.worker is None:
            raise UsbipdError("the reservation is no longer good", code="no-reservation")
        worker = claim.worker
        claim.attached(client)  # before ATTACH: the client may be gone before its answer is here
        try:
            await worker.channel.request(
                Command.ATTACH,
                AttachParameters(client=client),
                Nothing,
                timeout=ATTACH_TIMEOUT,
                descriptor=descriptor,
            )
        except (UsbipdError, OSError) as error:
            # It did not take the client, or nobody knows whether it did: a new worker knows.
            level = logging.INFO if claim.is_gone else logging.ERROR  # the client may come as the device goes
            _LOG.log(level, "%s does not take %s: %s", worker.label, client, error, extra=LIMITED)
            worker.channel.close()
            if isinstance(error, OSError):  # no descriptor left to send it
                raise UsbipdError(f"cannot hand over: {error.strerror}", code="hand-over") from error
            raise
        _LOG.info("%s attached by %s", claim.record.busid, client, extra=LIMITED)
        return Nothing()

    def abandon(self, number: int) -> Nothing:
        """The client left; nothing happens if the reservation is gone already."""
        waiting = self._waiting.pop(number, None)
        if waiting is not None:
            waiting.cancel()
        claim, _client = self._take(number)
        if claim is not None:
            claim.unreserve()
        return Nothing()

    def drop_all(self) -> None:
        """The server is dead and its clients with it."""
        for number in (*self._waiting, *self._pending):
            self.abandon(number)

    async def _wait_for(self, claim: Claim, number: int) -> bool:
        """Wait until the device may be free; False: the reservation was abandoned meanwhile."""
        waiting = self._waiting[number] = asyncio.create_task(_until_free(claim))
        try:
            await asyncio.wait({waiting})
        finally:
            waiting.cancel()  # when we are cancelled
            still_wanted = self._waiting.pop(number, None) is not None
        return still_wanted

    def _visible(self, parameters: ReserveParameters) -> Claim | None:
        """The claim that is asked for; one that this client may not have is not there for it."""
        claim = self._claims.get(parameters.busid)
        return claim if claim is not None and self._may_use(claim, parameters.address) else None

    def _take(self, number: int) -> tuple[Claim | None, str]:
        """The claim that is still kept for this reservation, and the client; the reservation ends."""
        claim, client, timer = self._pending.pop(number, (None, "", None))
        if timer is not None:
            timer.cancel()
        if claim is None or claim.reservation != number:  # the worker has died meanwhile
            return None, client
        return claim, client

    def _expire(self, number: int) -> None:
        claim, client, _timer = self._pending[number]
        _LOG.warning("%s: no hand-over of %s in time", claim.record.busid, client, extra=LIMITED)
        self.abandon(number)


async def _until_free(claim: Claim) -> None:
    """Wait until the claim is free, failed or over, for as long as its state promises that it soon is."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + (RESTORE_PATIENCE if claim.state in _SOON_FREE else BUSY_PATIENCE)
    while not claim.is_free and claim.state not in (ClaimState.FAILED, ClaimState.ENDED):
        before = claim.state
        if not await claim.changed(deadline - loop.time()):
            return
        if claim.state in _SOON_FREE and before not in _SOON_FREE:
            deadline = loop.time() + RESTORE_PATIENCE
