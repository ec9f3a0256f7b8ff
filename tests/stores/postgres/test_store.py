"""The PostgreSQL store beyond the contract: batches, history, layouts, edits from outside."""

from __future__ import annotations

import logging
import re
from contextlib import suppress

import psycopg
import pytest
import trio

from alknet.core.storage import ABSENT, Changed, Delete, Put, Reloaded, RowConflict, Table
from alknet.errors import LocalError, StoreError, Unavailable
from alknet.stores import group
from alknet.stores.postgres import follower, link, open_postgres_store, reading, writing
from alknet.stores.postgres.layout import MIGRATIONS, Migration
from alknet.stores.postgres.store import PostgresStore, open_store
from alknet.testing.store_contract import LOG, NOTES, TABLES, Line, Note
from alknet.testing.store_contract.harness import until, values
from tests.stores.postgres.harness import PostgresHarness

pytestmark = pytest.mark.interop

NEVER_S = 3_600.0
NEXT = Migration("one more step", "ALTER TABLE alknet.change ADD COLUMN more text;")
BROKEN = Migration("a step that fails", "CREATE TABLE alknet.half (); SELECT 1 / 0;")


async def test_writes_that_wait_are_committed_together_in_their_order(
    harness: PostgresHarness,
) -> None:
    queued: list[int] = []
    versions: dict[int, int] = {}

    async def write(store: PostgresStore, n: int) -> None:
        queued.append(n)
        (versions[n],) = await store.write(Put(LOG, f"{n}", Line("1")))

    async with harness.open() as store:
        async with trio.open_nursery() as nursery:
            for n in range(256):
                nursery.start_soon(write, store, n)
    # Each statement of one transaction has its number, unless it is in a savepoint of its own.
    found = harness.execute("SELECT count(DISTINCT xmin::text) FROM alknet.row")
    assert int(str(found[0][0])) <= 4
    assert [versions[n] for n in queued] == list(range(1, 257))


async def test_writes_of_one_task_after_another_ascend(harness: PostgresHarness) -> None:
    async with harness.open() as store:
        first = await store.write([Put(NOTES, "a", Note("1")), Put(LOG, "a", Line("1"))])
        second = await store.write([Put(NOTES, "a", Note("2")), Delete(LOG, "a")])
        assert (*first, *second) == (1, 2, 3, 4)


async def test_of_16_writers_on_four_nodes_one_wins_each_version(
    harness: PostgresHarness,
) -> None:
    won: list[int] = []

    async def compete(store: PostgresStore, version: int, n: int) -> None:
        nonlocal won
        with suppress(RowConflict):
            won += await store.write(Put(NOTES, "row", Note(str(n))), expect=version)

    async with (
        harness.open() as one,
        harness.open() as two,
        harness.open() as three,
        harness.open() as four,
    ):
        (version,) = await one.write(Put(NOTES, "row", Note("0")))
        for _ in range(5):
            won.clear()
            async with trio.open_nursery() as nursery:
                for n in range(16):
                    nursery.start_soon(compete, (one, two, three, four)[n % 4], version, n)
            (version,) = won
        assert version == 6
        await until(lambda: one.rows(NOTES) == two.rows(NOTES) == four.rows(NOTES))


async def test_what_is_announced_is_seen_without_waiting_for_a_look(
    harness: PostgresHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "LOOK_INTERVAL_S", NEVER_S)
    async with harness.open() as one, harness.open() as two:
        for n in range(5):
            await one.write(Put(NOTES, f"{n}", Note("1")))
            await until(lambda: two.version == one.version)
        harness.execute("DELETE FROM alknet.row WHERE key = '3'")
        await until(lambda: one.get(NOTES, "3") is two.get(NOTES, "3") is None)


@pytest.mark.parametrize("payload", ["", "x", "-1", "9" * 19, "9" * 5_000, "\u0663"])
async def test_a_bell_that_a_stranger_rings_does_no_harm(
    payload: str, harness: PostgresHarness
) -> None:
    async with harness.open() as one, harness.open() as two:
        harness.execute(f"SELECT pg_notify('alknet', '{payload}')")
        await one.write(Put(NOTES, "a", Note("1")))
        await until(lambda: two.get(NOTES, "a") is not None)


