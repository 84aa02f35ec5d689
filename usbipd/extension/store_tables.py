"""The tables of the store: their schema, and how rows are read and written.  Runs in the extension.

Functions take an open connection, block, and belong on the store's own thread.  They raise `sqlite3.Error`,
and `DamagedStoreError` for rows that we cannot have written.
"""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from typing import Final

import msgspec

from usbipd.errors import UsbipdError
from usbipd.ipc.control_messages import HistoryEntry, UsbId
from usbipd.ipc.message import Message
from usbipd.usb.identity import DeviceRule

APPLICATION_ID: Final = 0x55534249
"""Bytes 68 to 71 of our files (https://www.sqlite.org/fileformat.html, "Application ID"): USBI."""

BUSY_TIMEOUT: Final = 5.0
"""Seconds that we wait for another program, such as the sqlite3 shell, to let go of the file."""

MAX_INTEGER: Final = 2**63 - 1
"""The largest INTEGER of SQLite."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE seal (generation INTEGER NOT NULL, digest TEXT NOT NULL)",
        """CREATE TABLE bindings (
            id INTEGER PRIMARY KEY,
            vendor_id INTEGER, product_id INTEGER, serial TEXT, busid TEXT,
            product TEXT, allow TEXT NOT NULL, created REAL NOT NULL, created_by TEXT NOT NULL
        )""",
        # in UNIQUE (vendor_id, ...) each NULL would differ from every other one
        """CREATE UNIQUE INDEX bindings_by_rule ON bindings
            (ifnull(vendor_id, -1), ifnull(product_id, -1), ifnull(serial, ''), ifnull(busid, ''))""",
        """CREATE TABLE claims (
            busid TEXT PRIMARY KEY,
            vendor_id INTEGER NOT NULL, product_id INTEGER NOT NULL, since REAL NOT NULL
        )""",
        """CREATE TABLE history (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            time REAL NOT NULL, event TEXT NOT NULL,
            busid TEXT, vendor_id INTEGER, product_id INTEGER, product TEXT, client TEXT,
            reason TEXT, seconds REAL, bytes_in INTEGER, bytes_out INTEGER
        )""",
    ),
    ("ALTER TABLE history ADD COLUMN count INTEGER NOT NULL DEFAULT 1",),
)
"""Entry n leads from schema version n to n + 1.  What was released stays; a change is a new entry."""


@dataclass(frozen=True, slots=True)
class Binding:
    """A persisted rule: every device that it fits is to be shared."""

    rule: DeviceRule
    product: str | None
    """What the device called itself when it was bound."""
    allow: tuple[str, ...]
    """Addresses and networks in CIDR notation that may use it; none: no restriction."""
    created: float
    """Seconds since the epoch."""
    created_by: str


@dataclass(frozen=True, slots=True)
class StoredClaim:
    """A device that we hold, or are about to take from its drivers."""

    busid: str
    vendor_id: UsbId
    product_id: UsbId
    since: float
    """Seconds since the epoch."""


RESTART: Final = "start usbipd again: it then goes on with the last good copy"
"""The advice when a store turns out to be damaged while it is in use."""


class DamagedStoreError(UsbipdError):
    """The contents are not what we wrote; `message` says what is wrong with them."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="store", advice=RESTART)


class NewerStoreError(UsbipdError):
    """The schema is one of a later release."""

    def __init__(self, version: int) -> None:
        super().__init__(
            f"schema version {version}, we know {len(MIGRATIONS)}",
            code="store",
            advice="install the newer release again",
        )
        self.version = version


class _BindingRow(Message, frozen=True):
    """Its fields are the columns."""

    vendor_id: UsbId | None
    product_id: UsbId | None
    serial: str | None
    busid: str | None
    product: str | None
    allow: list[str]
    created: float
    created_by: str


_BINDING_COLUMNS: Final = _BindingRow.__struct_fields__
_CLAIM_COLUMNS: Final = tuple(field.name for field in fields(StoredClaim))
_HISTORY_COLUMNS: Final = HistoryEntry.__struct_fields__[1:]
"""Without the id.  A new field of `HistoryEntry` needs a migration."""
_THIS_RULE: Final = "vendor_id IS ? AND product_id IS ? AND serial IS ? AND busid IS ?"


def connect(where: str, *, uri: bool = False) -> sqlite3.Connection:
    """Open a file, or with ":memory:" what lasts as long as the connection; for this thread only.

    Whoever makes a change begins and commits: see `transaction`.
    """
    connection = sqlite3.connect(where, timeout=BUSY_TIMEOUT, isolation_level=None, uri=uri)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA cache_size = -256")  # KiB that it may keep in memory, of 2,000 otherwise
    # macOS: else what is on the disk need not be on the medium (fcntl(2), F_FULLFSYNC); no effect elsewhere
    connection.execute("PRAGMA fullfsync = ON")
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is done inside, durably, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # some errors have ended it already
            connection.execute("ROLLBACK")
        raise


