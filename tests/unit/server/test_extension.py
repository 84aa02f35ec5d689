"""The server's concurrent requests and their order: a real channel, a fake extension."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Sequence

import pytest

from tests.unit.server.rig import DEVICE, PATIENCE, FakeExtension, until
from usbipd.addresses import ListenAddress
from usbipd.ipc.async_channel import MAX_RUNNING, Channel
from usbipd.ipc.children import (
    CHILDREN,
    DevlistParameters,
    ReservationParameters,
    ReserveParameters,
    ReserveResult,
)
from usbipd.ipc.messages import Command
from usbipd.ipc.row import Role
from usbipd.protocol.constants import ST_DEV_BUSY, ST_OK
from usbipd.protocol.op import encode_devlist_reply
from usbipd.server import extension as module
from usbipd.server.extension import (
    MOST_AT_ONCE,
    MOST_AT_ONCE_PER_SOURCE,
    MOST_WAITING,
    MOST_WAITING_PER_SOURCE,
    ExtensionRequests,
    Peer,
    Reservation,
)


def peer(address: str, port: int = 4000) -> Peer:
    return Peer.at(ListenAddress(address, port))


class Desk:
    """The requests of a server, and the extension that receives them."""

    def __init__(self, channel: Channel, extension: FakeExtension) -> None:
        self.requests = ExtensionRequests(channel)
        self.extension = extension
        self.tasks: list[asyncio.Task[Reservation]] = []

    def reserved(self, wait: bool | None = None) -> list[ReserveParameters]:
        """Each RESERVE that the extension has received; `wait` selects those of this kind."""
        parameters = [request.parameters for request in self.extension.asked]
        reserves = [each for each in parameters if isinstance(each, ReserveParameters)]
        return [each for each in reserves if wait in (None, each.wait)]

    def reserve(self, addresses: Sequence[str]) -> None:
        """Import a free device from each of these addresses."""
        self._start(self.requests.reserve(peer(address), DEVICE.busid) for address in addresses)

    def wait_for(self, addresses: Sequence[str]) -> None:
        """Import a device in use from each of these addresses."""
        self._start(
            self.requests.wait_for(peer(address), DEVICE.busid, on_turn=lambda: None) for address in addresses
        )

    def _start(self, requests: "Sequence[Awaitable[Reservation]]") -> None:
        self.tasks += [asyncio.ensure_future(each) for each in requests]


@contextlib.asynccontextmanager
async def desk() -> AsyncIterator[Desk]:
    one, other = socket.socketpair()
    extension = FakeExtension(one)
    channel = Channel(
        other, name="extension", role=Role.EXTENSION, table=CHILDREN, on_request=extension._answer
    )
    made = Desk(channel, extension)
    async with asyncio.timeout(3 * PATIENCE):
        yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)
    channel.close()
    extension.channel.close()


def test_requests_in_flight_stay_far_below_the_limit_of_the_channel() -> None:
    """At most one DEVLIST, and one ABANDON for each RESERVE."""
    assert 1 + 2 * (MOST_AT_ONCE + MOST_WAITING) < MAX_RUNNING * 0.8


async def test_concurrent_device_lists_share_a_request() -> None:
    async with desk() as made:
        answer = made.extension.held[Command.DEVLIST] = asyncio.Event()
        ask = made.requests.device_list
        first = asyncio.create_task(ask(peer("192.0.2.1")))
        await until(lambda: made.extension.asked)
        # they asked after the first was sent, so its answer may be too old for them
        others = [
            asyncio.create_task(ask(peer(f"192.0.2.{number % 100}", port)))
            for port, number in enumerate(range(300), 5000)
        ]
        await asyncio.sleep(0)
        answer.set()
        replies = {(await each).data for each in (first, *others)}
        assert replies == {encode_devlist_reply([DEVICE])}
        asked = [request.parameters for request in made.extension.asked]
        assert all(isinstance(each, DevlistParameters) for each in asked)
        sizes = [len(each.addresses) for each in asked if isinstance(each, DevlistParameters)]
        assert sizes == [1, 64, 36], "300 clients of 100 addresses"


async def test_a_client_that_leaves_does_not_cancel_the_list_of_others() -> None:
    async with desk() as made:
        answer = made.extension.held[Command.DEVLIST] = asyncio.Event()
        leaving, staying = (
            asyncio.create_task(made.requests.device_list(peer("192.0.2.1", port))) for port in (1, 2)
        )
        await until(lambda: made.extension.asked)
        leaving.cancel()
        await asyncio.wait({leaving})
        answer.set()
        assert (await staying).devices == 1


async def test_an_error_instead_of_the_list_reaches_all_waiting_clients() -> None:
    async with desk() as made:
        made.extension.refused = {Command.DEVLIST}
        asking = [made.requests.device_list(peer("192.0.2.1", port)) for port in range(3)]
        errors = await asyncio.gather(*asking, return_exceptions=True)
        assert [str(error) for error in errors] == ["the reservation is no longer valid"] * 3
        made.extension.refused = set()
        assert (await made.requests.device_list(peer("192.0.2.1"))).devices == 1


async def test_concurrent_requests_are_limited_per_source_and_in_total() -> None:
    async with desk() as made:
        answer = made.extension.held[Command.RESERVE] = asyncio.Event()
        made.reserve(["192.0.2.1"] * 30)
        made.reserve([f"2001:db8::{number}" for number in range(30)])  # one /64
        await until(lambda: len(made.reserved()) == 2 * MOST_AT_ONCE_PER_SOURCE)
        made.reserve([f"198.51.100.{number % 50}" for number in range(300)])
        await until(lambda: len(made.reserved()) == MOST_AT_ONCE)
        for _turn in range(50):
            await asyncio.sleep(0)
        assert len(made.reserved()) == MOST_AT_ONCE
        answer.set()
        results = await asyncio.gather(*made.tasks)
        assert {each.result.status for each in results} == {ST_OK}
        assert len({each.number for each in results}) == 360


async def test_handovers_count_too() -> None:
    async with desk() as made:
        answer = made.extension.held[Command.HANDOVER] = asyncio.Event()
        with socket.socket() as client:
            handing = [
                asyncio.create_task(made.requests.hand_over(peer("192.0.2.1"), number, client.fileno()))
                for number in range(2 * MOST_AT_ONCE_PER_SOURCE)
            ]
            await until(lambda: len(made.extension.asked) == MOST_AT_ONCE_PER_SOURCE)
            for _turn in range(50):
                await asyncio.sleep(0)
            assert len(made.extension.asked) == MOST_AT_ONCE_PER_SOURCE
            answer.set()
            await asyncio.gather(*handing)
        assert made.extension.commands == [Command.HANDOVER] * 2 * MOST_AT_ONCE_PER_SOURCE
        assert made.extension.client is not None
        made.extension.client.close()


async def test_an_import_of_a_free_device_overtakes_those_of_a_device_in_use() -> None:
    async with desk() as made:
        made.extension.status, made.extension.is_patient = ST_DEV_BUSY, True
        made.wait_for([f"192.0.2.{number % 100}" for number in range(300)])
        await until(lambda: len(made.reserved(wait=True)) == MOST_WAITING)
        made.extension.status = ST_OK
        assert (await made.requests.reserve(peer("192.0.2.1"), DEVICE.busid)).result.status == ST_OK
        assert len(made.reserved(wait=True)) == MOST_WAITING


async def test_clients_wait_for_a_device_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flooding source cannot take all slots; a request without a slot in time gets the answer busy."""
    async with desk() as made:
        made.extension.status, made.extension.is_patient = ST_DEV_BUSY, True
        made.wait_for(["192.0.2.1"] * 100)
        made.wait_for(["192.0.2.2"])
        await until(lambda: len(made.reserved()) == MOST_WAITING_PER_SOURCE + 1)
        assert made.reserved()[-1].address == "192.0.2.2"
        monkeypatch.setattr(module, "QUEUE_PATIENCE", 0.0)
        turns: list[int] = []
        answer = await made.requests.wait_for(
            peer("192.0.2.1"), DEVICE.busid, on_turn=lambda: turns.append(1)
        )
        assert not turns
        assert answer.result == ReserveResult(status=ST_DEV_BUSY)
        assert len(made.reserved()) == MOST_WAITING_PER_SOURCE + 1


