"""The store as the extension uses it: persistence, errors of the disk, and that no caller blocks."""

import asyncio
import math
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.extension.fakes import PATIENCE, run, until
from tests.unit.extension.stores import BINDINGS, CLAIM, DATABASE, binding, reopen
from usbipd import limiter
from usbipd.errors import UsbipdError
from usbipd.extension import store as module
from usbipd.extension import store_tables
from usbipd.extension.store import LONGEST_REASON, Binding, Store, StoredClaim
from usbipd.ipc.control_messages import HistoryEntry, HistoryEvent
from usbipd.limiter import BURST
from usbipd.usb.identity import DeviceRule

some_text = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
rules = st.builds(
    DeviceRule,
    st.none() | st.integers(0, 3),
    st.none() | st.integers(0, 3),
    st.sampled_from([None, "A", "B", "a"]),
    st.sampled_from([None, "1-1", "1-2"]),
).filter(lambda rule: rule != DeviceRule())
some_bindings = st.builds(
    Binding,
    rules,
    some_text,
    st.lists(st.sampled_from(["192.0.2.0/24", "::1", "fe80::%eth0/64"])).map(tuple),
    st.floats(0, 1e12),
    st.text(st.characters(exclude_categories=["Cs"])),
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


@contextmanager
def another_program(directory: Path) -> Iterator[sqlite3.Connection]:
    """Another program that has the store's file open."""
    with closing(sqlite3.connect(directory / DATABASE, isolation_level=None)) as connection:
        yield connection


@contextmanager
def busy(store: Store) -> Iterator[None]:
    """Keep the store's thread busy."""
    over = threading.Event()
    store._thread.submit(over.wait)
    try:
        yield
    finally:
        over.set()


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), some_bindings)))
def test_the_bindings_are_those_that_were_added_and_not_removed(steps: list[tuple[bool, Binding]]) -> None:
    async def test() -> None:
        store = await Store.open(None)
        expected: dict[DeviceRule, Binding] = {}
        for add, one in steps:
            if add:
                await store.add_binding(one)
                expected[one.rule] = one
            else:
                await store.remove_bindings([one.rule])
                expected.pop(one.rule, None)
        assert await store.bindings() == list(expected.values())
        assert await store.check() == []
        await store.close()

    run(test())


async def test_everything_outlives_the_process(directory: Path) -> None:
    now = time.time() - 1.5
    store = await Store.open(directory)
    for one in BINDINGS:
        await store.add_binding(one)
    await store.begin_claim(CLAIM)
    store.record(HistoryEvent.CLAIMED, time=now, busid="1-2", seconds=0.5, bytes_in=2**40)
    await store.close()
    store = await Store.open(directory)
    assert store.problems == []
    assert await store.bindings() == BINDINGS
    assert await store.claims() == [CLAIM]
    [entry] = await store.history(10)
    assert entry == HistoryEntry(
        id=1, time=now, event=HistoryEvent.CLAIMED, busid="1-2", seconds=0.5, bytes_in=2**40
    )
    assert await store.check() == []
    await store.close()


async def test_the_same_rule_again_replaces(directory: Path) -> None:
    store = await Store.open(directory)
    for one in BINDINGS:
        await store.add_binding(one)
    again = Binding(BINDINGS[2].rule, "Other", ("::1", "192.0.2.1"), 7.0, "root")
    await store.add_binding(again)
    assert await store.bindings() == [*BINDINGS[:2], again]
    await store.close()


async def test_only_exactly_these_rules_are_removed() -> None:
    store = await Store.open(None)
    for one in BINDINGS:
        await store.add_binding(one)
    await store.remove_bindings([DeviceRule(0x0781, 0x5567), DeviceRule(busid="1-2")])
    assert await store.bindings() == BINDINGS
    await store.remove_bindings([BINDINGS[0].rule, BINDINGS[2].rule])
    assert await store.bindings() == [BINDINGS[1]]
    await store.close()


@pytest.mark.parametrize("rule", [DeviceRule(), DeviceRule(0x10000, 1)])
async def test_a_binding_that_cannot_be_is_not_kept(directory: Path, rule: DeviceRule) -> None:
    store = await Store.open(directory)
    with pytest.raises(UsbipdError, match="invalid binding"):
        await store.add_binding(Binding(rule, None, (), 0.0, "root"))
    assert await store.bindings() == []
    await store.close()
    assert await reopen(directory) == ([], [])


async def test_claims_by_busid() -> None:
    store = await Store.open(None)
    await store.begin_claim(CLAIM)
    other = StoredClaim("1-1", 1, 2, 3.0)
    await store.begin_claim(other)
    again = StoredClaim(CLAIM.busid, 5, 6, 7.0)
    await store.begin_claim(again)
    assert await store.claims() == [other, again]
    await store.end_claim("9-9")
    await store.end_claim("1-1")
    assert await store.claims() == [again]
    await store.close()


