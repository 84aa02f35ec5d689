"""The tables of the store: their schema, and functions that read and write rows.  Runs in the extension.

Functions take an open connection, block, and must run on the store's thread.  They raise `sqlite3.Error`, and
`DamagedStoreError` for rows that usbipd cannot have written.
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
"""Bytes 68 to 71 of the file (https://www.sqlite.org/fileformat.html, "Application ID"): USBI."""

BUSY_TIMEOUT: Final = 5.0
"""Seconds to wait for another program, such as the sqlite3 shell, to unlock the file."""

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
"""Entry n migrates schema version n to n + 1.  Released entries never change; add a new one."""


@dataclass(frozen=True, slots=True)
class Binding:
    """A persisted rule: every device that matches it is shared."""

    rule: DeviceRule
    product: str | None
    """The device's product string when it was bound."""
    allow: tuple[str, ...]
    """Addresses and networks in CIDR notation that may use it; empty: no restriction."""
    created: float
    """Seconds since the epoch."""
    created_by: str


@dataclass(frozen=True, slots=True)
class StoredClaim:
    """A device that is claimed, or about to be claimed."""

    busid: str
    vendor_id: UsbId
    product_id: UsbId
    since: float
    """Seconds since the epoch."""


RESTART: Final = "restart the daemon, which then restores the last good copy"
"""The advice if a store is found damaged while it is in use."""


class DamagedStoreError(UsbipdError):
    """The contents are not what usbipd wrote; `message` says what is wrong."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="store", advice=RESTART)


class NewerStoreError(UsbipdError):
    """The schema is one of a later release."""

    def __init__(self, version: int) -> None:
        super().__init__(
            f"schema version {version}, this release supports {len(MIGRATIONS)}",
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
"""All but the id.  A new field of `HistoryEntry` needs a migration."""
_THIS_RULE: Final = "vendor_id IS ? AND product_id IS ? AND serial IS ? AND busid IS ?"


def connect(where: str, *, uri: bool = False) -> sqlite3.Connection:
    """Open a file, or with ":memory:" a database that lasts as long as the connection; for this thread only.

    Changes need an explicit `transaction`.
    """
    connection = sqlite3.connect(where, timeout=BUSY_TIMEOUT, isolation_level=None, uri=uri)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA cache_size = -256")  # KiB of memory; the default is 2,000
    # macOS: fsync alone does not flush the disk's cache (fcntl(2), F_FULLFSYNC); no effect elsewhere
    connection.execute("PRAGMA fullfsync = ON")
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Make all changes inside durable, or none of them."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # some errors roll back automatically
            connection.execute("ROLLBACK")
        raise


def create(version: int | None = None) -> sqlite3.Connection:
    """An empty store in memory, of the current schema version or an earlier one."""
    connection = connect(":memory:")
    migrate(connection, len(MIGRATIONS) if version is None else version)
    return connection


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Migrate the schema from the version of the store to `version`."""
    with transaction(connection):
        for statements in MIGRATIONS[version_of(connection) : version]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {version}")
        seal(connection)


def version_of(connection: sqlite3.Connection) -> int:
    """The schema version; 0: an empty file."""
    return _number(connection, "PRAGMA user_version")


def generation_of(connection: sqlite3.Connection) -> int:
    """How often the bindings have changed."""
    return _number(connection, "SELECT ifnull(max(generation), 0) FROM seal")


def verify(connection: sqlite3.Connection) -> None:
    """Read everything.  Raises `DamagedStoreError` unless it is a valid store, and `NewerStoreError`."""
    if _number(connection, "PRAGMA application_id") != APPLICATION_ID:
        raise DamagedStoreError("it is not a store of usbipd")
    version = version_of(connection)
    if version > len(MIGRATIONS):
        raise NewerStoreError(version)
    if version < 1:
        raise DamagedStoreError(f"schema version {version} does not exist")
    [finding] = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if finding != "ok":
        raise DamagedStoreError(str(finding))
    with closing(create(version)) as empty:
        if _schema(connection) != _schema(empty):
            raise DamagedStoreError(f"its tables are not those of schema version {version}")
    seals = connection.execute("SELECT generation, digest FROM seal").fetchall()
    if seals != [(generation_of(connection), _digest(connection, generation_of(connection)))]:
        raise DamagedStoreError("bindings checksum mismatch")
    if version == len(MIGRATIONS):
        read_bindings(connection)
        read_claims(connection)


# The seal
#
# SQLite detects damage to its own structures, but neither a changed byte inside a value nor the loss of a
# write-ahead log: without its last commits a file is valid, but old.  Access to devices must not depend on
# such data.  So every change of the bindings increments a generation and writes a digest over all of them, in
# the same transaction.  A wrong digest means damage; a generation below that of the last good copy, which is
# always made after the change, means a loss.


def seal(connection: sqlite3.Connection) -> None:
    """Increment the generation and write the digest of the bindings; inside the change's transaction."""
    generation = generation_of(connection) + 1
    connection.execute("DELETE FROM seal")
    connection.execute("INSERT INTO seal VALUES (?, ?)", (generation, _digest(connection, generation)))


def _digest(connection: sqlite3.Connection, generation: int) -> str:
    rows = connection.execute("SELECT * FROM bindings ORDER BY id").fetchall()
    return hashlib.sha256(msgspec.json.encode([generation, rows])).hexdigest()


def read_bindings(connection: sqlite3.Connection) -> list[Binding]:
    """All bindings, oldest first.  Raises `DamagedStoreError`."""
    bindings = []
    for values in _select(connection, _BINDING_COLUMNS, "bindings ORDER BY id"):
        try:
            allow = msgspec.json.decode(str(values["allow"]))
            row = msgspec.convert({**values, "allow": allow}, _BindingRow)
        except msgspec.MsgspecError as error:
            raise DamagedStoreError(f"invalid binding: {error}") from error
        rule = DeviceRule(row.vendor_id, row.product_id, row.serial, row.busid)
        if rule == DeviceRule():
            raise DamagedStoreError("invalid binding: it matches every device")
        bindings.append(Binding(rule, row.product, tuple(row.allow), row.created, row.created_by))
    return bindings


def count_bindings(connection: sqlite3.Connection) -> int:
    """The number of bindings."""
    return _number(connection, "SELECT count(*) FROM bindings")


def put_binding(connection: sqlite3.Connection, binding: Binding) -> None:
    """Add a binding, or replace the one with the same rule."""
    rule = _values(binding.rule)
    allow = msgspec.json.encode(binding.allow).decode()
    rest = (_storable(binding.product), allow, binding.created, _storable(binding.created_by))
    with transaction(connection):
        update = f"UPDATE bindings SET product=?, allow=?, created=?, created_by=? WHERE {_THIS_RULE}"  # noqa: S608
        if connection.execute(update, (*rest, *rule)).rowcount == 0:
            _insert(connection, "bindings", _BINDING_COLUMNS, [(*rule, *rest)])
        read_bindings(connection)  # raises if the new row cannot be read again
        seal(connection)


def delete_bindings(connection: sqlite3.Connection, rules: Iterable[DeviceRule]) -> None:
    """Remove the bindings with these rules; a missing one is no error."""
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
        raise DamagedStoreError(f"invalid claim: {error}") from error


def put_claim(connection: sqlite3.Connection, claim: StoredClaim) -> None:
    """Add a claim, or replace the one with the same busid."""
    row = (claim.busid, claim.vendor_id, claim.product_id, claim.since)
    with transaction(connection):
        connection.execute("DELETE FROM claims WHERE busid = ?", (claim.busid,))
        _insert(connection, "claims", _CLAIM_COLUMNS, [row])


def delete_claim(connection: sqlite3.Connection, busid: str) -> None:
    """Remove a claim; a missing one is no error."""
    with transaction(connection):
        connection.execute("DELETE FROM claims WHERE busid = ?", (busid,))


def try_to_write(connection: sqlite3.Connection) -> None:
    """Write as a claim does, and remove it again."""
    with transaction(connection):
        connection.execute("INSERT INTO claims VALUES ('', 0, 0, 0.0)")
        connection.execute("DELETE FROM claims WHERE busid = ''")


def read_history(connection: sqlite3.Connection, limit: int, before: int) -> list[HistoryEntry]:
    """At most `limit` entries with an id below `before`, newest first; invalid ones are left out."""
    return _read_entries(connection, "id < ? ORDER BY id DESC LIMIT ?", (before, limit))


def read_unended(connection: sqlite3.Connection) -> list[HistoryEntry]:
    """The newest entry of the daemon and of each device, if it begins something unended; oldest first."""
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
        except msgspec.ValidationError:  # damaged on the disk; the other entries are still good
            continue
    return entries


def append_history(connection: sqlite3.Connection, entries: Sequence[HistoryEntry], *, keep: int) -> None:
    """Add entries with new ids; for each kind of event among them, remove all but the newest `keep`.

    Removal depends neither on other events nor on the clock, which others control.
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
    """`value` as SQLite can store it: counters and texts may come from a peer."""
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
