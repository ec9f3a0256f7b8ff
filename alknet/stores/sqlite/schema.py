"""The layout of a database, and how an older one becomes a newer one.

Triggers, not this program, number the rows, write the history and keep unique values, so that
whatever changes a row is seen: an edit in the ``sqlite3`` shell and a migration too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import apsw
import msgspec

from alknet.core.storage import Table
from alknet.errors import StoreError
from alknet.stores.sqlite.place import Place
from alknet.vault.durable import store_errors, sync_directory

__all__ = [
    "APPLICATION_ID",
    "MIGRATIONS",
    "Migration",
    "claim_unique_fields",
    "immediate",
    "layout_of",
    "migrate",
    "path_of",
]

# "alkn": a file of another program is never taken for ours.
APPLICATION_ID = 0x616C6B6E


class Migration(msgspec.Struct, frozen=True):
    """One step of the layout or of what rows hold; it runs in one transaction.

    Attributes:
        name: What it does, for people.
        script: SQL statements.
    """

    name: str
    script: str


MIGRATIONS: Sequence[Migration] = (
    Migration(
        "rows, their history and their unique values",
        """
        CREATE TABLE row (
            tab TEXT NOT NULL,
            key TEXT NOT NULL,
            version INTEGER NOT NULL DEFAULT 0,
            value TEXT NOT NULL CHECK (json_valid(value)),
            PRIMARY KEY (tab, key)
        ) STRICT, WITHOUT ROWID;

        -- AUTOINCREMENT: a number is never given twice, also after the history was trimmed.
        CREATE TABLE change (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            tab TEXT NOT NULL,
            key TEXT NOT NULL,
            at INTEGER NOT NULL DEFAULT (unixepoch())
        ) STRICT;

        CREATE TABLE unique_field (
            tab TEXT NOT NULL,
            path TEXT NOT NULL,
            PRIMARY KEY (tab, path)
        ) STRICT, WITHOUT ROWID;

        CREATE TABLE claim (
            tab TEXT NOT NULL,
            path TEXT NOT NULL,
            text TEXT NOT NULL,
            key TEXT NOT NULL,
            PRIMARY KEY (tab, path, text)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX claim_of_row ON claim (tab, key);

        CREATE VIEW wanted_claim AS
            SELECT DISTINCT row.tab, unique_field.path, found.value AS text, row.key
            FROM row
            JOIN unique_field ON unique_field.tab = row.tab
            JOIN json_each(row.value, unique_field.path) AS found
            WHERE found.value IS NOT NULL;

        CREATE TRIGGER row_inserted AFTER INSERT ON row BEGIN
            INSERT INTO change (tab, key) VALUES (new.tab, new.key);
            UPDATE row SET version = last_insert_rowid() WHERE tab = new.tab AND key = new.key;
        END;

        -- Not on "version", which these triggers set themselves.
        CREATE TRIGGER row_updated AFTER UPDATE OF value ON row
        WHEN (old.tab, old.key) IS (new.tab, new.key) BEGIN
            INSERT INTO change (tab, key) VALUES (new.tab, new.key);
            UPDATE row SET version = last_insert_rowid() WHERE tab = new.tab AND key = new.key;
        END;

        CREATE TRIGGER row_renamed AFTER UPDATE OF tab, key ON row
        WHEN (old.tab, old.key) IS NOT (new.tab, new.key) BEGIN
            INSERT INTO change (tab, key) VALUES (old.tab, old.key);
            INSERT INTO change (tab, key) VALUES (new.tab, new.key);
            UPDATE row SET version = last_insert_rowid() WHERE tab = new.tab AND key = new.key;
        END;

        CREATE TRIGGER row_deleted AFTER DELETE ON row BEGIN
            INSERT INTO change (tab, key) VALUES (old.tab, old.key);
        END;

        CREATE TRIGGER claims_inserted AFTER INSERT ON row
        WHEN EXISTS (SELECT 1 FROM unique_field WHERE tab = new.tab) BEGIN
            INSERT INTO claim
                SELECT * FROM wanted_claim WHERE tab = new.tab AND key = new.key;
        END;

        CREATE TRIGGER claims_updated AFTER UPDATE OF tab, key, value ON row
        WHEN EXISTS (SELECT 1 FROM unique_field WHERE tab = old.tab)
            OR EXISTS (SELECT 1 FROM unique_field WHERE tab = new.tab) BEGIN
            DELETE FROM claim WHERE tab = old.tab AND key = old.key;
            INSERT INTO claim
                SELECT * FROM wanted_claim WHERE tab = new.tab AND key = new.key;
        END;

        CREATE TRIGGER claims_deleted AFTER DELETE ON row
        WHEN EXISTS (SELECT 1 FROM unique_field WHERE tab = old.tab) BEGIN
            DELETE FROM claim WHERE tab = old.tab AND key = old.key;
        END;
        """,
    ),
)
"""All steps, oldest first; ``PRAGMA user_version`` counts those that were made."""


def migrate(
    connection: apsw.Connection, place: Place, migrations: Sequence[Migration] = MIGRATIONS
) -> None:
    """Bring a database to the newest layout, with a backup before each step. Blocks.

    The backup of layout *n* is ``<name>.v<n>.bak`` beside the database. Of several processes that
    start at once, one does it and the others wait. Killed, it goes on at the next start.

    Raises:
        StoreError: The file is of another program or a newer alknet, or the backup failed.
        Unavailable: Another process has been migrating for a minute.
        apsw.Error: A step failed; its transaction was rolled back.
    """
    if _own_layout(connection, place.path, len(migrations)) == len(migrations):
        return
    with place.exclusive():
        while True:
            done = _own_layout(connection, place.path, len(migrations))
            if done == len(migrations):
                return
            if done > 0:
                _back_up(connection, place.path.with_name(f"{place.path.name}.v{done}.bak"))
            _make_step(connection, done, migrations[done])


def claim_unique_fields(
    connection: apsw.Connection, tables: Sequence[Table[msgspec.Struct]]
) -> None:
    """Let the triggers guard the unique fields that *tables* declare.

    Raises:
        StoreError: Rows that are there share a value of a field that was not unique before.
    """
    wanted = {(t.name, path_of(t, field)) for t in tables for field in t.unique}
    if wanted <= set(connection.execute("SELECT tab, path FROM unique_field")):
        return
    with connection:
        for tab, path in sorted(wanted):
            connection.execute("INSERT OR IGNORE INTO unique_field VALUES (?, ?)", (tab, path))
            try:
                connection.execute(
                    "INSERT INTO claim SELECT * FROM wanted_claim WHERE (tab, path) = (?, ?) "
                    "EXCEPT SELECT * FROM claim",
                    (tab, path),
                )
            except apsw.ConstraintError:
                raise StoreError(
                    f"rows of table {tab} share a value of {path}, which must be unique: remove one"
                ) from None


@contextmanager
def immediate(connection: apsw.Connection) -> Iterator[None]:
    """Commit what the block does, with the write lock from its start; if it fails, undo all.

    A transaction that begins with reading cannot write once others have written meanwhile.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def path_of(table: Table[msgspec.Struct], field: str) -> str:
    """Return the JSON path of a field."""
    return f'$."{table.json_names[field]}"'


def layout_of(connection: apsw.Connection) -> int:
    """Return how many steps were made."""
    found = connection.execute("PRAGMA user_version").get
    assert isinstance(found, int)
    return found


def _own_layout(connection: apsw.Connection, path: Path, newest: int) -> int:
    """Return the layout of a database of ours, 0 for a new one."""
    # One snapshot: another process may be making the database between these statements.
    with connection:
        done = layout_of(connection)
        is_ours = connection.pragma("application_id") == APPLICATION_ID
        is_empty = connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").get is None
    if not is_ours and not (is_empty and done == 0):
        raise StoreError(f"{path} is a database of another program: use another path")
    if done > newest:
        raise StoreError(
            f"{path} has layout {done}, and this alknet knows {newest}: it was written by a newer "
            "one; use that"
        )
    return done


def _make_step(connection: apsw.Connection, done: int, step: Migration) -> None:
    with immediate(connection):
        # If somebody deletes the bell, its lock keeps those apart no more who have the new one.
        if layout_of(connection) == done:
            connection.execute(step.script)
            connection.pragma("application_id", APPLICATION_ID)
            connection.pragma("user_version", done + 1)


def _back_up(connection: apsw.Connection, target: Path) -> None:
    """Copy the database as it is now to *target*, whole or not at all, readable by us alone."""
    new = target.with_name(f".{target.name}.new")
    with store_errors(f"cannot write the backup {target}"):
        new.unlink(missing_ok=True)
        # SQLite takes an empty file for a new one, and keeps its mode.
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            connection.execute("VACUUM INTO ?", (str(new),))
            _flush(new)
            new.replace(target)
        finally:
            new.unlink(missing_ok=True)
        sync_directory(target.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
