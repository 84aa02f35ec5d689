"""The store's files: damage of every kind loses no binding and is reported."""

import asyncio
import os
import random
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.extension.fakes import run
from tests.unit.extension.stores import (
    BINDINGS,
    CLAIM,
    COPY,
    DATABASE,
    LOG,
    VERSION,
    Files,
    after_a_kill,
    after_an_end,
    binding,
    fast_directory,
    reopen,
)
from usbipd.extension import store_tables
from usbipd.extension.store import Store
from usbipd.extension.store_file import KEPT_ASIDE
from usbipd.ipc.control_messages import HistoryEvent


@pytest.fixture(scope="module")
def image() -> Files:
    return after_a_kill()


@pytest.fixture(scope="module")
def whole() -> Files:
    return after_an_end()


@pytest.fixture
def directory() -> Iterator[Path]:
    with fast_directory() as directory:
        yield directory


def kept(directory: Path) -> list[str]:
    """The names of the files that were set aside, without their logs."""
    return sorted({path.name.removesuffix("-shm").removesuffix("-wal") for path in directory.glob("*Z*")})


def edit(directory: Path, statement: str) -> None:
    """Change the store from outside."""
    with closing(sqlite3.connect(directory / DATABASE, isolation_level=None)) as connection:
        connection.execute(statement)


def edit_and_be_killed(directory: Path, statement: str) -> None:
    """Change the store and leave the change in the log."""
    script = "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
    script += "c.execute(sys.argv[2]); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script, directory / DATABASE, statement], check=False)


async def check(directory: Path) -> list[str]:
    store = await Store.open(directory)
    try:
        return [problem.message for problem in await store.check()]
    finally:
        await store.close()


async def test_a_killed_extension_damages_nothing(directory: Path, image: Files) -> None:
    image.write(directory)
    store = await Store.open(directory)
    assert store.problems == []
    assert await store.bindings() == BINDINGS
    assert await store.claims() == [CLAIM]
    assert [entry.event for entry in await store.history(10)] == [HistoryEvent.CLAIMED]
    assert await store.check() == []
    await store.close()


def test_a_first_start_reports_nothing(directory: Path) -> None:
    assert asyncio.run(reopen(directory)) == ([], [])


def contents(data: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / DATABASE).write_bytes(data)


def index_without_a_row(directory: Path) -> None:
    """An index that lacks a row would let a rule be bound twice."""
    data = (directory / DATABASE).read_bytes()
    with closing(sqlite3.connect(directory / DATABASE)) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'bindings_by_rule'"
        [number] = connection.execute(query).fetchone()
    page = slice((number - 1) * 4096, number * 4096)
    assert b"S1" in data[page]
    (directory / DATABASE).write_bytes(
        data[: page.start] + data[page].replace(b"S1", b"S0") + data[page.stop :]
    )


def statement(text: str) -> Callable[[Path], None]:
    return lambda directory: edit(directory, text)


def another_database(directory: Path) -> None:
    (directory / DATABASE).unlink()
    edit(directory, "CREATE TABLE notes (text)")


def a_directory(directory: Path) -> None:
    (directory / DATABASE).unlink()
    (directory / DATABASE).mkdir()


def a_link(directory: Path) -> None:
    (directory / DATABASE).rename(directory / "elsewhere")
    (directory / DATABASE).symlink_to(directory / "elsewhere")


def unknown_format(directory: Path) -> None:
    with (directory / DATABASE).open("r+b") as file:
        file.seek(18)
        file.write(b"\x07")


