"""The store of a killed extension: nothing that was acknowledged is lost."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.unit.extension.stores import (
    BINDINGS,
    COPY,
    DATABASE,
    LOG,
    Files,
    after_a_kill,
    binding,
    child,
    exit_code,
    fast_directory,
    reopen,
)
from usbipd.extension.store import Binding, Store, StoredClaim
from usbipd.ipc.control_messages import HistoryEvent
from usbipd.usb.identity import DeviceRule

NEW = binding("new")
AT_ONCE = 5
"""Bindings that the writer keeps, and those that it may not have removed before it was killed."""


@pytest.fixture
def directory() -> Iterator[Path]:
    with fast_directory() as directory:
        yield directory


async def write_without_end(directory: Path, said: IO[str]) -> None:
    """Bind, claim, record and unbind, and acknowledge each step."""
    store = await Store.open(directory)
    assert store.problems == []
    number = 1 + max([number_of(one) for one in await store.bindings()], default=0)
    while True:
        await store.add_binding(Binding(DeviceRule(1, 2, str(number)), None, (), 0.0, "root"))
        said.write(f"+{number}\n")
        await store.begin_claim(StoredClaim("1-1", 1, 2, float(number)))
        said.write(f"={number}\n")
        store.record(HistoryEvent.BOUND, bytes_in=number)
        if number > AT_ONCE:
            await store.remove_bindings([DeviceRule(1, 2, str(number - AT_ONCE))])
            said.write(f"-{number - AT_ONCE}\n")
        number += 1


def number_of(one: Binding) -> int:
    return int(one.rule.serial or 0)


class Ledger:
    """What the writer has acknowledged."""

    def __init__(self) -> None:
        self.bound: list[int] = []
        self.claimed = 0.0

    def hear(self, line: str) -> None:
        number = int(line[1:])
        if line[0] == "+":
            self.bound.append(number)
        elif line[0] == "-":
            self.bound.remove(number)
        else:
            self.claimed = number

    def compare(self, directory: Path, *, restored: bool) -> None:
        """Every acknowledged step was done; the next one may have been."""
        bound, claimed, problems = asyncio.run(read_back(directory))
        newest = max(self.bound, default=0)
        one_more = [*self.bound, newest + 1]
        one_less = [number for number in self.bound if number != newest - AT_ONCE]
        assert bound in (self.bound, one_more, one_less)
        assert restored or claimed in (self.claimed, newest)
        assert bool(problems) == restored, problems
        self.bound, self.claimed = bound, claimed


async def read_back(directory: Path) -> tuple[list[int], float, list[str]]:
    store = await Store.open(directory)
    bound = [number_of(one) for one in await store.bindings()]
    claimed = max((claim.since for claim in await store.claims()), default=0.0)
    await store.close()
    return bound, claimed, store.problems


def write_until_killed(directory: Path, steps: int) -> list[str]:
    """The output of a writer that was killed soon after its first `steps`."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as output:
        with os.fdopen(write_end, "w", buffering=1) as said:
            pid = child(lambda: asyncio.run(write_without_end(directory, said)))
        lines = [output.readline() for _number in range(steps)]
        os.kill(pid, signal.SIGKILL)
        assert exit_code(pid) == -signal.SIGKILL
        return [*lines, *output]


@pytest.mark.slow
def test_kill_9_at_any_moment(tmp_path: Path) -> None:
    """On a disk, because the writer spends most of its time waiting for it."""
    directory = tmp_path / "state"
    ledger, chance = Ledger(), random.Random(7)
    for turn in range(20):
        for line in write_until_killed(directory, steps=1 + chance.randrange(15)):
            ledger.hear(line)
        restored = turn % 3 == 2  # then the copy alone must suffice
        if restored:
            for name in (DATABASE, LOG, f"{DATABASE}-shm"):
                (directory / name).unlink(missing_ok=True)
        ledger.compare(directory, restored=restored)


def be_killed_at(step: int, directory: Path) -> None:
    """Kill this process at the `step`th access to files in `directory`."""
    steps = iter(range(step - 1))
    place = str(directory)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("open", "os.rename", "os.remove", "os.chmod", "sqlite3.connect"):
            names = [os.fsdecode(name) for name in arguments if isinstance(name, str | bytes | os.PathLike)]
            if (
                any(name.startswith((place, f"file://{place}")) for name in names)
                and next(steps, None) is None
            ):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


async def bind_one_more(directory: Path) -> None:
    store = await Store.open(directory)
    await store.add_binding(NEW)
    await store.close()


@pytest.fixture(scope="module")
def image() -> Files:
    return after_a_kill()


def no_damage(directory: Path) -> None:
    """The directory as left by the last kill."""


def first_start(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()


def damaged(directory: Path) -> None:
    (directory / DATABASE).write_bytes(b"damaged")


def missing(directory: Path) -> None:
    (directory / DATABASE).unlink()


def bad_copy(directory: Path) -> None:
    (directory / COPY).write_bytes(b"damaged")


@pytest.mark.slow
@pytest.mark.parametrize("before", [no_damage, first_start, damaged, missing, bad_copy])
def test_kill_9_at_every_step(image: Files, before: Callable[[Path], None]) -> None:
    """At each file access while the store is opened, repaired and changed."""
    code, step = -signal.SIGKILL, 0
    while code == -signal.SIGKILL:
        step += 1
        with fast_directory() as directory:
            image.write(directory)
            before(directory)

            def work(step: int = step, directory: Path = directory) -> None:
                be_killed_at(step, directory)
                asyncio.run(bind_one_more(directory))

            code = exit_code(child(work))
            bindings, problems = asyncio.run(reopen(directory))
            assert [one for one in bindings if one != NEW] == ([] if before is first_start else BINDINGS)
            assert before in (damaged, missing, bad_copy) or problems == []
            names = [path.name for path in directory.iterdir()]
            assert [name for name in names if ".new" in name] == []
            assert any(name.startswith(f"{DATABASE}.damaged-") for name in names) == (
                before in (damaged, missing)
            )
    assert code == 0
    assert step > 10
    assert NEW in bindings
