"""Each worker gets a user id of its own, which is free again when that worker has ended."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.extension.fakes import FakeSpawner, FakeStore, FakeSysfs, make_claimer, record, run
from tests.unit.extension.specimen import child
from usbipd.errors import ClaimError, UsbipdError
from usbipd.extension import worker_confinement
from usbipd.extension.claimer import DeviceClaimer
from usbipd.extension.worker_confinement import WorkerConfinement
from usbipd.ipc.children import ClaimParameters, Confinement
from usbipd.ipc.messages import Command
from usbipd.privileges import RunAs
from usbipd.usb.discovery import DeviceRecord

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers stay root on macOS")

UIDS = range(70001, 70003)
ROOT = Path("/run/usbipd/empty")


def order(uid: int) -> Confinement:
    return Confinement(run_as=RunAs(user=str(uid), uid=uid, gid=uid), root=str(ROOT))


def test_the_lowest_free_one_until_none_is_left() -> None:
    async def test() -> None:
        confinement, workers = WorkerConfinement(UIDS, ROOT), [child(), child()]
        for worker, uid in zip(workers, UIDS, strict=True):
            chosen = await confinement.choose()
            assert chosen == order(uid)
            confinement.given(chosen, worker)
            assert worker.run_as == chosen.run_as
        with pytest.raises(UsbipdError, match="all 2 user ids for workers are in use") as caught:
            await confinement.choose()
        assert caught.value.code == "no-uid"
        assert "worker_uids" in str(caught.value.advice)
        workers[0].ended.set()
        assert await confinement.choose() == order(UIDS[0])

    asyncio.run(test())


def test_one_that_was_not_given_is_chosen_again() -> None:
    async def test() -> None:
        confinement = WorkerConfinement(UIDS, ROOT)
        assert await confinement.choose() == await confinement.choose()

    asyncio.run(test())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a process of another user")
def test_one_that_a_process_has_is_not_chosen() -> None:
    with subprocess.Popen(["sleep", "600"], user=UIDS[0]) as process:
        try:
            assert asyncio.run(WorkerConfinement(UIDS, ROOT).choose()) == order(UIDS[1])
        finally:
            process.kill()


def test_the_user_ids_of_this_process_are_found() -> None:
    assert set(os.getresuid()) <= worker_confinement._uids_of_processes()


def test_a_daemon_that_is_not_root_gives_none() -> None:
    assert asyncio.run(WorkerConfinement(None, ROOT).choose()) == Confinement(run_as=None, root=None)


def test_on_macos_a_worker_gives_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_confinement, "WORKERS_ARE_CONFINED", False)
    assert asyncio.run(WorkerConfinement(UIDS, ROOT).choose()) is None


# ---- the claimer ---------------------------------------------------------------------------------


class Host:
    """Three devices, and user ids for two workers."""

    def __init__(self, sysfs: FakeSysfs) -> None:
        self.spawner = FakeSpawner()
        self.store = FakeStore()
        self.claimer: DeviceClaimer = make_claimer(self.spawner, sysfs, self._find, self.store, uids=UIDS)

    async def _find(self, busid: str) -> DeviceRecord:
        return record(busid)

    def uid(self) -> int:
        """The one that the last worker was given."""
        parameters = self.spawner.last.parameters(Command.CLAIM)
        assert isinstance(parameters, ClaimParameters)
        assert parameters.confinement is not None
        assert parameters.confinement.run_as is not None
        return parameters.confinement.run_as.uid

    async def claim(self, busid: str) -> int:
        await self.claimer.claim_device(record(busid))
        return self.uid()


@pytest.fixture
def host(sysfs: FakeSysfs) -> Host:
    return Host(sysfs)


def test_workers_differ_and_a_released_one_makes_room(host: Host) -> None:
    async def test() -> None:
        assert [await host.claim("1-1"), await host.claim("1-2")] == list(UIDS)
        with pytest.raises(ClaimError, match="all 2 user ids") as caught:
            await host.claim("1-3")
        assert caught.value.code == "no-uid"
        assert set(host.store.held) == {"1-1", "1-2"}, "what was not claimed is not noted"
        assert len(host.spawner.children) == 2
        await host.claimer.release_device("1-1", timeout=1.0)
        assert await host.claim("1-3") == UIDS[0]
        await host.claimer.release_device("1-2", timeout=1.0)
        await host.claimer.release_device("1-3", timeout=1.0)

    run(test())
