"""A copy of a database that other processes write to meanwhile, as the bytes of one file.

The copy is of one moment, and it is compact: rows that were removed are not in it any more.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import apsw

from alknet.errors import StoreError

__all__ = ["check_database", "snapshot_database"]

# A writer holds the file for milliseconds; a migration for longer.
BUSY_TIMEOUT_MS = 30_000


def snapshot_database(path: Path) -> bytes:
    """Return the database at *path* as it is now. Blocks; takes about its size of memory twice.

    Raises:
        StoreError: It cannot be read, or is damaged.
    """
    try:
        # SQLite may have to make the -shm file anew, so read-only does not do.
        source = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        copy = apsw.Connection(":memory:")
        with closing(source), closing(copy):
            source.set_busy_timeout(BUSY_TIMEOUT_MS)
            with copy.backup("main", source, "main") as backup:
                backup.step()
            _check(copy, path)
            copy.execute("VACUUM")
            return copy.serialize("main")
    except apsw.Error as exc:
        raise StoreError(f"cannot copy {path}: {exc}") from exc


def check_database(path: Path) -> None:
    """Raise StoreError if the file at *path* is no sound database."""
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        with closing(connection):
            _check(connection, path)
    except apsw.Error as exc:
        raise StoreError(f"cannot read {path}: {exc}") from exc


def _check(connection: apsw.Connection, path: Path) -> None:
    problem = connection.execute("PRAGMA quick_check(1)").get
    if problem != "ok":
        raise StoreError(f"{path} is damaged: {problem}")
