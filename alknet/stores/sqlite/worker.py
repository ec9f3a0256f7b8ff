"""One connection to a database, with a thread of its own.

apsw runs whole functions in that thread (`async_run`), which is one hop for a transaction. A
transaction is never spread over several awaits: cancelled in between it would stay open, and two
tasks would share it. The wait for a function is shielded, so that none is broken off half done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar, cast

import apsw
import msgspec
import trio

from alknet.core.storage import Table
from alknet.stores.sqlite.failures import explained
from alknet.stores.sqlite.place import Place
from alknet.stores.sqlite.schema import Migration, claim_unique_fields, migrate

if TYPE_CHECKING:
    from apsw import AsyncConnection

__all__ = ["Worker", "prepare"]

log = logging.getLogger(__name__)

P = ParamSpec("P")
Found = TypeVar("Found")

# Others hold the write lock for one batch, some milliseconds. Who waits longer is told so; it is
# also how long a cancelled caller may be kept waiting.
BUSY_TIMEOUT_MS = 5_000
# Setting the journal mode does not wait for locks by itself.
WAL_RETRY_S = 0.01
# Pages of 4 KiB in the log before a commit copies them into the database, should the writer never
# be idle: 16 MiB.
WAL_PAGES = 4_000
FLAGS = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI


class Worker:
    """A connection; any number of tasks may `run` functions, which take turns."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._is_closed = False

    @classmethod
    async def open(cls, place: Place, vfs: str | None = None) -> Worker:
        """Connect. Cancelled, it connects all the same, and the next checkpoint raises.

        Raises:
            StoreError: The file cannot be opened, or is no database.
            Unavailable: Another process keeps it locked.
        """
        with explained("open", place.path):
            with trio.CancelScope(shield=True):
                connection = await apsw.Connection.as_async(place.uri, flags=FLAGS, vfs=vfs)
            worker = cls(connection)
            try:
                await worker.run(_configure)
            except BaseException:
                await worker.aclose()
                raise
        return worker

    async def run(
        self,
        work: Callable[Concatenate[apsw.Connection, P], Found],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Found:
        """Run ``work(connection, ...)`` in the thread. A cancel waits until it is done."""
        # In its thread the connection is an ordinary one.
        connection = cast("apsw.Connection", self._connection)
        with trio.CancelScope(shield=True):
            found = await self._connection.async_run(work, connection, *args, **kwargs)
        return cast("Found", found)

    async def aclose(self) -> None:
        """Close the connection and end the thread, after what runs. Idempotent; never cancelled."""
        if not self._is_closed:
            self._is_closed = True
            with trio.CancelScope(shield=True):
                try:
                    await self._connection.aclose(force=True)
                except apsw.Error as exc:  # it is closed; the log stays for the next who opens
                    log.warning("store.close_failed", extra={"reason": str(exc)})


def prepare(
    connection: apsw.Connection,
    place: Place,
    tables: Sequence[Table[msgspec.Struct]],
    migrations: Sequence[Migration],
) -> None:
    """Bring the database to what *tables* and *migrations* say. Raises like `migrate`."""
    migrate(connection, place, migrations)
    claim_unique_fields(connection, tables)
    place.remember()


def _configure(connection: apsw.Connection) -> None:
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    connection.config(apsw.SQLITE_DBCONFIG_DQS_DML, 0)
    connection.config(apsw.SQLITE_DBCONFIG_DQS_DDL, 0)
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    connection.pragma("cell_size_check", value=True)
    _enter_wal(connection)
    # Only FULL keeps what was acknowledged when the power fails.
    connection.pragma("synchronous", "FULL")
    connection.wal_autocheckpoint(WAL_PAGES)
    # What a statement or a savepoint needs to undo itself. Above 64 KiB it would be a file in the
    # system's temporary directory, which takes time and may be missing, full, or another disk.
    connection.pragma("temp_store", "MEMORY")


def _enter_wal(connection: apsw.Connection) -> None:
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            mode = connection.pragma("journal_mode", "wal")
        except apsw.BusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(WAL_RETRY_S)
            continue
        if mode != "wal":
            raise apsw.ReadOnlyError(f"the journal mode stays {mode}")
        return
