"""The store on failing disks: errors are reported, and no good file is lost."""

import asyncio
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.extension.fakes import run
from tests.unit.extension.stores import (
    BINDINGS,
    CLAIM,
    COPY,
    Files,
    after_a_kill,
    binding,
    child,
    exit_code,
    reopen,
)
from usbipd.errors import UsbipdError
from usbipd.extension.store import Store
from usbipd.ipc.control_messages import HistoryEvent

FULL = "database or disk is full"


@pytest.fixture(scope="module")
def image() -> Files:
    return after_a_kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "usbipd-test", str(place)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root can mount, and not everywhere")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill_up(path: Path) -> None:
    """Until no byte is left."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            return


async def test_a_full_disk(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory, filler = small_disk / "state", small_disk / "filler"
    huge = binding("huge", product="x" * 100_000)
    store = await Store.open(directory)
    await store.add_binding(BINDINGS[0])
    fill_up(filler)
    with pytest.raises(UsbipdError, match=FULL) as caught:
        await store.add_binding(huge)
    assert (caught.value.code, caught.value.advice) == ("store", "free some space on that disk")
    with pytest.raises(UsbipdError, match=FULL):
        await store.begin_claim(CLAIM)
    for _number in range(3):
        store.record(HistoryEvent.ATTACHED, product="x" * 100_000)
        assert await store.history(1) == []
    [problem, lost] = await store.check()
    assert problem.message.endswith(FULL)
    assert problem.advice == "free some space on that disk"
    assert lost.message == "3 entries of the history could not be written"
    assert await store.bindings() == [BINDINGS[0]]
    filler.unlink()
    await store.add_binding(huge)
    store.record(HistoryEvent.BOUND)
    assert [entry.event for entry in await store.history(10)] == [HistoryEvent.BOUND, HistoryEvent.FAILED]
    assert list(map(str, await store.check())) == [lost.message]
    await store.close()
    assert await reopen(directory) == ([BINDINGS[0], huge], [])
    [record] = caplog.records
    assert record.message.startswith("cannot write the history: ")


def test_a_full_disk_at_the_start_is_no_damage(small_disk: Path, image: Files) -> None:
    directory, filler = small_disk / "state", small_disk / "filler"
    image.write(directory)
    (directory / "usbipd.sqlite-shm").unlink()
    before = Files.of(directory)
    fill_up(filler)
    with pytest.raises(UsbipdError) as caught:
        asyncio.run(reopen(directory))
    assert caught.value.code == "store"
    assert (caught.value.advice or "").startswith("check whether the disk is full")
    assert {name: data for name, data in Files.of(directory).items() if name in before} == before
    filler.unlink()
    assert asyncio.run(reopen(directory)) == (BINDINGS, [])


def test_a_read_only_disk(small_disk: Path, image: Files) -> None:
    directory = small_disk / "state"
    image.write(directory)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UsbipdError, match="Read-only file system") as caught:
        asyncio.run(reopen(directory))
    assert caught.value.code == "store"
    assert "choose another directory with --state DIR" in (caught.value.advice or "")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert asyncio.run(reopen(directory)) == (BINDINGS, [])


def test_files_that_cannot_grow(tmp_path: Path, image: Files) -> None:
    """A disk error that every system can produce."""
    directory = tmp_path / "state"
    image.write(directory)

    async def bind() -> None:
        store = await Store.open(directory)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        with pytest.raises(UsbipdError, match="disk I/O error") as caught:
            await store.add_binding(binding("huge", product="x" * 200_000))
        assert caught.value.code == "store"
        assert "what the kernel logs" in (caught.value.advice or "")
        assert await store.bindings() == BINDINGS
        assert await store.claims() == [CLAIM]

    assert exit_code(child(lambda: asyncio.run(bind()))) == 0
    assert asyncio.run(reopen(directory)) == (BINDINGS, [])


def test_a_copy_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "state"

    async def test() -> None:
        store = await Store.open(directory)
        obstacle = directory / f"{COPY}.new"
        obstacle.mkdir()
        await store.add_binding(BINDINGS[0])
        [problem] = await store.check()
        assert problem.message.startswith(
            f"cannot back up the store: cannot use the store {directory / COPY}"
        )
        obstacle.rmdir()
        await store.add_binding(BINDINGS[1])
        assert await store.check() == []
        await store.close()

    run(test())
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert asyncio.run(reopen(directory)) == (BINDINGS[:2], [])
