"""The engines on which what stands on a store is tested, as a parameter of tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from alknet.core.storage import Store
from alknet.stores.memory_store import MemoryDatabase, open_memory_store
from alknet.stores.sqlite import open_sqlite_store
from alknet.stores.tables import NODE_TABLES

__all__ = ["ENGINES", "Engine", "Opener"]

Opener = Callable[[], AbstractAsyncContextManager[Store]]
"""Opens one more handle on the same rows."""

Engine = Callable[[Path], Opener]


def memory(_: Path) -> Opener:
    database = MemoryDatabase()

    @asynccontextmanager
    async def opened() -> AsyncGenerator[Store]:
        async with open_memory_store(NODE_TABLES, database) as store:
            yield store

    return opened


def sqlite(directory: Path) -> Opener:
    @asynccontextmanager
    async def opened() -> AsyncGenerator[Store]:
        async with open_sqlite_store(directory / "node.db", NODE_TABLES) as store:
            yield store

    return opened


ENGINES: tuple[Engine, ...] = (memory, sqlite)
