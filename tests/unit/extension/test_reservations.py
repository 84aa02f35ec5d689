"""Reservations from OP_REQ_IMPORT to a worker, and all that can happen in between."""

import asyncio
import errno
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.unit.extension.fakes import FakeSource, FakeSpawner, FakeSysfs, make_claimer, record, until
from usbipd.errors import IPCError, UsbipdError
from usbipd.extension import reservations as module
from usbipd.extension.device import ClaimState, Device
from usbipd.extension.reservations import Reservations
from usbipd.ipc.children import AttachParameters, ReserveParameters, ReserveResult
from usbipd.ipc.messages import Command
from usbipd.protocol.constants import ST_DEV_BUSY, ST_DEV_ERR, ST_NODEV, ST_OK

LONG = 20.0


class Desk:
    """Reservations for one claimed device, 1-2."""

    def __init__(self, spawner: FakeSpawner, sysfs: FakeSysfs, handover_timeout: float = LONG) -> None:
        source = FakeSource(record("1-2"))
        self.claimer = make_claimer(spawner, sysfs, source.find)
        self.last = 0
        """The number of the newest reservation."""
        self.hidden_from: set[str] = set()
        self.reservations = Reservations(
            lambda busid, address: None if address in self.hidden_from else self.claimer.find(busid),
            handover_timeout,
        )

    @property
    def device(self) -> Device:
        return self.claimer.shared_devices["1-2"]

    @asynccontextmanager
    async def claimed(self) -> AsyncIterator[None]:
        await self.claimer.claim_device(record("1-2"))
        yield
        await self.claimer.release_device("1-2", timeout=5)

    async def reserve(
        self, client: str = "192.0.2.1:1", busid: str = "1-2", *, number: int | None = None, wait: bool = True
    ) -> ReserveResult:
        """`number` is that of the reservation; None: a new one, `last`."""
        if number is None:
            number = self.last = self.last + 1
        return await self.reservations.reserve(
            ReserveParameters(
                reservation=number, busid=busid, client=client, address=client.split(":")[0], wait=wait
            )
        )

    async def attach(self, client: str = "192.0.2.1:1") -> None:
        assert (await self.reserve(client)).status == ST_OK
        descriptor = os.open(os.devnull, os.O_RDONLY)
        await self.reservations.hand_over(self.last, descriptor)
        os.close(descriptor)


@pytest.fixture
def desk(spawner: FakeSpawner, sysfs: FakeSysfs) -> Desk:
    return Desk(spawner, sysfs)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_PATIENCE", 0.01)
    monkeypatch.setattr(module, "RESTORE_PATIENCE", 0.01)


async def test_a_free_device_goes_to_its_client(desk: Desk, spawner: FakeSpawner) -> None:
    async with desk.claimed():
        result = await desk.reserve("192.0.2.1:7777")
        assert result.status == ST_OK
        assert result.device == desk.device.wire_device
        read_end, write_end = os.pipe()
        await desk.reservations.hand_over(desk.last, write_end)
        os.close(write_end)
        assert spawner.last.parameters(Command.ATTACH) == AttachParameters(client="192.0.2.1:7777")
        assert spawner.last.descriptor is not None
        os.write(spawner.last.descriptor, b"through")
        assert os.read(read_end, 10) == b"through"
        os.close(read_end)
        assert desk.device.state is ClaimState.ATTACHED
        assert desk.device.client == "192.0.2.1:7777"


@pytest.mark.rule("op-status")
async def test_no_such_device(desk: Desk) -> None:
    async with desk.claimed():
        assert await desk.reserve(busid="9-9") == ReserveResult(status=ST_NODEV)


async def test_a_device_hidden_from_the_client_does_not_exist(desk: Desk) -> None:
    async with desk.claimed():
        desk.hidden_from.add("192.0.2.1")
        assert await desk.reserve() == ReserveResult(status=ST_NODEV)
        assert desk.device.is_free
        assert (await desk.reserve("192.0.2.2:1")).status == ST_OK


@pytest.mark.rule("op-status")
async def test_a_device_that_could_not_be_claimed(desk: Desk) -> None:
    async with desk.claimed():
        desk.device.failed(UsbipdError("stuck"), 30.0)
        assert await desk.reserve() == ReserveResult(status=ST_DEV_ERR)


