"""How a database comes to its layout, alone and with others at once."""

from __future__ import annotations

from contextlib import suppress
from itertools import count
from pathlib import Path

import apsw
import pytest
import trio

from alknet.core.storage import Put
from alknet.errors import StoreError
from alknet.stores.resident import Delta
from alknet.stores.sqlite import MIGRATIONS, Migration, follower, open_sqlite_store
from alknet.stores.sqlite.place import Place
from alknet.stores.sqlite.schema import APPLICATION_ID, migrate
from alknet.testing.store_contract import NOTES, TABLES, Note
from alknet.testing.store_contract.harness import until, values

SHOUT = Migration("shout", "UPDATE row SET value = json_set(value, '$.text', 'LOUD')")
BROKEN = Migration("break", "UPDATE row SET value = '{}'; SELECT * FROM nowhere")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.db"


async def fill(path: Path) -> None:
    async with open_sqlite_store(path, TABLES) as store:
        await store.write([Put(NOTES, key, Note(key, (key,))) for key in "ab"])


async def test_a_migration_changes_rows_and_leaves_a_backup(path: Path) -> None:
    await fill(path)
    async with open_sqlite_store(path, TABLES, migrations=[*MIGRATIONS, SHOUT]) as store:
        assert values(store.rows(NOTES)) == {"a": "LOUD", "b": "LOUD"}
        assert store.version == 4
        assert [row.key for row in store.find(NOTES, "tags", "b")] == ["b"]
    backup = path.with_name("node.db.v1.bak")
    assert backup.stat().st_mode & 0o777 == 0o600
    async with open_sqlite_store(backup, TABLES) as store:
        assert values(store.rows(NOTES)) == {"a": "a", "b": "b"}
        assert store.version == 2
    assert not list(path.parent.glob(".*"))


async def test_a_new_database_has_no_backup(path: Path) -> None:
    async with open_sqlite_store(path, TABLES, migrations=[*MIGRATIONS, SHOUT]):
        pass
    assert [file.name for file in path.parent.glob("*.bak")] == ["node.db.v1.bak"]


async def test_a_migration_that_fails_changes_nothing(path: Path) -> None:
    await fill(path)
    with pytest.raises(StoreError, match="no such table: nowhere"):
        async with open_sqlite_store(path, TABLES, migrations=[*MIGRATIONS, BROKEN]):
            pass
    async with open_sqlite_store(path, TABLES) as store:
        assert values(store.rows(NOTES)) == {"a": "a", "b": "b"}


async def test_a_backup_that_cannot_be_written_stops_the_migration(path: Path) -> None:
    await fill(path)
    path.with_name("node.db.v1.bak").mkdir()
    with pytest.raises(StoreError, match="cannot write the backup"):
        async with open_sqlite_store(path, TABLES, migrations=[*MIGRATIONS, SHOUT]):
            pass
    async with open_sqlite_store(path, TABLES) as store:
        assert store.version == 2


async def test_a_newer_layout_is_refused(path: Path) -> None:
    async with open_sqlite_store(path, TABLES, migrations=[*MIGRATIONS, SHOUT]):
        pass
    with pytest.raises(StoreError, match="has layout 2, and this alknet knows 1"):
        async with open_sqlite_store(path, TABLES):
            pass


async def test_a_database_of_another_program_is_refused(path: Path) -> None:
    other = apsw.Connection(str(path))
    other.execute("CREATE TABLE bookmark (url)")
    other.close()
    with pytest.raises(StoreError, match="a database of another program"):
        async with open_sqlite_store(path, TABLES):
            pass


async def test_many_that_open_a_new_database_make_it_once(path: Path) -> None:
    async def use(n: int) -> None:
        async with open_sqlite_store(path, TABLES, migrations=[*MIGRATIONS, SHOUT]) as store:
            await store.write(Put(NOTES, f"{n}", Note("1")))

    async with trio.open_nursery() as nursery:
        for n in range(6):
            nursery.start_soon(use, n)
    async with open_sqlite_store(path, TABLES, migrations=[*MIGRATIONS, SHOUT]) as store:
        assert len(store.rows(NOTES)) == 6
    connection = apsw.Connection(str(path))
    assert connection.pragma("application_id") == APPLICATION_ID
    assert connection.pragma("user_version") == 2
    connection.close()


@pytest.mark.parametrize("step", range(11))
def test_one_that_looks_while_another_makes_the_database_takes_it_for_ours(
    path: Path, step: int
) -> None:
    place = Place(path)
    looking, making = (apsw.Connection(str(path)) for _ in range(2))
    looking.pragma("journal_mode", "wal")
    seen = count()

    def make_between(_cursor: apsw.Cursor, _sql: str, _bindings: object) -> bool:
        if next(seen) == step:
            place.bell_path.unlink(missing_ok=True)  # the lock, were it still the same, would wait
            migrate(making, place)
        return True

    looking.exec_trace = make_between
    migrate(looking, place)
    assert next(seen) > step
    assert looking.pragma("user_version") == 1
    looking.close()
    making.close()


@pytest.mark.parametrize("step", range(8))
async def test_no_row_of_a_newer_layout_is_read(
    path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "LOOK_INTERVAL_S", 3_600.0)
    await fill(path)
    looking, making = (apsw.Connection(str(path)) for _ in range(2))
    seen = count()

    def make_between(_cursor: apsw.Cursor, _sql: str, _bindings: object) -> bool:
        if next(seen) == step:
            migrate(making, Place(path), [*MIGRATIONS, SHOUT])
        return True

    async with open_sqlite_store(path, TABLES) as store:
        looking.exec_trace = make_between
        found = list[object]()
        with suppress(StoreError):
            news = store._follower._work(looking, 0).news
            assert isinstance(news, Delta)
            found = [change.row.value for change in news.changes if change.row is not None]
        assert found in ([], [Note(key, (key,)) for key in "ab"])
    assert next(seen) > step
    looking.close()
    making.close()


async def test_a_database_that_is_migrated_before_it_is_read_is_not_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = follower.Follower.load

    async def load_too_late(self: follower.Follower) -> None:
        monkeypatch.undo()
        async with open_sqlite_store(path, TABLES, migrations=[*MIGRATIONS, SHOUT]):
            await load(self)

    await fill(path)
    monkeypatch.setattr(follower.Follower, "load", load_too_late)
    with pytest.raises(StoreError, match="from layout 1 to 2 while it was in use"):
        async with open_sqlite_store(path, TABLES):
            pass


async def test_a_store_that_was_migrated_under_its_user_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "LOOK_INTERVAL_S", 0.02)
    await fill(path)
    async with open_sqlite_store(path, TABLES) as old:
        async with open_sqlite_store(path, TABLES, migrations=[*MIGRATIONS, SHOUT]):
            with pytest.raises(StoreError, match="from layout 1 to 2 while it was in use"):
                await old.write(Put(NOTES, "c", Note("c")))
            await until(lambda: old.staleness > 0.1)
            assert values(old.rows(NOTES)) == {"a": "a", "b": "b"}
