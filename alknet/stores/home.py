"""The store of a home: which engine, where, opened and brought up to date."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from alknet.core.config import NodeConfig
from alknet.core.storage import Store
from alknet.errors import LocalError
from alknet.stores.identities import MAX_STALENESS_S, StoredIdentities
from alknet.stores.legacy import migrate, needs_migration
from alknet.stores.postgres import STALE_AFTER_S, open_postgres_store
from alknet.stores.sqlite import open_sqlite_store
from alknet.stores.tables import NODE_TABLES
from alknet.vault.durable import store_errors

__all__ = [
    "DATABASE_FILE",
    "HomeStore",
    "check_secrecy",
    "database_files",
    "describe_store",
    "open_home_identities",
]

DATABASE_FILE = "node.db"
"""The database of a node that names no other store."""


class HomeStore:
    """What a home's ``node.toml`` says about its store.

    Attributes:
        kind: The engine.
        where: For people: a path, or an address without its password.
        max_staleness_s: How old what it knows may be before it grants nothing.
    """

    def __init__(self, home: Path, config: NodeConfig) -> None:
        self._home = home
        self._url = config.store
        self._file = config.store_file
        self.kind: Literal["sqlite", "postgresql"] = "sqlite"
        self.where = str(home / DATABASE_FILE)
        self.max_staleness_s = MAX_STALENESS_S
        if self.is_shared:
            self.kind = "postgresql"
            self.where = self._url or str(self._file)
            self.max_staleness_s = STALE_AFTER_S

    @property
    def is_shared(self) -> bool:
        """Whether nodes on other machines may use it too."""
        return self._url is not None or self._file is not None

    @property
    def path(self) -> Path | None:
        """The database, where it is a file."""
        return None if self.is_shared else self._home / DATABASE_FILE

    @property
    def needs_migration(self) -> bool:
        """Whether the home keeps its peers as homes did before they had a store."""
        return needs_migration(self._home)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Store]:
        """Open it for as long as the block.

        Raises:
            StoreError: It cannot be used, and why.
            Unavailable: It is locked or out of reach.
            LocalError: The password file cannot be used, or the extra ``postgres`` is missing.
        """
        if self.path is not None:
            async with open_sqlite_store(self.path, NODE_TABLES) as store:
                yield store
            return
        async with open_postgres_store(self._address(), NODE_TABLES) as shared:
            yield shared

    async def migrate(self, identities: StoredIdentities) -> None:
        """Bring what an older alknet kept in the home into the store; see `legacy.migrate`."""
        await migrate(self._home, identities)

    def size_bytes(self) -> int | None:
        """Return what the database takes on the disk, or None if it is elsewhere."""
        if self.path is None:
            return None
        return sum(info.st_size for _, info in database_files(self.path))

    def _address(self) -> str:
        if self._file is None:
            assert self._url is not None
            return self._url
        with store_errors(f"cannot read {self._file}"):
            check_secrecy(self._file)
            return self._file.read_text().strip()


def check_secrecy(file: Path) -> None:
    """Refuse a *file* with the address of a store that others may read.

    Raises:
        LocalError: They may; it says what to do.
        OSError: The file cannot be looked at.
    """
    if file.stat().st_mode & 0o077:
        raise LocalError(f"others may read {file}, which may hold a password: chmod 600 '{file}'")


def describe_store(place: HomeStore | None, identities: StoredIdentities) -> dict[str, Any]:
    """Return what ``node/status`` shows of a store: that of *place*, or none but memory."""
    return {
        "kind": "memory" if place is None else place.kind,
        "where": None if place is None else place.where,
        "size_bytes": None if place is None else place.size_bytes(),
        "version": identities.store.version,
        "staleness_s": round(identities.staleness, 3),
        "max_staleness_s": identities.max_staleness_s,
        "conflicts": list(identities.conflicts),
    }


@asynccontextmanager
async def open_home_identities(home: Path, config: NodeConfig) -> AsyncGenerator[StoredIdentities]:
    """Open the peers and tokens of a home, those of ``node.toml`` included, for a command.

    A home of an older alknet is brought up to date. Raises like `HomeStore.open`.
    """
    place = HomeStore(home, config)
    async with place.open() as store:
        identities = StoredIdentities(store, config.peers, max_staleness_s=place.max_staleness_s)
        if place.needs_migration:
            await place.migrate(identities)
        yield identities


def database_files(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the files of an SQLite database that exist, and what the system says of each."""
    for suffix in ("", "-wal", "-shm"):
        file = path.with_name(path.name + suffix)
        try:
            info = file.stat()
        except FileNotFoundError:  # another process that closes the database removes two of them
            continue
        yield file, info
