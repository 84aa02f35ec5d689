"""Keeps bindings, claims and the history in SQLite.  Runs in the extension.

All SQLite calls run on a separate thread, one job after the other, so the event loop never waits for a disk.
`store_tables` has the schema and the rows, `store_file` the files and their recovery.
"""

import asyncio
import logging
import sqlite3
import threading
import time as clock
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from usbipd.errors import UsbipdError
from usbipd.extension import store_tables
from usbipd.extension.store_file import FAILURES, StoreFile, store_error
from usbipd.extension.store_tables import MAX_INTEGER, Binding, StoredClaim
from usbipd.ipc.control_messages import HistoryEntry, HistoryEvent
from usbipd.limiter import Limiter
from usbipd.usb.identity import DeviceRule

__all__ = ["Binding", "Store", "StoredClaim"]

_LOG: Final = logging.getLogger(__name__)

MAX_QUEUED: Final = 1000
"""Entries of the history that wait to be written; beyond that, the oldest is dropped."""
MAX_HISTORY: Final = 2000
"""Entries kept per kind of event, so that events of clients do not displace those of users."""
RATE_LIMITED: Final = {
    HistoryEvent.CLAIMED,
    HistoryEvent.RELEASED,
    HistoryEvent.ATTACHED,
    HistoryEvent.DETACHED,
    HistoryEvent.UNPLUGGED,
}
"""Events that clients and devices can cause at any rate: `limiter.py` bounds how often they are written."""
LONGEST_REASON: Final = 1000
"""Characters of a reason that are kept: part of it may come from a worker."""
KILLED: Final = "usbipd was killed, or the host went down"
"""The reason recorded for sessions and claims whose end was not recorded."""

_T = TypeVar("_T")
_Figure = TypeVar("_Figure", int, float)


