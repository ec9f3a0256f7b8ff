"""Disks and files that fail: a clear error, reads go on, and nothing acknowledged is lost."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random  # noqa: TID251  seeded

import apsw
import pytest
import trio

from alknet.core.storage import ABSENT, Delete, OutcomeUnknown, Put
from alknet.errors import StoreError, Unavailable
from alknet.stores.sqlite import SqliteStore, follower, open_sqlite_store, worker
from alknet.stores.sqlite.failures import explain
from alknet.stores.sqlite.place import Place
from alknet.testing.store_contract import NOTES, TABLES, Note
from alknet.testing.store_contract.harness import until, values
from tests.stores.sqlite.faults import FaultyDisk, PowerLoss, faulty_disk

A = Put(NOTES, "a", Note("1"))
B = Put(NOTES, "b", Note("2"))


@pytest.fixture
def disk() -> Iterator[FaultyDisk]:
    with faulty_disk() as found:
        yield found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.db"


def locking(path: Path) -> apsw.Connection:
    """Connect as another process does that writes; the store may be busy with upkeep before."""
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(60_000)
    connection.execute("BEGIN IMMEDIATE")
    return connection


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (apsw.FullError("full"), "the disk is full: free some space"),
        (apsw.ReadOnlyError("read-only"), "read-only: make it writable"),
        (apsw.CantOpenError("gone"), "check that it and its directory are yours"),
    ],
)
async def test_a_disk_that_takes_no_writes_fails_them_clearly(
    error: apsw.Error, message: str, path: Path, disk: FaultyDisk
) -> None:
    async with open_sqlite_store(path, TABLES, vfs=disk.name) as store:
        await store.write(A)
        disk.write_error = error
        with pytest.raises(StoreError, match=f"cannot write {path}: .*{message}"):
            await store.write([B, Put(NOTES, "a", Note("3"))])
        assert values(store.rows(NOTES)) == {"a": "1"}
        assert await store.fetch(NOTES, "b") is None
        disk.write_error = None
        await store.write(B, expect=ABSENT)
    async with open_sqlite_store(path, TABLES) as store:
        assert values(store.rows(NOTES)) == {"a": "1", "b": "2"}


def test_a_full_disk_is_told_from_a_broken_one_also_beside_the_database(path: Path) -> None:
    full = apsw.exception_for(apsw.SQLITE_IOERR_SHMSIZE)
    broken = apsw.exception_for(apsw.SQLITE_IOERR_READ)
    assert isinstance(full, apsw.Error)
    assert isinstance(broken, apsw.Error)
    assert "the disk is full: free some space" in str(explain(full, "open", path))
    assert "the disk failed" in str(explain(broken, "open", path))


async def test_a_flush_that_fails_leaves_the_outcome_open(path: Path, disk: FaultyDisk) -> None:
    async with open_sqlite_store(path, TABLES, vfs=disk.name) as store:
        await store.write(A)
        disk.sync_error = apsw.IOError("broken")
        with pytest.raises(OutcomeUnknown, match="may be lost: the disk failed"):
            await store.write(B)
        disk.sync_error = None
        assert (store.get(NOTES, "b") is None) == (await store.fetch(NOTES, "b") is None)
        await store.write(B)


async def test_a_write_of_much_needs_no_temporary_file(path: Path, disk: FaultyDisk) -> None:
    async with open_sqlite_store(path, TABLES, vfs=disk.name) as store:
        for text in "12":  # what is replaced must be kept, to undo it
            long = [Put(NOTES, f"{n}", Note(text * 4_000)) for n in range(64)]
            await store.write(long)
            async with trio.open_nursery() as writers:
                for put in long:
                    writers.start_soon(store.write, put)
        await store.write([Delete(NOTES, f"{n}") for n in range(64)])
        assert disk.temporary_files == 0


@pytest.mark.parametrize("years", [-1, 1], ids=["set back", "set ahead"])
async def test_a_clock_that_jumps_loses_no_change(path: Path, years: int) -> None:
    async with (
        open_sqlite_store(path, TABLES) as store,
        open_sqlite_store(path, TABLES) as other,
    ):
        await store.write(A)
        # As if what is there had been written before the clock was set.
        edit = apsw.Connection(str(path))
        edit.set_busy_timeout(60_000)
        edit.execute("UPDATE change SET at = at - ?", (years * 31_536_000,))
        edit.close()
        for n in range(20):
            await store.write([Put(NOTES, "a", Note(f"{n}")), Put(NOTES, f"b{n}", Note("x"))])
        with trio.fail_after(60):
            await until(lambda: other.version == store.version)
        assert values(other.rows(NOTES)) == values(store.rows(NOTES))
        assert len(store.rows(NOTES)) == 21
        assert max(store.staleness, other.staleness) < 60
    async with open_sqlite_store(path, TABLES) as again:
        assert len(again.rows(NOTES)) == 21


async def test_all_that_wait_hear_of_the_failure(path: Path, disk: FaultyDisk) -> None:
    failed: list[StoreError] = []

    async def write(store: SqliteStore, n: int) -> None:
        try:
            await store.write(Put(NOTES, f"{n}", Note("1")))
        except StoreError as exc:
            failed.append(exc)

    async with open_sqlite_store(path, TABLES, vfs=disk.name) as store:
        threads = [thread for thread in threading.enumerate() if "apsw" in thread.name]
        disk.write_error = apsw.FullError("full")
        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(write, store, n)
        assert len({id(exc) for exc in failed}) == 20
    # Closing copies the log into the database, which fails too, and ends the threads all the same.
    await until(lambda: not any(thread.is_alive() for thread in threads))


@pytest.mark.slow
async def test_power_loss_takes_nothing_that_was_acknowledged(path: Path, disk: FaultyDisk) -> None:
    acknowledged: list[str] = []
    images: list[tuple[Path, int]] = []
    randomness = Random(4)

    def fail_now_and_then() -> None:
        if randomness.random() < 0.03:
            image = path.parent / f"image{len(images)}"
            images.append((image, len(acknowledged)))
            power.save(image)

    async def write(store: SqliteStore, n: int) -> None:
        numbers = count()
        # How many writes the disk sees depends on how many batches there are.
        while len(acknowledged) < 100 or len(images) < 10:
            key = f"{n} {next(numbers)}"
            pair = [Put(NOTES, f"{key} {part}", Note("x" * 300)) for part in "ab"]
            await store.write(pair)
            acknowledged.append(key)

    power = PowerLoss(randomness, fail_now_and_then)
    disk.power = power
    async with open_sqlite_store(path, TABLES, vfs=disk.name) as store:
        async with trio.open_nursery() as nursery:
            for n in range(8):
                nursery.start_soon(write, store, n)
    disk.power = None
    for image, known in images:
        async with open_sqlite_store(image / path.name, TABLES) as store:
            parts = {
                part: {row.key[:-2] for row in store.rows(NOTES) if row.key[-1] == part}
                for part in "ab"
            }
        assert parts["a"] == parts["b"]
        assert set(acknowledged[:known]) <= parts["a"]


async def test_a_replaced_file_is_noticed_and_nothing_is_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(follower, "LOOK_INTERVAL_S", 0.02)
    async with open_sqlite_store(path, TABLES) as store:
        await store.write(A)
        path.rename(path.with_name("away"))
        with pytest.raises(StoreError, match="was replaced or removed while it was in use"):
            await store.write(B)
        path.write_bytes(b"another")
        await until(lambda: store.staleness > 0.1 and "store.unreadable" in caplog.messages)
        with pytest.raises(StoreError, match="was replaced or removed"):
            await store.write(B)
        assert values(store.rows(NOTES)) == {"a": "1"}
        path.with_name("away").rename(path)
        await until(lambda: store.staleness < 0.1)
        await store.write(B)
    names = [getattr(record, "msg", "") for record in caplog.records]
    assert names.count("store.unreadable") == 1


async def test_a_file_that_is_replaced_while_it_is_opened_is_noticed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_sqlite_store(path, TABLES) as store:
        await store.write(A)
    other = path.with_name("other")
    shutil.copyfile(path, other)
    remember = Place.remember

    def replace_first(self: Place) -> None:
        other.replace(path)
        remember(self)

    monkeypatch.setattr(Place, "remember", replace_first)
    with pytest.raises(StoreError, match="was replaced or removed while it was in use"):
        async with open_sqlite_store(path, TABLES):
            pass
    monkeypatch.undo()
    async with open_sqlite_store(path, TABLES) as store:
        assert values(store.rows(NOTES)) == {"a": "1"}


@pytest.mark.parametrize("damage", [b"not a database, but long enough to be one" * 20, b"SQLite "])
async def test_a_damaged_file_is_refused_and_left_alone(damage: bytes, path: Path) -> None:
    path.write_bytes(damage)
    with pytest.raises(StoreError, match=f"cannot open {path}: it is damaged .*put a backup"):
        async with open_sqlite_store(path, TABLES):
            pass
    assert path.read_bytes() == damage


async def test_damage_inside_a_file_is_found_when_it_is_read(path: Path) -> None:
    async with open_sqlite_store(path, TABLES) as store:
        await store.write([Put(NOTES, f"{n}", Note("x" * 500)) for n in range(100)])
    content = bytearray(path.read_bytes())
    content[8 * 4096 : -4096] = Random(4).randbytes(len(content) - 9 * 4096)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="it is damaged"):
        async with open_sqlite_store(path, TABLES):
            pass


async def test_a_damaged_row_stops_the_start_but_not_a_running_node(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(follower, "LOOK_INTERVAL_S", 0.02)
    async with open_sqlite_store(path, TABLES) as store:
        await store.write([A, B])
        shell = apsw.Connection(str(path))
        shell.set_busy_timeout(60_000)
        shell.execute("""UPDATE row SET value = '{"text": 1}' WHERE key = 'a'""")
        await until(lambda: store.get(NOTES, "a") is None)
        assert store.get(NOTES, "b") is not None
        with pytest.raises(StoreError, match="note 'a' is damaged in the database"):
            await store.fetch(NOTES, "a")
        shell.close()
    assert "store.row_damaged" in caplog.messages
    with pytest.raises(StoreError, match="note 'a' is damaged in the database"):
        async with open_sqlite_store(path, TABLES):
            pass


async def test_a_lock_that_is_not_let_go_makes_writes_unavailable(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "BUSY_TIMEOUT_MS", 20)
    async with open_sqlite_store(path, TABLES) as store:
        holder = locking(path)
        with pytest.raises(Unavailable, match="another process holds its lock") as caught:
            await store.write(A)
        assert caught.value.retry_after_s is not None
        assert store.rows(NOTES) == []
        holder.execute("COMMIT")
        holder.close()
        await store.write(A)


async def test_a_process_waits_for_another_that_writes(path: Path) -> None:
    async with open_sqlite_store(path, TABLES) as store, trio.open_nursery() as nursery:
        holder = locking(path)
        nursery.start_soon(store.write, A)
        await trio.sleep(0.05)
        assert store.get(NOTES, "a") is None
        holder.execute("COMMIT")
        holder.close()
        await until(lambda: store.get(NOTES, "a") is not None)
