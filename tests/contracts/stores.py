"""Harnesses of the store engines that need no server."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import apsw

from alknet.core.storage import Store
from alknet.stores.memory_store import MemoryDatabase, MemoryStore, open_memory_store
from alknet.stores.sqlite import SqliteStore, open_sqlite_store
from alknet.stores.sqlite.place import Place
from alknet.testing.store_contract import TABLES

__all__ = ["MemoryHarness", "SqliteHarness", "open_sqlite_for_child"]


class MemoryHarness:
    """A `StoreHarness` of one process."""

    child = ("", "")

    def __init__(self) -> None:
        self.database = MemoryDatabase()

    def open(self) -> AbstractAsyncContextManager[Store]:
        return open_memory_store(TABLES, self.database)

    @asynccontextmanager
    async def cut_off(self, store: Store) -> AsyncGenerator[None]:
        assert isinstance(store, MemoryStore)
        store.lose_listener()
        yield
        store.look()

    def break_listener(self, store: Store) -> None:
        """Do nothing: nothing lies between a handle and its database that could break unseen."""

    async def trim(self) -> None:
        self.database.trim()


class SqliteHarness:
    """A `StoreHarness` of a database in *directory*."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "node.db"

    @property
    def child(self) -> tuple[str, str]:
        return f"{__name__}:{open_sqlite_for_child.__name__}", str(self.path)

    def open(self) -> AbstractAsyncContextManager[SqliteStore]:
        return open_sqlite_store(self.path, TABLES)

    @asynccontextmanager
    async def cut_off(self, store: Store) -> AsyncGenerator[None]:
        """Let *store* look for its database in a place where none is, and see nothing there."""
        assert isinstance(store, SqliteStore)
        follower = store._follower
        place, glance = follower._place, follower._glance._connection
        follower._place = Place(self.path.with_name("nowhere"))
        follower._glance._connection = apsw.Connection(":memory:")
        yield
        follower._place, follower._glance._connection = place, glance

    def break_listener(self, store: Store) -> None:
        Place(self.path).bell_path.unlink()

    async def trim(self) -> None:
        connection = apsw.Connection(str(self.path))
        connection.set_busy_timeout(60_000)
        connection.execute("DELETE FROM change WHERE seq < (SELECT max(seq) FROM change)")
        connection.close()


def open_sqlite_for_child(path: str) -> AbstractAsyncContextManager[SqliteStore]:
    """Open the database of a `SqliteHarness` in another process."""
    return open_sqlite_store(Path(path), TABLES)