DAMAGE = [
    (contents(b""), "it is empty"),
    (contents(random.Random(1).randbytes(20_000)), "it is not an SQLite database"),
    (contents(b"SQLite format 3\0"), "it is not an SQLite database"),
    (contents(b"SQLite format 3\0" + bytes(84)), "it is in an unknown format"),
    (unknown_format, "it is in an unknown format"),
    (another_database, "it is not a store of usbipd"),
    (a_directory, "it is not a regular file"),
    (a_link, "it is not a regular file"),
    (statement("PRAGMA application_id = 5"), "it is not a store of usbipd"),
    (statement("PRAGMA user_version = 0"), "schema version 0 does not exist"),
    (statement("PRAGMA user_version = -7"), "schema version -7 does not exist"),
    (index_without_a_row, "row 1 missing from index bindings_by_rule"),
    (statement("DROP TABLE claims"), f"its tables are not those of schema version {VERSION}"),
    (statement("CREATE TABLE more (x)"), f"its tables are not those of schema version {VERSION}"),
    (statement("UPDATE bindings SET allow = '[]' WHERE id = 2"), "bindings checksum mismatch"),
    (statement("DELETE FROM bindings"), "bindings checksum mismatch"),
    (statement("DELETE FROM seal"), "bindings checksum mismatch"),
    (statement("UPDATE seal SET generation = generation + 1"), "bindings checksum mismatch"),
    (statement("UPDATE seal SET generation = 'x'"), "is not a number"),
    (statement("UPDATE bindings SET product = CAST(x'ff' AS TEXT)"), "Could not decode to UTF-8"),
    (statement("UPDATE claims SET since = 'yesterday'"), "invalid claim"),
    (statement("UPDATE claims SET vendor_id = 65536"), "invalid claim"),
]


@pytest.mark.parametrize(("damage", "finding"), DAMAGE, ids=[finding for _damage, finding in DAMAGE])
def test_a_damaged_store_is_set_aside_and_the_copy_restored(
    directory: Path, whole: Files, damage: Callable[[Path], object], finding: str
) -> None:
    whole.write(directory)
    damage(directory)
    found = Files.of(directory)

    async def test() -> None:
        store = await Store.open(directory)
        [sentence] = store.problems
        [name] = kept(directory)
        assert name.startswith(f"{DATABASE}.damaged-20")
        assert sentence.startswith(f"{directory / DATABASE} was damaged (")
        assert finding in sentence
        assert f"); it was saved as {name}; restored the last good copy, of 20" in sentence
        assert sentence.endswith(", with 3 bindings")
        assert await store.bindings() == BINDINGS
        assert await store.claims() == [CLAIM]
        [aside] = await store.check()
        assert aside.code == KEPT_ASIDE
        assert aside.message.startswith(f"{directory / name} was set aside on 20")
        assert aside.message.endswith(" UTC because it was damaged")
        assert f"`sudo rm {shlex.quote(str(directory / name))}*`" in str(aside.advice)
        await store.close()
        assert await reopen(directory) == (BINDINGS, []), "it has been repaired"
        assert await check(directory) == [aside.message]
        if DATABASE in found and damage is not a_link:
            assert Files.of(directory)[name] == found[DATABASE], "unchanged"

    run(test())
    for path in directory.glob("*Z*"):
        path.rmdir() if path.is_dir() else path.unlink()
    assert asyncio.run(check(directory)) == []


def expect_everything_there(directory: Path) -> None:
    """Damage to one file loses no binding, and is reported if and only if it was repaired."""
    copy = (directory / COPY).read_bytes()
    bindings, problems = asyncio.run(reopen(directory))
    assert bindings == BINDINGS
    if kept(directory):
        [problem] = problems
        assert problem.endswith(", with 3 bindings")
    else:
        for problem in problems:
            assert problem.endswith("it was replaced, nothing is lost")
            assert (directory / COPY).read_bytes() != copy
    assert asyncio.run(reopen(directory)) == (BINDINGS, [])


@pytest.mark.parametrize("part", [DATABASE, LOG, COPY])
def test_truncated_at_any_place(image: Files, part: str) -> None:
    size = len(image[part])
    for length in sorted({0, 1, 16, 32, 99, 100, 512, *range(0, size, 3571), size - 1}):
        with fast_directory() as directory:
            Files({**image, part: image[part][:length]}).write(directory)
            expect_everything_there(directory)


places = st.tuples(st.integers(0, 220) | st.integers(0), st.integers(1, 255))


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(place=places, part=st.sampled_from([DATABASE, LOG, COPY]))
def test_a_changed_byte(image: Files, place: tuple[int, int], part: str) -> None:
    with fast_directory() as directory:
        Files({**image, part: flipped(image[part], place)}).write(directory)
        expect_everything_there(directory)


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(st.lists(places, min_size=1, max_size=3))
@example([(3622, 128)])  # SQLite's message quotes it, and is not UTF-8
def test_changed_bytes_without_a_log(whole: Files, changes: list[tuple[int, int]]) -> None:
    data = whole[DATABASE]
    for place in changes:
        data = flipped(data, place)
    with fast_directory() as directory:
        Files({**whole, DATABASE: data}).write(directory)
        expect_everything_there(directory)


