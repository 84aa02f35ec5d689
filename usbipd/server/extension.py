"""The server's requests to the extension, and their limits.  Runs in the server.

# Why the server limits its requests

Strangers decide how many requests arrive.  The extension handles at most `MAX_RUNNING` of them at a time
(usbipd/ipc/async_channel.py); all others wait behind these.  So the server limits what it sends, well below
that number:

request                               in total           per source (`addresses.source_of`)
DEVLIST                               1, for up to 64 addresses: clients that ask at the same moment share it
RESERVE answered at once, HANDOVER    MOST_AT_ONCE       MOST_AT_ONCE_PER_SOURCE
RESERVE that waits for a device       MOST_WAITING       MOST_WAITING_PER_SOURCE
ABANDON                               one for each RESERVE

A RESERVE first asks for a device that is free now, so an import of a free device never queues behind imports
of one in use.  A request without a slot queues here, sources in turn; the queue has at most one entry per
connection.  A request whose client has left keeps its slot until the extension answers, so requests that the
extension has not read yet count too.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from usbipd.addresses import ListenAddress, source_of
from usbipd.fair_slots import FairSlots
from usbipd.ipc.async_channel import Channel
from usbipd.ipc.children import (
    MOST_ADDRESSES,
    DevlistParameters,
    DevlistResult,
    ReservationParameters,
    ReserveParameters,
    ReserveResult,
)
from usbipd.ipc.messages import Command, Nothing
from usbipd.protocol.constants import ST_DEV_BUSY
from usbipd.protocol.op import encode_devlist_reply

MOST_AT_ONCE: Final = 64
MOST_AT_ONCE_PER_SOURCE: Final = 8
MOST_WAITING: Final = 32
MOST_WAITING_PER_SOURCE: Final = 8

ANSWER_TIMEOUT: Final = 30.0
"""Seconds until the extension must answer: longer than a client waits there for a device to become free."""
QUEUE_PATIENCE: Final = 5.0
"""Seconds that an import queues to wait for a device: as long as the extension would wait."""


class Peer(NamedTuple):
    """A client as the server names it to the extension and counts it."""

    name: str
    """Address and port."""
    address: str
    """Without port and interface."""
    source: str
    """The key by which its connections and requests are counted."""

    @classmethod
    def at(cls, where: ListenAddress) -> "Peer":
        """The client that connects from there."""
        return cls(str(where), where.host.partition("%")[0], source_of(where.host))


class DeviceListReply(NamedTuple):
    """An encoded OP_REP_DEVLIST."""

    data: bytes
    devices: int


class Reservation(NamedTuple):
    """The answer to a RESERVE, and its number at the extension."""

    number: int
    result: ReserveResult


class ExtensionRequests:
    """All requests of this server."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._numbers = itertools.count(1)
        self._at_once = FairSlots[str](total=MOST_AT_ONCE, per_owner=MOST_AT_ONCE_PER_SOURCE)
        self._waiting = FairSlots[str](total=MOST_WAITING, per_owner=MOST_WAITING_PER_SOURCE)
        self._under_way: set[asyncio.Task[ReserveResult]] = set()
        self._list_wanted: dict[str, asyncio.Future[DeviceListReply]] = {}
        """The clients that the next DEVLIST serves, by address."""
        self._listing: asyncio.Task[None] | None = None

    async def device_list(self, peer: Peer) -> DeviceListReply:
        """OP_REP_DEVLIST for this client, no older than its request.  Raises `UsbipdError`."""
        wanted = self._list_wanted.get(peer.address)
        if wanted is None:
            wanted = self._list_wanted[peer.address] = asyncio.get_running_loop().create_future()
        if self._listing is None:
            self._listing = asyncio.create_task(self._list_devices())
        await asyncio.wait({wanted})  # not shield(): it logs errors that other waiters still retrieve
        return wanted.result()

    async def reserve(self, peer: Peer, busid: str) -> Reservation:
        """Reserve a device if it is free now.  Raises `UsbipdError`."""
        await self._at_once.acquire(peer.source)
        return await self._reserve(self._at_once, peer, busid, wait=False)

    async def wait_for(self, peer: Peer, busid: str, *, on_turn: Callable[[], None]) -> Reservation:
        """Wait until a device in use becomes free, and reserve it.  Raises `UsbipdError`.

        Calls `on_turn` when this client has a slot, before the wait for the device begins.
        """
        try:
            async with asyncio.timeout(QUEUE_PATIENCE):
                await self._waiting.acquire(peer.source)
        except TimeoutError:
            return Reservation(0, ReserveResult(status=ST_DEV_BUSY))
        on_turn()
        return await self._reserve(self._waiting, peer, busid, wait=True)

    async def hand_over(self, peer: Peer, number: int, descriptor: int) -> None:
        """Hand the client's socket over.  Raises `UsbipdError`."""
        async with self._at_once.hold(peer.source):
            await self._channel.request(
                Command.HANDOVER,
                ReservationParameters(reservation=number),
                Nothing,
                timeout=ANSWER_TIMEOUT,
                descriptor=descriptor,
            )

    def abandon(self, number: int) -> None:
        """The client of this reservation has left or is leaving.  Harmless if the reservation is used up."""
        # Not awaited: the session may be in cancellation.
        self._channel.tell(Command.ABANDON, ReservationParameters(reservation=number))

    async def _reserve(self, slots: FairSlots[str], peer: Peer, busid: str, *, wait: bool) -> Reservation:
        """Uses the slot that the caller has acquired for this source."""
        number = next(self._numbers)
        parameters = ReserveParameters(
            reservation=number, busid=busid, client=peer.name, address=peer.address, wait=wait
        )
        request = asyncio.create_task(
            self._channel.request(Command.RESERVE, parameters, ReserveResult, timeout=ANSWER_TIMEOUT)
        )
        self._under_way.add(request)

        def answered(_request: asyncio.Task[ReserveResult]) -> None:
            self._under_way.discard(request)
            slots.release(peer.source)
            with contextlib.suppress(asyncio.CancelledError):
                request.exception()  # else never retrieved if the client has left

        request.add_done_callback(answered)
        try:
            await asyncio.wait({request})
            return Reservation(number, request.result())
        except BaseException:  # the answer may arrive later
            self.abandon(number)
            raise

    async def _list_devices(self) -> None:
        """Send one DEVLIST after another until all clients have their list."""
        try:
            while self._list_wanted:
                addresses = list(itertools.islice(self._list_wanted, MOST_ADDRESSES))
                wanted = [self._list_wanted.pop(address) for address in addresses]
                try:
                    replies = await self._ask_for_lists(addresses)
                except Exception as error:
                    for each in wanted:
                        each.set_exception(error)
                        each.exception()  # all of these clients may have left
                else:
                    for each, reply in zip(wanted, replies, strict=True):
                        each.set_result(reply)
        finally:
            self._listing = None

    async def _ask_for_lists(self, addresses: Sequence[str]) -> list[DeviceListReply]:
        result = await self._channel.request(
            Command.DEVLIST,
            DevlistParameters(addresses=list(addresses)),
            DevlistResult,
            timeout=ANSWER_TIMEOUT,
        )
        different = [
            DeviceListReply(encode_devlist_reply([result.devices[index] for index in each]), len(each))
            for each in result.lists
        ]
        return [different[each] for each in result.list_of]
