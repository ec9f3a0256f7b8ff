"""What can be wrong with a home's store, looked at without changing anything."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw

from alknet.core.config import NodeConfig
from alknet.errors import AlknetError, StoreError
from alknet.stores.home import HomeStore, database_files, open_home_identities
from alknet.stores.sqlite.failures import explained
from alknet.stores.sqlite.place import NETWORK_FILE_SYSTEMS, file_system_type

__all__ = ["LOW_SPACE_BYTES", "StoreProblem", "examine_database", "examine_records"]

# A log of 16 MiB, a backup before a migration, and some time to notice.
LOW_SPACE_BYTES = 256 * 1024 * 1024
READ_FLAGS = apsw.SQLITE_OPEN_READWRITE


class StoreProblem(StoreError):
    """What was found, and what to do.

    Attributes:
        is_fatal: The node cannot work with it.
        todo: What to do about it.
    """

    def __init__(self, message: str, todo: str, *, is_fatal: bool = True) -> None:
        super().__init__(message)
        self.todo = todo
        self.is_fatal = is_fatal


def examine_database(path: Path) -> Iterator[StoreProblem]:
    """Yield what is wrong with an SQLite database, worst first. Blocks; reads all of it.

    Raises:
        StoreError: It cannot be looked at.
        Unavailable: It is locked.
    """
    found = NETWORK_FILE_SYSTEMS.get(_file_system(path))
    if found is not None:
        yield StoreProblem(
            f"{path} lies on a network file system ({found})",
            "put the home on a local disk, or the store into PostgreSQL",
        )
        return
    damage = _damage(path)
    if damage:
        yield StoreProblem(
            f"{path} is damaged: {damage}", "stop the node and put a backup in its place"
        )
    for file, info in database_files(path):
        mode = stat.S_IMODE(info.st_mode)
        if mode & 0o077:
            yield StoreProblem(f"others may use {file} (mode {mode:04o})", f"chmod 600 '{file}'")
    free = shutil.disk_usage(path.parent).free
    if free < LOW_SPACE_BYTES:
        yield StoreProblem(
            f"the disk of {path} has {free // 1024 // 1024} MiB left",
            "free some space: on a full disk nothing can be changed",
            is_fatal=free < LOW_SPACE_BYTES // 16,
        )


async def examine_records(home: Path, config: NodeConfig) -> tuple[int, int]:
    """Count the peers and tokens of a home whose store exists already.

    Raises:
        StoreProblem: Some do not count, or are still to be brought into the store.
        AlknetError: The store cannot be used.
    """
    place = HomeStore(home, config)
    if place.needs_migration:
        raise StoreProblem(
            "peers and tokens are kept as an older alknet did",
            "the next 'alknet up' brings them into the store",
            is_fatal=False,
        )
    async with open_home_identities(home, config) as identities:
        if identities.conflicts:
            number = len(identities.conflicts) - 1
            more = f" (and {number} more)" if number else ""
            raise StoreProblem(
                f"{identities.conflicts[0]}{more}",
                "rename or remove one of the two: alknet peer rename, alknet peer remove",
                is_fatal=False,
            )
        return len(identities.peers()), len(identities.api_keys())


def _file_system(path: Path) -> int:
    try:
        return file_system_type(path.parent)
    except OSError as exc:
        raise StoreError(f"cannot look at {path.parent}: {exc.strerror}") from exc


def _damage(path: Path) -> str:
    """Return the first thing that SQLite finds wrong, or nothing."""
    try:
        with (
            explained("check", path),
            # Not by `Place.uri`: whoever looks needs no bell, which a copied home has not.
            closing(apsw.Connection(str(path), flags=READ_FLAGS)) as connection,
        ):
            connection.set_busy_timeout(5_000)
            found = str(connection.execute("PRAGMA quick_check(1)").get)
    except AlknetError as exc:
        if "damaged" not in str(exc):
            raise
        return "it is no database any more"
    return "" if found == "ok" else found