def flipped(data: bytes, change: tuple[int, int]) -> bytes:
    place, bits = change
    place %= len(data)
    return data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=5000), st.booleans())
def test_any_bytes(whole: Files, data: bytes, header: bool) -> None:
    with fast_directory() as directory:
        Files({**whole, DATABASE: whole[DATABASE][: 100 * header] + data}).write(directory)
        expect_everything_there(directory)


def test_a_lost_log_is_noticed(directory: Path, image: Files) -> None:
    """Without it the file is valid, but has no binding."""
    Files({name: data for name, data in image.items() if name != LOG}).write(directory)
    bindings, [sentence] = asyncio.run(reopen(directory))
    assert bindings == BINDINGS
    assert "it lacks 3 changes of the bindings" in sentence


def test_an_older_store_in_place_of_the_current_one(directory: Path, image: Files) -> None:
    image.write(directory)

    async def unbind() -> None:
        store = await Store.open(directory)
        await store.remove_bindings([BINDINGS[0].rule])
        await store.close()

    run(unbind())
    for name in (DATABASE, LOG):
        (directory / name).write_bytes(image[name])
    bindings, [sentence] = asyncio.run(reopen(directory))
    assert bindings == BINDINGS[1:]
    assert "it lacks 1 change of the bindings" in sentence


