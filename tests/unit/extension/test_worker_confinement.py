"""Each worker gets a separate uid, which is free again when that worker has ended."""

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from tests.unit.extension.fakes import FakeSpawner, FakeStore, FakeSysfs, make_claimer, record
from tests.unit.extension.healthy_daemon import child
from usbipd.errors import ClaimError, UsbipdError
from usbipd.extension import worker_confinement
from usbipd.extension.claimer import DeviceClaimer
from usbipd.extension.supervisor import Child
from usbipd.extension.worker_confinement import WorkerConfinement
from usbipd.ipc.async_channel import EventHandler, RequestHandler
from usbipd.ipc.children import USELESS_WHEN_CONFINED, ClaimParameters, Confinement, Sandbox
from usbipd.ipc.messages import Command
from usbipd.ipc.row import Role
from usbipd.privileges import RunAs
from usbipd.usb.discovery import DeviceRecord

UIDS = range(70001, 70003)
ROOT = Path("/run/usbipd/empty")


def order(uid: int, root: str = str(ROOT)) -> Confinement:
    return Confinement(run_as=RunAs(user=str(uid), uid=uid, gid=uid), root=root)


async def test_the_lowest_free_uid_is_chosen() -> None:
    confinement, workers = WorkerConfinement(UIDS, ROOT), [child(), child()]
    for worker, uid in zip(workers, UIDS, strict=True):
        chosen = await confinement.choose("1-1")
        assert chosen == order(uid)
        confinement.assign(chosen, worker)
        assert worker.run_as == chosen.run_as
    with pytest.raises(UsbipdError, match="all 2 user ids for workers are in use") as caught:
        await confinement.choose("1-1")
    assert caught.value.code == "no-uid"
    assert "worker_uids" in str(caught.value.advice)
    workers[0].ended.set()
    assert await confinement.choose("1-1") == order(UIDS[0])


async def test_a_uid_that_was_not_used_is_chosen_again() -> None:
    confinement = WorkerConfinement(UIDS, ROOT)
    assert await confinement.choose("1-1") == await confinement.choose("1-2")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a process of another user")
def test_a_uid_that_a_process_has_is_not_chosen() -> None:
    with subprocess.Popen(["sleep", "600"], user=UIDS[0]) as process:
        try:
            assert asyncio.run(WorkerConfinement(UIDS, ROOT).choose("1-1")) == order(UIDS[1])
        finally:
            process.kill()


def test_the_user_ids_of_this_process_are_found() -> None:
    assert set(os.getresuid()) <= worker_confinement._uids_of_processes()


def test_a_daemon_that_is_not_root_chooses_no_uid() -> None:
    assert asyncio.run(WorkerConfinement(None, ROOT).choose("1-1")) == Confinement(run_as=None, root=None)


@pytest.mark.parametrize("uids", [UIDS, None])
def test_confinement_can_be_switched_off(uids: range | None) -> None:
    assert asyncio.run(WorkerConfinement(uids, ROOT, "off").choose("1-1")) is None


@pytest.mark.parametrize("uids", [UIDS, None])
@pytest.mark.parametrize("confine", ["auto", "require"])
def test_the_configuration_says_whether_the_sandbox_is_required(uids: range | None, confine: Sandbox) -> None:
    chosen = asyncio.run(WorkerConfinement(uids, ROOT, confine).choose("1-1"))
    assert chosen is not None
    assert chosen.sandbox == confine


USELESS = UsbipdError("interface 0 cannot be claimed", code=USELESS_WHEN_CONFINED)


