"""How a handle learns what others wrote, and knows for how long it has not."""

from __future__ import annotations

import logging

import apsw
import msgspec
import trio

from alknet.errors import AlknetError, StoreError
from alknet.stores.group import GroupCommit
from alknet.stores.resident import Delta, Resident, Snapshot
from alknet.stores.sqlite.bell import Bell
from alknet.stores.sqlite.failures import explained
from alknet.stores.sqlite.glance import Glance
from alknet.stores.sqlite.place import Place
from alknet.stores.sqlite.reading import (
    Tables,
    check_layout,
    in_one_view,
    read_since,
    snapshot,
)
from alknet.stores.sqlite.worker import Worker

__all__ = ["Follower"]

log = logging.getLogger(__name__)

# The look without a bell: finds what a process wrote that died before it rang, or that does not
# ring. One costs some 0.1 ms.
LOOK_INTERVAL_S = 1.0
# How long a ring waits for a batch of ours, which may be what rang; one that waits itself for
# another process's lock must not keep us from looking.
OWN_BATCH_S = 0.02


class _Found(msgspec.Struct, frozen=True):
    data_version: int
    news: Delta | Snapshot | None


class Follower:
    """Looks into the database whenever the bell rings, and once a second.

    Args:
        resident: Where what is found goes.
        group: What this handle commits.

    Attributes:
        fresh_at: When memory was last known to be current, on Trio's clock.
    """

    def __init__(
        self,
        place: Place,
        tables: Tables,
        reader: Worker,
        bell: Bell,
        glance: Glance,
        resident: Resident,
        group: GroupCommit,
    ) -> None:
        self._place = place
        self._tables = tables
        self._reader = reader
        self._bell = bell
        self._glance = glance
        self._resident = resident
        self._group = group
        self._data_version = 0
        self._has_failed = False
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self.fresh_at = trio.current_time()

    async def load(self) -> None:
        """Read all that is resident.

        Raises:
            StoreError: It cannot be read, a row is damaged, or it was migrated meanwhile.
        """
        started = trio.current_time()

        def read(connection: apsw.Connection) -> Snapshot:
            check_layout(connection, self._glance.layout)
            return snapshot(connection, self._tables, is_strict=True)

        with explained("read", self._place.path):
            found = await self._reader.run(lambda c: in_one_view(c, lambda: read(c)))
        self._resident.deliver(found)
        self.note_fresh(started)

    async def run(self) -> None:
        """Follow, until `aclose` or a cancel. What is known stays."""
        try:
            with self._scope:
                while True:
                    await self._listen()
                    await self.look()
        finally:
            self._ended.set()

    async def look(self) -> None:
        """Take over what changed. A failure is logged and leaves memory as stale as it is."""
        started = trio.current_time()
        try:
            self._bell.renew()
            with explained("read", self._place.path):
                found = await self._reader.run(self._work, self._resident.version)
        except AlknetError as exc:
            self._note_failure(exc)
            return
        self._data_version = found.data_version
        if found.news is not None:
            self._resident.deliver(found.news)
        self.note_fresh(started)

    async def _listen(self) -> None:
        """Answer the bell until that takes more than a glance, or it was silent for a second."""
        # One scope for many rings: to leave one takes longer than a glance.
        with trio.move_on_after(LOOK_INTERVAL_S) as silence:
            while await self._is_ring_answered():
                silence.deadline = trio.current_time() + LOOK_INTERVAL_S

    async def _is_ring_answered(self) -> bool:
        await self._next_ring()
        # Our own rings, and those whose news a batch of ours brings, tell nothing.
        if self._group.is_committing:
            with trio.move_on_after(OWN_BATCH_S):
                await self._group.wait_batch()
        known = self._resident.version
        if self._bell.has_news(known):
            return self.glance(known)
        # Nor does whoever rings for nothing, and must not put off the look for ever.
        return trio.current_time() - self.fresh_at < LOOK_INTERVAL_S

    async def _next_ring(self) -> None:
        """Wait for the bell, and rehearse the answer when others knock, who are about to ring.

        A processor that slept takes ten times as long for its first look. It makes that one while
        they wait for their disk: at what is known already, so that all of the way is warm.
        """
        while not await self._bell.wait():
            if not self._group.is_committing:
                self.glance(self._resident.version - 1)

    def glance(self, cursor: int) -> bool:
        """Take over what changed after *cursor*, if it is little; say whether that was done."""
        started = trio.current_time()
        news = self._glance.news(cursor)
        if news is None:
            return False
        self._resident.deliver(news)
        try:  # not before: what was read is of the file that we opened, whatever lies there now
            self._place.check_same()
        except StoreError:
            return False
        self.note_fresh(started)
        return True

    def note_fresh(self, moment: float) -> None:
        """Note that memory holds all that was written before *moment*."""
        self.fresh_at = max(self.fresh_at, moment)
        if self._has_failed:
            self._has_failed = False
            log.info("store.readable_again", extra={"path": str(self._place.path)})

    async def aclose(self) -> None:
        """End `run`. Never cancelled: a look that runs is waited for."""
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._ended.wait()

    def _work(self, connection: apsw.Connection, cursor: int) -> _Found:
        """Read what changed after *cursor*, in the reader's thread."""
        self._place.check_same()
        # Read before the view is taken: what comes in between makes the next look look again.
        data_version = int(connection.pragma("data_version"))
        if data_version == self._data_version:
            return _Found(data_version, None)

        def read() -> Delta | Snapshot:
            check_layout(connection, self._glance.layout)
            return read_since(connection, cursor, self._tables)

        return _Found(data_version, in_one_view(connection, read))

    def _note_failure(self, exc: AlknetError) -> None:
        if not self._has_failed:
            self._has_failed = True
            log.error("store.unreadable", extra={"reason": str(exc)})
