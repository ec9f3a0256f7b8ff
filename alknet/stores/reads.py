"""What every store reads alike: rows and changes from memory, and the checks before others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

import msgspec
import trio

from alknet.core.storage import Row, Table
from alknet.errors import LocalError
from alknet.stores.resident import Feed, Resident
from alknet.stores.steps import check_key

__all__ = ["MAX_PAGE", "EngineReads", "ResidentReads"]

# Rows of one `scan`: other reads of the engine wait behind it.
MAX_PAGE = 10_000

T = TypeVar("T", bound=msgspec.Struct)


class ResidentReads:
    """The part of a `Store` that memory answers."""

    def __init__(self, resident: Resident) -> None:
        self._resident = resident

    @property
    def version(self) -> int:
        """The newest change that memory reflects."""
        return self._resident.version

    def version_of(self, table: Table[msgspec.Struct]) -> int:
        """Return a version that differs whenever *table* may have changed."""
        return self._resident.version_of(table)

    def get(self, table: Table[T], key: str) -> Row[T] | None:
        """Return a row from memory, or None."""
        rows = self._resident.rows.get(table)
        if rows is None:
            return self._resident.table_rows(table).rows.get(key)
        return rows.get(key)  # type: ignore[return-value]  # of this very table

    def find(self, table: Table[T], field: str, value: str) -> Sequence[Row[T]]:
        """Return the rows whose indexed *field* is or contains *value*."""
        return self._resident.table_rows(table).find(field, value)

    def rows(self, table: Table[T]) -> Sequence[Row[T]]:
        """Return all rows of a table by key."""
        return self._resident.table_rows(table).sorted_rows()

    def changes(self, since: int | None = None) -> Feed:
        """Follow what changes after *since*; see `Store.changes`."""
        return self._resident.feed(since)

    async def wait_changed(self, version: int) -> int:
        """Wait until `version` differs from *version*. Cancelled, nothing happens."""
        return await self._resident.wait_changed(version)


class EngineReads(ResidentReads, ABC):
    """The reads of a `Store` whose rows are in a database too."""

    async def fetch(self, table: Table[T], key: str) -> Row[T] | None:
        """Return a row from the database; see `Store.fetch`. Cancelled, no effect."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._resident.version_of(table)
        check_key(key)
        return await self._fetch(table, key)

    async def scan(
        self, table: Table[T], *, after: str = "", limit: int = 1_000, newest_first: bool = False
    ) -> Sequence[Row[T]]:
        """Return a page of rows from the database; see `Store.scan`. Cancelled, no effect.

        Raises:
            LocalError: *limit* is not 1 to `MAX_PAGE`.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._resident.version_of(table)
        if not 1 <= limit <= MAX_PAGE:
            raise LocalError(f"a page has 1 to {MAX_PAGE} rows, not {limit}")
        return await self._scan(table, after, limit, newest_first=newest_first)

    @abstractmethod
    async def _fetch(self, table: Table[T], key: str) -> Row[T] | None: ...

    @abstractmethod
    async def _scan(
        self, table: Table[T], after: str, limit: int, *, newest_first: bool
    ) -> Sequence[Row[T]]: ...