async def test_the_history_is_read_in_pages_the_newest_first() -> None:
    store = await Store.open(None)
    for number in range(7):
        store.record(HistoryEvent.ATTACHED, bytes_in=number)
    first = await store.history(3)
    assert [entry.bytes_in for entry in first] == [6, 5, 4]
    assert [entry.bytes_in for entry in await store.history(3, first[-1].id)] == [3, 2, 1]
    assert [entry.bytes_in for entry in await store.history(1, 2**70)] == [6]
    assert await store.history(3, -(2**70)) == []
    await store.close()


@settings(max_examples=50, deadline=None)
@given(reason=st.text(), seconds=st.floats(), counter=st.integers())
@example(reason="x" * 64_000, seconds=0.0, counter=0)
def test_what_a_peer_says_is_kept_or_cut_but_never_loses_an_entry(
    reason: str, seconds: float, counter: int
) -> None:
    async def test() -> None:
        store = await Store.open(None)
        store.record(HistoryEvent.DETACHED, reason=reason, seconds=seconds, bytes_in=counter, product=reason)
        [entry] = await store.history(10)
        whole = reason.encode(errors="replace").decode()
        assert (entry.reason, entry.product) == (whole[:LONGEST_REASON], whole)
        assert entry.seconds == seconds or (entry.seconds is None and math.isnan(seconds))
        assert entry.bytes_in == counter or abs(entry.bytes_in or 0) == 2**63 - 1 < abs(counter)
        await store.close()

    run(test())


async def test_a_clock_that_jumps_forgets_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    jumped = now + 10 * 365 * 86400
    events = (HistoryEvent.STARTED, HistoryEvent.BOUND, HistoryEvent.ATTACHED)
    for moment in (now, jumped, now + 60):
        monkeypatch.setattr(module.clock, "time", lambda moment=moment: moment)
        store = await Store.open(directory)
        await store.end_last_run()
        for event in events:
            store.record(event, busid="1-1")
        await store.close()
    store = await Store.open(directory)
    kept = [(entry.event, entry.time) for entry in await store.history(100) if entry.event in events]
    assert kept == [(event, moment) for moment in (now + 60, jumped, now) for event in events[::-1]]
    await store.close()


async def test_the_history_keeps_the_newest_of_each_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HISTORY", 10)
    store = await Store.open(None)
    for number in range(25):
        store.record(HistoryEvent.FAILED, seconds=number)
        if number % 3 == 0:
            store.record(HistoryEvent.STARTED, seconds=number)
            await store.history(1)
    kept = await store.history(100)
    failures = [entry.seconds for entry in kept if entry.event is HistoryEvent.FAILED]
    assert failures == list(range(24, 14, -1))
    starts = [entry.seconds for entry in kept if entry.event is HistoryEvent.STARTED]
    assert starts == list(range(24, -1, -3))
    await store.close()