async def test_a_stranger_who_rings_all_the_time_does_not_put_off_the_look(
    harness: PostgresHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "LOOK_INTERVAL_S", 0.3)
    async with harness.open() as store:
        (version,) = await store.write(Put(NOTES, "a", Note("1")))
        fresh_at = store._follower.fresh_at
        with psycopg.connect(harness.url, autocommit=True) as stranger:
            while store._follower.fresh_at == fresh_at:
                stranger.execute("SELECT pg_notify('alknet', %s::text)", (version,))
                await trio.sleep(0.01)


async def test_a_store_does_not_answer_its_own_bell(
    harness: PostgresHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    look = follower.Follower._look

    async def counted(self: follower.Follower, of: link.Link) -> None:
        nonlocal looks
        looks += 1
        await look(self, of)

    monkeypatch.setattr(follower, "LOOK_INTERVAL_S", NEVER_S)
    monkeypatch.setattr(follower, "OWN_BATCH_S", NEVER_S)
    monkeypatch.setattr(follower.Follower, "_look", counted)
    async with harness.open() as store:
        for n in range(20):
            await store.write(Put(NOTES, f"{n}", Note("1")))
    assert looks == 0


async def test_edits_in_psql_are_seen_with_all_that_belongs_to_them(
    harness: PostgresHarness,
) -> None:
    async with harness.open() as store:
        (version,) = await store.write(Put(NOTES, "a", Note("1", ("x",))))
        feed = store.changes()
        harness.execute("""UPDATE alknet.row SET key = 'b', value = '{"text":"1","tags":["y"]}'""")
        await until(lambda: store.get(NOTES, "b") is not None)
        row = store.get(NOTES, "b")
        assert row is not None
        assert (row.value, row.version) == (Note("1", ("y",)), version + 2)
        assert store.get(NOTES, "a") is None
        assert [await anext(feed), await anext(feed)] == [
            Changed(version + 1, "note", "a", gone=True),
            Changed(version + 2, "note", "b", gone=False),
        ]
        await store.write(Put(NOTES, "c", Note("2", ("x",))))
        with pytest.raises(RowConflict):
            await store.write(Put(NOTES, "d", Note("2", ("y",))))


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO alknet.row (tab, key, value) VALUES ('note', 'e', 'no json')",
        """INSERT INTO alknet.row (tab, key, value) VALUES ('note', 'e', '{"tags":["x"]}')""",
        "TRUNCATE alknet.row",
        "TRUNCATE alknet.change",
        "DELETE FROM alknet.change",
    ],
)
async def test_edits_that_would_break_a_promise_are_refused(
    statement: str, harness: PostgresHarness
) -> None:
    async with harness.open() as store:
        await store.write([Put(NOTES, "a", Note("1", ("x",))), Put(NOTES, "b", Note("1"))])
        before = store.version
        with pytest.raises(psycopg.Error):
            harness.execute(statement)
        assert await store.write(Put(NOTES, "c", Note("1"))) == (before + 1,)


async def test_texts_that_differ_by_a_nul_are_different(harness: PostgresHarness) -> None:
    async with harness.open() as store:
        await store.write(Put(NOTES, "a", Note("1", ("x\0", "x", "\\u0000", "y" * 10_000))))
        with pytest.raises(RowConflict) as caught:
            await store.write(Put(NOTES, "b", Note("1", ("z", "y" * 10_000))))
        assert (caught.value.field, caught.value.holder) == ("tags", "a")
        with pytest.raises(RowConflict, match="belongs to note 'a'"):
            await store.write(Put(NOTES, "b", Note("1", ("x\0",))))
        await store.write(Put(NOTES, "b", Note("1", ("\0x",))))


async def test_a_write_that_the_database_refuses_fails_alone(harness: PostgresHarness) -> None:
    async with harness.open() as store:
        harness.execute("ALTER TABLE alknet.row ADD CHECK (key <> 'bad')")
        failed: list[str] = []

        async def write(key: str) -> None:
            try:
                await store.write([Put(LOG, key, Line("1")), Put(LOG, f"{key} 2", Line("1"))])
            except StoreError as exc:
                failed.append(str(exc))

        async with trio.open_nursery() as nursery:
            for key in ("a", "bad", "b"):
                nursery.start_soon(write, key)
        assert [row.key for row in await store.scan(LOG)] == ["a", "a 2", "b", "b 2"]
    assert len(failed) == 1
    assert "the database refuses log_line 'bad'" in failed[0]


