"""A store in an SQLite database, shared by the processes of one host.

Two connections have a thread each: one writes, in batches of all that wait; the other follows what
anybody wrote and reads what is not in memory. A third looks at small news on the event loop. Order
at the start: hear the bell, then load everything in one view. Whatever is committed after that
rings, or is found within a second by the look that needs no bell.

Memory is complete up to the resident version, at any time: all connections deliver *all* changes
from a version that memory had to a later one, whoever made them. So a batch brings what others
wrote before it, and pieces that overlap do no harm.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import apsw
import msgspec
import trio

from alknet.core.scopes import open_background
from alknet.core.storage import Op, OutcomeUnknown, Row, Store, Table
from alknet.errors import AlknetError, StoreError
from alknet.stores.group import Answer, GroupCommit
from alknet.stores.reads import EngineReads
from alknet.stores.resident import Resident
from alknet.stores.sqlite import reading
from alknet.stores.sqlite.bell import Bell
from alknet.stores.sqlite.failures import explained
from alknet.stores.sqlite.follower import Follower
from alknet.stores.sqlite.glance import Glance
from alknet.stores.sqlite.place import Place
from alknet.stores.sqlite.schema import MIGRATIONS, Migration
from alknet.stores.sqlite.worker import Worker, prepare
from alknet.stores.sqlite.writing import Committed, LostCommit, commit, tidy
from alknet.stores.steps import Steps, by_name, steps_of

__all__ = ["SqliteStore", "open_sqlite_store"]

log = logging.getLogger(__name__)

T = TypeVar("T", bound=msgspec.Struct)


class SqliteStore(EngineReads):
    """A `Store` in an SQLite database; made by `open_sqlite_store`.

    Attributes:
        path: The database.
    """

    def __init__(
        self,
        place: Place,
        tables: reading.Tables,
        writer: Worker,
        reader: Worker,
        bell: Bell,
        glance: Glance,
    ) -> None:
        super().__init__(Resident(tables))
        self.path = place.path
        self._place = place
        self._tables = tables
        self._layout = glance.layout
        self._writer = writer
        self._reader = reader
        self._bell = bell
        self._group = GroupCommit(self._commit, self._tidy)
        self._follower = Follower(
            place,
            tables,
            reader,
            bell,
            glance,
            self._resident,
            self._group,
        )

    @property
    def staleness(self) -> float:
        """Seconds since memory was last known to be current; about one while nothing happens."""
        self._resident.check_open()
        return max(trio.current_time() - self._follower.fresh_at, 0.0)

    async def write(self, ops: Op | Sequence[Op], *, expect: int | None = None) -> tuple[int, ...]:
        """Do *ops* together; see `Store.write`, also for what a cancel leaves behind."""
        self._resident.check_open()
        return await self._group.write(steps_of(ops, expect, self._tables))

    async def start(self, nursery: trio.Nursery) -> None:
        """Load, and start the two tasks. Once; `aclose` ends them.

        Raises:
            StoreError: The database cannot be read, or a row is damaged.
        """
        await self._follower.load()
        nursery.start_soon(self._group.run, name="store writer")
        nursery.start_soon(self._follower.run, name="store follower")

    async def aclose(self) -> None:
        """Answer the writes that wait, and end the tasks of `start`. Idempotent; never cancelled.

        Takes as long as the disk needs for what is queued; a lock that another process holds is
        waited for 5 s.
        """
        self._resident.close()
        await self._group.aclose()
        await self._follower.aclose()
        await self._reader.aclose()
        await self._writer.aclose()

    async def _fetch(self, table: Table[T], key: str) -> Row[T] | None:
        with explained("read", self.path):
            return await self._reader.run(reading.fetch, table, key)

    async def _scan(
        self, table: Table[T], after: str, limit: int, *, newest_first: bool
    ) -> Sequence[Row[T]]:
        with explained("read", self.path):
            return await self._reader.run(
                reading.scan, table, after, limit, newest_first=newest_first
            )

    async def _commit(self, batch: Sequence[Steps]) -> Sequence[Answer]:
        started = trio.current_time()
        try:
            with explained("write", self.path):
                done = await self._writer.run(self._work, batch, self._resident.version)
        except LostCommit as exc:
            raise OutcomeUnknown(f"the last write to {self.path} may be lost: {exc}") from exc
        self._resident.deliver(done.news)
        self._follower.note_fresh(started)
        return done.answers

    def _work(self, connection: apsw.Connection, batch: Sequence[Steps], cursor: int) -> Committed:
        """Knock, commit and ring, in the writer's thread."""
        self._bell.knock()
        self._place.check_same()
        done = commit(connection, batch, cursor, self._tables, self._layout, self._announce)
        try:
            self._place.check_same()
        except StoreError as exc:
            raise LostCommit(str(exc)) from exc
        if done.news.version != cursor:
            self._ring()
        return done

    def _announce(self, version: int) -> None:
        try:
            self._bell.announce(version)
        except OSError as exc:  # others look once a second all the same
            log.warning("store.bell_failed", extra={"reason": str(exc)})

    def _ring(self) -> None:
        try:
            self._bell.ring()
        except OSError as exc:
            log.warning("store.bell_failed", extra={"reason": str(exc)})

    async def _tidy(self) -> None:
        try:
            with explained("tidy", self.path):
                await self._writer.run(tidy)
        except AlknetError as exc:  # there will be another time
            log.warning("store.not_tidied", extra={"reason": str(exc)})


@asynccontextmanager
async def open_sqlite_store(
    path: Path,
    tables: Sequence[Table[msgspec.Struct]],
    *,
    migrations: Sequence[Migration] = MIGRATIONS,
    vfs: str | None = None,
) -> AsyncGenerator[SqliteStore]:
    """Open a store in a database and close it after the block.

    Any number of processes may have it open. The first one makes it, or brings it to the newest
    layout, with a backup beside it (`alknet.stores.sqlite.schema.migrate`).

    Args:
        path: The database; its directory must exist, on a local disk. Made with mode 0600, as are
            the files ``-wal``, ``-shm`` and ``-bell`` beside it, which belong to it.
        tables: What this handle reads and writes; rows of others stay as they are.
        migrations: The steps that lead to the newest layout.
        vfs: The name of an SQLite VFS, for tests.

    Raises:
        StoreError: It cannot be used, and why: a network file system, no rights, damaged, of
            another program, of a newer alknet.
        Unavailable: Another process keeps it locked.
        LocalError: Two tables have one name.
    """
    place = Place(path)
    declared = by_name(tables)
    place.prepare()
    async with AsyncExitStack() as stack:
        bell = Bell(place.bell_path)
        stack.callback(bell.close)
        writer = await Worker.open(place, vfs)
        stack.push_async_callback(writer.aclose)
        with explained("open", place.path):
            await writer.run(prepare, place, tables, migrations)
            # What was noted as the file that must stay there may have come after the opening.
            await writer.run(place.check_opened)
        reader = await Worker.open(place, vfs)
        stack.push_async_callback(reader.aclose)
        with explained("open", place.path):
            glance = Glance(place, declared, len(migrations), vfs)
        stack.callback(glance.close)
        store = SqliteStore(place, declared, writer, reader, bell, glance)
        async with open_background() as nursery:
            await store.start(nursery)
            try:
                yield store
            finally:
                await store.aclose()


_: type[Store] = SqliteStore