@pytest.mark.rule("import-busy")
@pytest.mark.usefixtures("impatient")
async def test_an_attached_device_is_busy(desk: Desk) -> None:
    async with desk.claimed():
        await desk.attach()
        assert await desk.reserve("192.0.2.2:2") == ReserveResult(status=ST_DEV_BUSY)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("state", [ClaimState.RESTORING, ClaimState.CLAIMING])
async def test_a_device_that_does_not_become_free_is_busy(desk: Desk, state: ClaimState) -> None:
    async with desk.claimed():
        desk.device.state = state
        assert await desk.reserve() == ReserveResult(status=ST_DEV_BUSY)


async def test_a_client_waits_while_the_previous_one_leaves(
    desk: Desk, spawner: FakeSpawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESTORE_PATIENCE", LONG)
    async with desk.claimed():
        await desk.attach()
        waiting = asyncio.create_task(desk.reserve("192.0.2.2:2"))
        spawner.last.detach()
        await until(lambda: desk.device.state is ClaimState.RESTORING)
        monkeypatch.setattr(module, "BUSY_PATIENCE", 0.0)
        assert not waiting.done()
        spawner.last.restored()
        result = await waiting
        assert result.status == ST_OK


@pytest.mark.usefixtures("impatient")
async def test_one_of_two_waiting_clients_gets_the_device(desk: Desk, spawner: FakeSpawner) -> None:
    async with desk.claimed():
        results = await asyncio.gather(desk.reserve("192.0.2.1:1"), desk.reserve("192.0.2.2:2"))
        assert sorted(result.status for result in results) == [ST_OK, ST_DEV_BUSY]


async def settle() -> None:
    """Let all tasks run until they wait."""
    for _turn in range(10):
        await asyncio.sleep(0)


async def test_a_device_in_use_is_busy_at_once_without_wait(desk: Desk) -> None:
    async with desk.claimed():
        assert (await desk.reserve(wait=False)).status == ST_OK
        async with asyncio.timeout(0.5):
            assert await desk.reserve(wait=False) == ReserveResult(status=ST_DEV_BUSY)


async def test_a_client_that_waits_for_a_reserved_device_gets_it_when_that_is_abandoned(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUSY_PATIENCE", LONG)
    async with desk.claimed():
        assert (await desk.reserve(number=1)).status == ST_OK
        waiting = asyncio.create_task(desk.reserve(number=2))
        await settle()
        desk.reservations.abandon(1)
        async with asyncio.timeout(LONG / 2):
            assert (await waiting).status == ST_OK


@pytest.mark.parametrize("how", ["abandoned", "its server died", "its channel closed"])
async def test_a_client_that_leaves_while_it_waits_gets_nothing(
    desk: Desk, spawner: FakeSpawner, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(module, "BUSY_PATIENCE", LONG)
    async with desk.claimed():
        await desk.attach()
        tasks = asyncio.all_tasks()
        waiting = asyncio.create_task(desk.reserve(number=7))
        await settle()
        if how == "abandoned":
            desk.reservations.abandon(7)
        elif how == "its server died":
            desk.reservations.drop_all()
        else:
            waiting.cancel()
        async with asyncio.timeout(LONG / 2):
            await asyncio.wait({waiting})
        assert waiting.cancelled() or waiting.result().status == ST_DEV_BUSY
        await settle()
        assert asyncio.all_tasks() - tasks == set(), "no task is left"
        spawner.last.detach()
        spawner.last.restored()
        await until(lambda: desk.device.is_free)
        assert (await desk.reserve(number=7)).status == ST_OK, "the number is no longer in use"


async def test_a_client_that_leaves_as_the_device_becomes_free_does_not_keep_it(
    desk: Desk,
) -> None:
    async with desk.claimed():
        assert (await desk.reserve(number=1)).status == ST_OK
        waiting = asyncio.create_task(desk.reserve(number=2))
        await asyncio.sleep(0)
        desk.reservations.abandon(1)
        for turns in itertools.count():  # at each iteration of the loop until it has the device
            assert desk.device.is_free
            if desk.reservations._waiting[2].done():
                break
            await asyncio.sleep(0)
            assert turns < 100
        desk.reservations.abandon(2)
        await waiting
        assert desk.device.is_free


async def test_a_number_that_is_in_use_is_refused(desk: Desk) -> None:
    async with desk.claimed():
        assert (await desk.reserve(number=1)).status == ST_OK
        waiting = asyncio.create_task(desk.reserve(number=2))
        await asyncio.sleep(0)
        for number in (1, 2):
            with pytest.raises(IPCError, match=f"reservation {number} is in use"):
                await desk.reserve(number=number)
        desk.reservations.abandon(1)
        assert (await waiting).status == ST_OK


@pytest.mark.parametrize("how", ["abandoned", "expired", "its server died"])
async def test_a_reservation_ends(spawner: FakeSpawner, sysfs: FakeSysfs, how: str) -> None:
    desk = Desk(spawner, sysfs, handover_timeout=0.01 if how == "expired" else LONG)
    async with desk.claimed():
        assert (await desk.reserve()).status == ST_OK
        if how == "abandoned":
            desk.reservations.abandon(desk.last)
        elif how == "its server died":
            desk.reservations.drop_all()
        await until(lambda: desk.device.is_free)
        with pytest.raises(UsbipdError, match="no longer valid"):
            await desk.reservations.hand_over(desk.last, 0)
        desk.reservations.abandon(desk.last)  # again: no effect


async def test_a_reservation_does_not_outlive_its_worker(desk: Desk, spawner: FakeSpawner) -> None:
    async with desk.claimed():
        assert (await desk.reserve()).status == ST_OK
        spawner.last.die()
        await until(lambda: len(spawner.children) == 2 and desk.device.is_free)
        with pytest.raises(UsbipdError, match="no longer valid"):
            await desk.reservations.hand_over(desk.last, 0)
        assert desk.device.is_free


async def test_a_device_unbound_before_the_hand_over(desk: Desk) -> None:
    async with desk.claimed():
        await desk.attach()
        waiting = asyncio.create_task(desk.reserve("192.0.2.2:2"))
        await asyncio.sleep(0)
        await desk.claimer.release_device("1-2", timeout=5)
        assert await waiting == ReserveResult(status=ST_NODEV)


async def test_a_worker_that_does_not_accept_its_client_is_replaced(desk: Desk, spawner: FakeSpawner) -> None:
    async with desk.claimed():
        spawner.answers[Command.ATTACH] = UsbipdError("no", code="no")
        with pytest.raises(UsbipdError, match="no"):
            await desk.attach()
        await until(lambda: len(spawner.children) == 2 and desk.device.is_free)
        del spawner.answers[Command.ATTACH]
        await desk.attach()
        assert desk.device.state is ClaimState.ATTACHED


async def test_a_worker_that_dies_while_it_attaches(desk: Desk, spawner: FakeSpawner) -> None:
    async with desk.claimed():
        spawner.answers[Command.ATTACH] = "silence"
        attaching = asyncio.create_task(desk.attach())
        await until(lambda: Command.ATTACH in spawner.last.commands)
        spawner.last.die()
        with pytest.raises(IPCError, match="gone"):
            await attaching
        await until(lambda: len(spawner.children) == 2 and desk.device.is_free)


async def test_a_device_unplugged_as_its_client_attaches(
    desk: Desk, spawner: FakeSpawner, caplog: pytest.LogCaptureFixture
) -> None:
    """This is not an error of the daemon."""
    async with desk.claimed():
        spawner.answers[Command.ATTACH] = "silence"
        attaching = asyncio.create_task(desk.attach())
        await until(lambda: Command.ATTACH in spawner.last.commands)
        spawner.last.device_gone()
        spawner.last.die()
        with pytest.raises(UsbipdError):
            await attaching
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_hand_over_without_a_free_descriptor(
    desk: Desk, spawner: FakeSpawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device does not stay attached without a client: another worker claims it."""
    async with desk.claimed():
        assert (await desk.reserve()).status == ST_OK
        with monkeypatch.context() as patch:
            patch.setattr(os, "dup", no_descriptor_left)
            with pytest.raises(UsbipdError, match="cannot hand over: Too many open files"):
                await desk.reservations.hand_over(desk.last, 0)
        await until(lambda: len(spawner.children) == 2 and desk.device.is_free)
        await desk.attach()


def no_descriptor_left(_descriptor: int) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def test_a_device_being_released_cannot_be_attached(desk: Desk, spawner: FakeSpawner) -> None:
    await desk.claimer.claim_device(record("1-2"))
    await desk.reserve()
    releasing = asyncio.create_task(desk.claimer.release_device("1-2", timeout=5))
    device = desk.device
    await asyncio.sleep(0)  # it waits for the task of the device
    assert not device.is_kept
    with pytest.raises(UsbipdError) as caught:
        await desk.reservations.hand_over(desk.last, 0)
    assert caught.value.code == "no-reservation"
    assert not device.is_kept
    await releasing
    assert Command.ATTACH not in spawner.last.commands
