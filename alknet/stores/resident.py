"""The rows of a store in memory, their indexes, and the feed of what changed. Knows no engine.

An engine loads a `Snapshot` and then delivers what changed, in any number of overlapping pieces:
`Resident.apply` leaves out what it has seen. Pieces may be made in a worker thread; whatever
touches a `Resident` runs in the store's Trio run.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import msgspec
import trio

from alknet.core.storage import Changed, Reloaded, Row, Table
from alknet.errors import LocalError

__all__ = ["Delta", "Feed", "Resident", "RowChange", "Snapshot", "TableRows"]

# Changes that a slow follower may be behind before it must reload: ten seconds of a busy node,
# and under 2 MB.
FEED_KEPT = 10_000

T = TypeVar("T", bound=msgspec.Struct)
AnyTable = Table[msgspec.Struct]
AnyRow = Row[msgspec.Struct]


class RowChange(msgspec.Struct, frozen=True, gc=False):
    """What became of a row: *row* is None if it is gone, or if its table is not resident."""

    change: Changed
    row: AnyRow | None


class Delta(msgspec.Struct, frozen=True):
    """All that changed between a cursor and *version*, newest change of each row, ascending."""

    version: int
    changes: Sequence[RowChange]


class Snapshot(msgspec.Struct, frozen=True):
    """All resident rows as of *version*, by table name."""

    version: int
    tables: Mapping[str, TableRows[msgspec.Struct]]


class TableRows(Generic[T]):
    """The rows of one table, or none of a table that is not resident.

    Attributes:
        rows: By key.
        version: The newest change of the table.
    """

    def __init__(self, table: Table[T], version: int = 0) -> None:
        self.table = table
        self.version = version
        self.rows: dict[str, Row[T]] = {}
        # Most texts lead to one row: a dict for each would cost more than all rows.
        self._indexes: dict[str, dict[str, Row[T] | dict[str, Row[T]]]] = {
            field: {} for field in table.indexes
        }

    def put(self, row: Row[T]) -> None:
        """Add or replace a row."""
        self.remove(row.key)
        self.rows[row.key] = row
        for field, index in self._indexes.items():
            for text in self.table.entries(row.value, field):
                found = index.setdefault(text, row)
                if isinstance(found, dict):
                    found[row.key] = row
                elif found is not row:
                    index[text] = {found.key: found, row.key: row}

    def remove(self, key: str) -> None:
        """Remove a row, if it is there."""
        old = self.rows.pop(key, None)
        if old is None:
            return
        for field, index in self._indexes.items():
            for text in self.table.entries(old.value, field):
                found = index.get(text)
                if isinstance(found, dict):
                    found.pop(key, None)
                if found is old or found == {}:
                    del index[text]

    def find(self, field: str, value: str) -> list[Row[T]]:
        """Return the rows that *field* leads to, by key."""
        index = self._indexes.get(field)
        if index is None:
            raise LocalError(f"table {self.table.name} has no index of {field!r}")
        found = index.get(value)
        if found is None:
            return []
        return sorted(found.values(), key=_key) if isinstance(found, dict) else [found]

    def sorted_rows(self) -> list[Row[T]]:
        """Return all rows by key."""
        return sorted(self.rows.values(), key=_key)


class Resident:
    """What a handle knows. Raises ``trio.ClosedResourceError`` after `close`.

    Args:
        tables: Those of the store, by name.

    Attributes:
        version: The newest change that is known.
        rows: The rows of each resident table by key, for reads that take one call instead of
            three. A table that is missing is for `table_rows` to judge.
    """

    def __init__(self, tables: Mapping[str, AnyTable]) -> None:
        self.version = 0
        self._hold({name: TableRows(table) for name, table in tables.items()})
        self._feed_start = 0
        self._log: list[Changed] = []
        self._changed = trio.Event()
        self._is_closed = False

    def table_rows(self, table: Table[T]) -> TableRows[T]:
        """Return the rows of a resident table."""
        found = self._any_rows(table)
        if not table.is_resident:
            raise LocalError(f"table {table.name} is not in memory: use fetch or scan")
        return found

    def version_of(self, table: AnyTable) -> int:
        """Return the newest change of a table."""
        return self._any_rows(table).version

    def deliver(self, news: Delta | Snapshot) -> None:
        """Take what an engine found."""
        if isinstance(news, Snapshot):
            self.replace(news)
        else:
            self.apply(news)

    def replace(self, snapshot: Snapshot) -> None:
        """Take a snapshot for what is known, unless more is known already."""
        if snapshot.version < self.version or self._is_closed:
            return
        self._hold(snapshot.tables)
        self.version = self._feed_start = snapshot.version
        self._log.clear()
        self._wake()

    def apply(self, delta: Delta) -> None:
        """Take what changed after some version up to which all is known."""
        if delta.version <= self.version or self._is_closed:
            return
        for found in delta.changes:
            if found.change.version > self.version:
                self._take(found)
        self.version = delta.version
        if len(self._log) > 2 * FEED_KEPT:
            del self._log[:-FEED_KEPT]
            self._feed_start = self._log[0].version - 1
        self._wake()

    def feed(self, since: int | None) -> Feed:
        """Return an iterator over what changes after *since*."""
        self.check_open()
        return Feed(self, self.version if since is None else since)

    def changes_after(self, cursor: int) -> Sequence[Changed] | None:
        """Return what is known to have changed after *cursor*; None if that is not all."""
        self.check_open()
        if not self._feed_start <= cursor <= self.version:
            return None
        return self._log[bisect_right(self._log, cursor, key=_version) :]

    async def wait_changed(self, version: int) -> int:
        """Wait until the version differs; see `Store.wait_changed`."""
        await trio.lowlevel.checkpoint()
        self.check_open()
        while self.version == version:
            await self._changed.wait()
            self.check_open()
        return self.version

    def close(self) -> None:
        """Forget all; who waits is woken. Idempotent."""
        self._is_closed = True
        self._hold({})
        self._log.clear()
        self._wake()

    def check_open(self) -> None:
        """Raise ``trio.ClosedResourceError`` if it is not."""
        if self._is_closed:
            raise trio.ClosedResourceError("this store was closed")

    def _hold(self, tables: Mapping[str, TableRows[msgspec.Struct]]) -> None:
        self._tables = tables
        self.rows = {held.table: held.rows for held in tables.values() if held.table.is_resident}

    def _any_rows(self, table: Table[T]) -> TableRows[T]:
        found = self._tables.get(table.name)
        if found is None or found.table is not table:
            self.check_open()
            raise LocalError(f"this store was not opened with {table!r}")
        return found  # type: ignore[return-value]  # of this very table

    def _take(self, found: RowChange) -> None:
        change = found.change
        rows = self._tables.get(change.table)
        if rows is None:
            return  # of a table that this handle was not opened with
        if found.row is not None:
            rows.put(found.row)
        else:
            rows.remove(change.key)
        rows.version = change.version
        self._log.append(change)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class Feed:
    """Follows a `Resident`; see `Store.changes`. Holds nothing but its cursor."""

    def __init__(self, resident: Resident, cursor: int) -> None:
        self._resident = resident
        self._cursor = cursor
        self._ready: list[Changed | Reloaded] = []

    def __aiter__(self) -> Feed:
        return self

    async def __anext__(self) -> Changed | Reloaded:
        await trio.lowlevel.checkpoint()
        while not self._ready:
            self._fill()
            if not self._ready:
                await self._resident.wait_changed(self._cursor)
        return self._ready.pop()

    def _fill(self) -> None:
        found = self._resident.changes_after(self._cursor)
        self._cursor = self._resident.version
        if found is None:
            self._ready = [Reloaded(self._cursor)]
        else:
            self._ready = list(reversed(found))


def _key(row: AnyRow) -> str:
    return row.key


def _version(change: Changed) -> int:
    return change.version