async def test_a_request_of_a_client_that_left_ends_and_frees_its_slot() -> None:
    async with desk() as made:
        made.extension.status, made.extension.is_patient = ST_DEV_BUSY, True
        made.wait_for(["192.0.2.1"] * MOST_WAITING_PER_SOURCE)
        await until(lambda: len(made.extension.waiting) == MOST_WAITING_PER_SOURCE)
        abandoned = made.reserved()[0].reservation
        made.tasks[0].cancel()
        made.wait_for(["192.0.2.1"])
        await until(lambda: len(made.reserved()) == MOST_WAITING_PER_SOURCE + 1)
        assert abandoned not in made.extension.waiting
        abandons = [each for each in made.extension.asked if each.command is Command.ABANDON]
        assert [each.parameters for each in abandons] == [ReservationParameters(reservation=abandoned)]


async def test_a_slot_stays_in_use_until_the_extension_answers() -> None:
    """Otherwise clients that leave early could fill the channel to an extension that does not read."""
    async with desk() as made:
        answer = made.extension.held[Command.RESERVE] = asyncio.Event()
        made.reserve(["192.0.2.1"] * MOST_AT_ONCE_PER_SOURCE)
        await until(lambda: len(made.reserved()) == MOST_AT_ONCE_PER_SOURCE)
        for task in made.tasks:
            task.cancel()
        made.reserve(["192.0.2.1"])
        await until(lambda: made.extension.commands.count(Command.ABANDON) == MOST_AT_ONCE_PER_SOURCE)
        assert len(made.reserved()) == MOST_AT_ONCE_PER_SOURCE
        answer.set()
        assert (await made.tasks[-1]).result.status == ST_OK