async def test_rows_of_unknown_tables_stay_as_they_are(harness: PostgresHarness) -> None:
    async with harness.open() as store:
        await store.write([Put(NOTES, "a", Note("1")), Put(LOG, "a", Line("1"))])
        async with open_store(harness.url, [LOG]) as other:
            feed = other.changes()
            await store.write(Put(NOTES, "b", Note("1")))
            await other.write(Put(LOG, "b", Line("2")))
            assert (await anext(feed)).version == other.version == 4
        await until(lambda: values(store.rows(NOTES)) == {"a": "1", "b": "1"})


async def test_a_field_that_becomes_unique_is_checked(harness: PostgresHarness) -> None:
    free = Table("note", Note)
    async with open_store(harness.url, [free]) as store:
        await store.write([Put(free, key, Note("1", ("x",))) for key in "ab"])
        with pytest.raises(StoreError, match="rows of table note share a value"):
            async with harness.open():
                pass
        await store.write(Put(free, "b", Note("1", ("y", "y"))))
        async with harness.open() as other:
            with pytest.raises(RowConflict):
                await other.write(Put(NOTES, "c", Note("1", ("y",))))


async def test_history_is_trimmed_and_numbers_go_on(
    harness: PostgresHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "CHANGES_KEPT", 10)
    monkeypatch.setattr(group, "IDLE_S", NEVER_S)
    span = "SELECT min(seq), max(seq) FROM alknet.change"
    async with harness.open() as store:
        for n in range(25):
            await store.write(Put(NOTES, "a", Note(str(n))))
        assert harness.execute(span) == [(12, 25)]
        harness.execute("UPDATE alknet.change SET at = now() - interval '2 days'")
        await store._tidy()
        assert harness.execute(span) == [(25, 25)]
        assert await anext(store.changes(3)) == Changed(4, "note", "a", gone=False)
    async with harness.open() as store:
        assert await anext(store.changes(3)) == Reloaded(25)
        assert await store.write(Put(NOTES, "a", Note("x"))) == (26,)


async def test_a_damaged_row_is_named_and_left_out(
    harness: PostgresHarness, caplog: pytest.LogCaptureFixture
) -> None:
    async with harness.open() as store:
        await store.write([Put(NOTES, "a", Note("1")), Put(NOTES, "b", Note("1"))])
        harness.execute("""UPDATE alknet.row SET value = '{"text": 5}' WHERE key = 'a'""")
        await until(lambda: store.get(NOTES, "a") is None)
        assert values(store.rows(NOTES)) == {"b": "1"}
        with pytest.raises(StoreError, match="note 'a' is damaged"):
            await store.fetch(NOTES, "a")
    assert "store.row_damaged" in caplog.messages
    with pytest.raises(StoreError, match="note 'a' is damaged"):
        async with harness.open():
            pass