def test_a_newer_store_is_kept_with_its_log(directory: Path, image: Files) -> None:
    image.write(directory)
    edit_and_be_killed(directory, "PRAGMA user_version = 77")
    found = Files.of(directory)
    bindings, [sentence] = asyncio.run(reopen(directory))
    assert bindings == BINDINGS
    [name] = kept(directory)
    assert name.startswith(f"{DATABASE}.newer-v77-20")
    versions = f"schema version 77, this release supports {VERSION}"
    assert f"is of a newer release ({versions}); it was saved as {name}; restored the last" in sentence
    assert Files.of(directory)[name] == found[DATABASE]
    assert Files.of(directory)[f"{name}-wal"] == found[LOG]
    with closing(sqlite3.connect(directory / name)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (77,)
        assert connection.execute("SELECT count(*) FROM bindings").fetchone() == (3,)
    [sentence] = asyncio.run(check(directory))
    assert sentence.endswith(" UTC because it was of a newer release")


async def test_without_a_good_copy_all_files_are_set_aside(directory: Path, whole: Files) -> None:
    Files({DATABASE: b"x", COPY: whole[COPY][:5000]}).write(directory)
    store = await Store.open(directory)
    [of_copy, of_store] = store.problems
    assert of_copy.startswith(f"{directory / COPY} was damaged too (")
    assert "no good copy exists, so all bindings are lost: bind again" in of_store
    assert await store.bindings() == []
    assert len(await store.check()) == 2
    await store.add_binding(BINDINGS[0])
    await store.close()
    assert await reopen(directory) == ([BINDINGS[0]], [])
    files = Files.of(directory)
    assert sorted(files[name] for name in kept(directory)) == sorted([b"x", whole[COPY][:5000]])


def test_a_missing_store_is_restored(directory: Path, image: Files) -> None:
    Files({COPY: image[COPY]}).write(directory)
    bindings, [sentence] = asyncio.run(reopen(directory))
    assert bindings == BINDINGS
    assert sentence.startswith(f"{directory / DATABASE} was missing; restored the last good copy, of ")


def test_the_log_of_a_missing_store_is_not_applied_to_another(directory: Path, image: Files) -> None:
    Files({LOG: image[LOG]}).write(directory)
    bindings, [sentence] = asyncio.run(reopen(directory))
    assert bindings == []
    [name] = kept(directory)
    assert Files.of(directory)[f"{name}-wal"] == image[LOG]
    assert f" was missing; it was saved as {name}; no good copy exists" in sentence
    assert len(asyncio.run(check(directory))) == 1


def test_files_set_aside_in_the_same_second_get_different_names(directory: Path, whole: Files) -> None:
    whole.write(directory)
    for text in (b"1", b"2", b"3"):
        (directory / DATABASE).write_bytes(text)
        asyncio.run(reopen(directory))
    files = Files.of(directory)
    assert sorted(files[name] for name in kept(directory)) == [b"1", b"2", b"3"]


def test_a_store_of_version_1_is_migrated(directory: Path) -> None:
    """With its bindings and its history, each entry of which was one event."""

    def write_old() -> None:
        directory.mkdir(mode=0o700)
        with closing(store_tables.create(1)) as old, closing(sqlite3.connect(directory / DATABASE)) as file:
            for one in BINDINGS:
                store_tables.put_binding(old, one)
            old.execute("INSERT INTO history (time, event, busid) VALUES (5.0, 'claimed', '1-2')")
            old.backup(file)

    async def test() -> None:
        store = await Store.open(directory)
        assert store.problems == []
        assert await store.bindings() == BINDINGS
        [entry] = await store.history(10)
        assert (entry.id, entry.time, entry.event, entry.count) == (1, 5.0, HistoryEvent.CLAIMED, 1)
        store.record(HistoryEvent.STARTED)
        assert len(await store.history(10)) == 2
        await store.close()

    write_old()
    run(test())
    assert asyncio.run(reopen(directory)) == (BINDINGS, [])


def test_upgrades_and_downgrades(directory: Path, whole: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next version is installed, then ours, then the next; each continues with its own data."""
    ours = store_tables.MIGRATIONS
    next_release = (*ours, ("ALTER TABLE bindings ADD COLUMN note TEXT NOT NULL DEFAULT ''",))
    newer_copy = f"usbipd.copy-v{VERSION + 1}.sqlite"
    whole.write(directory)

    async def bind_one_more() -> tuple[list[str | None], list[str]]:
        store = await Store.open(directory)
        before = [one.rule.serial for one in await store.bindings()]
        await store.add_binding(binding(f"S{len(before) + 1}", "7-1"))
        await store.close()
        return before, store.problems

    def start(migrations: tuple[tuple[str, ...], ...]) -> tuple[list[str | None], list[str]]:
        monkeypatch.setattr(store_tables, "MIGRATIONS", migrations)
        return asyncio.run(bind_one_more())

    assert start(next_release) == (["S1", "S2", None], [])
    assert start(next_release) == (["S1", "S2", None, "S4"], [])
    for _number in range(5):
        start(next_release)
    assert Files.of(directory)[COPY] == whole[COPY], "unchanged for our version"
    assert newer_copy in Files.of(directory)

    serials, [sentence] = start(ours)
    assert serials == ["S1", "S2", None]
    versions = f"schema version {VERSION + 1}, this release supports {VERSION}"
    assert f"is of a newer release ({versions}); it was saved as" in sentence
    assert start(ours) == (["S1", "S2", None, "S4"], [])

    (directory / f"{newer_copy}.new").mkdir()  # so that no copy is made, as if it were killed before
    assert start(next_release) == (["S1", "S2", None, "S4", "S5"], [])
    (directory / f"{newer_copy}.new").rmdir()
    assert start(next_release) == (["S1", "S2", None, "S4", "S5", "S6"], []), "its old copy is ignored"
    (directory / DATABASE).write_bytes(b"")
    (directory / newer_copy).unlink()
    serials, [sentence] = start(next_release)
    assert serials == ["S1", "S2", None, "S4", "S5"], "the copy of an older release is better than none"


async def test_a_replaced_file_is_synced_before_and_its_name_after(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may write a name before the contents: after a power failure the file would be empty."""
    done: list[tuple[str, object]] = []
    sync, rename = os.fsync, os.rename

    def note_sync(descriptor: int) -> None:
        sync(descriptor)
        done.append(("sync", os.fstat(descriptor).st_ino))

    def note_rename(source: Path, target: Path) -> None:
        done.append((Path(target).name, os.stat(source).st_ino))  # noqa: PTH116
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", note_rename)
    store = await Store.open(directory)
    await store.add_binding(binding())
    await store.close()
    places = [index for index, (what, _file) in enumerate(done) if what != "sync"]
    assert {done[index][0] for index in places} == {DATABASE, COPY}
    for index in places:
        assert ("sync", done[index][1]) in done[:index]
        assert ("sync", directory.stat().st_ino) in done[index:]
