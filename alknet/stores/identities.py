"""Peers and API keys on a store: who a key or a token is, and the changes of that.

A fingerprint belongs to at most one peer, by a unique field of the store; a record is replaced
only if it is still what the caller saw, by its version. Each change and its row of the audit log
are one transaction.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Mapping, Sequence

import msgspec
import trio

from alknet.core.clock import WallClock, wall_clock
from alknet.core.contracts import IdentityStore, TooStale
from alknet.core.identity import ApiKey, Identity, NodeId, Peer
from alknet.core.storage import ABSENT, Delete, Op, Put, Row, RowConflict, Store
from alknet.core.tokens import token_matches, token_prefix_untrusted
from alknet.errors import Conflict, Denied, Malformed, NotFound, Unavailable
from alknet.stores.audit import Audit, Entry
from alknet.stores.config_peers import ConfigPeers
from alknet.stores.tables import API_KEYS, OUTBOUND, OWNERSHIP, PEERS, PeerRow

__all__ = ["ENDS_AFTER", "MAX_STALENESS_S", "StoredIdentities", "new_peer_row"]

log = logging.getLogger(__name__)

# How long what is in memory is trusted while it cannot be brought up to date (design: 5 s): a
# disk or server that hangs for a moment locks nobody out, a revoked key lives no longer.
MAX_STALENESS_S = 5.0
# After so many times that, what was granted before ends too: running calls and connections.
ENDS_AFTER = 3
# A revocation must not wait for the watch of staleness by more than this.
WATCH_INTERVAL_S = 0.5
# Rows of ownership that are removed in one write, beside the peer itself.
OWNED_ROWS = 5_000
# No token has it: SHA-256 of nothing that can be written as one.
NO_HASH = bytes(32)


class StoredIdentities:
    """An `IdentityStore` on a `Store`, with the peers of ``node.toml`` merged in.

    Reads are refused (`Unavailable`) while the store is staler than *max_staleness_s*.

    Args:
        store: Opened with `alknet.stores.tables.NODE_TABLES`; its owner closes it.
        config_peers: The read-only peers.
        clock: What judges whether a token has expired.
        max_staleness_s: How old what is in memory may be.

    Attributes:
        store: As given.
        audit: The log of what is changed here.
        max_staleness_s: As given.

    Raises:
        Conflict: Two of *config_peers* share a name or fingerprint.
        LocalError: One of *config_peers* is not valid.
    """

    def __init__(
        self,
        store: Store,
        config_peers: Sequence[Peer] = (),
        *,
        clock: WallClock = wall_clock,
        max_staleness_s: float = MAX_STALENESS_S,
    ) -> None:
        self.store = store
        self.audit = Audit(store, clock=clock)
        self._config = ConfigPeers(config_peers)
        self._clock = clock
        self.max_staleness_s = max_staleness_s
        # Changes that the store does not count: config peers, and staleness.
        self._own_changes = 0
        self._changed = trio.Event()

    @property
    def version(self) -> int:
        """Grows with each change that could alter an answer."""
        rows = self.store.version_of(PEERS) + self.store.version_of(API_KEYS)
        return rows + self._own_changes

    @property
    def staleness(self) -> float:
        """Seconds since memory was last known to be current."""
        return self.store.staleness

    @property
    def conflicts(self) -> Sequence[str]:
        """What is wrong between commands' peers and those of ``node.toml``, a sentence each."""
        return self._config.conflicts(self.store)

    async def wait_changed(self, version: int) -> int:
        """Wait until `version` differs from *version* and return it. Cancelled, nothing happens."""
        await trio.lowlevel.checkpoint()
        while self.version == version:
            await self._wait_any(self.store.version, self._changed)
        return self.version

    def check_fresh(self) -> None:
        """Raise if what is in memory is too old to be trusted.

        Raises:
            Unavailable: It is; after a while `TooStale`, which ends what was granted before.
        """
        staleness = self.store.staleness
        if staleness <= self.max_staleness_s:
            return
        kind = TooStale if staleness > ENDS_AFTER * self.max_staleness_s else Unavailable
        raise kind("the identity store is out of reach", retry_after_s=1.0)

    def identify_key(self, key: NodeId) -> Identity | None:
        """Return the enabled peer that lists *key*, or None; see `IdentityProvider`."""
        return self.identify_fingerprint(key.fingerprint)

    def identify_fingerprint(self, fingerprint: str) -> Identity | None:
        """Do the same for a fingerprint in the form of `parse_fingerprint`."""
        self.check_fresh()
        peer = self._config.by_fingerprint.get(fingerprint)
        if peer is None:
            peer = next(iter(self._found(fingerprint)), None)
        if peer is None:
            return None
        if not peer.enabled:
            raise Denied("peer is disabled", is_failed_authentication=True)
        return peer.identity()

    def identify_token(self, token: str) -> Identity:
        """Return the identity that *token* stands for; see `IdentityProvider`."""
        self.check_fresh()
        try:
            row = self.store.get(API_KEYS, token_prefix_untrusted(token))
        except Malformed:
            raise _bad_token() from None
        key = None if row is None else row.value
        # Unknown prefixes cost the same, so that time does not tell which exist.
        matches = token_matches(token, NO_HASH if key is None else key.hash)
        if key is None or not matches or self._is_expired(key):
            raise _bad_token()
        return key.identity()

    def token_expires_at(self, identity: Identity) -> float | None:
        """Return when a ``key:`` identity expires in wall-clock seconds, None for never.

        A revoked one expired at 0.
        """
        kind, _, prefix = identity.id.partition(":")
        if kind != "key":
            return None
        row = self.store.get(API_KEYS, prefix)
        return 0.0 if row is None else row.value.expires_at

    def incarnation(self, identity_id: str) -> str | None:
        """Return what tells an identity from an earlier one of the same id; None if it is gone."""
        kind, _, name = identity_id.partition(":")
        if kind == "key":
            return None if self.store.get(API_KEYS, name) is None else ""
        if kind != "peer":
            return ""
        fixed = self._config.by_name.get(name)
        if fixed is not None:  # the keys are all that tells two peers of one name in a file apart
            return hashlib.sha256("\n".join(sorted(fixed.fingerprints)).encode()).hexdigest()[:16]
        row = self._visible(name)
        return None if row is None else row.incarnation

    def peer(self, name: str) -> Peer | None:
        """Return the peer of that name, enabled or not."""
        fixed = self._config.by_name.get(name)
        if fixed is not None:
            return fixed
        row = self._visible(name)
        return None if row is None else _peer_of(row)

    def peers(self) -> Sequence[Peer]:
        """Return all peers by name, disabled and read-only ones included."""
        rows = (row.value for row in self.store.rows(PEERS))
        free = [_peer_of(row) for row in rows if not self._config.hides(row)]
        return sorted([*self._config.by_name.values(), *free], key=lambda peer: peer.name)

    def api_keys(self) -> Sequence[ApiKey]:
        """Return all API keys by prefix, expired ones included."""
        return [row.value for row in self.store.rows(API_KEYS)]

    def set_config_peers(self, peers: Sequence[Peer]) -> None:
        """Replace the read-only peers, those of ``node.toml``.

        They are stronger than peers made by commands; `conflicts` names those that clash.

        Raises:
            Conflict: Two of *peers* share a name or fingerprint. Nothing was changed.
            LocalError: One is not valid. Nothing was changed.
        """
        config = ConfigPeers(peers)
        if config.by_name != self._config.by_name:
            self._config = config
            self._note_change()

    def warn_of_conflicts(self) -> None:
        """Log each of `conflicts`."""
        for text in self.conflicts:
            log.warning("store.conflict", extra={"reason": text})

    async def watch_staleness(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Have all be judged anew when the store was out of reach for too long. Runs for ever."""
        was_reachable, had_ended = True, False
        task_status.started()
        while True:
            staleness = self.store.staleness
            is_reachable = staleness <= self.max_staleness_s
            has_ended = staleness > ENDS_AFTER * self.max_staleness_s
            if is_reachable != was_reachable:
                message = "store.reachable" if is_reachable else "store.out_of_reach"
                log.warning(message, extra={"staleness_s": round(staleness, 3)})
            if has_ended != had_ended:
                self._note_change()
            was_reachable, had_ended = is_reachable, has_ended
            await trio.sleep(WATCH_INTERVAL_S)

    def check_new(self, peer: Peer) -> None:
        """Raise Conflict if what is in memory says that *peer* cannot be added."""
        if peer.name in self._config.by_name:
            raise _name_taken(peer.name)
        self._check_keys(peer)

    async def put_peer(self, peer: Peer) -> None:
        """Add a peer; see `IdentityStore`. Cancelled, it was added whole or not at all."""
        row = new_peer_row(peer)
        self.check_new(row)
        entry = Entry("peer.add", row.name, _shown(row))
        await self._write([Put(PEERS, row.name, row, ABSENT)], entry)

    async def update_peer(self, peer: Peer, *, was: Peer | None = None) -> None:
        """Replace the record of the same name; see `IdentityStore`, cancel as in `put_peer`."""
        peer = peer.normalized()
        while True:
            found = await self._writable(peer.name)
            now = _peer_of(found.value)
            if was is not None and now != msgspec.structs.replace(was, read_only=False):
                raise _changed_meanwhile(peer.name)
            row = new_peer_row(peer, found.value.incarnation)
            if row == found.value:
                return
            self._check_keys(row)
            entry = Entry("peer.change", row.name, _difference(found.value, row))
            if await self._has_written([Put(PEERS, row.name, row, found.version)], entry):
                return

    async def rename_peer(self, name: str, new_name: str) -> None:
        """Give a peer another name; see `IdentityStore`, cancel as in `put_peer`."""
        while True:
            found = await self._writable(name)
            row = new_peer_row(msgspec.structs.replace(found.value, name=new_name))
            if new_name == name:
                return
            if new_name in self._config.by_name:
                raise _name_taken(new_name)
            ops: list[Op] = [
                Delete(PEERS, name, found.version),
                *await self._end_of_ownership(f"peer:{name}", found.value.incarnation),
                Put(PEERS, new_name, row, ABSENT),
                *self._outbound_of(found.value, row),
            ]
            if await self._has_written(ops, Entry("peer.rename", name, {"to": new_name})):
                return

    async def remove_peer(self, name: str) -> None:
        """Forget a peer and what it owns; see `IdentityStore`, cancel as in `put_peer`."""
        while True:
            found = await self._writable(name)
            ended = await self._end_of_ownership(f"peer:{name}", found.value.incarnation)
            ops = [Delete(PEERS, name, found.version), *ended, *self._outbound_of(found.value)]
            if await self._has_written(ops, Entry("peer.remove", name, _shown(found.value))):
                return

    async def put_api_key(self, key: ApiKey) -> None:
        """Add or replace an API key; see `IdentityStore`, cancel as in `put_peer`."""
        key.validate()
        found = await self.store.fetch(API_KEYS, key.prefix)
        if found is not None and found.value == key:
            return
        action = "token.create" if found is None else "token.change"
        entry = Entry(action, key.prefix, {"name": key.name, **_rights(key)})
        await self._write([Put(API_KEYS, key.prefix, key)], entry)

    async def remove_api_key(self, prefix: str) -> None:
        """Revoke an API key and end its ownership; see `IdentityStore`, cancel as in `put_peer`."""
        while True:
            found = await self.store.fetch(API_KEYS, prefix)
            if found is None:
                raise NotFound(f"no api key {prefix!r}")
            ended = await self._end_of_ownership(f"key:{prefix}", "")
            entry = Entry("token.revoke", prefix, {"name": found.value.name})
            if await self._has_written([Delete(API_KEYS, prefix, found.version), *ended], entry):
                return

    async def _wait_any(self, store_version: int, changed: trio.Event) -> None:
        """Wait until the store or something of our own changes."""
        closed: list[trio.ClosedResourceError] = []
        async with trio.open_nursery() as nursery:

            async def wait_for_store() -> None:
                try:
                    await self.store.wait_changed(store_version)
                except trio.ClosedResourceError as exc:
                    closed.append(exc)
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_for_store)
            await changed.wait()
            nursery.cancel_scope.cancel()
        if closed:
            raise closed[0]

    def _note_change(self) -> None:
        self._own_changes += 1
        self._changed.set()
        self._changed = trio.Event()

    def _found(self, fingerprint: str) -> Sequence[PeerRow]:
        rows = self.store.find(PEERS, "fingerprints", fingerprint)
        return [row.value for row in rows if not self._config.hides(row.value)]

    def _visible(self, name: str) -> PeerRow | None:
        row = self.store.get(PEERS, name)
        return None if row is None or self._config.hides(row.value) else row.value

    async def _writable(self, name: str) -> Row[PeerRow]:
        # A peer of ours that node.toml hides can still be changed or removed.
        found = await self.store.fetch(PEERS, name) if name else None
        if found is not None:
            return found
        if name in self._config.by_name:
            raise Conflict(f"peer {name!r} stands in node.toml: change it there")
        raise NotFound(f"no peer named {name!r}")

    def _check_keys(self, row: Peer) -> None:
        for text in row.fingerprints:
            fixed = self._config.by_fingerprint.get(text)
            if fixed is not None and fixed.name != row.name:
                raise _key_taken(text, fixed.name)
            for other in self.store.find(PEERS, "fingerprints", text):
                if other.key != row.name:
                    raise _key_taken(text, other.key)

    async def _end_of_ownership(self, identity_id: str, incarnation: str) -> list[Op]:
        """Return the ops that end what an identity owns; of very much, begin with it now."""
        rows = self.store.find(OWNERSHIP, "owner", identity_id)
        owned = [row for row in rows if row.value.incarnation == incarnation]
        while len(owned) > OWNED_ROWS:
            await self.store.write([Delete(OWNERSHIP, row.key) for row in owned[:OWNED_ROWS]])
            owned = owned[OWNED_ROWS:]
        return [Delete(OWNERSHIP, row.key) for row in owned]

    def _outbound_of(self, was: PeerRow, now: PeerRow | None = None) -> list[Op]:
        """Return the ops that end the connections which nodes keep to a peer, or rename them."""
        ops: list[Op] = []
        for row in self.store.find(OUTBOUND, "peer", was.name):
            ops.append(Delete(OUTBOUND, row.key))
            if now is not None and row.value.incarnation == was.incarnation:
                moved = {"peer": now.name, "incarnation": now.incarnation}
                value = msgspec.structs.replace(row.value, **moved)
                ops.append(Put(OUTBOUND, f"{value.node}/{value.peer}", value))
        return ops

    async def _has_written(self, ops: Sequence[Op], entry: Entry) -> bool:
        """Write, or return False if the first row has changed since it was read."""
        try:
            await self._write(ops, entry)
        except RowConflict as exc:
            if exc.key != ops[0].key or exc.field is not None:
                raise
            return False
        return True

    async def _write(self, ops: Sequence[Op], entry: Entry) -> None:
        try:
            await self.audit.write(ops, entry)
        except RowConflict as exc:
            if exc.field is not None and exc.holder is not None:
                text = next((t for t in self._keys_in(ops) if f"{t!r}" in str(exc)), "of it")
                raise _key_taken(text, exc.holder) from None
            if exc.table == PEERS.name and _is_new(ops, exc.key):
                raise _name_taken(exc.key) from None
            raise

    def _keys_in(self, ops: Sequence[Op]) -> list[str]:
        rows = (op.value for op in ops if isinstance(op, Put))
        return [text for row in rows if isinstance(row, PeerRow) for text in row.fingerprints]

    def _is_expired(self, key: ApiKey) -> bool:
        return key.expires_at is not None and key.expires_at <= self._clock()


def new_peer_row(peer: Peer, incarnation: str | None = None) -> PeerRow:
    """Make the row of a peer, by default of a new one. LocalError if *peer* is not valid."""
    peer = peer.normalized()
    return PeerRow(
        name=peer.name,
        fingerprints=peer.fingerprints,
        scopes=peer.scopes,
        resources=peer.resources,
        display_name=peer.display_name,
        addresses=peer.addresses,
        may_offer=peer.may_offer,
        enabled=peer.enabled,
        incarnation=secrets.token_hex(8) if incarnation is None else incarnation,
    )


def _peer_of(row: PeerRow) -> Peer:
    return Peer(
        name=row.name,
        fingerprints=row.fingerprints,
        scopes=row.scopes,
        resources=row.resources,
        display_name=row.display_name,
        addresses=row.addresses,
        may_offer=row.may_offer,
        enabled=row.enabled,
    )


def _is_new(ops: Sequence[Op], key: str) -> bool:
    return any(isinstance(op, Put) and op.key == key and op.expect == ABSENT for op in ops)


def _shown(peer: Peer) -> dict[str, str]:
    shown = {"keys": " ".join(peer.fingerprints), **_rights(peer)}
    if peer.addresses:
        shown["addresses"] = " ".join(peer.addresses)
    if peer.may_offer:
        shown["may offer"] = "yes"
    if not peer.enabled:
        shown["enabled"] = "no"
    return shown


def _rights(holder: Peer | ApiKey) -> dict[str, str]:
    rights = {"scopes": " ".join(holder.scopes)}
    if holder.resources:
        rights["resources"] = " ".join(map(str, holder.resources))
    return rights


def _difference(old: PeerRow, new: PeerRow) -> Mapping[str, str]:
    """Return the fields that differ, as they are now."""
    before, after = msgspec.structs.asdict(old), msgspec.structs.asdict(new)
    changed = [field for field, value in after.items() if value != before[field]]
    texts = {
        "fingerprints": "keys",
        "display_name": "display name",
        "may_offer": "may offer",
    }
    return {texts.get(field, field): _as_text(after[field]) for field in changed}


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _name_taken(name: str) -> Conflict:
    return Conflict(f"a peer named {name!r} exists")


def _key_taken(text: str, name: str) -> Conflict:
    return Conflict(f"key {text} belongs to peer {name!r}")


def _changed_meanwhile(name: str) -> Conflict:
    return Conflict(f"peer {name!r} has changed meanwhile")


def _bad_token() -> Denied:
    return Denied("token unknown, revoked or expired", is_failed_authentication=True)


_identity: type[IdentityStore] = StoredIdentities