class Store:
    """Bindings, claims and the history.

    Changes of bindings and claims are durable when the method returns.  Every method raises `UsbipdError`,
    code "store", if reading or writing fails; nothing has changed then.
    """

    def __init__(self, file: StoreFile | None) -> None:
        """Use `open` instead."""
        self._file = file
        self._where = file.path if file is not None else Path(":memory:")
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._queue = _Queue()
        self._limiter = Limiter(self._enqueue, _merge)
        """By busid; holds at most one entry per kind of event for each port that ever had a device."""
        self._is_open = True
        self._connection: sqlite3.Connection | None = None  # used by the thread only
        self._history_fails = False  # used by the thread only
        self.problems: list[str] = [] if file is None else file.problems
        """What recovery found and did when the store was opened, one sentence each."""

    @classmethod
    async def open(cls, directory: Path | None) -> "Store":
        """Open the store in `directory`, which is created if missing; None: a store in memory.

        A store that is damaged or of a newer release is set aside, and the last good copy is used: see
        `problems`.  Raises `UsbipdError` if another extension uses the directory (code "store-in-use"), if
        other users can write to it, or if its disk fails.
        """
        store = cls(None if directory is None else StoreFile(directory))
        try:
            await store._run(store._open)
            store._limiter.use_timer(asyncio.get_running_loop().call_later)
        except BaseException:
            await store.close()
            raise
        return store

    async def bindings(self) -> list[Binding]:
        """All bindings, oldest first."""
        return await self._with_connection(store_tables.read_bindings)

    async def add_binding(self, binding: Binding) -> None:
        """Add a binding, or replace the one with the same rule."""

        def work(connection: sqlite3.Connection) -> None:
            store_tables.put_binding(connection, binding)
            self._save_copy(connection)

        await self._with_connection(work)

    async def remove_bindings(self, rules: Sequence[DeviceRule]) -> None:
        """Remove the bindings with exactly these rules; a missing one is no error."""

        def work(connection: sqlite3.Connection) -> None:
            store_tables.delete_bindings(connection, rules)
            self._save_copy(connection)

        await self._with_connection(work)

    async def claims(self) -> list[StoredClaim]:
        """The devices that are claimed, or were being claimed when the extension was killed."""
        return await self._with_connection(store_tables.read_claims)

    async def begin_claim(self, claim: StoredClaim) -> None:
        """Record a claim, before the drivers are detached."""
        await self._with_connection(lambda connection: store_tables.put_claim(connection, claim))

    async def end_claim(self, busid: str) -> None:
        """Remove a claim: the device has its drivers again, or was unplugged."""
        await self._with_connection(lambda connection: store_tables.delete_claim(connection, busid))

    def record(
        self,
        event: HistoryEvent,
        *,
        time: float | None = None,
        busid: str | None = None,
        vendor_id: int | None = None,
        product_id: int | None = None,
        product: str | None = None,
        client: str | None = None,
        reason: str | None = None,
        seconds: float | None = None,
        bytes_in: int | None = None,
        bytes_out: int | None = None,
    ) -> None:
        """Queue an entry of the history; `time` is seconds since the epoch, by default now.

        Returns at once and never raises.  If clients or a device cause more than a few entries of a device in
        a minute, they become one per kind of event, queued when the minute is over or another event of the
        device occurs.  Lost entries are counted and reported by the history and `check`.  After `close`, this
        does nothing.
        """
        entry = HistoryEntry(
            id=0,  # assigned by the table
            time=clock.time() if time is None else time,
            event=event,
            busid=busid,
            vendor_id=vendor_id,
            product_id=product_id,
            product=product,
            client=client,
            reason=None if reason is None else reason[:LONGEST_REASON],
            seconds=seconds,
            bytes_in=bytes_in,
            bytes_out=bytes_out,
        )
        if event in RATE_LIMITED and self._is_open:
            self._limiter.add(busid, (entry,))
        else:
            self._limiter.flush(busid)  # None, as when the daemon stops: all
            self._enqueue((entry,))

    def _enqueue(self, entries: tuple[HistoryEntry, ...]) -> None:
        for entry in entries:
            if self._is_open and self._queue.put(entry):
                self._thread.submit(self._write_history)  # before any later job

    async def history(self, limit: int, before: int | None = None) -> list[HistoryEntry]:
        """At most `limit` entries with an id below `before`, newest first."""
        below = MAX_INTEGER if before is None else max(0, min(before, MAX_INTEGER))
        return await self._with_connection(
            lambda connection: store_tables.read_history(connection, limit, below)
        )

    async def end_last_run(self) -> None:
        """Record the end of sessions and claims that a killed extension left open in the history.

        Call it before anything else is recorded.  Never raises: a failure is logged, and the entries stay
        without an end.
        """
        try:
            await self._with_connection(_end_last_run)
        except UsbipdError as error:
            _LOG.error("cannot record the end of the previous run in the history: %s", error)

    async def check(self) -> list[UsbipdError]:
        """What is wrong with the store now; code `KEPT_ASIDE`: an old file that was set aside.

        Reads the whole store and tries to write.
        """
        return await self._run(self._check)

    async def close(self) -> None:
        """Finish all jobs, write what was recorded, and close the store.  Idempotent."""
        if self._is_open:
            self._limiter.flush()
            self._is_open = False
            # even if we are cancelled, the running job ends first, then the store is closed
            closed = asyncio.get_running_loop().run_in_executor(self._thread, self._close)
            self._thread.shutdown(wait=False)
            await asyncio.shield(closed)

    async def _with_connection(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        def job() -> _T:
            assert self._connection is not None
            return work(self._connection)

        return await self._run(job)

    async def _run(self, job: Callable[[], _T]) -> _T:
        if not self._is_open:
            raise UsbipdError(f"the store {self._where} is closed", code="store")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, job)
        except FAILURES as error:
            raise store_error(self._where, error) from error

    # The methods below run on the store's thread.

    def _open(self) -> None:
        self._connection = store_tables.create() if self._file is None else self._file.open()

    def _close(self) -> None:
        try:
            if self._connection is not None:
                self._connection.close()
        finally:
            if self._file is not None:
                self._file.close()

    def _save_copy(self, connection: sqlite3.Connection) -> None:
        if self._file is not None:
            self._file.save_copy(connection)

    def _write_history(self) -> None:
        entries, unrecorded = self._queue.take()
        if not entries or self._connection is None:
            return
        gap = [_gap(unrecorded, entries[0].time)] if unrecorded else []
        try:
            store_tables.append_history(self._connection, gap + entries, keep=MAX_HISTORY)
            self._history_fails = False
        except FAILURES as error:
            self._queue.lose(len(entries), unrecorded)
            if not self._history_fails:
                _LOG.error("cannot write the history: %s", store_error(self._where, error))
            self._history_fails = True

    def _check(self) -> list[UsbipdError]:
        assert self._connection is not None
        problems = []
        try:
            store_tables.verify(self._connection)
            store_tables.try_to_write(self._connection)
            if self._file is not None:
                problems += self._file.problems_now()
        except FAILURES as error:
            problems.append(store_error(self._where, error))
        if self._queue.lost:
            problems.append(
                UsbipdError(
                    f"{_entries(self._queue.lost)} of the history could not be written",
                    code="store",
                    advice="see the daemon's log for the reason, fix it and restart the daemon",
                )
            )
        return problems


