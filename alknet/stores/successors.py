"""New keys of peers, which wait for the owner's word; and which peers have heard of ours.

Several keys can claim to come after one: all but one of them were signed by whoever has stolen it.
They are all shown, and none of them is taken over by that name.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice

import msgspec

from alknet.core.clock import WallClock, wall_clock
from alknet.core.identity import ANONYMOUS, NodeId, Peer
from alknet.core.storage import ABSENT, Delete, Op, Put, RowConflict
from alknet.core.succession import Answer, Succession, decode_succession_untrusted
from alknet.errors import Conflict, Denied, Malformed, Unavailable
from alknet.stores.audit import Entry, acting_as
from alknet.stores.identities import StoredIdentities
from alknet.stores.tables import SUCCESSION_TOLD, SUCCESSORS, Successor, SuccessorsRow, ToldRow

__all__ = ["MAX_WAITING", "StoredSuccessors", "StoredTold", "WaitingKey"]

log = logging.getLogger(__name__)

# One is the rule, two a theft; whoever has the stolen key can sign over to any number.
MAX_WAITING = 4
# Of one key its extensions replace one another; another process may write at the same time.
ATTEMPTS = 10
# As `Remote.address` says it: IPv6 with a zone and a port, and room.
LONGEST_ADDRESS = 128
# Rows that are of no use any more are removed with the next one that is written.
REMOVED_AT_ONCE = 100


class WaitingKey(msgspec.Struct, frozen=True):
    """A key that wants to take the place of one that a peer has.

    Attributes:
        key: The key.
        statements: They lead to it from a key that the peer has.
        heard_at: Wall-clock seconds.
        address: Whence it was told.
    """

    key: NodeId
    statements: tuple[Succession, ...]
    heard_at: float
    address: str


class StoredSuccessors:
    """The waiting keys of a node's peers.

    Args:
        identities: Whose store and audit log are used.
        clock: What says when a key was heard of.
    """

    def __init__(self, identities: StoredIdentities, *, clock: WallClock = wall_clock) -> None:
        self._identities = identities
        self._store = identities.store
        self._clock = clock

    def waiting(self, peer: Peer) -> Sequence[WaitingKey]:
        """Return the keys that wait for *peer*, oldest first, from memory."""
        row = self._store.get(SUCCESSORS, peer.name)
        if row is None:
            return ()
        found = (_waiting(peer, one) for one in row.value.waiting)
        return [one for one in found if one is not None]

    async def hear(self, statements: Sequence[Succession], address: str) -> Answer:
        """Let the last key of *statements* wait for the peer that has one of the others.

        Args:
            statements: Verified, oldest first.
            address: Whence they came.

        Raises:
            Conflict: `MAX_WAITING` keys wait for that peer.
            StoreError: The store could not be written.
            Unavailable: The store is busy, stale or out of reach.

        Cancelled, the key was stored or not.
        """
        self._identities.check_fresh()
        new = NodeId(statements[-1].new)
        peer = self._peer_of(statements)
        owner = self._enabled_peer(new)
        if peer is None or (owner is not None and owner.name != peer.name):
            return "known" if owner is not None else "unknown"
        if new.fingerprint in peer.fingerprints:
            return "known"
        encoded = tuple(one.encode() for one in statements)
        heard = Successor(encoded, self._clock(), address[:LONGEST_ADDRESS])
        for _ in range(ATTEMPTS):
            if await self._has_stored(peer, heard):
                return "waits"
        raise Unavailable("the store is busy", retry_after_s=1.0)

    async def _has_stored(self, peer: Peer, heard: Successor) -> bool:
        """Add *heard* to the keys that wait, or return False if another process was faster."""
        row = await self._store.fetch(SUCCESSORS, peer.name)
        before = () if row is None else row.value.waiting
        after = _with(peer, before, heard)
        if after == before:
            return True
        new = NodeId(_keys(heard)[-1])
        if len(after) > MAX_WAITING:
            log.warning("peer.too_many_new_keys", extra={"peer": peer.name, "new": str(new)})
            raise Conflict(f"{MAX_WAITING} keys wait for this peer's owner already")
        version = ABSENT if row is None else row.version
        put = Put(SUCCESSORS, peer.name, SuccessorsRow(after), version)
        details = {"key": new.fingerprint, "address": heard.address}
        try:
            with acting_as(ANONYMOUS.id):
                entry = Entry("peer.new_key", peer.name, details)
                await self._identities.audit.write([put, *self._useless(peer.name)], entry)
        except RowConflict:
            return False
        about = {"peer": peer.name, "new": str(new), "accept": f"alknet peer follow {peer.name}"}
        log.warning("peer.new_key_waits", extra=about)
        return True

    def _peer_of(self, statements: Sequence[Succession]) -> Peer | None:
        """Return the enabled peer that has one of the old keys, the newest if there are several."""
        found = (self._enabled_peer(NodeId(one.old)) for one in reversed(statements))
        return next((peer for peer in found if peer is not None), None)

    def _enabled_peer(self, key: NodeId) -> Peer | None:
        try:
            identity = self._identities.identify_key(key)
        except Denied:  # it is disabled
            return None
        return None if identity is None else self._identities.peer(identity.id.partition(":")[2])

    def _useless(self, except_for: str) -> list[Op]:
        """Return the removal of rows whose peers are gone or have been followed."""
        peer = self._identities.peer
        rows = (row for row in self._store.rows(SUCCESSORS) if row.key != except_for)
        old = (
            row
            for row in rows
            if (found := peer(row.key)) is None or not _applying(found, row.value.waiting)
        )
        return [Delete(SUCCESSORS, row.key) for row in islice(old, REMOVED_AT_ONCE)]


class StoredTold:
    """Which peers of a node have heard of its key.

    Args:
        identities: Whose store is used.
        node: Whose key it is.
        before: How it came to it; what was noted of its former keys goes with the next note.
    """

    def __init__(
        self,
        identities: StoredIdentities,
        node: NodeId,
        before: Sequence[Succession] = (),
        *,
        clock: WallClock = wall_clock,
    ) -> None:
        self._store = identities.store
        self._prefix = f"{node}/"
        self._former = tuple(f"{NodeId(one.old)}/" for one in before)
        self._clock = clock

    def has(self, name: str) -> bool:
        """Whether the peer of that name has heard of it, from memory."""
        return self._store.get(SUCCESSION_TOLD, self._prefix + name) is not None

    async def note(self, name: str, answer: Answer) -> None:
        """Remember that it has. Cancelled, it is remembered or not. Raises like `Store.write`."""
        ops: list[Op] = [
            Put(SUCCESSION_TOLD, self._prefix + name, ToldRow(answer, self._clock())),
        ]
        rows = self._store.rows(SUCCESSION_TOLD) if self._former else ()
        ops += [Delete(SUCCESSION_TOLD, r.key) for r in rows if r.key.startswith(self._former)]
        await self._store.write(ops[: REMOVED_AT_ONCE + 1])


def _waiting(peer: Peer, one: Successor) -> WaitingKey | None:
    """Return what *one* means for *peer* as it is now; None if nothing."""
    try:
        statements = tuple(decode_succession_untrusted(data) for data in one.statements)
    except Malformed:  # nobody's hand but the owner's gets there
        return None
    known = {NodeId(s.old) for s in statements if NodeId(s.old).fingerprint in peer.fingerprints}
    while statements and NodeId(statements[0].old) not in known:
        statements = statements[1:]
    if not statements:
        return None
    key = NodeId(statements[-1].new)
    if key.fingerprint in peer.fingerprints:
        return None
    return WaitingKey(key, statements, one.heard_at, one.address)


def _with(peer: Peer, waiting: tuple[Successor, ...], heard: Successor) -> tuple[Successor, ...]:
    """Return *waiting* with *heard*, without what it goes on from and what is of no use."""
    waiting = _applying(peer, waiting)
    keys = _keys(heard)
    if any(keys[-1] in _keys(one) for one in waiting):
        return waiting
    return (*(one for one in waiting if _keys(one)[-1] not in keys), heard)


def _applying(peer: Peer, waiting: Sequence[Successor]) -> tuple[Successor, ...]:
    return tuple(one for one in waiting if _waiting(peer, one) is not None)


def _keys(one: Successor) -> list[bytes]:
    """Return the keys of a chain, oldest first."""
    statements = [decode_succession_untrusted(data) for data in one.statements]
    return [statements[0].old, *(statement.new for statement in statements)]
