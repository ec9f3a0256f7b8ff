"""How the schema ``alknet`` comes to be, and how an older layout becomes a newer one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import msgspec
import psycopg

from alknet.core.storage import Table
from alknet.errors import StoreError
from alknet.stores.postgres.layout import MIGRATIONS, Migration
from alknet.stores.postgres.link import Link

__all__ = ["in_transaction", "prepare"]

MIGRATION_LOCK = 0x616C_6B6E_0000_0001
# A step over a million rows takes seconds; nodes that start at the same time wait for it.
MIGRATION_TIMEOUT_S = 60.0


async def prepare(
    link: Link,
    tables: Sequence[Table[msgspec.Struct]],
    migrations: Sequence[Migration] = MIGRATIONS,
) -> None:
    """Bring the database to what *tables* and *migrations* say, in one transaction each.

    Killed or cancelled, nothing of it happened. Of several nodes that start at once, one does it
    and the others wait; *link* keeps a lock, so it must be closed afterwards.

    Raises:
        StoreError: The layout is of a newer alknet; rows that are there share a value of a field
            that was not unique before.
        psycopg.Error: A step failed, or the role may not do it.
    """
    if await _layout_of(link, len(migrations)) != len(migrations):
        link.silence_s = MIGRATION_TIMEOUT_S
        await link.execute(f"SET lock_timeout = '{MIGRATION_TIMEOUT_S:g}s'".encode())
        # Held by the session, before the transaction: one that began earlier would not see, in
        # its caches, what the node before us has made.
        await link.execute("SELECT pg_advisory_lock(%s)", (MIGRATION_LOCK,))
        async with in_transaction(link):
            await _migrate(link, migrations)
    await _claim_unique_fields(link, tables)


@asynccontextmanager
async def in_transaction(link: Link, begin: str = "BEGIN") -> AsyncGenerator[None]:
    """Commit what the block does. If it fails or is cancelled, the connection is closed."""
    try:
        await link.execute(begin.encode())
        yield
        await link.execute("COMMIT")
    except BaseException:
        link.drop()
        raise


async def _layout_of(link: Link, newest: int) -> int:
    """Return how many steps were made. Raises StoreError if they are more than we know."""
    row = await (await link.execute("SELECT to_regclass('alknet.layout') IS NULL")).fetchone()
    if row is None or row[0]:
        return 0
    row = await (await link.execute("SELECT version FROM alknet.layout")).fetchone()
    done = 0 if row is None else int(row[0])
    if done > newest:
        raise StoreError(
            f"the schema alknet of database {link.info.dbname} has layout {done}, and this alknet "
            f"knows {newest}: it was written by a newer one; use that"
        )
    return done


async def _migrate(link: Link, migrations: Sequence[Migration]) -> None:
    done = await _layout_of(link, len(migrations))
    if done == 0:
        row = await (await link.execute("SELECT to_regnamespace('alknet') IS NULL")).fetchone()
        if row is None or row[0]:
            await link.execute("CREATE SCHEMA alknet")
        await link.execute("CREATE TABLE alknet.layout (version int NOT NULL)")
        await link.execute("INSERT INTO alknet.layout VALUES (0)")
    for step in migrations[done:]:
        await link.execute(step.script.encode())
    await link.execute("UPDATE alknet.layout SET version = %s", (len(migrations),))


async def _claim_unique_fields(link: Link, tables: Sequence[Table[msgspec.Struct]]) -> None:
    """Let the triggers guard the unique fields that *tables* declare."""
    wanted = {(t.name, t.json_names[field]) for t in tables for field in t.unique}
    found = await (await link.execute("SELECT tab, field FROM alknet.unique_field")).fetchall()
    missing = sorted(wanted - {(str(tab), str(field)) for tab, field in found})
    if not missing:
        return
    async with in_transaction(link):
        await link.execute("SELECT alknet.take_turn()")
        for tab, field in missing:
            try:
                await link.execute(_CLAIM_FIELD, (tab, field))
                await link.execute(_CLAIM_ROWS, (tab, field))
            except psycopg.errors.UniqueViolation:
                raise StoreError(
                    f"rows of table {tab} share a value of {field}, which must be unique: "
                    "remove one"
                ) from None


_CLAIM_FIELD = "INSERT INTO alknet.unique_field VALUES (%s, %s) ON CONFLICT DO NOTHING"
_CLAIM_ROWS = """
INSERT INTO alknet.claim
SELECT DISTINCT r.tab, u.field, f.digest, r.key
FROM alknet.row r
JOIN alknet.unique_field u ON u.tab = r.tab
CROSS JOIN LATERAL alknet.claims_of(r.value, u.field) f
WHERE (u.tab, u.field) = (%s, %s) AND NOT EXISTS (
    SELECT 1 FROM alknet.claim c
    WHERE (c.tab, c.field, c.digest, c.key) = (r.tab, u.field, f.digest, r.key)
)
"""