class _Queue:
    """Passes entries from the event loop to the store's thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: deque[HistoryEntry] = deque()
        self._unrecorded = 0
        self.lost = 0
        """Entries that were dropped."""

    def put(self, entry: HistoryEntry) -> bool:
        """Add an entry; returns whether a job must be submitted to `take` it."""
        with self._lock:
            first = not self._entries
            if len(self._entries) == MAX_QUEUED:
                self._entries.popleft()
                self._lose(1)
            self._entries.append(entry)
            return first

    def take(self) -> tuple[list[HistoryEntry], int]:
        """All entries, and how many were dropped before them since the last call."""
        with self._lock:
            entries, unrecorded = list(self._entries), self._unrecorded
            if entries:
                self._entries.clear()
                self._unrecorded = 0
            return entries, unrecorded

    def lose(self, count: int, unrecorded: int) -> None:
        """Drop `count` entries that were taken; the `unrecorded` ones before them are not reported yet."""
        with self._lock:
            self._lose(count)
            self._unrecorded += unrecorded

    def _lose(self, count: int) -> None:
        self._unrecorded += count
        self.lost += count


def _merge(held: tuple[HistoryEntry, ...], new: tuple[HistoryEntry, ...]) -> tuple[HistoryEntry, ...]:
    """One entry per kind of event, ordered by the last occurrence; `new` is a single entry."""
    [entry] = new
    others = tuple(each for each in held if each.event is not entry.event)
    for same in held:
        if same.event is entry.event:
            entry = msgspec.structs.replace(
                entry,
                count=same.count + 1,
                seconds=_sum(same.seconds, entry.seconds),
                bytes_in=_sum(same.bytes_in, entry.bytes_in),
                bytes_out=_sum(same.bytes_out, entry.bytes_out),
            )
    return (*others, entry)


def _sum(one: _Figure | None, other: _Figure | None) -> _Figure | None:
    """None: neither is known."""
    if one is None or other is None:
        return one if other is None else other
    return one + other


def _end_last_run(connection: sqlite3.Connection) -> None:
    unended = store_tables.read_unended(connection)
    ends = [
        msgspec.structs.replace(entry, event=HistoryEvent.DETACHED)
        for entry in unended
        if entry.event is HistoryEvent.ATTACHED
    ]
    ends += [msgspec.structs.replace(entry, event=HistoryEvent.FAILED, client=None) for entry in unended]
    ends.sort(key=lambda end: end.busid is None)  # the daemon's end comes last
    now = clock.time()  # the actual time is unknown
    store_tables.append_history(
        connection,
        [
            msgspec.structs.replace(
                end, time=now, reason=KILLED, seconds=None, bytes_in=None, bytes_out=None, count=1
            )
            for end in ends
        ],
        keep=MAX_HISTORY,
    )


def _gap(lost: int, time: float) -> HistoryEntry:
    reason = f"{_entries(lost)} of the history before this one could not be written"
    return HistoryEntry(id=0, time=time, event=HistoryEvent.FAILED, reason=reason)


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count} entries"