def create(version: int | None = None) -> sqlite3.Connection:
    """An empty store in memory, of our own schema version or an earlier one."""
    connection = connect(":memory:")
    migrate(connection, len(MIGRATIONS) if version is None else version)
    return connection


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Lead the schema from the version that the store has to `version`."""
    with transaction(connection):
        for statements in MIGRATIONS[version_of(connection) : version]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {version}")
        seal(connection)


def version_of(connection: sqlite3.Connection) -> int:
    """The schema version; 0 is an empty file."""
    return _number(connection, "PRAGMA user_version")


def generation_of(connection: sqlite3.Connection) -> int:
    """How many changes of the bindings have led to what is there."""
    return _number(connection, "SELECT ifnull(max(generation), 0) FROM seal")


def verify(connection: sqlite3.Connection) -> None:
    """Read everything.  Raises `DamagedStoreError` unless it is a store as we write it, `NewerStoreError`."""
    if _number(connection, "PRAGMA application_id") != APPLICATION_ID:
        raise DamagedStoreError("it is not a store of usbipd")
    version = version_of(connection)
    if version > len(MIGRATIONS):
        raise NewerStoreError(version)
    if version < 1:
        raise DamagedStoreError(f"there never was a schema version {version}")
    [finding] = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if finding != "ok":
        raise DamagedStoreError(str(finding))
    with closing(create(version)) as empty:
        if _schema(connection) != _schema(empty):
            raise DamagedStoreError(f"its tables are not those of schema version {version}")
    seals = connection.execute("SELECT generation, digest FROM seal").fetchall()
    if seals != [(generation_of(connection), _digest(connection, generation_of(connection)))]:
        raise DamagedStoreError("its bindings do not agree with their checksum")
    if version == len(MIGRATIONS):
        read_bindings(connection)
        read_claims(connection)


# The seal
#
# SQLite notices damage to its own structures, but neither a byte that changed inside a value nor that a
# write-ahead log was lost: without its last commits a file is whole and old.  What is shared with whom must
# not come from either.  So every change of the bindings counts one up and writes a digest over all of them,
# in the same transaction.  A wrong digest is damage; a count below that of the last good copy, which is
# always made after the change, is a loss.


def seal(connection: sqlite3.Connection) -> None:
    """Count a change of the bindings, and write down what they are now; inside the change's transaction."""
    generation = generation_of(connection) + 1
    connection.execute("DELETE FROM seal")
    connection.execute("INSERT INTO seal VALUES (?, ?)", (generation, _digest(connection, generation)))


def _digest(connection: sqlite3.Connection, generation: int) -> str:
    rows = connection.execute("SELECT * FROM bindings ORDER BY id").fetchall()
    return hashlib.sha256(msgspec.json.encode([generation, rows])).hexdigest()


def read_bindings(connection: sqlite3.Connection) -> list[Binding]:
    """All bindings, the oldest first.  Raises `DamagedStoreError`."""
    bindings = []
    for values in _select(connection, _BINDING_COLUMNS, "bindings ORDER BY id"):
        try:
            allow = msgspec.json.decode(str(values["allow"]))
            row = msgspec.convert({**values, "allow": allow}, _BindingRow)
        except msgspec.MsgspecError as error:
            raise DamagedStoreError(f"a binding is impossible: {error}") from error
        rule = DeviceRule(row.vendor_id, row.product_id, row.serial, row.busid)
        if rule == DeviceRule():
            raise DamagedStoreError("a binding is impossible: it fits every device")
        bindings.append(Binding(rule, row.product, tuple(row.allow), row.created, row.created_by))
    return bindings


def count_bindings(connection: sqlite3.Connection) -> int:
    """How many bindings there are."""
    return _number(connection, "SELECT count(*) FROM bindings")


def put_binding(connection: sqlite3.Connection, binding: Binding) -> None:
    """Add a binding, in the place of the one with the same rule if there is one."""
    rule = _values(binding.rule)
    allow = msgspec.json.encode(binding.allow).decode()
    rest = (_storable(binding.product), allow, binding.created, _storable(binding.created_by))
    with transaction(connection):
        update = f"UPDATE bindings SET product=?, allow=?, created=?, created_by=? WHERE {_THIS_RULE}"  # noqa: S608
        if connection.execute(update, (*rest, *rule)).rowcount == 0:
            _insert(connection, "bindings", _BINDING_COLUMNS, [(*rule, *rest)])
        read_bindings(connection)  # what could not be read again is not written
        seal(connection)


def delete_bindings(connection: sqlite3.Connection, rules: Iterable[DeviceRule]) -> None:
    """Remove the bindings with these rules; one that is not there is no error."""
    with transaction(connection):
        connection.executemany(
            f"DELETE FROM bindings WHERE {_THIS_RULE}",  # noqa: S608 - a constant
            [_values(rule) for rule in rules],
        )
        seal(connection)


