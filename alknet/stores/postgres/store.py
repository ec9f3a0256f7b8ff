"""A store in a PostgreSQL database, shared by any number of nodes.

One connection writes, in batches of all that wait; one follows what anybody wrote; a few read what
is not in memory. They are opened when they are needed, and anew when they are lost.

Memory is complete up to the resident version, at any time: writer and follower deliver *all*
changes from a version that memory had to a later one, whoever made them. So a batch brings what
others wrote before it, and pieces that overlap do no harm.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec
import trio

from alknet.core.scopes import open_background
from alknet.core.storage import Op, OutcomeUnknown, Row, Store, Table
from alknet.errors import AlknetError, Unavailable
from alknet.stores.group import Answer, GroupCommit
from alknet.stores.postgres import reading
from alknet.stores.postgres.failures import RETRY_AFTER_S, explained
from alknet.stores.postgres.follower import Follower
from alknet.stores.postgres.layout import MIGRATIONS, Migration
from alknet.stores.postgres.link import Link, dial
from alknet.stores.postgres.pool import Pool
from alknet.stores.postgres.schema import prepare
from alknet.stores.postgres.target import Target
from alknet.stores.postgres.writing import Committed, LostCommit, commit, outcome, tidy
from alknet.stores.reads import EngineReads
from alknet.stores.resident import Resident
from alknet.stores.steps import Steps, by_name, check_key, steps_of

__all__ = ["PostgresStore", "open_store"]

log = logging.getLogger(__name__)

T = TypeVar("T", bound=msgspec.Struct)

# Connections for `fetch` and `scan`; with the writer's and the follower's a node has up to five of
# the hundred that a server has by default.
READERS = 3
# For how long it is asked what came of a lost commit: the server gives up one that waits for us
# after five seconds.
SETTLE_S = 8.0
SETTLE_PAUSE_S = 0.05
# How long closing goes on with writes that are queued and a server that does not answer.
CLOSE_TIMEOUT_S = 10.0


class PostgresStore(EngineReads):
    """A `Store` in a PostgreSQL database; made by `alknet.stores.postgres.open_postgres_store`.

    Attributes:
        target: The database; its text is safe to show.
    """

    def __init__(self, target: Target, tables: reading.Tables, layout: int) -> None:
        super().__init__(Resident(tables))
        self.target = target
        self._tables = tables
        self._layout = layout
        self._writers = Pool(self._dial, 1)
        self._readers = Pool(self._dial, READERS)
        self._group = GroupCommit(self._commit, self._tidy)
        self._commit_scope = trio.CancelScope()
        self._commit_deadline = math.inf
        self._follower = Follower(
            target, self._dial, tables, layout, self._resident, self._group.wait_batch
        )

    def __repr__(self) -> str:
        return f"<PostgresStore {self.target}>"

    @property
    def staleness(self) -> float:
        """Seconds since memory was last known to be current; up to half while nothing happens."""
        self._resident.check_open()
        return max(trio.current_time() - self._follower.fresh_at, 0.0)

    async def write(self, ops: Op | Sequence[Op], *, expect: int | None = None) -> tuple[int, ...]:
        """Do *ops* together; see `Store.write`, also for what a cancel leaves behind."""
        self._resident.check_open()
        return await self._group.write(steps_of(ops, expect, self._tables))

    async def start(
        self,
        nursery: trio.Nursery,
        tables: Sequence[Table[msgspec.Struct]],
        migrations: Sequence[Migration],
    ) -> None:
        """Migrate, load, and start the two tasks. Once; `aclose` ends them.

        Raises:
            StoreError: The database cannot be used, or a row is damaged.
            Unavailable: The server cannot be reached.
        """
        with explained("open", self.target):
            link = await self._dial()
            try:
                await prepare(link, tables, migrations)
            finally:
                link.drop()
        await self._follower.load()
        nursery.start_soon(self._group.run, name="store writer")
        nursery.start_soon(self._follower.run, name="store follower")

    async def aclose(self) -> None:
        """Answer the writes that wait, and end the tasks of `start`. Idempotent; never cancelled.

        Takes as long as the server needs for what is queued. One that does not answer is given up
        after `CLOSE_TIMEOUT_S`, or `SETTLE_S` later if it may have committed.
        """
        self._resident.close()
        self._commit_deadline = trio.current_time() + CLOSE_TIMEOUT_S
        self._commit_scope.deadline = self._commit_deadline
        await self._group.aclose()
        await self._follower.aclose()
        self._writers.close()
        self._readers.close()

    async def _fetch(self, table: Table[T], key: str) -> Row[T] | None:
        with explained("read", self.target):
            return await self._readers.run(lambda link: reading.fetch(link, table, key))

    async def _scan(
        self, table: Table[T], after: str, limit: int, *, newest_first: bool
    ) -> Sequence[Row[T]]:
        if after:
            check_key(after)
        with explained("read", self.target):
            return await self._readers.run(
                lambda link: reading.scan(link, table, after, limit, newest_first=newest_first)
            )

    async def _dial(self) -> Link:
        with explained("connect to", self.target):
            return await dial(self.target)

    async def _commit(self, batch: Sequence[Steps]) -> Sequence[Answer]:
        started = trio.current_time()
        self._commit_scope = trio.CancelScope(deadline=self._commit_deadline)
        with self._commit_scope:
            done = await self._done(batch)
            self._resident.deliver(done.news)
            self._follower.note_fresh(started)
            return done.answers
        raise Unavailable(f"cannot write {self.target}: this store closes and it does not answer")

    async def _done(self, batch: Sequence[Steps]) -> Committed:
        async def work(link: Link) -> Committed:
            if link.history != self._follower.history:
                link.drop()  # it may be the one that was replaced, still alive
                raise Unavailable(
                    f"cannot write {self.target}: another server has taken over, and is being read",
                    retry_after_s=RETRY_AFTER_S,
                )
            return await commit(link, batch, self._resident.version, self._tables, self._layout)

        try:
            with explained("write", self.target):
                return await self._writers.run(work)
        except LostCommit as lost:
            return await self._settled(lost)

    async def _settled(self, lost: LostCommit) -> Committed:
        """Find out what came of a commit. Raises OutcomeUnknown if that cannot be told in time."""
        with trio.move_on_after(SETTLE_S, shield=True):
            while True:
                found = await self._outcome(lost)
                if found == "committed":
                    return lost.done
                if found == "aborted":
                    raise Unavailable(
                        f"cannot write {self.target}: the connection was lost before the commit",
                        retry_after_s=RETRY_AFTER_S,
                    )
                if found is None:
                    break
                await trio.sleep(SETTLE_PAUSE_S)
        raise OutcomeUnknown(
            f"the connection to {self.target} was lost during a commit, and what came of it cannot "
            "be found out: read before you try again"
        ) from lost

    async def _outcome(self, lost: LostCommit) -> str | None:
        try:
            with explained("ask", self.target):
                return await self._writers.run(lambda link: outcome(link, lost))
        except AlknetError as exc:
            log.debug("store.outcome_not_known_yet", extra={"reason": str(exc)})
            return "in progress"

    async def _tidy(self) -> None:
        try:
            with explained("tidy", self.target):
                await self._writers.run(tidy)
        except AlknetError as exc:  # there will be another time
            log.warning("store.not_tidied", extra={"reason": str(exc)})


@asynccontextmanager
async def open_store(
    url: str,
    tables: Sequence[Table[msgspec.Struct]],
    *,
    migrations: Sequence[Migration] = MIGRATIONS,
) -> AsyncGenerator[PostgresStore]:
    """Open a store; see `alknet.stores.postgres.open_postgres_store`.

    Args:
        url: Where the database is.
        tables: What this handle reads and writes.
        migrations: The steps that lead to the newest layout.
    """
    store = PostgresStore(Target(url), by_name(tables), len(migrations))
    async with open_background() as nursery:
        await store.start(nursery, tables, migrations)
        try:
            yield store
        finally:
            await store.aclose()


_: type[Store] = PostgresStore
