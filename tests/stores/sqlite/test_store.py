"""The SQLite store beyond the contract: its files, its bell, its history, edits from outside."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

import apsw
import pytest
import trio

from alknet.core.storage import Changed, Delete, Expect, Put, Reloaded, RowConflict, Table
from alknet.errors import LocalError, StoreError
from alknet.stores import group
from alknet.stores.sqlite import bell, follower, open_sqlite_store, place, writing
from alknet.stores.sqlite.bell import Bell
from alknet.stores.sqlite.place import Place
from alknet.stores.sqlite.schema import migrate
from alknet.testing.store_contract import LOG, NOTES, TABLES, Line, Note
from alknet.testing.store_contract.harness import until, values

NEVER_S = 3_600.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.db"


def open_shell(path: Path) -> apsw.Connection:
    """Connect as other programs do; the store may be busy with upkeep."""
    shell = apsw.Connection(str(path))
    shell.set_busy_timeout(60_000)
    return shell


def modes(directory: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mode & 0o777 for file in directory.iterdir()}


async def test_all_files_are_private(path: Path) -> None:
    before = os.umask(0)
    try:
        async with open_sqlite_store(path, TABLES) as store:
            await store.write(Put(NOTES, "a", Note("1")))
            found = modes(path.parent)
    finally:
        os.umask(before)
    names = {"node.db", "node.db-wal", "node.db-shm", "node.db-bell"}
    assert found == dict.fromkeys(names, 0o600)


async def test_files_that_others_can_read_are_closed_to_them(path: Path) -> None:
    async with open_sqlite_store(path, TABLES):
        pass
    for file in path.parent.iterdir():
        file.chmod(0o644)
    async with open_sqlite_store(path, TABLES):
        assert set(modes(path.parent).values()) == {0o600}


def test_a_log_that_another_process_removes_meanwhile_is_no_fault(path: Path) -> None:
    path.touch(0o600)
    log = path.with_name("node.db-wal")
    is_done = threading.Event()

    def come_and_go() -> None:
        while not is_done.is_set():
            log.touch(0o644)
            log.unlink()

    others = threading.Thread(target=come_and_go)
    others.start()
    try:
        for _ in range(500):
            Place(path).prepare()
    finally:
        is_done.set()
        others.join()


async def test_a_path_may_hold_any_character(tmp_path: Path) -> None:
    path = tmp_path / "a b%41?mode=ro#é" / "n'o.db"
    path.parent.mkdir()
    async with open_sqlite_store(path, TABLES) as store:
        await store.write(Put(NOTES, "a", Note("1")))
    assert path.exists()


async def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot use .*gone/node.db: No such file"):
        async with open_sqlite_store(tmp_path / "gone" / "node.db", TABLES):
            pass


async def test_a_network_file_system_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = place.file_system_type(path.parent)
    assert here not in place.NETWORK_FILE_SYSTEMS
    monkeypatch.setitem(place.NETWORK_FILE_SYSTEMS, here, "NFS")
    with pytest.raises(StoreError, match=r"network file system \(NFS\).*put it on a local disk"):
        async with open_sqlite_store(path, TABLES):
            pass
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("is_new", [True, False])
async def test_what_belongs_to_another_user_is_left_alone(
    is_new: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_new:
        async with open_sqlite_store(path, TABLES):
            pass
    owner = path.parent.stat().st_uid
    before = list(path.parent.iterdir())
    if is_new:
        real = Path.stat
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(Path, "stat", lambda self, **more: _of_user(real(self, **more), 1000))
        owner = 1000
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(StoreError, match=rf"another user \(uid {owner}\).*sudo -u '#{owner}'"):
        async with open_sqlite_store(path, TABLES):
            pass
    monkeypatch.undo()
    assert list(path.parent.iterdir()) == before


def _of_user(info: os.stat_result, user: int) -> os.stat_result:
    return os.stat_result((*info[:4], user, *info[5:10]))


async def test_threads_end_with_the_store(path: Path) -> None:
    async with open_sqlite_store(path, TABLES):
        threads = [thread for thread in threading.enumerate() if "apsw" in thread.name]
        assert len(threads) == 2
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


async def test_an_error_of_the_block_comes_out_as_it_is(path: Path) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_sqlite_store(path, TABLES):
            raise KeyError("mine")


async def test_tables_of_one_name_are_refused(path: Path) -> None:
    with pytest.raises(LocalError, match="one name"):
        async with open_sqlite_store(path, [NOTES, Table("note", Line)]):
            pass


async def test_the_bell_is_heard_without_waiting_for_a_look(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "LOOK_INTERVAL_S", NEVER_S)
    async with open_sqlite_store(path, TABLES) as one, open_sqlite_store(path, TABLES) as two:
        for n in range(5):
            await one.write(Put(NOTES, f"{n}", Note("1")))
            await until(lambda: two.version == one.version)


async def test_without_watches_the_bell_is_looked_at(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(path: Path) -> int | None:
        raise OSError(24, "too many watches")

    monkeypatch.setattr(follower, "LOOK_INTERVAL_S", NEVER_S)
    monkeypatch.setattr(bell, "_inotify", fail)
    async with open_sqlite_store(path, TABLES) as one, open_sqlite_store(path, TABLES) as two:
        await one.write(Put(NOTES, "a", Note("1")))
        await until(lambda: two.get(NOTES, "a") is not None)
    assert caplog.messages == ["store.bell_unwatched"] * 2


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[follower.Follower]:
    """Give a list of the looks that were made, which only the bell brings about."""
    made: list[follower.Follower] = []
    look = follower.Follower.look

    async def noted(self: follower.Follower) -> None:
        made.append(self)
        await look(self)

    monkeypatch.setattr(follower, "LOOK_INTERVAL_S", NEVER_S)
    monkeypatch.setattr(follower, "OWN_BATCH_S", NEVER_S)
    monkeypatch.setattr(follower.Follower, "look", noted)
    return made


async def test_a_store_does_not_answer_its_own_bell(
    path: Path, looks: list[follower.Follower]
) -> None:
    async with open_sqlite_store(path, TABLES) as store:
        for n in range(20):
            await store.write(Put(NOTES, f"{n}", Note("1")))
    assert looks == []


async def test_little_news_is_seen_at_a_glance(path: Path, looks: list[follower.Follower]) -> None:
    async with open_sqlite_store(path, TABLES) as one, open_sqlite_store(path, TABLES) as two:
        feed = two.changes()
        for ops in (
            [Put(NOTES, "a", Note("1", ("x",))), Put(NOTES, "b", Note("2"))],
            [Put(NOTES, "a", Note("3")), Put(NOTES, "a", Note("4")), Put(LOG, "l", Line("1"))],
            [Delete(NOTES, "b")],
        ):
            await one.write(ops)
            await until(lambda: two.version == one.version)
            assert two.rows(NOTES) == one.rows(NOTES)
        assert not two.find(NOTES, "tags", "x")
        found = [await anext(feed) for _ in range(6)]
        assert [c.version for c in found] == [1, 2, 3, 4, 5, 6]
        assert [c.gone for c in found if isinstance(c, Changed)][-2:] == [False, True]
    assert looks == []


@pytest.mark.parametrize("kind", ["many rows", "a long row", "lost history"])
async def test_much_news_is_left_to_the_thread(
    kind: str, path: Path, looks: list[follower.Follower]
) -> None:
    async with open_sqlite_store(path, TABLES) as one, open_sqlite_store(path, TABLES) as two:
        if kind == "many rows":
            await one.write([Put(NOTES, f"{n}", Note("1")) for n in range(100)])
        elif kind == "a long row":
            await one.write(Put(NOTES, "a", Note("x" * 10_000)))
        else:
            shell = open_shell(path)
            shell.execute(
                "INSERT INTO row (tab, key, value) VALUES ('note', 'a', '{\"text\":\"1\"}')"
            )
            shell.execute("DELETE FROM change")
            shell.close()
            await one.write(Put(NOTES, "b", Note("1")))
        await until(lambda: two.version == one.version)
        assert two.rows(NOTES) == one.rows(NOTES) != []
    assert looks != []


async def test_a_deleted_bell_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "bell"
    one, two = Bell(path), Bell(path)
    assert one.is_watched
    assert not one.renew()
    path.unlink()
    assert one.renew()
    assert two.renew()
    one.announce(7)
    assert two.has_news(6)
    assert not two.has_news(7)
    with trio.fail_after(60):
        one.ring()
        await two.wait()
    one.close()
    two.close()


async def test_a_bell_that_cannot_be_looked_at_is_an_error_of_the_store(tmp_path: Path) -> None:
    directory = tmp_path / "home"
    directory.mkdir()
    bell = Bell(directory / "bell")
    directory.rename(tmp_path / "away")
    with pytest.raises(StoreError, match="cannot open"):
        bell.renew()
    directory.touch()
    with pytest.raises(StoreError, match=r"cannot look at .*Not a directory"):
        bell.renew()
    bell.close()


async def test_a_bell_tells_a_knock_from_a_ring(tmp_path: Path) -> None:
    one, two = Bell(tmp_path / "bell"), Bell(tmp_path / "bell")
    with trio.fail_after(60):
        one.knock()
        assert not await two.wait()
        one.ring()
        assert await two.wait()
        one.knock()
        one.ring()
        assert await two.wait()
    one.close()
    two.close()


@pytest.mark.parametrize("call", [Bell.knock, Bell.ring])
async def test_knocks_and_rings_without_news_do_not_put_off_the_look(
    call: Callable[[Bell], None],
    path: Path,
    looks: list[follower.Follower],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(follower, "LOOK_INTERVAL_S", 0.1)
    async with open_sqlite_store(path, TABLES) as store:
        await store.write(Put(NOTES, "a", Note("1")))
        bell = Bell(Place(path).bell_path)
        looks.clear()
        with trio.fail_after(60):
            while not looks:  # somebody whose disk is full tries again and again
                call(bell)
                await trio.sleep(0.01)
        bell.close()
        assert store.get(NOTES, "a") is not None


async def test_the_bell_holds_the_version_that_a_write_came_to(
    path: Path, looks: list[follower.Follower]
) -> None:
    async with open_sqlite_store(path, TABLES) as one, open_sqlite_store(path, TABLES) as two:
        await one.write([Put(NOTES, "a", Note("1")), Delete(NOTES, "b"), Expect(NOTES, "c", 0)])
        await until(lambda: two.version == one.version == 1)
        assert not one._bell.has_news(1)
        with pytest.raises(RowConflict):
            await one.write(Put(NOTES, "a", Note("2")), expect=9)
        await one.write(Put(NOTES, "a", Note("3")), expect=1)
        await until(lambda: two.version == one.version == 2)
        assert not two._bell.has_news(2)
    assert looks == []


async def test_edits_in_a_shell_are_seen_with_all_that_belongs_to_them(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "LOOK_INTERVAL_S", 0.02)
    async with open_sqlite_store(path, TABLES) as store:
        (version,) = await store.write(Put(NOTES, "a", Note("1", ("x",))))
        feed = store.changes()
        shell = open_shell(path)
        shell.execute("UPDATE row SET key = 'b', value = json_set(value, '$.tags[0]', 'y')")
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
        with pytest.raises(apsw.ConstraintError):
            shell.execute("INSERT INTO row (tab, key, value) VALUES ('note', 'e', 'no json')")
        shell.close()


async def test_rows_of_unknown_tables_stay_as_they_are(path: Path) -> None:
    async with open_sqlite_store(path, TABLES) as store:
        await store.write([Put(NOTES, "a", Note("1")), Put(LOG, "a", Line("1"))])
    async with open_sqlite_store(path, [LOG]) as store:
        feed = store.changes()
        await store.write(Put(LOG, "b", Line("2")))
        assert (await anext(feed)).version == store.version
    async with open_sqlite_store(path, TABLES) as store:
        assert values(store.rows(NOTES)) == {"a": "1"}


async def test_a_field_that_becomes_unique_is_checked(path: Path) -> None:
    free = Table("note", Note)
    async with open_sqlite_store(path, [free]) as store:
        await store.write([Put(free, key, Note("1", ("x",))) for key in "ab"])
    with pytest.raises(StoreError, match="rows of table note share a value"):
        async with open_sqlite_store(path, TABLES):
            pass
    async with open_sqlite_store(path, [free]) as store:
        await store.write(Put(free, "b", Note("1", ("y",))))
    async with open_sqlite_store(path, TABLES) as other:
        with pytest.raises(RowConflict):
            await other.write(Put(NOTES, "c", Note("1", ("y",))))


async def test_history_is_trimmed_and_numbers_go_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "CHANGES_KEPT", 10)
    monkeypatch.setattr(group, "IDLE_S", NEVER_S)
    async with open_sqlite_store(path, TABLES) as store:
        for n in range(25):
            await store.write(Put(NOTES, "a", Note(str(n))))
        shell = open_shell(path)
        assert shell.execute("SELECT min(seq), max(seq) FROM change").fetchall() == [(12, 25)]
        shell.execute("UPDATE change SET at = 0")
        await store._tidy()
        assert shell.execute("SELECT min(seq), max(seq) FROM change").fetchall() == [(25, 25)]
        shell.close()
        assert await anext(store.changes(3)) == Changed(4, "note", "a", gone=False)
    async with open_sqlite_store(path, TABLES) as store:
        assert await anext(store.changes(3)) == Reloaded(25)
        assert await store.write(Put(NOTES, "a", Note("x"))) == (26,)


@pytest.mark.parametrize("step", range(4))
def test_history_is_trimmed_while_another_process_writes(path: Path, step: int) -> None:
    tidying, writing_too = (apsw.Connection(str(path)) for _ in range(2))
    tidying.pragma("journal_mode", "wal")
    migrate(tidying, Place(path))
    put = "INSERT INTO row (tab, key, value) VALUES ('note', ?, '{}')"
    tidying.executemany(put, [("a",), ("b",)])
    tidying.execute("UPDATE change SET at = 0")
    seen = count()

    def write_between(_cursor: apsw.Cursor, _sql: str, _bindings: object) -> bool:
        if next(seen) == step:
            with suppress(apsw.BusyError):
                writing_too.execute(put, ("c",))
        return True

    tidying.exec_trace = write_between
    writing.tidy(tidying)
    assert next(seen) > step
    assert tidying.execute("SELECT count(*) FROM change").get == 1
    tidying.close()
    writing_too.close()


async def test_an_idle_store_copies_its_log_into_the_database(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "IDLE_S", NEVER_S)
    async with open_sqlite_store(path, TABLES) as store:
        await store.write(Put(LOG, "a", Line("x" * 100_000)))
        assert path.stat().st_size < 100_000
        await store._tidy()
        assert path.stat().st_size > 100_000