def test_a_device_that_fails_with_a_confined_worker_gets_a_relaxed_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It never stays root, and other devices are not affected."""
    confinement = WorkerConfinement(UIDS, ROOT)
    assert confinement.relax("1-1", USELESS)
    bare = Confinement(run_as=order(UIDS[0]).run_as, root=None, sandbox="off")
    assert asyncio.run(confinement.choose("1-1")) == bare
    assert asyncio.run(confinement.choose("1-2")) == order(UIDS[0])
    assert not confinement.relax("1-1", USELESS), "it cannot be relaxed further"
    worker, other = child(busid="1-1"), child(busid="1-2")
    confinement.is_confined(worker, None)
    confinement.is_confined(other, None)
    assert "no chroot and no sandbox" in str(worker.lacks)
    assert other.lacks is None
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


@pytest.mark.parametrize("confine", ["require", "off"])
def test_a_configured_sandbox_is_not_relaxed(confine: Sandbox) -> None:
    assert not WorkerConfinement(UIDS, ROOT, confine).relax("1-1", USELESS)


def test_another_error_relaxes_nothing() -> None:
    assert not WorkerConfinement(UIDS, ROOT).relax("1-1", UsbipdError("busy", code="LIBUSB_ERROR_BUSY"))


def test_a_lack_of_all_workers_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    confinement, workers = WorkerConfinement(UIDS, ROOT), [child(busid="1-1"), child(busid="1-2")]
    for worker in workers:
        confinement.is_confined(worker, "there is no filter")
    confinement.is_confined(workers[0], "the profile does not hold")
    assert [record.message.partition("confinement: ")[2] for record in caplog.records] == [
        "there is no filter",
        "the profile does not hold",
    ]
    assert [worker.lacks for worker in workers] == ["the profile does not hold", "there is no filter"]


# ---- the claimer ---------------------------------------------------------------------------------


class Host:
    """Three devices, and uids for two workers."""

    def __init__(self, sysfs: FakeSysfs, spawner: FakeSpawner) -> None:
        self.spawner = spawner
        self.store = FakeStore()
        self.claimer: DeviceClaimer = make_claimer(self.spawner, sysfs, self.find, self.store, uids=UIDS)

    async def find(self, busid: str) -> DeviceRecord:
        return record(busid)

    def uid(self) -> int:
        """The confinement of the last worker."""
        parameters = self.spawner.last.parameters(Command.CLAIM)
        assert isinstance(parameters, ClaimParameters)
        assert parameters.confinement is not None
        assert parameters.confinement.run_as is not None
        return parameters.confinement.run_as.uid

    async def claim(self, busid: str) -> int:
        await self.claimer.claim_device(record(busid))
        return self.uid()


class Fussy(FakeSpawner):
    """Its first worker cannot use the device once confined."""

    def spawn(
        self, role: Role, busid: str | None, on_request: RequestHandler, on_event: EventHandler | None
    ) -> Child:
        if self.children:
            self.answers.clear()
        return super().spawn(role, busid, on_request, on_event)


async def test_a_claim_is_retried_with_a_relaxed_worker(sysfs: FakeSysfs) -> None:
    host = Host(sysfs, Fussy())
    host.spawner.answers[Command.CLAIM] = USELESS
    await host.claimer.claim_device(record("1-1"))
    first, second = (each.parameters(Command.CLAIM) for each in host.spawner.children)
    assert isinstance(first, ClaimParameters)
    assert isinstance(second, ClaimParameters)
    assert first.confinement == order(UIDS[0], root="/empty")
    assert second.confinement == Confinement(run_as=order(UIDS[0]).run_as, root=None, sandbox="off")
    assert set(host.store.held) == {"1-1"}
    worker = host.claimer.shared_devices["1-1"].worker
    assert worker is not None
    assert "no chroot and no sandbox" in str(worker.lacks)
    await host.claimer.release_device("1-1", timeout=1.0)


async def test_a_claim_that_fails_with_a_relaxed_worker_too(host: Host) -> None:
    host.spawner.answers[Command.CLAIM] = USELESS
    with pytest.raises(ClaimError, match="interface 0 cannot be claimed"):
        await host.claimer.claim_device(record("1-1"))
    assert len(host.spawner.children) == 2
    assert host.store.held == {}


@pytest.fixture
def host(sysfs: FakeSysfs) -> Host:
    return Host(sysfs, FakeSpawner())


async def test_workers_have_different_uids_and_release_them(host: Host) -> None:
    assert [await host.claim("1-1"), await host.claim("1-2")] == list(UIDS)
    with pytest.raises(ClaimError, match="all 2 user ids") as caught:
        await host.claim("1-3")
    assert caught.value.code == "no-uid"
    assert set(host.store.held) == {"1-1", "1-2"}, "devices that were not claimed are not recorded"
    assert len(host.spawner.children) == 2
    await host.claimer.release_device("1-1", timeout=1.0)
    assert await host.claim("1-3") == UIDS[0]
    await host.claimer.release_device("1-2", timeout=1.0)
    await host.claimer.release_device("1-3", timeout=1.0)
