"""Identity and ownership in memory: for tests, for embedding, and as the base of the file store."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from alknet.core.clock import WallClock, wall_clock
from alknet.core.contracts import IdentityStore, OwnershipProvider
from alknet.core.identity import ApiKey, Identity, NodeId, Peer
from alknet.core.tokens import token_matches, token_prefix_untrusted
from alknet.errors import Conflict, Denied, Malformed, NotFound
from alknet.stores.records import Change, Records

__all__ = ["MemoryIdentityStore", "MemoryOwnership"]

# No token has it: SHA-256 of nothing that can be written as one.
NO_HASH = bytes(32)


class MemoryIdentityStore:
    """An `IdentityStore` whose writes last as long as the object.

    Args:
        peers: Peers to begin with.
        api_keys: API keys to begin with.
        clock: What judges whether a token has expired.

    Raises:
        Conflict: A name, fingerprint or prefix occurs twice.
        LocalError: A record is not valid.
    """

    def __init__(
        self,
        peers: Sequence[Peer] = (),
        api_keys: Sequence[ApiKey] = (),
        *,
        clock: WallClock = wall_clock,
    ) -> None:
        self._clock = clock
        self._version = 0
        self._changed = trio.Event()
        self._records = Records()
        self._by_name: dict[str, Peer] = {}
        self._by_fingerprint: dict[str, Peer] = {}
        self._publish(Records.of(tuple(peers), tuple(api_keys)))

    @property
    def version(self) -> int:
        """Grows with each change that could alter an answer."""
        return self._version

    @property
    def conflicts(self) -> Sequence[str]:
        """What is wrong between commands' peers and those of ``node.toml``, a sentence each."""
        return self._records.conflicts()

    async def wait_changed(self, version: int) -> int:
        """Wait until `version` differs from *version* and return it. Cancelled, nothing happens."""
        await trio.lowlevel.checkpoint()
        while self._version == version:
            await self._changed.wait()
        return self._version

    def identify_key(self, key: NodeId) -> Identity | None:
        """Return the enabled peer that lists *key*, or None; see `IdentityProvider`."""
        return self.identify_fingerprint(key.fingerprint)

    def identify_fingerprint(self, fingerprint: str) -> Identity | None:
        """Do the same for a fingerprint in the form of `parse_fingerprint`."""
        self._check_fresh()
        peer = self._by_fingerprint.get(fingerprint)
        if peer is None:
            return None
        if not peer.enabled:
            raise Denied("peer is disabled", is_failed_authentication=True)
        return peer.identity()

    def identify_token(self, token: str) -> Identity:
        """Return the identity that *token* stands for; see `IdentityProvider`."""
        self._check_fresh()
        try:
            key = self._records.api_keys.get(token_prefix_untrusted(token))
        except Malformed:
            raise _bad_token() from None
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
        key = self._records.api_keys.get(prefix)
        return 0.0 if key is None else key.expires_at

    def peer(self, name: str) -> Peer | None:
        """Return the peer of that name, enabled or not."""
        return self._by_name.get(name)

    def peers(self) -> Sequence[Peer]:
        """Return all peers by name, disabled and read-only ones included."""
        return list(self._by_name.values())

    def api_keys(self) -> Sequence[ApiKey]:
        """Return all API keys by prefix, expired ones included."""
        return sorted(self._records.api_keys.values(), key=lambda key: key.prefix)

    def set_config_peers(self, peers: Sequence[Peer]) -> None:
        """Replace the read-only peers, those of ``node.toml``.

        They are stronger than peers made by commands; `conflicts` names those that clash.

        Raises:
            Conflict: Two of *peers* share a name or fingerprint. Nothing was changed.
            LocalError: One is not valid. Nothing was changed.
        """
        self._publish(self._records.with_fixed(tuple(peers)))

    async def put_peer(self, peer: Peer) -> None:
        """Add a peer; see `IdentityStore`. Cancelled, it was added whole or not at all."""
        await self._apply(lambda records: records.with_new_peer(peer))

    async def update_peer(self, peer: Peer, *, was: Peer | None = None) -> None:
        """Replace the record of the same name; see `IdentityStore`, cancel as in `put_peer`."""
        await self._apply(lambda records: records.with_updated_peer(peer, was))

    async def rename_peer(self, name: str, new_name: str) -> None:
        """Give a peer another name; see `IdentityStore`, cancel as in `put_peer`."""
        await self._apply(lambda records: records.with_renamed_peer(name, new_name))

    async def remove_peer(self, name: str) -> None:
        """Forget a peer; see `IdentityStore`, cancel as in `put_peer`."""
        await self._apply(lambda records: records.without_peer(name))

    async def put_api_key(self, key: ApiKey) -> None:
        """Add or replace an API key; see `IdentityStore`, cancel as in `put_peer`."""
        await self._apply(lambda records: records.with_api_key(key))

    async def remove_api_key(self, prefix: str) -> None:
        """Revoke an API key; see `IdentityStore`, cancel as in `put_peer`."""
        await self._apply(lambda records: records.without_api_key(prefix))

    async def _apply(self, change: Change) -> None:
        await trio.lowlevel.checkpoint()
        self._publish(change(self._records))

    def _publish(self, records: Records) -> None:
        if records == self._records:
            return
        self._records = records
        peers = records.effective_peers()
        self._by_name = {peer.name: peer for peer in peers}
        self._by_fingerprint = {text: peer for peer in peers for text in peer.fingerprints}
        self._version += 1
        self._changed.set()
        self._changed = trio.Event()

    def _check_fresh(self) -> None:
        """Raise Unavailable if what is in memory is too old to be trusted. Never, here."""

    def _is_expired(self, key: ApiKey) -> bool:
        return key.expires_at is not None and key.expires_at <= self._clock()


class MemoryOwnership:
    """An `OwnershipProvider` that forgets when the process ends, as the resources it is for do."""

    def __init__(self) -> None:
        self._owners: dict[tuple[str, str], str] = {}

    def owns(self, identity_id: str, resource_type: str, resource_id: str) -> bool:
        """Whether the identity spawned the resource and it still lives."""
        return self._owners.get((resource_type, resource_id)) == identity_id

    def owned(self, identity_id: str, resource_type: str) -> Sequence[str]:
        """Return the ids of what the identity owns of a type, oldest first."""
        return [
            resource_id
            for (kind, resource_id), owner in self._owners.items()
            if kind == resource_type and owner == identity_id
        ]

    def record(self, identity_id: str, resource_type: str, resource_id: str) -> None:
        """Say who spawned a resource.

        Raises:
            Conflict: It has another owner; it must be torn down and released first.
        """
        owner = self._owners.setdefault((resource_type, resource_id), identity_id)
        if owner != identity_id:
            raise Conflict(f"{resource_type} {resource_id!r} has another owner")

    def release(self, resource_type: str, resource_id: str) -> None:
        """Say that a resource was torn down. Raises NotFound if nobody owned it."""
        if self._owners.pop((resource_type, resource_id), None) is None:
            raise NotFound(f"{resource_type} {resource_id!r} has no owner")

    def release_all(self, identity_id: str) -> None:
        """End all ownership of an identity: its peer was removed, its name may be given anew."""
        self._owners = {row: owner for row, owner in self._owners.items() if owner != identity_id}


def _bad_token() -> Denied:
    return Denied("token unknown, revoked or expired", is_failed_authentication=True)


_identity: type[IdentityStore] = MemoryIdentityStore
_ownership: type[OwnershipProvider] = MemoryOwnership