async def test_a_long_table_is_loaded_in_pages(
    harness: PostgresHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alknet.stores.postgres.reading.ROWS_AT_ONCE", 7)
    async with harness.open() as one:
        async with harness.open() as two:
            await one.write([Put(NOTES, f"{n:03}", Note(str(n))) for n in range(21)])
            await until(lambda: two.version == one.version)
            assert two.rows(NOTES) == one.rows(NOTES)
        async with harness.open() as three:
            assert three.rows(NOTES) == one.rows(NOTES)


async def test_nodes_that_start_at_once_migrate_once(harness: PostgresHarness) -> None:
    opened = 0
    all_open = trio.Event()

    async def start() -> None:
        nonlocal opened
        async with harness.open() as store:
            opened += 1
            if opened == 5:
                all_open.set()
            await all_open.wait()
            await store.write(Put(NOTES, str(opened), Note("1")))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(start)
    assert harness.execute("SELECT version FROM alknet.layout") == [(len(MIGRATIONS),)]


async def test_a_migration_while_others_run_stops_those(harness: PostgresHarness) -> None:
    newer = [*MIGRATIONS, NEXT]
    async with harness.open() as old:
        await old.write(Put(NOTES, "a", Note("1")))
        async with open_store(harness.url, TABLES, migrations=newer) as new:
            assert values(new.rows(NOTES)) == {"a": "1"}
            with pytest.raises(StoreError, match="from layout 1 to 2 while it was in use"):
                await old.write(Put(NOTES, "b", Note("1")))
            await until(lambda: old._follower._has_failed)
            assert await new.write(Put(NOTES, "c", Note("1")), expect=ABSENT) == (2,)
    with pytest.raises(StoreError, match="has layout 2, and this alknet knows 1"):
        async with harness.open():
            pass


async def test_a_database_that_is_migrated_before_it_is_read_is_not_used(
    harness: PostgresHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = follower.Follower.load

    async def load_too_late(self: follower.Follower) -> None:
        harness.execute("UPDATE alknet.layout SET version = 2")
        await load(self)

    monkeypatch.setattr(follower.Follower, "load", load_too_late)
    with pytest.raises(StoreError, match="from layout 1 to 2 while it was in use"):
        async with harness.open():
            pass


async def test_a_migration_that_fails_changes_nothing(harness: PostgresHarness) -> None:
    async with harness.open():
        pass
    with pytest.raises(StoreError, match="division by zero"):
        async with open_store(harness.url, TABLES, migrations=[*MIGRATIONS, NEXT, BROKEN]):
            pass
    assert harness.execute("SELECT to_regclass('alknet.half')") == [(None,)]
    async with harness.open() as store:
        await store.write(Put(NOTES, "a", Note("1")))


async def test_a_row_that_another_session_locks_is_refused_in_time(
    harness: PostgresHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "LOCK_TIMEOUT_S", 0.1)
    async with harness.open() as store:
        await store.write(Put(NOTES, "a", Note("1")))
        with psycopg.connect(harness.url) as shell:
            shell.execute('UPDATE alknet.row SET value = \'{"text":"2"}\'')
            with pytest.raises(Unavailable, match=r"another node, or a session in psql"):
                await store.write(Put(NOTES, "b", Note("1")))
        await until(lambda: values(store.rows(NOTES)) == {"a": "2"})
        await store.write(Put(NOTES, "b", Note("1")))


async def test_connections_are_few_and_end_with_the_store(harness: PostgresHarness) -> None:
    count = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{harness.name}'"
    ask = "SELECT application_name FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND "
    async with harness.open() as store:
        await store.write(Put(LOG, "a", Line("1")))
        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(store.fetch, LOG, "a")
        found = harness.execute(ask + f"datname = '{harness.name}'")
        assert 3 <= len(found) <= 5
        assert set(found) == {("alknet",)}
    await until(lambda: harness.server.execute(count) == [(0,)])


async def test_pages_have_a_limit(harness: PostgresHarness) -> None:
    async with harness.open() as store:
        for limit in (0, 10_001):
            with pytest.raises(LocalError, match="1 to 10000 rows"):
                await store.scan(LOG, limit=limit)


async def test_tables_of_one_name_are_refused(harness: PostgresHarness) -> None:
    with pytest.raises(LocalError, match="one name"):
        async with open_postgres_store(harness.url, [NOTES, Table("note", Line)]):
            pass


async def test_an_error_of_the_block_comes_out_as_it_is(harness: PostgresHarness) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_postgres_store(harness.url, TABLES):
            raise KeyError("mine")


async def test_a_log_of_everything_holds_no_rows(
    harness: PostgresHarness, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with harness.open() as store:
            await store.write(Put(NOTES, "a", Note("a secret")))
            await store.fetch(NOTES, "a")
    assert "secret" not in caplog.text


async def test_queries_walk_along_indexes_without_statistics(harness: PostgresHarness) -> None:
    parameters = {"cursor": 10, "resident": ["note"], "tab": "note", "after": "1", "limit": 5}
    async with harness.open() as store:
        await store.write([Put(NOTES, f"{n}", Note("1", (f"{n}",))) for n in range(500)])
        of = await store._dial()
        for query in (reading._SINCE, reading._FORWARD, reading._BACKWARD):
            plan = str(await (await of.execute(b"EXPLAIN " + query, parameters)).fetchall())
            assert "Index" in plan
            assert re.findall(r"(?:Seq|Bitmap Heap) Scan on (\S+)", plan) in ([], ["layout"])
        of.drop()


async def test_all_texts_have_one_collation(harness: PostgresHarness) -> None:
    async with harness.open():
        found = harness.execute(
            "SELECT DISTINCT collation_name FROM information_schema.columns "
            "WHERE table_schema = 'alknet' AND data_type = 'text'"
        )
        assert found == [("C",)]
