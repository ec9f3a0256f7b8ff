"""A store that is named before it is open, so that what uses it can be wired first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import msgspec
import trio

from alknet.core.storage import Changed, Op, Reloaded, Row, Store, Table
from alknet.errors import Unavailable

__all__ = ["DeferredStore"]

T = TypeVar("T", bound=msgspec.Struct)


class DeferredStore:
    """A `Store` that passes everything on to another, once that is there.

    Without it, reads and writes raise Unavailable, versions are those of the last one (at first
    0) and staleness is without end.
    """

    def __init__(self) -> None:
        self._store: Store | None = None
        self._attached = trio.Event()
        self._version = 0
        self._versions: dict[str, int] = {}

    @contextmanager
    def attached(self, store: Store) -> Iterator[None]:
        """Use *store* while the block runs."""
        self._store = store
        self._attached.set()
        try:
            yield
        finally:
            self._store = None
            self._attached = trio.Event()

    @property
    def version(self) -> int:
        """The newest change that memory reflects."""
        if self._store is not None:
            self._version = self._store.version
        return self._version

    @property
    def staleness(self) -> float:
        """Seconds since memory was last known to be current."""
        return float("inf") if self._store is None else self._store.staleness

    def version_of(self, table: Table[msgspec.Struct]) -> int:
        """Return the newest change of *table*."""
        if self._store is not None:
            self._versions[table.name] = self._store.version_of(table)
        return self._versions.get(table.name, 0)

    def get(self, table: Table[T], key: str) -> Row[T] | None:
        """Return a row from memory, or None."""
        return self._now.get(table, key)

    def find(self, table: Table[T], field: str, value: str) -> Sequence[Row[T]]:
        """Return the rows whose indexed *field* is or contains *value*."""
        return self._now.find(table, field, value)

    def rows(self, table: Table[T]) -> Sequence[Row[T]]:
        """Return all rows of a table by key."""
        return self._now.rows(table)

    async def fetch(self, table: Table[T], key: str) -> Row[T] | None:
        """Return a row from the engine; see `Store.fetch`. Cancelled, no effect."""
        return await self._now.fetch(table, key)

    async def scan(
        self, table: Table[T], *, after: str = "", limit: int = 1_000, newest_first: bool = False
    ) -> Sequence[Row[T]]:
        """Return a page of rows; see `Store.scan`. Cancelled, no effect."""
        return await self._now.scan(table, after=after, limit=limit, newest_first=newest_first)

    async def write(self, ops: Op | Sequence[Op], *, expect: int | None = None) -> tuple[int, ...]:
        """Do *ops* together; see `Store.write`, also for what a cancel leaves behind."""
        return await self._now.write(ops, expect=expect)

    def changes(self, since: int | None = None) -> AsyncIterator[Changed | Reloaded]:
        """Follow what changes after *since*; see `Store.changes`."""
        return self._now.changes(since)

    async def wait_changed(self, version: int) -> int:
        """Wait until `version` differs from *version*. Cancelled, nothing happens."""
        await self._attached.wait()
        return await self._now.wait_changed(version)

    async def aclose(self) -> None:
        """Leave it open: it belongs to whoever attached it."""
        await trio.lowlevel.checkpoint()

    @property
    def _now(self) -> Store:
        if self._store is None:
            raise Unavailable("the node's store is not open: the node does not run")
        return self._store


_: type[Store] = DeferredStore
