"""The history after an extension was killed: the next one adds the missing ends."""

import time

import pytest

from usbipd.extension.store import KILLED, MAX_QUEUED, Store
from usbipd.ipc.control_messages import HistoryEntry, HistoryEvent


def fields_of(entries: list[HistoryEntry]) -> list[tuple[str, str | None, str | None, str | None]]:
    """Oldest first."""
    return [(entry.event.value, entry.busid, entry.client, entry.reason) for entry in entries[::-1]]


async def test_open_entries_are_ended() -> None:
    store = await Store.open(None)
    began = time.time() - 100
    store.record(HistoryEvent.STARTED, reason="version 1", time=began)
    for busid in ("1-1", "1-2", "1-3", "1-4", "1-5"):
        store.record(HistoryEvent.CLAIMED, busid=busid, vendor_id=1, product_id=2, product="Thing")
    store.record(HistoryEvent.ATTACHED, busid="1-2", vendor_id=1, product_id=2, client="192.0.2.1:5")
    store.record(HistoryEvent.ATTACHED, busid="1-3", client="192.0.2.1:6")
    store.record(HistoryEvent.DETACHED, busid="1-3", client="192.0.2.1:6", seconds=5.0, bytes_in=7)
    store.record(HistoryEvent.RELEASED, busid="1-4", seconds=5.0)
    store.record(HistoryEvent.FAILED, busid="1-5", seconds=5.0)
    store.record(HistoryEvent.FAILED, reason="the server ended")
    store.record(HistoryEvent.BOUND, busid="1-1")
    store.record(HistoryEvent.UNBOUND, vendor_id=1, product_id=2)
    before = await store.history(100)
    await store.end_last_run()
    entries = await store.history(100)
    ends = entries[: -len(before)]
    assert entries[len(ends) :] == before
    assert fields_of(ends) == [
        ("detached", "1-2", "192.0.2.1:5", KILLED),
        ("failed", "1-1", None, KILLED),
        ("failed", "1-2", None, KILLED),
        ("failed", "1-3", None, KILLED),
        ("failed", None, None, KILLED),
    ]
    assert all(end.time > began + 99 for end in ends)
    assert {(end.seconds, end.bytes_in) for end in ends} == {(None, None)}
    assert (ends[-2].vendor_id, ends[-2].product_id, ends[-2].product) == (1, 2, "Thing")
    store.record(HistoryEvent.STARTED)
    store.record(HistoryEvent.STOPPED)
    last = await store.history(100)
    await store.end_last_run()
    assert await store.history(100) == last, "once"
    await store.close()


async def test_ended_entries_are_not_ended_again() -> None:
    store = await Store.open(None)
    await store.end_last_run()
    assert await store.history(100) == [], "empty at the first start"
    store.record(HistoryEvent.STARTED)
    store.record(HistoryEvent.CLAIMED, busid="1-1")
    store.record(HistoryEvent.UNPLUGGED, busid="1-1")
    store.record(HistoryEvent.STOPPED)
    await store.end_last_run()
    assert len(await store.history(100)) == 4
    await store.close()


async def test_as_many_ends_as_there_were_devices() -> None:
    """More than fit into the queue."""
    store = await Store.open(None)
    for number in range(2 * MAX_QUEUED):
        store.record(HistoryEvent.CLAIMED, busid=f"1-{number}")
        if number % 500 == 0:
            await store.history(1)  # once this returns, they are written
    await store.end_last_run()
    events = [entry.event for entry in await store.history(9 * MAX_QUEUED)]
    assert events.count(HistoryEvent.FAILED) == 2 * MAX_QUEUED
    await store.close()


async def test_a_broken_store_does_not_prevent_the_start(caplog: pytest.LogCaptureFixture) -> None:
    store = await Store.open(None)
    connection = store._connection
    assert connection is not None
    await store._run(lambda: connection.execute("DROP TABLE history"))
    await store.end_last_run()
    await store.close()
    assert "cannot record the end of the previous run in the history" in caplog.text
