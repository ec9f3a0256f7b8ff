"""A store in an SQLite database: one host, any number of processes."""

from alknet.stores.sqlite.schema import MIGRATIONS, Migration
from alknet.stores.sqlite.store import SqliteStore, open_sqlite_store

__all__ = ["MIGRATIONS", "Migration", "SqliteStore", "open_sqlite_store"]
