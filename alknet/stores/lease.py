"""One live node per identity on a shared store: a lease with signs of life.

The holder writes a beat every `BEAT_S`. Nobody's clock counts: who wants a lease that another
holds watches whether its beat changes within `LIFE_S` of the watcher's own monotonic time, and
takes it if not. Where the holder ran on the same boot of the same host, a process that is gone
is enough. The lease's row itself changes only when it changes hands, so that its version is a
fence: a write with `Lease.fence` fails once somebody else holds it.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from alknet.core.identity import NodeId
from alknet.core.storage import ABSENT, Delete, Expect, Put, Row, RowConflict, Store
from alknet.errors import Conflict, StoreError, Unavailable
from alknet.stores.tables import LEASE_BEATS, LEASES, LeaseBeat, LeaseRow

__all__ = ["BEAT_S", "LIFE_S", "Lease", "hold_lease"]

log = logging.getLogger(__name__)

# A server that hangs for a moment loses nobody a lease; a restart after a crash waits for LIFE_S.
BEAT_S = 2.0
LIFE_S = 10.0


class Lease:
    """A lease that this process holds; see `hold_lease`.

    Attributes:
        epoch: Grows with each tenancy.
        fence: To be put into a write that must not land once another process holds the lease.
    """

    def __init__(self, store: Store, key: str, row: LeaseRow, version: int) -> None:
        self.epoch = row.epoch
        self.fence: Expect[LeaseRow] = Expect(LEASES, key, version)
        self._store = store
        self._key = key
        self._row = row

    async def keep(self) -> None:
        """Give signs of life until cancelled.

        Raises:
            Conflict: Another process has taken the lease, because we were silent for too long.
        """
        number = 0
        while True:
            number += 1
            try:
                await self._store.write(
                    [self.fence, Put(LEASE_BEATS, self._key, LeaseBeat(self._row.holder, number))]
                )
            except RowConflict:
                await self._raise_lost()
            except (StoreError, Unavailable) as exc:
                # Reads fail closed by their staleness; whether we lost it shows when it is back.
                log.warning("lease.silent", extra={"reason": str(exc)})
            with trio.move_on_after(BEAT_S):
                await self._wait_lost()
                await self._raise_lost()

    async def give_back(self) -> None:
        """Let the next process begin at once. Cancelled or out of reach, it has to wait."""
        try:
            await self._store.write([self.fence, Delete(LEASE_BEATS, self._key)])
        except (RowConflict, StoreError, Unavailable) as exc:
            log.info("lease.not_given_back", extra={"reason": str(exc)})

    async def _wait_lost(self) -> None:
        while True:
            version = self._store.version
            row = self._store.get(LEASES, self._key)
            if row is None or row.version > self.fence.version:
                return
            await self._store.wait_changed(version)

    async def _raise_lost(self) -> None:
        row = await self._store.fetch(LEASES, self._key)
        holder = "another process" if row is None else _place(row.value)
        raise Conflict(
            f"this node's identity is now in use by {holder}: this process was out of reach of "
            "the store for too long and ends"
        )


@asynccontextmanager
async def hold_lease(store: Store, node: NodeId) -> AsyncGenerator[Lease]:
    """Hold the lease of *node* while the block runs; `Lease.keep` must run beside it.

    Waits up to `LIFE_S` for a holder that may be dead.

    Raises:
        Conflict: Another process holds it and lives; the message says where.
        StoreError: The store could not be written.
        Unavailable: The store is busy or out of reach.
    """
    lease = await _take(store, node)
    try:
        yield lease
    finally:
        with trio.move_on_after(BEAT_S) as scope:
            scope.shield = True
            await lease.give_back()


async def _take(store: Store, node: NodeId) -> Lease:
    key = str(node)
    while True:
        row = await store.fetch(LEASES, key)
        beat = await store.fetch(LEASE_BEATS, key)
        if row is not None and beat is not None and not _is_dead(row.value):
            await _wait_silent(store, node, row, beat)
        mine = LeaseRow(
            holder=secrets.token_hex(8),
            epoch=1 if row is None else row.value.epoch + 1,
            host=socket.gethostname(),
            boot=_boot(),
            pid=os.getpid(),
        )
        ops = [
            Put(LEASES, key, mine, ABSENT if row is None else row.version),
            Put(LEASE_BEATS, key, LeaseBeat(mine.holder, 0)),
        ]
        try:
            versions = await store.write(ops)
        except RowConflict:
            continue  # another was faster: see who it is
        log.info("lease.taken", extra={"epoch": mine.epoch})
        return Lease(store, key, mine, versions[0])


async def _wait_silent(
    store: Store, node: NodeId, row: Row[LeaseRow], beat: Row[LeaseBeat]
) -> None:
    """Return when the holder gave no sign of life for long enough. Raises Conflict if it does."""
    with trio.move_on_after(LIFE_S):
        while True:
            version = store.version
            found = await store.fetch(LEASE_BEATS, str(node))
            if found is None:
                return  # given back
            if found.version != beat.version:
                raise Conflict(
                    f"node {node.short} runs already on this store, on {_place(row.value)}: stop "
                    "it first, or give this one a key of its own ('alknet init --device N')"
                )
            with trio.move_on_after(BEAT_S):
                await store.wait_changed(version)
    log.warning("lease.expired", extra={"holder": _place(row.value), "node": str(node)})


def _is_dead(row: LeaseRow) -> bool:
    """Whether the holder ran here and its process is gone."""
    if not row.boot or row.boot != _boot():
        return False
    try:
        os.kill(row.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _boot() -> str:
    """Return what is the same for processes that see the same process ids, or nothing."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _place(row: LeaseRow) -> str:
    return f"{row.host} (process {row.pid})"
