"""A store whose rows last as long as the process: for tests, and for nodes that keep nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec
import trio

from alknet.core.storage import ABSENT, Changed, Op, Row, Store, Table
from alknet.stores.reads import ResidentReads
from alknet.stores.resident import Delta, Resident, RowChange, Snapshot, TableRows
from alknet.stores.steps import (
    Step,
    Steps,
    by_name,
    check_key,
    expectation_failed,
    steps_of,
    value_taken,
)

__all__ = ["MemoryDatabase", "MemoryStore", "open_memory_store"]

# The history that a handle may be behind before it reloads; as the durable engines have.
HISTORY_KEPT = 10_000

T = TypeVar("T", bound=msgspec.Struct)
RowId = tuple[str, str]
UniqueId = tuple[str, str, str]


class _Stored(msgspec.Struct, frozen=True):
    data: bytes
    version: int
    unique: Sequence[tuple[str, str]]


class MemoryDatabase:
    """The rows that several `MemoryStore`s share, as processes share a file. One Trio run.

    Attributes:
        version: The newest change.
    """

    def __init__(self) -> None:
        self.version = 0
        self._rows: dict[RowId, _Stored] = {}
        self._owners: dict[UniqueId, str] = {}
        self._history: list[Changed] = []
        self._trimmed = 0
        self._bells: list[Callable[[], None]] = []

    def commit(self, steps: Steps) -> tuple[int, ...]:
        """Do all steps, or none. Raises RowConflict."""
        before = self.version, len(self._history)
        undo: list[Callable[[], object]] = []
        try:
            versions = tuple(self._do(step, undo) for step in steps)
        except BaseException:
            for put_back in reversed(undo):
                put_back()
            self.version = before[0]
            del self._history[before[1] :]
            raise
        if len(self._history) > 2 * HISTORY_KEPT:
            self.trim(HISTORY_KEPT)
        for bell in list(self._bells):
            bell()
        return versions

    def trim(self, kept: int = 0) -> None:
        """Forget all but the newest *kept* changes: who has not seen the others must reload."""
        cut = max(len(self._history) - kept, 0)
        if cut:
            self._trimmed = self._history[cut - 1].version
            del self._history[:cut]

    def listen(self, bell: Callable[[], None]) -> None:
        """Call *bell* after each commit."""
        self._bells.append(bell)

    def stop_listening(self, bell: Callable[[], None]) -> None:
        """Undo `listen`, also if it was not called."""
        if bell in self._bells:
            self._bells.remove(bell)

    def read_since(self, cursor: int, tables: dict[str, Table[msgspec.Struct]]) -> Delta | Snapshot:
        """Return what changed after *cursor*, or everything if the history does not tell."""
        if cursor < self._trimmed:
            return self._snapshot(tables)
        newest = {(c.table, c.key): c for c in self._history if c.version > cursor}
        changes = sorted(newest.values(), key=lambda change: change.version)
        return Delta(self.version, [self._row_change(change, tables) for change in changes])

    def fetch(self, table: Table[T], key: str) -> Row[T] | None:
        """Return a row, or None."""
        stored = self._rows.get((table.name, key))
        return None if stored is None else Row(key, table.decode(stored.data), stored.version)

    def keys(self, table: str) -> list[str]:
        """Return the keys of a table, sorted."""
        return sorted(key for name, key in self._rows if name == table)

    def _snapshot(self, tables: dict[str, Table[msgspec.Struct]]) -> Snapshot:
        found = {name: TableRows(table, self.version) for name, table in tables.items()}
        for name, key in self._rows:
            if name in tables and tables[name].is_resident:
                row = self.fetch(tables[name], key)
                assert row is not None
                found[name].put(row)
        return Snapshot(self.version, found)

    def _row_change(self, change: Changed, tables: dict[str, Table[msgspec.Struct]]) -> RowChange:
        table = tables.get(change.table)
        if table is None or not table.is_resident:
            return RowChange(change, None)
        return RowChange(change, self.fetch(table, change.key))

    def _do(self, step: Step, undo: list[Callable[[], object]]) -> int:
        row_id = (step.table.name, step.key)
        old = self._rows.get(row_id)
        found = ABSENT if old is None else old.version
        if step.expect is not None and step.expect != found:
            raise expectation_failed(step, found)
        if step.is_check or (step.data is None and old is None):
            return found
        self.version += 1
        self._history.append(
            Changed(self.version, step.table.name, step.key, gone=step.data is None)
        )
        if old is not None:
            self._remove(row_id, old)
            undo.append(lambda: self._insert(row_id, old))
        if step.data is not None:
            self._claim(step)
            new = _Stored(step.data, self.version, step.unique)
            self._insert(row_id, new)
            undo.append(lambda: self._remove(row_id, new))
        return self.version

    def _claim(self, step: Step) -> None:
        for field, value in step.unique:
            holder = self._owners.get((step.table.name, field, value))
            if holder is not None:
                raise value_taken(step, field, value, holder)

    def _insert(self, row_id: RowId, stored: _Stored) -> None:
        self._rows[row_id] = stored
        for field, value in stored.unique:
            self._owners[row_id[0], field, value] = row_id[1]

    def _remove(self, row_id: RowId, stored: _Stored) -> None:
        del self._rows[row_id]
        for field, value in stored.unique:
            del self._owners[row_id[0], field, value]


class MemoryStore(ResidentReads):
    """A `Store` on a `MemoryDatabase`; see `open_memory_store`.

    A test makes it deaf with `lose_listener`: it then sees nothing that other handles write, and
    grows stale, until `look`.
    """

    def __init__(self, tables: Sequence[Table[msgspec.Struct]], database: MemoryDatabase) -> None:
        self._table_of = by_name(tables)
        self._database = database
        super().__init__(Resident(self._table_of))
        self._lost_at: float | None = None
        database.listen(self._take_over)
        self._take_over()

    @property
    def staleness(self) -> float:
        """0.0 unless the listener is lost."""
        self._resident.check_open()
        return 0.0 if self._lost_at is None else trio.current_time() - self._lost_at

    async def fetch(self, table: Table[T], key: str) -> Row[T] | None:
        """Return a row of any table, or None. Cancelled, no effect."""
        await trio.lowlevel.checkpoint()
        self._resident.version_of(table)
        check_key(key)
        return self._database.fetch(table, key)

    async def scan(
        self, table: Table[T], *, after: str = "", limit: int = 1_000, newest_first: bool = False
    ) -> Sequence[Row[T]]:
        """Return a page of rows by key; see `Store.scan`. Cancelled, no effect."""
        await trio.lowlevel.checkpoint()
        self._resident.version_of(table)
        keys = self._database.keys(table.name)
        if newest_first:
            page = [key for key in reversed(keys) if not after or key < after]
        else:
            page = [key for key in keys if key > after]
        found = (self._database.fetch(table, key) for key in page[:limit])
        return [row for row in found if row is not None]

    async def write(self, ops: Op | Sequence[Op], *, expect: int | None = None) -> tuple[int, ...]:
        """Do *ops* together; see `Store.write`. Cancelled, no effect."""
        await trio.lowlevel.checkpoint()
        self._resident.check_open()
        steps = steps_of(ops, expect, self._table_of)
        versions = self._database.commit(steps)
        if self._lost_at is not None:
            self._take_over()  # what we write ourselves we see all the same
        return versions

    async def aclose(self) -> None:
        """Close this handle; its database stays. Idempotent."""
        self._database.stop_listening(self._take_over)
        self._resident.close()
        await trio.lowlevel.checkpoint()

    def look(self) -> None:
        """Take over what others wrote, and hear of it from now on."""
        if self._lost_at is not None:
            self._lost_at = None
            self._database.listen(self._take_over)
        self._take_over()

    def lose_listener(self) -> None:
        """Hear nothing more of what others write, as when a listening connection dies."""
        self._database.stop_listening(self._take_over)
        self._lost_at = trio.current_time()

    def _take_over(self) -> None:
        self._resident.deliver(self._database.read_since(self._resident.version, self._table_of))
        if self._lost_at is not None:
            self._lost_at = trio.current_time()


@asynccontextmanager
async def open_memory_store(
    tables: Sequence[Table[msgspec.Struct]], database: MemoryDatabase | None = None
) -> AsyncGenerator[MemoryStore]:
    """Open a store in memory and close it after the block.

    Args:
        tables: What it holds.
        database: What it shares with other handles; None for rows of its own.

    Raises:
        LocalError: Two tables have one name.
    """
    store = MemoryStore(tables, MemoryDatabase() if database is None else database)
    try:
        yield store
    finally:
        await store.aclose()


_: type[Store] = MemoryStore
