"""What is read from a database: everything, what changed since, a row, a page.

All of it blocks and runs in the thread of a connection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import apsw
import msgspec

from alknet.core.storage import Changed, Row, Table
from alknet.errors import StoreError
from alknet.stores.resident import Delta, RowChange, Snapshot, TableRows
from alknet.stores.sqlite.schema import layout_of

__all__ = [
    "Tables",
    "check_layout",
    "decoded",
    "fetch",
    "in_one_view",
    "newest_change",
    "read_since",
    "scan",
    "snapshot",
]

log = logging.getLogger(__name__)

T = TypeVar("T", bound=msgspec.Struct)
Found = TypeVar("Found")
Tables = Mapping[str, Table[msgspec.Struct]]


def in_one_view(connection: apsw.Connection, read: Callable[[], Found]) -> Found:
    """Run *read*, whose queries all see the database as of one moment."""
    connection.execute("BEGIN")
    try:
        return read()
    finally:
        if connection.in_transaction:
            connection.execute("COMMIT")


def check_layout(connection: apsw.Connection, layout: int) -> None:
    """Raise StoreError if another process has migrated the database since we opened it."""
    found = layout_of(connection)
    if found != layout:
        raise StoreError(
            f"another alknet has brought the database from layout {layout} to {found} while it "
            "was in use: restart this one"
        )


def newest_change(connection: apsw.Connection) -> int:
    """Return the version of the database."""
    found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'change'").get
    return int(found or 0)


def read_since(connection: apsw.Connection, cursor: int, tables: Tables) -> Delta | Snapshot:
    """Return what changed after *cursor*, or everything if the history does not tell.

    To be called inside a transaction. A damaged row counts as removed, and is logged.
    """
    version = newest_change(connection)
    if version == cursor:
        return Delta(version, ())
    oldest = connection.execute("SELECT min(seq) FROM change").get
    if oldest is None or oldest > cursor + 1 or version < cursor:
        return snapshot(connection, tables)
    changed = connection.execute(
        "SELECT max(seq), tab, key FROM change WHERE seq > ? GROUP BY tab, key ORDER BY 1",
        (cursor,),
    ).fetchall()
    changes = [
        _row_change(connection, tables, int(seq or 0), str(tab), str(key))
        for seq, tab, key in changed
    ]
    return Delta(version, changes)


def snapshot(connection: apsw.Connection, tables: Tables, *, is_strict: bool = False) -> Snapshot:
    """Return all resident rows, inside a transaction.

    Raises:
        StoreError: A row is damaged; only when *is_strict*, else it is logged and left out.
    """
    version = newest_change(connection)
    found = {name: TableRows(table, version) for name, table in tables.items()}
    for name, table in tables.items():
        if table.is_resident:
            rows = connection.execute("SELECT key, version, value FROM row WHERE tab = ?", (name,))
            for key, row_version, value in rows:
                row = decoded(table, str(key), int(row_version), str(value), is_strict=is_strict)
                if row is not None:
                    found[name].put(row)
    return Snapshot(version, found)


def fetch(connection: apsw.Connection, table: Table[T], key: str) -> Row[T] | None:
    """Return a row, or None. Raises StoreError if it is damaged."""
    found = connection.execute(
        "SELECT version, value FROM row WHERE tab = ? AND key = ?", (table.name, key)
    ).fetchone()
    if found is None:
        return None
    return decoded(table, key, int(found[0]), str(found[1]), is_strict=True)


def scan(
    connection: apsw.Connection, table: Table[T], after: str, limit: int, *, newest_first: bool
) -> Sequence[Row[T]]:
    """Return a page of rows; see `Store.scan`. Raises StoreError if one is damaged."""
    if newest_first:
        query = (
            "SELECT key, version, value FROM row WHERE tab = ?1 AND (?2 = '' OR key < ?2) "
            "ORDER BY key DESC LIMIT ?3"
        )
    else:
        query = (
            "SELECT key, version, value FROM row WHERE tab = ?1 AND key > ?2 ORDER BY key LIMIT ?3"
        )
    page = connection.execute(query, (table.name, after, limit))
    rows = (
        decoded(table, str(key), int(version), str(value), is_strict=True)
        for key, version, value in page
    )
    return [row for row in rows if row is not None]


def _row_change(
    connection: apsw.Connection, tables: Tables, seq: int, tab: str, key: str
) -> RowChange:
    found = connection.execute(
        "SELECT version, iif(?3, value, NULL) FROM row WHERE tab = ?1 AND key = ?2",
        (tab, key, tab in tables and tables[tab].is_resident),
    ).fetchone()
    change = Changed(seq, tab, key, gone=found is None)
    if found is None or found[1] is None:
        return RowChange(change, None)
    return RowChange(change, decoded(tables[tab], key, int(found[0]), str(found[1])))


def decoded(
    table: Table[T], key: str, version: int, value: str, *, is_strict: bool = False
) -> Row[T] | None:
    """Make a row of what the database holds; None, and a line in the log, if it is damaged.

    Raises:
        StoreError: It is damaged; only when *is_strict*.
    """
    try:
        decoded = table.decode(value)
    except (msgspec.DecodeError, RecursionError) as exc:
        if is_strict:
            raise StoreError(
                f"{table.name} {key!r} is damaged in the database ({exc}): repair it there, or "
                "put a backup in its place"
            ) from exc
        log.error(  # noqa: TRY400  no traceback tells more
            "store.row_damaged", extra={"table": table.name, "key": key, "reason": str(exc)}
        )
        return None
    return Row(table.shared_key(key, decoded), decoded, version)
