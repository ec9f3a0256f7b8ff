"""What is read from a database: everything, what changed since, a row, a page."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec
import trio

from alknet.core.storage import Changed, Row, Table
from alknet.errors import StoreError
from alknet.stores.postgres.link import Link
from alknet.stores.resident import Delta, RowChange, Snapshot, TableRows

__all__ = ["Tables", "check_layout", "fetch", "read_since", "scan", "snapshot"]

log = logging.getLogger(__name__)

T = TypeVar("T", bound=msgspec.Struct)
Tables = Mapping[str, Table[msgspec.Struct]]

# Rows decoded in one go: a millisecond or two, then other tasks have their turn.
ROWS_AT_ONCE = 1_000


def check_layout(found: int, layout: int) -> None:
    """Raise StoreError if another node has migrated the database since we opened it."""
    if found != layout:
        raise StoreError(
            f"another alknet has brought the database from layout {layout} to {found} while it "
            "was in use: restart this one"
        )


async def read_since(link: Link, cursor: int, tables: Tables, layout: int) -> Delta | None:
    """Return what changed after *cursor*, as of one moment; None if the history does not tell.

    A damaged row counts as removed, and is logged. Cancelled, no effect.

    Raises:
        StoreError: The database was migrated meanwhile.
        psycopg.Error: It cannot be read.
    """
    resident = [table.name for table in tables.values() if table.is_resident]
    found = await link.execute(_SINCE, {"cursor": cursor, "resident": resident})
    first = await found.fetchone()
    if first is None:
        raise StoreError(_NO_LAYOUT)
    check_layout(int(first[0]), layout)
    newest, oldest = int(first[1]), int(first[2])
    if newest < cursor or oldest > cursor + 1:
        return None
    changes: list[RowChange] = []
    page = [first]
    while page:
        changes += [_row_change(tables, *row[3:]) for row in page if row[3] is not None]
        page = await found.fetchmany(ROWS_AT_ONCE)
        if page:
            await trio.lowlevel.checkpoint()
    return Delta(newest, changes)


async def snapshot(link: Link, tables: Tables, layout: int, *, is_strict: bool = False) -> Snapshot:
    """Return all resident rows, inside a transaction that sees the database as of one moment.

    Cancelled, no effect.

    Raises:
        StoreError: The database was migrated meanwhile; a row is damaged, but only when
            *is_strict*, else it is logged and left out.
        psycopg.Error: It cannot be read.
    """
    first = await (await link.execute(_NEWEST)).fetchone()
    if first is None:
        raise StoreError(_NO_LAYOUT)
    check_layout(int(first[0]), layout)
    version = int(first[1])
    found = {name: TableRows(table, version) for name, table in tables.items()}
    for name, table in tables.items():
        after = ""
        while table.is_resident:
            page = await _page(link, _FORWARD, name, after, ROWS_AT_ONCE)
            for key, row_version, value in page:
                row = _decoded(table, key, row_version, value, is_strict=is_strict)
                if row is not None:
                    found[name].put(row)
            if len(page) < ROWS_AT_ONCE:
                break
            after = page[-1][0]
    return Snapshot(version, found)


async def fetch(link: Link, table: Table[T], key: str) -> Row[T] | None:
    """Return a row, or None. Raises StoreError if it is damaged. Cancelled, no effect."""
    found = await (await link.execute(_FETCH, (table.name, key))).fetchone()
    if found is None:
        return None
    return _decoded(table, key, int(found[0]), str(found[1]), is_strict=True)


async def scan(
    link: Link, table: Table[T], after: str, limit: int, *, newest_first: bool
) -> Sequence[Row[T]]:
    """Return a page of rows; see `Store.scan`. Raises StoreError if one is damaged."""
    query = _BACKWARD if newest_first else _FORWARD
    rows = [
        _decoded(table, key, version, value, is_strict=True)
        for key, version, value in await _page(link, query, table.name, after, limit)
    ]
    return [row for row in rows if row is not None]


async def _page(
    link: Link, query: bytes, table: str, after: str, limit: int
) -> list[tuple[str, int, str]]:
    found = await link.execute(query, {"tab": table, "after": after, "limit": limit})
    return [(str(row[0]), int(row[1]), str(row[2])) for row in await found.fetchall()]


def _row_change(
    tables: Tables, seq: int, tab: str, key: str, version: int | None, value: str | None
) -> RowChange:
    change = Changed(seq, tab, key, gone=version is None)
    if version is None or value is None:
        return RowChange(change, None)
    return RowChange(change, _decoded(tables[tab], key, version, value))


def _decoded(
    table: Table[T], key: str, version: int, value: str, *, is_strict: bool = False
) -> Row[T] | None:
    try:
        decoded = table.decode(value)
    except (msgspec.DecodeError, RecursionError) as exc:
        if is_strict:
            raise StoreError(
                f"{table.name} {key!r} is damaged in the database ({exc}): repair it there, or "
                "restore a backup"
            ) from exc
        log.error(  # noqa: TRY400  no traceback tells more
            "store.row_damaged", extra={"table": table.name, "key": key, "reason": str(exc)}
        )
        return None
    return Row(table.shared_key(key, decoded), decoded, version)


_NO_LAYOUT = "the table alknet.layout is empty: restore a backup"
_NEWEST = b"""
SELECT layout.version, coalesce((SELECT max(seq) FROM alknet.change), 0) FROM alknet.layout
"""
_FETCH = b"SELECT version, value::text FROM alknet.row WHERE tab = %s AND key = %s"
_FORWARD = b"""
SELECT key, version, value::text FROM alknet.row WHERE tab = %(tab)s AND key > %(after)s
ORDER BY key LIMIT %(limit)s::bigint
"""
_BACKWARD = b"""
SELECT key, version, value::text FROM alknet.row
WHERE tab = %(tab)s AND (%(after)s::text = '' OR key < %(after)s::text)
ORDER BY key DESC LIMIT %(limit)s::bigint
"""
# One statement, so one view. Without changes there is one row, whose change is null.
_SINCE = b"""
SELECT layout.version, span.newest, span.oldest, new.seq, new.tab, new.key, row.version,
    CASE WHEN new.tab = ANY (%(resident)s::text[]) THEN row.value::text END
FROM alknet.layout
CROSS JOIN (SELECT
    coalesce((SELECT max(seq) FROM alknet.change), 0),
    coalesce((SELECT min(seq) FROM alknet.change), 0)) AS span (newest, oldest)
LEFT JOIN (
    SELECT max(seq), tab, key FROM alknet.change WHERE seq > %(cursor)s::bigint GROUP BY tab, key
) AS new (seq, tab, key) ON span.oldest <= %(cursor)s::bigint + 1
LEFT JOIN alknet.row ON row.tab = new.tab AND row.key = new.key
ORDER BY new.seq
"""
