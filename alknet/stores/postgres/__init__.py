"""A store in a PostgreSQL database: any number of machines. Needs the extra ``alknet[postgres]``.

`open_postgres_store` is all that others use; psycopg is imported when it is called, so that a node
with another store needs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import msgspec

from alknet.core.storage import Store, Table
from alknet.errors import LocalError

__all__ = ["SCHEMES", "STALE_AFTER_S", "open_postgres_store"]

SCHEMES = ("postgresql://", "postgres://")
"""How the address of such a store begins."""

STALE_AFTER_S = 2.0
"""The `Store.staleness` above which rights must not be granted from what is read here.

Four looks: one that a busy server answers late harms nobody, and a revoked key is of use for two
seconds on a node that was cut off.
"""


def open_postgres_store(
    url: str, tables: Sequence[Table[msgspec.Struct]]
) -> AbstractAsyncContextManager[Store]:
    """Open a store in a database and close it after the block.

    Any number of nodes may have it open. The first one makes the schema ``alknet``, or brings it
    to the newest layout; of several that start at once, one does it and the others wait.

    Args:
        url: As libpq takes it: ``postgresql://user:password@host:port/database?sslmode=…``. The
            password is in no log, error or repr; it may come from ``~/.pgpass`` or ``PGPASSWORD``.
        tables: What this handle reads and writes; rows of others stay as they are.

    Raises:
        LocalError: The extra is not installed, or *url* is no such address; two tables have one
            name.
        Unavailable: The server cannot be reached; it may be later. Raised as the block begins.
        StoreError: The server refuses, or cannot be used, and why. Raised as the block begins.
    """
    try:
        from alknet.stores.postgres.store import open_store
    except ImportError as exc:
        raise LocalError(
            f"cannot open a store in PostgreSQL: {exc}: install the extra with "
            "pip install 'alknet[postgres]'"
        ) from exc
    return open_store(url, tables)