def read_claims(connection: sqlite3.Connection) -> list[StoredClaim]:
    """All claims by busid.  Raises `DamagedStoreError`."""
    try:
        return [
            msgspec.convert(values, StoredClaim)
            for values in _select(connection, _CLAIM_COLUMNS, "claims ORDER BY busid")
        ]
    except msgspec.ValidationError as error:
        raise DamagedStoreError(f"a claim is impossible: {error}") from error


def put_claim(connection: sqlite3.Connection, claim: StoredClaim) -> None:
    """Add a claim, in the place of the one with the same busid if there is one."""
    row = (claim.busid, claim.vendor_id, claim.product_id, claim.since)
    with transaction(connection):
        connection.execute("DELETE FROM claims WHERE busid = ?", (claim.busid,))
        _insert(connection, "claims", _CLAIM_COLUMNS, [row])


def delete_claim(connection: sqlite3.Connection, busid: str) -> None:
    """Remove a claim; one that is not there is no error."""
    with transaction(connection):
        connection.execute("DELETE FROM claims WHERE busid = ?", (busid,))


def try_to_write(connection: sqlite3.Connection) -> None:
    """Write to the disk what a claim would, and leave nothing of it."""
    with transaction(connection):
        connection.execute("INSERT INTO claims VALUES ('', 0, 0, 0.0)")
        connection.execute("DELETE FROM claims WHERE busid = ''")


def read_history(connection: sqlite3.Connection, limit: int, before: int) -> list[HistoryEntry]:
    """At most `limit` entries with an id below `before`, the newest first; impossible ones are left out."""
    return _read_entries(connection, "id < ? ORDER BY id DESC LIMIT ?", (before, limit))


def read_unended(connection: sqlite3.Connection) -> list[HistoryEntry]:
    """Of the daemon and of each device the newest entry, if what it tells of has no end; the oldest first."""
    newest = """SELECT max(id) FROM history
        WHERE event NOT IN ('bound', 'unbound') AND NOT (busid IS NULL AND event = 'failed') GROUP BY busid"""
    return _read_entries(
        connection,
        f"event IN ('started', 'claimed', 'attached', 'detached') AND id IN ({newest}) ORDER BY id",
    )


def _read_entries(
    connection: sqlite3.Connection, which: str, parameters: Sequence[object] = ()
) -> list[HistoryEntry]:
    entries = []
    for values in _select(connection, ("id", *_HISTORY_COLUMNS), f"history WHERE {which}", parameters):
        try:
            entries.append(msgspec.convert(values, HistoryEntry))
        except msgspec.ValidationError:  # a byte has changed on the disk; the others are still good
            continue
    return entries


def append_history(connection: sqlite3.Connection, entries: Sequence[HistoryEntry], *, keep: int) -> None:
    """Add entries, whose ids are ours to give, and forget all but the newest `keep` of each event among them.

    Neither another event nor the clock makes one be forgotten: both are in the hands of others.
    """
    rows = [tuple(_storable(getattr(entry, column)) for column in _HISTORY_COLUMNS) for entry in entries]
    with transaction(connection):
        _insert(connection, "history", _HISTORY_COLUMNS, rows)
        connection.executemany(
            """DELETE FROM history WHERE event = ?1 AND id <=
                (SELECT id FROM history WHERE event = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)""",
            [(event, keep) for event in {entry.event for entry in entries}],
        )


def _storable(value: object) -> object:
    """What SQLite can keep of a value: a peer has had a say in counters and texts."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()  # half a surrogate pair is not UTF-8
    if isinstance(value, int):
        return max(-MAX_INTEGER, min(value, MAX_INTEGER))
    return value


def _select(
    connection: sqlite3.Connection, columns: Sequence[str], tail: str, parameters: Sequence[object] = ()
) -> list[dict[str, object]]:
    query = f"SELECT {', '.join(columns)} FROM {tail}"  # noqa: S608 - all of it constants of this file
    return [dict(zip(columns, row, strict=True)) for row in connection.execute(query, parameters)]


def _insert(
    connection: sqlite3.Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    places = ", ".join("?" * len(columns))
    statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})"  # noqa: S608 - constants too
    connection.executemany(statement, rows)


def _values(rule: DeviceRule) -> tuple[int | str | None, ...]:
    return rule.vendor_id, rule.product_id, rule.serial, rule.busid


def _schema(connection: sqlite3.Connection) -> list[tuple[object, ...]]:
    return connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name").fetchall()


def _number(connection: sqlite3.Connection, query: str) -> int:
    row = connection.execute(query).fetchone()
    if not isinstance(row[0], int):
        raise DamagedStoreError(f"{row[0]!r} is not a number")
    return row[0]
