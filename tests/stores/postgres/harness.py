"""A store of a database of a test's own, and what can be done to it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import psycopg

from alknet.core.storage import Store
from alknet.stores.postgres.link import Link
from alknet.stores.postgres.store import PostgresStore, open_store
from alknet.testing.store_contract import TABLES
from alknet.testing.store_contract.harness import until
from tests.stores.postgres.server import PostgresServer

__all__ = ["PostgresHarness", "open_for_child"]


class PostgresHarness:
    """A `StoreHarness` of the database *name*."""

    def __init__(self, server: PostgresServer, name: str) -> None:
        self.server = server
        self.name = name

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    @property
    def child(self) -> tuple[str, str]:
        return f"{__name__}:{open_for_child.__name__}", self.url

    def open(self) -> AbstractAsyncContextManager[PostgresStore]:
        return open_store(self.url, TABLES)

    @asynccontextmanager
    async def cut_off(self, store: Store) -> AsyncGenerator[None]:
        """End what *store* listens with, and let it have no other; it can write."""
        assert isinstance(store, PostgresStore)
        follower = store._follower
        open_link = follower._open_link

        async def refuse() -> Link:
            raise psycopg.OperationalError("cut off by the test")

        follower._open_link = refuse
        self.break_listener(store)
        await until(lambda: follower._link is None)
        yield
        follower._open_link = open_link

    def break_listener(self, store: Store) -> None:
        assert isinstance(store, PostgresStore)
        link = store._follower._link
        assert link is not None
        self.execute(f"SELECT pg_terminate_backend({link.info.backend_pid}, 10000)")

    async def trim(self) -> None:
        self.execute("DELETE FROM alknet.change WHERE seq < (SELECT max(seq) FROM alknet.change)")

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        return self.server.execute(statement, self.name)


def open_for_child(url: str) -> AbstractAsyncContextManager[Store]:
    return open_store(url, TABLES)