async def test_clients_push_out_nothing_that_people_did(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many: a few entries, with correct totals of counts, seconds and bytes."""
    monkeypatch.setattr(module, "MAX_HISTORY", 30)
    cycles = 3000
    deeds = (HistoryEvent.STARTED, HistoryEvent.BOUND, HistoryEvent.UNBOUND, HistoryEvent.FAILED)
    store = await Store.open(directory)
    for deed in deeds:
        store.record(deed, busid="1-1")
    await store.history(1)
    writes = 0
    with another_program(directory) as other:
        before = other.execute("PRAGMA data_version").fetchone()
        for number in range(cycles):
            client = client_of(number)
            store.record(HistoryEvent.ATTACHED, busid="1-1", client=client)
            store.record(HistoryEvent.DETACHED, busid="1-1", client=client, seconds=0.5, bytes_in=3)
            if number % 10 == 0:
                await store.history(1)
                after = other.execute("PRAGMA data_version").fetchone()
                writes += after != before
                before = after
    assert writes <= BURST, "events that come too fast are merged"
    await store.close()
    store = await Store.open(directory)
    kept = await store.history(100)
    assert {entry.event for entry in kept} >= set(deeds)
    attached = [entry for entry in kept if entry.event is HistoryEvent.ATTACHED]
    detached = [entry for entry in kept if entry.event is HistoryEvent.DETACHED]
    assert len(attached) == len(detached) == BURST // 2 + 1
    assert [sum(entry.count for entry in entries) for entries in (attached, detached)] == [cycles] * 2
    assert (detached[0].count, detached[0].client) == (cycles - BURST // 2, client_of(cycles - 1))
    assert {entry.seconds for entry in detached[1:]} == {0.5}
    assert detached[0].seconds == (cycles - BURST // 2) * 0.5
    assert sum(entry.bytes_in or 0 for entry in detached) == cycles * 3
    assert {entry.bytes_out for entry in detached} == {None}
    assert await store.check() == []
    await store.close()


def client_of(number: int) -> str:
    return f"192.0.2.{number % 256}:{number}"


async def test_the_order_of_the_history_is_that_of_the_last_of_each() -> None:
    """The last client to attach is attached, and nothing follows the end of a claim."""

    async def events(store: Store, number: int) -> list[tuple[str, int]]:
        return [(entry.event.value, entry.count) for entry in await store.history(number)][::-1]

    store = await Store.open(None)
    for _number in range(BURST):
        store.record(HistoryEvent.ATTACHED, busid="1-1")
        store.record(HistoryEvent.DETACHED, busid="1-1")
    store.record(HistoryEvent.ATTACHED, busid="1-1")
    store.record(HistoryEvent.BOUND, busid="1-2")
    assert (await events(store, 1)) == [("bound", 1)], "that of another device"
    store.record(HistoryEvent.FAILED, busid="1-1")
    half = BURST // 2
    assert (await events(store, 3)) == [("detached", half), ("attached", half + 1), ("failed", 1)]
    store.record(HistoryEvent.CLAIMED, busid="1-1")
    store.record(HistoryEvent.RELEASED, busid="1-1")
    store.record(HistoryEvent.STOPPED)
    assert (await events(store, 3)) == [("claimed", 1), ("released", 1), ("stopped", 1)]
    before = await store.history(100)
    await store.end_last_run()
    assert await store.history(100) == before, "nothing is left open"
    await store.close()


async def test_merged_entries_are_written_when_the_minute_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiter, "INTERVAL", 0.01)
    store = await Store.open(None)
    for _number in range(BURST + 5):
        store.record(HistoryEvent.ATTACHED, busid="1-1")
    async with asyncio.timeout(PATIENCE):
        while (await store.history(1))[0].count == 1:  # noqa: ASYNC110 - a timer inside the store
            await asyncio.sleep(0.001)
    assert (await store.history(1))[0].count == 5
    await store.close()


async def test_entries_are_written_without_being_read(directory: Path) -> None:
    store = await Store.open(directory)
    store.record(HistoryEvent.STARTED)
    with another_program(directory) as other:
        await until(lambda: other.execute("SELECT event FROM history").fetchall() == [("started",)])
    await store.close()


async def test_a_full_queue_drops_the_oldest_entry_and_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_QUEUED", 5)
    store = await Store.open(None)
    with busy(store):
        for number in range(12):
            store.record(HistoryEvent.ATTACHED, bytes_in=number)
    entries = await store.history(100)
    assert [entry.bytes_in for entry in entries] == [11, 10, 9, 8, 7, None]
    assert entries[-1].event is HistoryEvent.FAILED
    assert entries[-1].reason == ("7 entries of the history before this one could not be written")
    [lost] = await store.check()
    assert lost.message == "7 entries of the history could not be written"
    store.record(HistoryEvent.STOPPED)
    assert [entry.event for entry in await store.history(2)] == ["stopped", "attached"], "reported once"
    await store.close()


async def test_recording_does_not_wait_while_the_thread_is_busy(directory: Path) -> None:
    store = await Store.open(directory)
    with busy(store):
        adding = asyncio.create_task(store.add_binding(BINDINGS[0]))
        await asyncio.sleep(0)
        store.record(HistoryEvent.BOUND)
        assert not adding.done()
    await adding
    await store.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_tables, "BUSY_TIMEOUT", 0.01)


@pytest.mark.usefixtures("impatient")
async def test_while_another_program_holds_the_file(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = await Store.open(directory)
    await store.add_binding(BINDINGS[0])
    with another_program(directory) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UsbipdError, match="database is locked") as caught:
            await store.add_binding(BINDINGS[1])
        assert caught.value.code == "store"
        assert caught.value.advice == "close the other program that has it open"
        with pytest.raises(UsbipdError, match="database is locked"):
            await store.begin_claim(CLAIM)
        assert await store.bindings() == [BINDINGS[0]]
        for number in range(3):
            store.record(HistoryEvent.ATTACHED, bytes_in=number)
            assert await store.history(10) == []
        [problem, lost] = await store.check()
        assert problem.message.endswith("database is locked")
        assert problem.advice == "close the other program that has it open"
        assert lost.message.startswith("3 entries of the history")
    store.record(HistoryEvent.ATTACHED, bytes_in=3)
    [newest, gap] = await store.history(10)
    assert (newest.bytes_in, gap.reason) == (
        3,
        "3 entries of the history before this one could not be written",
    )
    await store.add_binding(BINDINGS[1])
    await store.close()
    assert await reopen(directory) == (BINDINGS[:2], [])
    assert [record.message for record in caplog.records] == [
        f"cannot write the history: cannot use the store {directory / DATABASE}: database is locked"
    ]


async def test_a_store_that_becomes_damaged_while_it_is_used(directory: Path) -> None:
    store = await Store.open(directory)
    for one in BINDINGS:
        await store.add_binding(one)
    with another_program(directory) as other:
        other.execute("UPDATE bindings SET vendor_id = 'x' WHERE id = 2")
        other.execute("INSERT INTO claims VALUES ('1-1', -1, 0, 0)")
        other.execute("INSERT INTO history (time, event) VALUES (0, 'eaten')")
    for read in (store.bindings, store.claims):
        with pytest.raises(UsbipdError, match=r"invalid (binding|claim)") as caught:
            await read()
        assert caught.value.code == "store"
    assert await store.history(10) == []
    [problem] = await store.check()
    assert problem.advice == "restart the daemon, which then restores the last good copy"
    await store.close()
    bindings, [sentence] = await reopen(directory)
    assert bindings == BINDINGS
    assert sentence.endswith(", with 3 bindings")


async def test_a_store_that_is_removed_while_it_is_used(directory: Path) -> None:
    store = await Store.open(directory)
    await store.add_binding(BINDINGS[0])
    (directory / DATABASE).unlink()
    assert "was removed while in use" in " ".join(map(str, await store.check()))
    await store.close()
    bindings, [sentence] = await reopen(directory)
    assert bindings == [BINDINGS[0]]
    assert "was missing" in sentence


async def test_memory_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = await Store.open(None), await Store.open(None)
    await one.add_binding(BINDINGS[0])
    await one.begin_claim(CLAIM)
    one.record(HistoryEvent.STARTED)
    assert await one.check() == []
    assert await other.bindings() == []
    assert os.listdir() == []  # noqa: PTH208
    await one.close()
    await other.close()
    assert list(tmp_path.iterdir()) == []


async def test_queued_entries_are_written_at_close(directory: Path) -> None:
    store = await Store.open(directory)
    store.record(HistoryEvent.STOPPED)
    await store.close()
    await store.close()
    store.record(HistoryEvent.STARTED)
    with pytest.raises(UsbipdError, match="is closed"):
        await store.bindings()
    store = await Store.open(directory)
    assert [entry.event for entry in await store.history(10)] == [HistoryEvent.STOPPED]
    await store.close()


def test_two_extensions_never_share_one_store(directory: Path) -> None:
    second = "import asyncio, sys; from pathlib import Path; from usbipd.extension.store import Store\n"
    second += "asyncio.run(Store.open(Path(sys.argv[1])))"

    def in_another_process() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", second, directory]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    async def test() -> None:
        store = await Store.open(directory)
        with pytest.raises(UsbipdError, match="is in use") as caught:
            await Store.open(directory)
        assert str(directory) in caught.value.message
        assert caught.value.code == "store-in-use"
        assert "--state DIR" in (caught.value.advice or "")
        process = await asyncio.to_thread(in_another_process)
        assert "is in use by another usbipd" in process.stderr
        await store.add_binding(BINDINGS[0])
        await store.close()
        assert await reopen(directory) == ([BINDINGS[0]], [])

    run(test())


async def test_a_cancelled_open_unlocks_the_directory(directory: Path) -> None:
    for turns in range(4):
        opening = asyncio.create_task(Store.open(directory))
        for _turn in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert await reopen(directory) == ([], [])


def test_only_the_owner_can_read_the_store(directory: Path) -> None:
    def modes() -> list[int]:
        return [stat.S_IMODE(path.stat().st_mode) for path in [directory, *directory.iterdir()]]

    async def test() -> None:
        store = await Store.open(directory)
        await store.add_binding(BINDINGS[0])
        assert modes() == [0o700, *[0o600] * 5], "the directory; main, log, its index, copy, lock"
        await store.close()
        (directory / DATABASE).chmod(0o666)
        await reopen(directory)
        assert modes() == [0o700, *[0o600] * 3]

    before = os.umask(0)
    try:
        run(test())
    finally:
        os.umask(before)


def test_a_directory_that_others_may_write_is_refused(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o770)
    with pytest.raises(UsbipdError, match="may be written by another user") as caught:
        asyncio.run(reopen(directory))
    assert "--state" in (caught.value.advice or "")
    assert list(directory.iterdir()) == []


async def test_products_that_are_not_valid_text(directory: Path) -> None:
    store = await Store.open(directory)
    await store.add_binding(binding(product="half \ud83d a pair\0"))
    assert [one.product for one in await store.bindings()] == ["half ? a pair\0"]
    await store.close()
