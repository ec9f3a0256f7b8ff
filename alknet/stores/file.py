"""Peers and API keys in one JSON file of the node's home, shared by all processes of its user.

A write takes the lock file, reads what is there, applies its change and replaces the file in one
step, so that processes that write at once lose nothing. The generation before stays beside it
with the suffix ``.bak``. Who runs for long also runs `FileIdentityStore.follow`, which sees what
others wrote.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import trio

from alknet.core.clock import WallClock, wall_clock
from alknet.core.contracts import IdentityStore
from alknet.core.identity import Peer
from alknet.errors import StoreError, Unavailable
from alknet.stores.memory import MemoryIdentityStore
from alknet.stores.records import Change, Records
from alknet.stores.statefile import StateFile

__all__ = ["FileIdentityStore"]

T = TypeVar("T")

log = logging.getLogger(__name__)

# A revocation typed in another process must act within a second: four looks in that time.
POLL_INTERVAL_S = 0.25
# How long the last good state is trusted while the file cannot be read (design: 5 s, local).
MAX_STALENESS_S = 5.0


class FileIdentityStore(MemoryIdentityStore):
    """An `IdentityStore` in a file, with the peers of ``node.toml`` merged in.

    It reads the file when made, blocking; a missing file is an empty store. While `follow` runs
    and finds the file unreadable for longer than 5 s, nobody is identified (`Unavailable`).

    Args:
        path: The file; ``.lock`` and ``.bak`` are put beside it. Its directory must exist.
        config_peers: The read-only peers.
        clock: What judges whether a token has expired.

    Raises:
        StoreError: The file cannot be read or is damaged. It is never overwritten then.
        Conflict: Two of *config_peers* share a name or fingerprint.
        LocalError: One of *config_peers* is not valid.
    """

    def __init__(
        self, path: Path, config_peers: Sequence[Peer] = (), *, clock: WallClock = wall_clock
    ) -> None:
        super().__init__(clock=clock)
        self.path = path
        self._file = StateFile(path)
        # One thread: the lock file lets only one work anyway.
        self._limiter = trio.CapacityLimiter(1)
        # Orders what is read and written, so that no older state replaces a newer one.
        self._turn = trio.Lock()
        self._unreadable_since: float | None = None
        self._signature, records = self._file.load()
        self._publish(records.with_fixed(tuple(config_peers)))
        self._warn_of_conflicts()

    def set_config_peers(self, peers: Sequence[Peer]) -> None:
        """Replace the read-only peers; see `MemoryIdentityStore.set_config_peers`."""
        super().set_config_peers(peers)
        self._warn_of_conflicts()

    async def refresh(self) -> None:
        """Read the file now if it has changed. Cancelled, it was read or not.

        Raises:
            StoreError: The file cannot be read or is damaged; what was known stays.
        """
        async with self._turn:
            if await self._run(self._file.signature) == self._signature:
                return
            self._signature, records = await self._run(self._file.load)
            self._publish(self._with_fixed(records))

    async def follow(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Take over what other processes write, within a quarter of a second. Runs for ever.

        Cancelled, the store stays usable and keeps what it knows.
        """
        while True:
            try:
                await self.refresh()
            except StoreError as exc:
                self._note_unreadable(exc)
            else:
                self._unreadable_since = None
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            await trio.sleep(POLL_INTERVAL_S)

    async def _apply(self, change: Change) -> None:
        async with self._turn:
            # The thread is never abandoned: once it began, the write is made and published.
            self._signature, records = await self._run(
                lambda: self._file.transact(lambda found: change(self._with_fixed(found)))
            )
            self._publish(self._with_fixed(records))

    def _with_fixed(self, records: Records) -> Records:
        return msgspec.structs.replace(records, fixed=self._records.fixed)

    async def _run(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._limiter)

    def _check_fresh(self) -> None:
        since = self._unreadable_since
        if since is not None and trio.current_time() - since > MAX_STALENESS_S:
            raise Unavailable("the identity store cannot be read", retry_after_s=1.0)

    def _note_unreadable(self, exc: StoreError) -> None:
        if self._unreadable_since is None:
            self._unreadable_since = trio.current_time()
            log.error("store.unreadable", extra={"reason": str(exc)})

    def _warn_of_conflicts(self) -> None:
        for text in self.conflicts:
            log.warning("store.conflict", extra={"reason": text})


_: type[IdentityStore] = FileIdentityStore
